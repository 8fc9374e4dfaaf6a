"""Qwen-Image and its editing models. Follows extensions_built_in/diffusion_models/qwen_image of the trainer."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import images, loading
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    import torch

EDIT_AREA = 1024 * 1024
"""Pixels of the control image that the text encoder of Qwen-Image-Edit sees."""
PLUS_AREA = 384 * 384
"""The same for each control image of the plus models (CONDITION_IMAGE_SIZE in Diffusers)."""


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    pipe = loading.pipeline(spec, base, dtype)
    _mark_image_tokens(pipe.text_encoder)
    _round_angles(pipe.text_encoder)
    return pipe


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    call |= {
        "width": settings.width,
        "height": settings.height,
        "num_inference_steps": settings.steps,
        "true_cfg_scale": settings.guidance_scale,
    }
    kind = type(pipe).__name__
    if kind == "QwenImagePipeline":
        output = pipe(prompt=settings.prompt, negative_prompt=settings.negative_prompt, **call)
    elif kind == "QwenImageEditPipeline":
        output = _edit(pipe, settings, call)
    else:
        output = _edit_plus(pipe, settings, call)
    return Media(list(output.images))


def _edit(pipe: Any, settings: Settings, call: dict[str, Any]) -> Any:
    """qwen_image_edit.py: the text encoder sees the control image as it is, the VAE squeezed to the picture's size."""
    from PIL import Image

    control = images.rgb(settings.control[0])
    seen = _sides_swapped(_tensor(control, pipe), EDIT_AREA)
    call |= _embeds(pipe, "prompt", settings.prompt, seen)
    call |= _embeds(pipe, "negative_prompt", settings.negative_prompt, seen)
    return pipe(image=control.resize((settings.width, settings.height), Image.Resampling.BILINEAR), **call)


def _edit_plus(pipe: Any, settings: Settings, call: dict[str, Any]) -> Any:
    """qwen_image_edit_plus.py: up to three control images, each in its own size."""
    controls = [images.rgb(path) for path in settings.control]
    # The trainer reads both `ctrl_img` and `ctrl_img_1`, which defaults to it (toolkit/models/base_model.py).
    twice = controls[:1] if settings.ctrl_img else []
    first = [_sides_swapped(_tensor(image, pipe), PLUS_AREA) for image in (*twice, *controls)]
    # Its list is resized in place for the positive prompt, and again for the negative one.
    second = [_sides_swapped(image, PLUS_AREA) for image in first]
    positive = _embeds(pipe, "prompt", settings.prompt, first)
    negative = _embeds(pipe, "negative_prompt", settings.negative_prompt, second)
    if settings.do_cfg_norm or settings.guidance_scale <= 1:
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


def _tensor(image: Any, pipe: Any) -> torch.Tensor:
    """A picture as [1, 3, height, width] from 0 to 1, in the model's dtype."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    return pixels.to(pipe._execution_device, pipe.transformer.dtype)


def _sides_swapped(image: torch.Tensor, area: int) -> torch.Tensor:
    """Resized to about `area` pixels, in multiples of 32, with height / width taken for the ratio of width to height
    (`get_prompt_embeds` in qwen_image_edit.py and qwen_image_edit_plus.py)."""
    from torch.nn import functional

    ratio = image.shape[2] / image.shape[3]
    width = math.sqrt(area * ratio)
    size = (round(width / ratio / 32) * 32, round(width / 32) * 32)
    return functional.interpolate(image, size=size, mode="bilinear")


def _embeds(pipe: Any, name: str, prompt: str, seen: Any) -> dict[str, torch.Tensor]:
    """`<name>_embeds` and their mask, from a prompt and what the text encoder sees: tensor(s) from 0 to 1, which the
    processor divides by 255 once more, as it does in the trainer."""
    import torch

    embeds, mask = pipe.encode_prompt(prompt, image=seen, device=pipe._execution_device)
    if mask is None:  # all tokens are valid
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
    return {f"{name}_embeds": embeds.to(pipe.transformer.dtype), f"{name}_embeds_mask": mask}


def _round_angles(encoder: Any) -> None:
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


def _mark_image_tokens(text_encoder: Any) -> None:
    """Tell transformers 5 which tokens are pictures; it needs that for their positions, and Diffusers (to 0.42 at
    least) does not pass it on. Older releases find them by themselves."""
    if "mm_token_type_ids" not in inspect.signature(text_encoder.forward).parameters:
        return

    def mark(module: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        inputs.setdefault("mm_token_type_ids", (inputs["input_ids"] == module.config.image_token_id).int())
        return args, inputs

    text_encoder.register_forward_pre_hook(mark, with_kwargs=True)
