"""Qwen-Image and its editing models. Follows extensions_built_in/diffusion_models/qwen_image of the trainer."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import images, loading
from lora_drift.pipelines.family import nothing_to_refuse, same_name
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import (
    LAYER_BY_LAYER,
    STEPS,
    TOKENIZERS,
    Earlier,
    Filter,
    ModelSpec,
    Quantizes,
    Scheduler,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Qwen(ModelSpec):
    norms_in_float32: bool
    """Do the norms of the autoencoder go through float32 in half precision?"""


@dataclass(frozen=True, kw_only=True)
class Seen(Qwen):
    """What the text encoder of an editing model sees of control images (`get_prompt_embeds`)."""

    seen_area: int
    """Pixels of each; CONDITION_IMAGE_SIZE in Diffusers' plus pipeline."""
    seen_divisor: int
    """To multiples of which sides are rounded."""
    seen_sides_swapped: bool
    """Is height / width taken for the ratio of width to height?"""
    seen_in_place: bool
    """Have the tokens of a picture rows and columns? Else they are numbered like words."""
    seen_filter: Filter
    seen_white: float
    """The value of white that the processor gets, which divides by 255."""


@dataclass(frozen=True, kw_only=True)
class QwenEdit(Seen):
    control_filter: Filter
    """By which the VAE's control image is brought to the size of the picture; the pipeline stretches it back."""


@dataclass(frozen=True, kw_only=True)
class QwenEditPlus(Seen):
    seen_again_by_negative: bool
    """Does the negative prompt see control images that were resized once more? The trainer's list is resized in place
    for the positive prompt."""


QWEN_SCHEDULER = Scheduler(
    "diffusers.FlowMatchEulerDiscreteScheduler",
    {
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 8192,
        "max_shift": 0.9,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": 0.02,
        "time_shift_type": "exponential",
        "use_dynamic_shifting": True,
    },
)

SHARED: dict[str, Any] = {
    "family": "qwen",
    "denoisers": {"": "transformer"},
    "quantizes": Quantizes(encoder_qtype="qtype_te"),
    "slow_tokenizers": ("tokenizer",),
    "lora_prefixes": ("diffusion_model.", "transformer."),
    "scheduler": QWEN_SCHEDULER,
    "size_divisor": 32,
    "width": 1024,
    "height": 1024,
    "steps": 30,
    "guidance_scale": 4.0,
    "guidance": "cfg",
    "fewest_steps": 2,  # the terminal shift of a single step is 0 / 0
    "norms_in_float32": True,
}
EARLIER = (LAYER_BY_LAYER, TOKENIZERS, STEPS, loading.NORMS)
EDIT_EARLIER = (
    *EARLIER,
    Earlier(
        before="0.9.1",
        why="To the text encoder, a picture's tokens had rows and columns. Since then (transformers 5) Diffusers does "
        "not tell it which tokens are a picture's, and it numbers them like words.",
        fields={"seen_in_place": True},
    ),
    Earlier(
        before="0.7.33",
        why="The text encoder saw control images with width and height swapped: their ratio was taken the wrong way "
        "round.",
        fields={"seen_sides_swapped": True},
    ),
)
SEEN: dict[str, Any] = {
    "seen_divisor": 32,
    "seen_sides_swapped": False,
    "seen_in_place": False,
    "seen_filter": "bilinear",
    "seen_white": 1.0,
    "as_intended": {"seen_sides_swapped": False, "seen_in_place": True, "seen_white": 255.0},
}
FOLDER = "extensions_built_in/diffusion_models/qwen_image"

QUIRKS = (
    "The size is floored to 32, although the model could do 16.",
    "An empty negative prompt is encoded and used like any other.",
)
EDIT_QUIRKS = (
    *QUIRKS,
    "The text encoder numbers a picture's tokens like words, without rows and columns, since 0.9.1: Diffusers does not "
    "tell transformers 5 which tokens are a picture's (Diffusers #14194), in its own pipelines neither. With rows and "
    "columns the miniature's pictures are up to 56 of 255 away, 3.3 on average.",
    "The text encoder sees nearly black control images: their values are divided by 255 twice. Stock Diffusers and "
    "ComfyUI divide once. `--as-intended` mends this and the last; no sample looks like that.",
)
PLUS_QUIRKS = (
    *EDIT_QUIRKS,
    "The negative prompt sees control images resized twice: the list that the positive prompt's encoding has resized "
    "in place is resized again, to much the same size.",
    "The guided prediction keeps its own length unless `do_cfg_norm` is set; stock Diffusers always rescales it.",
    "A picture given as `ctrl_img` is seen twice by the text encoder (ctrl_img_1 defaults to it), once by the model; "
    "with another picture as `ctrl_img_1`, the text encoder sees both, the model `ctrl_img` only.",
)


