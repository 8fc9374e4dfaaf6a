"""Control images: how they are opened, resized, encoded, and in which order."""

import inspect
import io
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from lora_drift.harness.check.divergence import CONTROL, NEGATIVE, NOISE, POSITIVE
from lora_drift.harness.deviations.library.base import Subject, called_with, patched, variation, wrapped
from lora_drift.pipelines import images

EDIT = ("qwen_image_edit", "qwen_image_edit_plus", "qwen_image_edit_plus_2511")
Picture = Image.Image


def _has(s: Subject) -> bool:
    return bool(s.settings.control)


def _encoded(s: Subject) -> str:
    """Where another picture for the VAE alone shows first. Wan 2.2 5B's first frame is part of what the loop starts
    from."""
    return NOISE if s.spec.id == "wan22_5b" else CONTROL


def _opened(s: Subject) -> str:
    """Where another picture shows first: the text encoders of editing models see it."""
    return POSITIVE if _sees(s) or s.spec.family == "krea2" else _encoded(s)


def _opening(change: Callable[[Picture], Picture]) -> AbstractContextManager[None]:
    """Every control image goes through `change` as it is opened."""
    rgb = images.rgb
    return patched(images, "rgb", lambda path: change(rgb(path)))


def _sizes(s: Subject) -> list[tuple[int, int]]:
    sizes = []
    for path in s.settings.control:
        with Image.open(path) as image:
            sizes.append(image.size)
    return sizes


def _resized(s: Subject) -> bool:
    """Does a family resize what it opens with Pillow?"""
    to = (s.settings.width, s.settings.height)
    return _has(s) and s.spec.family != "flux2" and s.spec.controls[1] == 1 and _sizes(s)[0] != to


def _other_shape(s: Subject) -> bool:
    return any(w * s.settings.height != h * s.settings.width for w, h in _sizes(s))


def _filtered(other: Callable[[int], int]) -> AbstractContextManager[None]:
    resize = Image.Image.resize

    def call(self: Picture, size: Any, resample: Any = None, *args: Any, **kwargs: Any) -> Picture:
        chosen = Image.Resampling.BICUBIC if resample is None else resample
        return resize(self, size, other(chosen), *args, **kwargs)

    return patched(Image.Image, "resize", call)


@variation(
    "control",
    shows=_encoded,
    source="ComfyUI's image nodes default to nearest-exact; Diffusers' VaeImageProcessor takes any filter",
    applies=_resized,
)
def resized_to_the_nearest_pixel(s: Subject) -> Iterator[Subject]:
    """The control image is resized without a filter."""
    with _filtered(lambda _filter: Image.Resampling.NEAREST):
        yield s


@variation(
    "control",
    shows=_encoded,
    source="runcomfy ai-toolkit-inference qwen_image.py line 611: LANCZOS in place of the trainer's BILINEAR",
    applies=_resized,
)
def resized_with_another_filter(s: Subject) -> Iterator[Subject]:
    """The control image is resized with Lanczos in place of bilinear, or with bicubic in place of Lanczos."""
    lanczos, bicubic = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC
    with _filtered(lambda chosen: bicubic if chosen == lanczos else lanczos):
        yield s


def _boxed(s: Subject, picture: Picture, inside: bool) -> Picture:
    """Cropped (`inside`) or padded with black, about the centre, to the proportions of what is rendered."""
    ratio = s.settings.width / s.settings.height
    wider = picture.width / picture.height > ratio
    if wider == inside:
        width, height = round(picture.height * ratio), picture.height
    else:
        width, height = picture.width, round(picture.width / ratio)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


@variation(
    "control",
    shows=_opened,
    source="ComfyUI's ImageScale with crop 'center'; image-to-video examples crop; the trainer stretches",
    applies=lambda s: _has(s) and s.spec.family != "flux2" and _other_shape(s),
)
def cropped_instead_of_stretched(s: Subject) -> Iterator[Subject]:
    """The control image is cropped to the proportions of the picture."""
    with _opening(lambda picture: _boxed(s, picture, inside=True)):
        yield s


