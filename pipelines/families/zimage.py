"""Z-Image. Follows extensions_built_in/diffusion_models/z_image/z_image.py."""

from typing import Any

from pipelines import loading
from pipelines.output import Media
from pipelines.settings import Settings
from pipelines.spec import ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    return loading.pipeline(spec, base, dtype)


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