def _image(id: str, title: str, base: str) -> Qwen:
    return Qwen(
        id=id,
        title=title,
        kind="image",
        pipeline="QwenImagePipeline",
        base=base,
        max_sequence_length=512,
        refuses_control=True,
        quirks=QUIRKS,
        source=(f"{FOLDER}/qwen_image.py",),
        earlier=EARLIER,
        **SHARED,
    )


def _plus(id: str, title: str, base: str) -> QwenEditPlus:
    return QwenEditPlus(
        id=id,
        title=title,
        kind="edit",
        pipeline="QwenImageEditPlusPipeline",
        base=base,
        max_sequence_length=None,
        controls=(1, 3),
        seen_area=384 * 384,
        seen_again_by_negative=True,
        **SEEN,
        quirks=PLUS_QUIRKS,
        source=tuple(f"{FOLDER}/{name}.py" for name in ("qwen_image", "qwen_image_edit_plus", "qwen_image_pipelines")),
        earlier=EDIT_EARLIER,
        **SHARED,
    )


ROWS: tuple[Qwen, ...] = (
    _image("qwen_image", "Qwen-Image", "Qwen/Qwen-Image"),
    _image("qwen_image_2512", "Qwen-Image-2512", "Qwen/Qwen-Image-2512"),
    QwenEdit(
        id="qwen_image_edit",
        title="Qwen-Image-Edit",
        kind="edit",
        pipeline="QwenImageEditPipeline",
        base="Qwen/Qwen-Image-Edit",
        max_sequence_length=None,
        controls=(1, 1),
        seen_area=1024 * 1024,
        control_filter="bilinear",
        **SEEN,
        quirks=(
            *EDIT_QUIRKS,
            "The VAE sees the control image squeezed to the picture's size and stretched back to about a megapixel; "
            "the text encoder sees the original.",
        ),
        source=(f"{FOLDER}/qwen_image.py", f"{FOLDER}/qwen_image_edit.py"),
        earlier=EDIT_EARLIER,
        **SHARED,
    ),
    _plus("qwen_image_edit_plus", "Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2509"),
    _plus("qwen_image_edit_plus_2511", "Qwen-Image-Edit-2511", "Qwen/Qwen-Image-Edit-2511"),
)


def load(spec: Qwen, base: str, dtype: Any) -> Any:
    pipe = loading.pipeline(spec, base, dtype)
    loading.normalize(pipe.vae, in_float32=spec.norms_in_float32)
    if isinstance(spec, Seen):
        _place_image_tokens(pipe.text_encoder)
        pipe.text_encoder.pictures_in_place = spec.seen_in_place
    _rotate_in_model_dtype(pipe.text_encoder)
    return pipe


check = nothing_to_refuse


def render(pipe: Any, spec: Qwen, settings: Settings, **call: Any) -> Media:
    call |= {
        "width": settings.width,
        "height": settings.height,
        "num_inference_steps": settings.steps,
        "true_cfg_scale": spec.pipeline_scale(settings.guidance_scale),
    }
    if isinstance(spec, QwenEdit):
        output = _edit(pipe, spec, settings, call)
    elif isinstance(spec, QwenEditPlus):
        output = _edit_plus(pipe, spec, settings, call)
    else:
        call["max_sequence_length"] = spec.max_sequence_length
        output = pipe(prompt=settings.prompt, negative_prompt=settings.negative_prompt, **call)
    return Media(list(output.images))


def _edit(pipe: Any, spec: QwenEdit, settings: Settings, call: dict[str, Any]) -> Any:
    """qwen_image_edit.py: the text encoder sees the control image as it is, the VAE squeezed to the picture's size."""
    control = images.rgb(settings.control[0])
    seen = _seen(spec, _tensor(spec, control, pipe))
    call |= _embeds(pipe, spec, "prompt", settings.prompt, seen)
    call |= _embeds(pipe, spec, "negative_prompt", settings.negative_prompt, seen)
    size = (settings.width, settings.height)
    return pipe(image=images.resized(control, size, spec.control_filter), **call)


