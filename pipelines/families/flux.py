"""FLUX.1. Follows toolkit/stable_diffusion_model.py (is_flux) and `encode_prompts_flux` in toolkit/train_tools.py."""

from typing import Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    return loading.pipeline(spec, base, dtype)


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    output = pipe(
        prompt=settings.prompt,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        max_sequence_length=512,
        **call,
    )
    return Media(list(output.images))
