"""Control images as a model sees them in a sample, with Pillow: ComfyUI's own resizing has no antialiasing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_drift.pipelines import images
from lora_drift.pipelines.families.flux import Kontext
from lora_drift.pipelines.families.wan import WanFirstFrame
from lora_drift.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from PIL import Image

CLIP_SIDE = 224


def resized(spec: ModelSpec, image: Image.Image, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """What the autoencoder gets, and what CLIP does, if the model has one (else the same).

    Args:
        width, height: that was asked for, before the model's own rule.

    Raises:
        ValueError: the model sees no control image, or not like this.
    """
    if not isinstance(spec, Kontext | WanFirstFrame):
        raise ValueError(f"{spec.id}: its control images are not resized here")
    own = (width - width % spec.size_divisor, height - height % spec.size_divisor)
    if isinstance(spec, Kontext):  # resized to what was asked, and by its pipeline again
        once = images.resized(image, (width, height), spec.control_filter)
        found = once if once.size == own else images.resized(once, own, "lanczos")
        return found, found
    found = images.resized(image, own, spec.control_filter)
    return found, _for_clip(found)


def _for_clip(image: Image.Image) -> Image.Image:
    """The shorter side 224 pixels (bicubic), then the middle: transformers' CLIPImageProcessor, by Pillow."""
    shorter = min(image.size)
    # As it has it: the longer side is rounded down.
    size = tuple(CLIP_SIDE if side == shorter else int(CLIP_SIDE * side / shorter) for side in image.size)
    resized = images.resized(image, (size[0], size[1]), "bicubic")
    left, top = ((side - CLIP_SIDE) // 2 for side in resized.size)
    return resized.crop((left, top, left + CLIP_SIDE, top + CLIP_SIDE))
