"""Z-Image. Follows extensions_built_in/diffusion_models/z_image/z_image.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import GUIDED_ABOVE, ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    pipe = _load(spec, base, dtype)
    pipe.guided_above = GUIDED_ABOVE[spec.guidance]
    return pipe


def _load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    home = spec.components.get("text_encoder", base)
    if home == base or (Path(base) / "text_encoder").is_dir():
        return loading.pipeline(spec, base, dtype)
    # De-Turbo: `base` holds a transformer and nothing else, not even the list of a pipeline's parts.
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel.from_pretrained(base, subfolder="transformer", torch_dtype=dtype)
    return loading.pipeline(replace(spec, components={}), home, dtype, transformer=transformer)


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    guidance_scale = settings.guidance_scale if settings.guidance_scale > pipe.guided_above else 0.0
    output = pipe(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=guidance_scale,
        max_sequence_length=512,
        **call,
    )
    return Media(list(output.images))