def _edit_plus(pipe: Any, spec: QwenEditPlus, settings: Settings, call: dict[str, Any]) -> Any:
    """qwen_image_edit_plus.py: up to three control images, each in its own size."""
    controls = [images.rgb(path) for path in settings.control]
    shown = [images.rgb(path) for path in settings.shown] or controls
    first = [_seen(spec, _tensor(spec, image, pipe)) for image in shown]
    second = [_seen(spec, image) for image in first] if spec.seen_again_by_negative else first
    positive = _embeds(pipe, spec, "prompt", settings.prompt, first)
    negative = _embeds(pipe, spec, "negative_prompt", settings.negative_prompt, second)
    if settings.do_cfg_norm or not spec.guides(settings.guidance_scale):
        return pipe(image=controls, **call, **positive, **negative)
    transformer = pipe.transformer
    pipe.transformer = _Guided(transformer, negative["negative_prompt_embeds"], settings.guidance_scale)
    try:
        return pipe(image=controls, **{**call, "true_cfg_scale": 1.0}, **positive)
    finally:
        pipe.transformer = transformer


class _Guided:
    """A transformer that guides itself, for a pipeline that is told not to guide.

    Stock Diffusers rescales every guided prediction to the length of the positive one; qwen_image_pipelines.py of the
    trainer does so only with `do_cfg_norm`.
    """

    def __init__(self, transformer: Any, negative: torch.Tensor, scale: float) -> None:
        self._transformer, self._negative, self._scale = transformer, negative, scale

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def __call__(self, **inputs: Any) -> tuple[torch.Tensor]:
        positive = self._transformer(**inputs)[0]
        negative = self._transformer(**{**inputs, "encoder_hidden_states": self._negative})[0]
        return (negative + self._scale * (positive - negative),)


def _tensor(spec: Seen, image: Any, pipe: Any) -> torch.Tensor:
    """A picture as [1, 3, height, width] from 0 to `seen_white`, in the model's dtype."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 * spec.seen_white
    return pixels.to(pipe._execution_device, pipe.transformer.dtype)


def _seen(spec: Seen, image: torch.Tensor) -> torch.Tensor:
    """Resized to about `seen_area` pixels (`get_prompt_embeds` in qwen_image_edit.py and qwen_image_edit_plus.py)."""
    from torch.nn import functional

    rows, columns = image.shape[2:]
    ratio = rows / columns if spec.seen_sides_swapped else columns / rows
    width, step = math.sqrt(spec.seen_area * ratio), spec.seen_divisor
    size = (round(width / ratio / step) * step, round(width / step) * step)
    return functional.interpolate(image, size=size, mode=spec.seen_filter)


def _embeds(pipe: Any, spec: Seen, name: str, prompt: str, seen: Any) -> dict[str, torch.Tensor]:
    """`<name>_embeds` and their mask, from a prompt and what the text encoder sees."""
    import torch

    embeds, mask = pipe.encode_prompt(prompt, image=seen, device=pipe._execution_device)
    if mask is None:  # all tokens are valid
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
    embeds, mask = embeds[:, : spec.max_sequence_length], mask[:, : spec.max_sequence_length]
    return {f"{name}_embeds": embeds.to(pipe.transformer.dtype), f"{name}_embeds_mask": mask}


def _rotate_in_model_dtype(encoder: Any) -> None:
    """Angles of the vision tower's rotations in the dtype of the model, as the trainer's transformers (4.57) has them;
    5 goes through float32."""
    rotations = encoder.model.visual.rotary_pos_emb
    if not hasattr(rotations, "recomposition_frequencies"):  # 4.57 itself
        return

    def forward(_x: Any, position_ids: Any) -> tuple[Any, Any]:
        """`position_ids`: [2, patches], rows and columns."""
        angles = position_ids[..., None].to(rotations.inv_freq.dtype) * rotations.inv_freq
        turned = rotations.recomposition_frequencies(angles)
        return turned.cos(), turned.sin()

    rotations.forward = forward


def _place_image_tokens(text_encoder: Any) -> None:
    """Tell transformers 5 which tokens are pictures where `text_encoder.pictures_in_place` is set; without, it numbers
    them like words. Diffusers (to 0.42 at least) does not pass it on; 4.57 finds them by itself."""
    if "mm_token_type_ids" not in inspect.signature(text_encoder.forward).parameters:
        return

    def mark(module: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        inputs.pop("mm_token_type_ids", None)
        if module.pictures_in_place:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == module.config.image_token_id).int()
        return args, inputs

    text_encoder.register_forward_pre_hook(mark, with_kwargs=True)


# ----------------------------------------------------------------------------------------------------------------- LoRA

denoiser_shapes = loading.denoiser_shapes
lora_targets = same_name
