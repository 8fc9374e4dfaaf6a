"""From final latents to pixels and sound."""

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from PIL import Image

from lora_drift.harness.check.divergence import CONDITIONING, CONTROL, DECODER, DECODER_INPUT, NOISE, PICTURE, SOUND
from lora_drift.harness.deviations.library.base import (
    Subject,
    changes,
    configured,
    everywhere,
    families,
    patched,
    rounded,
    variation,
    weights,
    wrapped,
)
from lora_drift.pipelines.output import Media

Frames = list[Image.Image]


def _vae(place: str) -> Callable[[Subject], str]:
    """Where a change of the VAE shows first: it encodes control images before it decodes."""

    def shows(s: Subject) -> str:
        if not s.settings.control:
            return place
        return NOISE if s.spec.id == "wan22_5b" else CONTROL

    return shows


# --------------------------------------------------------------------------------------------------------------- VAE


def _vae_weights(s: Subject, dtype: torch.dtype) -> Iterator[Subject]:
    with weights(s, s.pipe.vae, rounded(dtype)):
        yield s


@variation(
    "output",
    shows=_vae(DECODER),
    source="the trainer decodes in bfloat16 whatever vae_dtype says (BaseSDTrainProcess.py line 1723)",
    applies=lambda s: changes(s, s.pipe.vae, rounded(torch.bfloat16)),
)
def vae_in_bfloat16(s: Subject) -> Iterator[Subject]:
    """The VAE's weights are rounded to bfloat16."""
    yield from _vae_weights(s, torch.bfloat16)


@variation(
    "output",
    shows=_vae(DECODER),
    source="half-precision pipelines; sdxl-vae-fp16-fix exists because of it; ostris/ai-toolkit issue 146",
    applies=lambda s: changes(s, s.pipe.vae, rounded(torch.float16)),
)
def vae_in_float16(s: Subject) -> Iterator[Subject]:
    """The VAE's weights are rounded to float16."""
    yield from _vae_weights(s, torch.float16)


