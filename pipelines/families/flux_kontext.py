"""FLUX.1 Kontext. Follows extensions_built_in/diffusion_models/flux_kontext/flux_kontext.py."""

from typing import Any

from lora_drift.pipelines import images, loading
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    return loading.pipeline(spec, base, dtype)


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    from PIL import Image

    control = images.rgb(settings.control[0])
    asked = (settings.asked_width, settings.asked_height)
    if control.size != asked:
        control = control.resize(asked, Image.Resampling.BILINEAR)
    output = pipe(
        image=control,
        prompt=settings.prompt,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        max_sequence_length=512,
        max_area=settings.width * settings.height,
        _auto_resize=False,
        **call,
    )
    return Media(list(output.images))
