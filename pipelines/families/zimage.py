"""Z-Image. Follows extensions_built_in/diffusion_models/z_image/z_image.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines import loading
from pipelines.output import Media
from pipelines.settings import Settings
from pipelines.spec import ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    home = spec.components.get("text_encoder", base)
    if home == base or (Path(base) / "text_encoder").is_dir():
        return loading.pipeline(spec, base, dtype)
    # De-Turbo: `base` holds a transformer and nothing else, not even the list of a pipeline's parts.
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel.from_pretrained(base, subfolder="transformer", torch_dtype=dtype)
    return loading.pipeline(replace(spec, components={}), home, dtype, transformer=transformer)


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    output = pipe(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        max_sequence_length=512,
        **call,
    )
    return Media(list(output.images))