@variation(
    "output",
    shows=DECODER,
    source="trainer ltx2.py lines 667-676 and 0.11: tiled decoding with low_vram; Diffusers enable_vae_tiling",
    applies=lambda s: s.spec.family != "ltx2",
)
def vae_decoding_in_tiles(s: Subject) -> Iterator[Subject]:
    """The picture is decoded in overlapping tiles."""
    vae = s.pipe.vae
    scale = s.settings.height // 8 // 2 * 8
    tiles: dict[str, Any] = {"use_tiling": True}
    if hasattr(vae, "tile_latent_min_size"):
        tiles |= {"tile_sample_min_size": scale, "tile_latent_min_size": scale // 8}
    else:
        side = max(16, scale // 32 * 32)
        tiles |= {f"tile_sample_min_{n}": side for n in ("height", "width")}
        tiles |= {f"tile_sample_stride_{n}": side // 2 for n in ("height", "width")}

    def decode(original: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for name, value in tiles.items():
                stack.enter_context(patched(vae, name, value))
            return original(*args, **kwargs)

    with wrapped(vae, "decode", decode):
        yield s


def _configures(*names: str) -> Callable[[Subject], bool]:
    def applies(s: Subject) -> bool:
        return s.spec.family not in ("flux2", "ltx2") and any(getattr(s.pipe.vae.config, n, None) for n in names)

    return applies


@variation(
    "output",
    shows=_vae(DECODER_INPUT),
    source="raw latents handed from sampler to decoder nodes: Diffusers scales them, ComfyUI's formats do inside",
    applies=_configures("scaling_factor", "latents_std"),
)
def latents_not_unscaled(s: Subject) -> Iterator[Subject]:
    """Latents are decoded without being divided by the VAE's scaling factor."""
    config = s.pipe.vae.config
    if getattr(config, "latents_std", None):
        values: dict[str, Any] = {"latents_std": [1.0] * len(config.latents_std)}
    else:
        values = {"scaling_factor": 1.0}
    with configured(s.pipe.vae, **values):
        yield s


@variation(
    "output",
    shows=_vae(DECODER_INPUT),
    source="decoders written for Stable Diffusion have no shift_factor (FLUX, SD3) and no latents_mean (Wan, Qwen)",
    applies=_configures("shift_factor", "latents_mean"),
)
def latents_not_unshifted(s: Subject) -> Iterator[Subject]:
    """Latents are decoded without the VAE's shift being added."""
    config = s.pipe.vae.config
    if getattr(config, "latents_mean", None):
        values: dict[str, Any] = {"latents_mean": [0.0] * len(config.latents_mean)}
    else:
        values = {"shift_factor": 0.0}
    with configured(s.pipe.vae, **values):
        yield s


# ------------------------------------------------------------------------------------------------------------ pixels


def _finished(s: Subject, change: Callable[[Media], Media]) -> Iterator[Subject]:
    yield s.around_render(lambda render, pipe, settings, call: change(render(pipe, settings, **call)))


def _each(s: Subject, change: Callable[[Image.Image], Image.Image]) -> Iterator[Subject]:
    yield from _finished(s, lambda media: media._replace(frames=[change(frame) for frame in media.frames]))


def _levels(frame: Image.Image, change: Callable[[Any], Any]) -> Image.Image:
    """`change` works on values from 0 to 1."""
    values = change(np.asarray(frame.convert("RGB")) / 255.0)
    return Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))


def _codec(frame: Image.Image, kind: str, quality: int) -> Image.Image:
    data = io.BytesIO()
    frame.convert("RGB").save(data, kind, quality=quality)
    return Image.open(data).convert("RGB")


@variation(
    "output",
    shows=PICTURE,
    source="OpenCV writes BGR: cv2.imwrite of an RGB array",
    applies=everywhere,
)
def red_and_blue_exchanged(s: Subject) -> Iterator[Subject]:
    """The picture is saved in BGR."""
    yield from _each(s, lambda frame: Image.merge("RGB", frame.convert("RGB").split()[::-1]))


@variation(
    "output",
    shows=PICTURE,
    source="colour-managed viewers and EXR/PNG gAMA round trips",
    applies=everywhere,
)
def gamma_applied_twice(s: Subject) -> Iterator[Subject]:
    """The picture is brightened by a gamma that it already has."""
    yield from _each(s, lambda frame: _levels(frame, lambda x: x ** (1 / 2.2)))


@variation(
    "output",
    shows=PICTURE,
    source="decoders that give -1 to 1 read as 0 to 1 (Diffusers do_denormalize off)",
    applies=everywhere,
)
def output_range_not_halved(s: Subject) -> Iterator[Subject]:
    """The decoder's -1 to 1 is taken for 0 to 1."""
    yield from _each(s, lambda frame: _levels(frame, lambda x: 2 * x - 1))


@variation(
    "output",
    shows=PICTURE,
    source="video encoders' limited range (16 to 235) shown as full range",
    applies=everywhere,
)
def limited_range(s: Subject) -> Iterator[Subject]:
    """Black is 16 and white is 235."""
    yield from _each(s, lambda frame: _levels(frame, lambda x: (16 + x * 219) / 255))


def _to_ycbcr(red: float, blue: float) -> np.ndarray[Any, Any]:
    """RGB -> brightness and colour differences, by what red and blue weigh in the brightness."""
    brightness = np.array([red, 1 - red - blue, blue])
    differences = ((np.array([0, 0, 1]) - brightness) / (1 - blue), (np.array([1, 0, 0]) - brightness) / (1 - red))
    return np.stack([brightness, *differences])


BT601, BT709 = _to_ycbcr(0.299, 0.114), _to_ycbcr(0.2126, 0.0722)


@variation(
    "output",
    shows=PICTURE,
    source="ffmpeg converts RGB by BT.601 and writes no tag; players take untagged HD video for BT.709",
    applies=everywhere,
)
def bt601_read_as_bt709(s: Subject) -> Iterator[Subject]:
    """Colours were saved by the matrix of BT.601 and shown by that of BT.709."""
    change = np.linalg.inv(BT709) @ BT601
    yield from _each(s, lambda frame: _levels(frame, lambda x: x @ change.T))


@variation(
    "output",
    shows=PICTURE,
    source="video tagged BT.709, of which OpenCV and others make RGB by BT.601, whatever the tag says",
    applies=everywhere,
)
def bt709_read_as_bt601(s: Subject) -> Iterator[Subject]:
    """Colours were saved by the matrix of BT.709 and shown by that of BT.601."""
    change = np.linalg.inv(BT601) @ BT709
    yield from _each(s, lambda frame: _levels(frame, lambda x: x @ change.T))


@variation(
    "output",
    shows=PICTURE,
    source="(x * 255).astype(uint8) in ComfyUI's and many servers' save nodes; Diffusers rounds",
    applies=everywhere,
)
def levels_truncated(s: Subject) -> Iterator[Subject]:
    """Pixels are truncated to whole levels, not rounded."""
    from diffusers.image_processor import VaeImageProcessor

    def to_pil(pixels: Any) -> Frames:
        batch = pixels if pixels.ndim == 4 else pixels[None]
        return [Image.fromarray((frame * 255).astype(np.uint8).squeeze()) for frame in batch]

    with patched(VaeImageProcessor, "numpy_to_pil", staticmethod(to_pil)):
        yield s


@variation(
    "output",
    shows=PICTURE,
    source="trainer toolkit/config_modules.py save_image: JPEG at Pillow's default of 75",
    applies=everywhere,
)
def saved_as_jpeg(s: Subject) -> Iterator[Subject]:
    """The picture went through JPEG at quality 75."""
    yield from _each(s, lambda frame: _codec(frame, "JPEG", 75))


@variation(
    "output",
    shows=PICTURE,
    source="trainer toolkit/config_modules.py save_image: animated WebP at quality 80",
    applies=everywhere,
)
def saved_as_webp(s: Subject) -> Iterator[Subject]:
    """The picture went through WebP at quality 80."""
    yield from _each(s, lambda frame: _codec(frame, "WEBP", 80))


@variation(
    "output",
    shows=PICTURE,
    source="invisible-watermark on SDXL when the package is installed (runcomfy ai-toolkit-inference requirements)",
    applies=families("sd", "flux", "qwen", "zimage"),
)
def watermark(s: Subject) -> Iterator[Subject]:
    """A faint pattern is added in blocks of 4x4."""

    def mark(frame: Image.Image) -> Image.Image:
        bits = np.random.default_rng(0).integers(0, 2, (frame.height // 4 + 1, frame.width // 4 + 1))
        pattern = np.kron(2 * bits - 1, np.ones((4, 4)))[: frame.height, : frame.width, None] * 2 / 255
        return _levels(frame, lambda x: x + pattern)

    yield from _each(s, mark)


@variation(
    "output",
    shows=PICTURE,
    source="resolution rules that render smaller and scale up (OmniGen2's own; upscalers of interfaces)",
    applies=everywhere,
)
def scaled_down_and_up(s: Subject) -> Iterator[Subject]:
    """The picture was stored at three quarters of its size."""

    def through(frame: Image.Image) -> Image.Image:
        small = frame.resize((frame.width * 3 // 4, frame.height * 3 // 4), Image.Resampling.LANCZOS)
        return small.resize(frame.size, Image.Resampling.LANCZOS)

    yield from _each(s, through)


def _video(s: Subject) -> bool:
    return s.settings.num_frames > 1


@variation(
    "output",
    shows=PICTURE,
    source="frame-rate conversion to a player's 30 frames a second repeats frames",
    applies=_video,
)
def frame_repeated(s: Subject) -> Iterator[Subject]:
    """The second frame is the first once more."""
    yield from _finished(s, lambda media: media._replace(frames=[media.frames[0], media.frames[0], *media.frames[2:]]))


@variation(
    "output",
    shows=PICTURE,
    source="off-by-one of video writers; image-to-video nodes that drop the given first frame",
    applies=_video,
)
def first_frame_dropped(s: Subject) -> Iterator[Subject]:
    """The first frame is left out of the video."""
    yield from _finished(s, lambda media: media._replace(frames=media.frames[1:]))


# ------------------------------------------------------------------------------------------------------------- sound


def _sound(s: Subject) -> bool:
    return s.spec.family == "ltx2" and _video(s)


@variation(
    "output",
    shows=CONDITIONING,
    source="runcomfy ai-toolkit-inference ltx2.py line 446: frame_rate=fps; the trainer leaves it at 24",
    applies=lambda s: _sound(s) and s.settings.fps != 24,
)
def fps_told_to_the_model(s: Subject) -> Iterator[Subject]:
    """LTX-2 renders for the frame rate that was asked."""
    yield s.with_call(frame_rate=float(s.settings.fps))


@variation(
    "output",
    shows=SOUND,
    source="writers that keep one channel (ffmpeg -ac 1, Diffusers encode_video with a mono tensor)",
    applies=_sound,
)
def sound_in_one_channel(s: Subject) -> Iterator[Subject]:
    """The sound's channels are mixed into one."""

    def mixed(media: Media) -> Media:
        audio = np.asarray(media.audio)
        return media._replace(audio=np.broadcast_to(audio.mean(axis=0), audio.shape))

    yield from _finished(s, mixed)


@variation(
    "output",
    shows=SOUND,
    source="16-bit WAV and AAC tracks in place of the vocoder's floats",
    applies=_sound,
)
def sound_in_16_bits(s: Subject) -> Iterator[Subject]:
    """The sound is rounded to 16 bits."""
    yield from _finished(s, lambda media: media._replace(audio=np.round(np.asarray(media.audio) * 32767) / 32767))