@variation(
    "control",
    shows=_opened,
    source="servers that fit uploads into a canvas (Diffusers resize_mode 'fill', A1111's 'resize and fill')",
    applies=lambda s: _has(s) and s.spec.family != "flux2" and _other_shape(s),
)
def padded_instead_of_stretched(s: Subject) -> Iterator[Subject]:
    """The control image is padded with black to the proportions of the picture."""
    with _opening(lambda picture: _boxed(s, picture, inside=False)):
        yield s


@variation(
    "control",
    shows=_opened,
    source="OpenCV reads BGR; nodes and servers that decode uploads with cv2.imdecode",
    applies=_has,
)
def control_image_in_bgr(s: Subject) -> Iterator[Subject]:
    """Red and blue of the control image are exchanged."""
    with _opening(lambda picture: Image.merge("RGB", picture.split()[::-1])):
        yield s


@variation(
    "control",
    shows=_opened,
    source="servers that store uploads as JPEG (runcomfy ai-toolkit-inference does so with its own pictures)",
    applies=_has,
)
def control_image_as_jpeg(s: Subject) -> Iterator[Subject]:
    """The control image went through JPEG at quality 85."""

    def through(picture: Picture) -> Picture:
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85)
        return Image.open(data).convert("RGB")

    with _opening(through):
        yield s


def _alpha(s: Subject) -> bool:
    for path in s.settings.control:
        with Image.open(path) as image:
            if image.mode == "RGBA" and np.asarray(image)[..., 3].min() < 255:
                return True
    return False


@variation(
    "control",
    shows=_opened,
    source="browsers and ComfyUI's LoadImage blend transparency with a background; the trainer drops the channel",
    applies=_alpha,
)
def transparency_blended_with_white(s: Subject) -> Iterator[Subject]:
    """Transparent parts of the control image become white."""

    def opened(path: str) -> Picture:
        with Image.open(path) as image:
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")

    with patched(images, "rgb", opened):
        yield s


ORIENTATION = 0x112
"""The EXIF tag that says how a picture is to be turned."""


def _turned(s: Subject) -> bool:
    for path in s.settings.control:
        with Image.open(path) as image:
            if image.getexif().get(ORIENTATION, 1) != 1:
                return True
    return False


@variation(
    "control",
    shows=_opened,
    source="ComfyUI's LoadImage, Diffusers' load_image and browsers turn photos as EXIF says; the trainer does not",
    applies=_turned,
)
def control_image_turned_upright(s: Subject) -> Iterator[Subject]:
    """The control image is turned as its camera noted in EXIF."""

    def opened(path: str) -> Picture:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")

    with patched(images, "rgb", opened):
        yield s


@variation(
    "control",
    shows=CONTROL,
    source="inpainting masks: white means 'paint here' in Diffusers and ComfyUI, alpha 0 means it in the trainer",
    applies=lambda s: _has(s) and s.spec.id == "flex2" and ".inpaint." in s.settings.control[0],
)
def inpainting_mask_inverted(s: Subject) -> Iterator[Subject]:
    """What should be painted is kept, and the other way round."""
    from lora_drift.pipelines.families import flux

    alpha = flux.inpaint_alpha
    with patched(flux, "inpaint_alpha", lambda path: 1 - alpha(path)):
        yield s


@variation(
    "control",
    shows=_opened,
    source="runcomfy ai-toolkit-inference request.py lines 66-80; clients that send a map of control images unordered",
    applies=lambda s: len(s.settings.control) > 1,
)
def control_images_in_another_order(s: Subject) -> Iterator[Subject]:
    """Several control images arrive the last one first."""
    yield s.but(control=s.settings.control[::-1], shown=())


@variation(
    "control",
    shows=_opened,
    source="runcomfy ai-toolkit-inference request.py: ctrl_img is dropped beside ctrl_img_2; nodes with one input",
    applies=lambda s: len(s.settings.control) > 1,
)
def first_control_image_only(s: Subject) -> Iterator[Subject]:
    """Of several control images the first is used."""
    yield s.but(control=s.settings.control[:1], shown=())


