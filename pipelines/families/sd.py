"""Stable Diffusion 1.5 and XL. Follows toolkit/stable_diffusion_model.py and toolkit/train_tools.py."""

from typing import Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    if spec.pipeline == "StableDiffusionPipeline":
        # The trainer samples without the safety checker, which would blacken pictures.
        return loading.pipeline(
            spec, base, dtype, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return loading.pipeline(spec, base, dtype, add_watermarker=False)


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    if hasattr(pipe, "text_encoder_2"):
        # As lists: an empty string for the second encoder would be replaced by the first encoder's prompt
        # (`negative_prompt_2 or negative_prompt`), and a missing negative prompt would be zeroed instead of encoded.
        call |= {
            "prompt_2": [settings.prompt],
            "negative_prompt_2": [settings.negative_prompt_2],
            "guidance_rescale": settings.guidance_rescale,
        }
    output = pipe(
        prompt=[settings.prompt],
        negative_prompt=[settings.negative_prompt],
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        **call,
    )
    return Media(list(output.images))