@variation(
    "control",
    shows=POSITIVE,
    source="trainer toolkit/models/base_model.py: ctrl_img is also ctrl_img_1, so the text encoder sees it twice",
    applies=lambda s: bool(s.settings.shown) and s.spec.family in ("qwen", "krea2"),
)
def ctrl_img_seen_once(s: Subject) -> Iterator[Subject]:
    """A picture given as ctrl_img is seen once."""
    yield s.but(shown=())


@variation(
    "control",
    # Where the control image's posterior is drawn before the noise, the noise becomes another without it.
    shows=lambda s: NOISE if s.spec.id == "flex2" else _opened(s),
    source="runcomfy ai-toolkit-inference flex2.py lines 63-77, flux2_diffusers.py line 56: control images ignored",
    applies=lambda s: _has(s) and s.spec.controls[0] == 0,
)
def control_image_ignored(s: Subject) -> Iterator[Subject]:
    """The picture is made from the words alone."""
    yield s.but(control=(), shown=(), ctrl_idx=0)


@variation(
    "control",
    shows=_encoded,
    source="Diffusers do_normalize: VAEs expect -1 to 1, vision encoders and to_tensor give 0 to 1",
    applies=_has,
)
def control_image_from_zero_to_one(s: Subject) -> Iterator[Subject]:
    """The VAE gets the control image from 0 to 1."""

    def encode(original: Any, pixels: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return original((pixels + 1) / 2, *args, **kwargs)

    with wrapped(s.pipe.vae, "encode", encode):
        yield s


@variation(
    "control",
    shows=CONTROL,
    source="Diffusers 0.42 LTX2ImageToVideoPipeline image_crf 33 by default; the trainer's pinned one has no such step",
    applies=lambda s: _has(s) and s.spec.family == "ltx2",
)
def control_image_through_h264(s: Subject) -> Iterator[Subject]:
    """The first frame is compressed as a frame of video before it is encoded."""
    from lora_drift.pipelines.families import ltx2

    conditioned = ltx2._image_to_video

    def call(pipe: Any, spec: Any, settings: Any) -> Any:
        runner, arguments = conditioned(pipe, spec, settings)
        return runner, {**arguments, "image": _h264(arguments["image"])}

    with patched(ltx2, "_image_to_video", call):
        yield s


def _h264(picture: Picture) -> Picture:
    import imageio_ffmpeg

    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{picture.width}x{picture.height}"]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1"]
    into = [*ffmpeg, *raw, "-i", "-", "-c:v", "libx264", "-crf", "33", "-pix_fmt", "yuv420p", "-f", "h264", "-"]
    stream = subprocess.run(into, input=picture.tobytes(), capture_output=True, check=True).stdout
    out = [*ffmpeg, "-f", "h264", "-i", "-", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = subprocess.run(out, input=stream, capture_output=True, check=True).stdout
    return Image.frombytes("RGB", picture.size, pixels)


@variation(
    "control",
    shows=CONTROL,
    source="stock FluxKontextPipeline's _auto_resize picks one of Kontext's resolutions; the trainer turns it off",
    applies=lambda s: s.spec.id == "flux_kontext",
)
def control_image_at_a_preferred_size(s: Subject) -> Iterator[Subject]:
    """The control image is resized to a resolution that Kontext was trained on."""
    from diffusers.pipelines.flux import pipeline_flux_kontext

    # A sixteenth of their pixels, so that trying it takes no minutes.
    small = [(w // 4, h // 4) for w, h in pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS]
    with (
        patched(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", small),
        called_with(type(s.pipe), _auto_resize=True),
    ):
        yield s


@variation(
    "control",
    shows=CONTROL,
    source="ComfyUI's FLUX.2 and other workflows scale references to the picture's size; the trainer crops them to 16",
    applies=lambda s: (
        _has(s) and s.spec.family == "flux2" and any(z != (s.settings.width, s.settings.height) for z in _sizes(s))
    ),
)
def references_at_the_size_of_the_picture(s: Subject) -> Iterator[Subject]:
    """Reference pictures are stretched to the size of the picture."""
    with _opening(lambda picture: picture.resize((s.settings.width, s.settings.height), Image.Resampling.LANCZOS)):
        yield s


@variation(
    "control",
    shows=CONTROL,
    source="Diffusers VAE_IMAGE_SIZE (a megapixel); ComfyUI's Qwen edit nodes encode references at other sizes",
    applies=lambda s: s.spec.family == "qwen" and s.spec.controls[1] > 1,
)
def references_at_another_area(s: Subject) -> Iterator[Subject]:
    """The VAE sees reference pictures at a quarter of the pixels."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus

    with patched(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 512 * 512):
        yield s


@variation(
    "control",
    shows=CONTROL,
    source="ComfyUI's CLIPVisionEncode crops the original; the trainer gives CLIP the picture stretched to the video",
    applies=lambda s: s.spec.id.startswith("wan21_i2v") and _other_shape(s),
)
def clip_sees_the_original(s: Subject) -> Iterator[Subject]:
    """CLIP sees the control image before it is stretched."""

    def encode(original: Any, _image: Any, *args: Any, **kwargs: Any) -> Any:
        return original(images.rgb(s.settings.control[0]), *args, **kwargs)

    with wrapped(s.pipe, "encode_image", encode):
        yield s


# ------------------------------------------------------------------------------- pictures that the text encoder sees


def _sees(s: Subject) -> bool:
    return s.spec.id in EDIT


@variation(
    "control",
    shows=POSITIVE,
    source="trainer 0.7.33 mended the swap of height and width; stock Diffusers and ComfyUI keep proportions",
    applies=lambda s: _sees(s) and s.spec.own["seen_sides_swapped"],
)
def picture_seen_in_its_proportions(s: Subject) -> Iterator[Subject]:
    """The text encoder sees control images with width and height as they are."""
    yield s.with_spec(seen_sides_swapped=False)


@variation(
    "control",
    shows=POSITIVE,
    source="trainers before 0.7.33 take the ratio of a control image the wrong way round",
    applies=lambda s: _sees(s) and not s.spec.own["seen_sides_swapped"],
)
def picture_seen_with_its_sides_swapped(s: Subject) -> Iterator[Subject]:
    """The text encoder sees control images with width and height swapped."""
    yield s.with_spec(seen_sides_swapped=True)


@variation(
    "control",
    shows=POSITIVE,
    source="transformers 4.57 (trainers before 0.9.1) gives pictures' tokens rows and columns; since: Diffusers #14194",
    applies=lambda s: _sees(s) and not s.spec.own["seen_in_place"],
)
def picture_tokens_in_rows_and_columns(s: Subject) -> Iterator[Subject]:
    """The text encoder knows which tokens are a picture's, and where in it."""
    with patched(s.pipe.text_encoder, "pictures_in_place", True):
        yield s


@variation(
    "control",
    shows=POSITIVE,
    source="stock Diffusers hands over pictures of 0 to 255; the trainer tensors of 0 to 1, which are divided again",
    applies=_sees,
)
def picture_divided_by_255_once(s: Subject) -> Iterator[Subject]:
    """The text encoder sees control images as bright as they are."""
    yield s.with_spec(seen_white=255.0)


@variation(
    "control",
    shows=NEGATIVE,
    source="runcomfy ai-toolkit-inference qwen_image.py lines 722-727: the negative prompt sees what the positive does",
    applies=lambda s: _sees(s) and s.spec.controls[1] > 1 and s.guided,
)
def negative_prompt_sees_the_same_picture(s: Subject) -> Iterator[Subject]:
    """The negative prompt's pictures are resized once."""
    yield s.with_spec(seen_again_by_negative=False)


@variation(
    "control",
    shows=POSITIVE,
    source="transformers 5 with Diffusers to 0.42: picture tokens are not marked, so they get the positions of words",
    applies=lambda s: (
        _sees(s)
        and s.spec.own["seen_in_place"]
        and "mm_token_type_ids" in inspect.signature(s.pipe.text_encoder.forward).parameters
    ),
)
def picture_tokens_not_marked(s: Subject) -> Iterator[Subject]:
    """The text encoder counts picture tokens like words."""
    with patched(s.pipe.text_encoder, "pictures_in_place", False):
        yield s
