"""Wan 2.1 text to video. Follows toolkit/models/wan21/wan21.py."""

from typing import Any

from pipelines import loading
from pipelines.settings import Settings
from pipelines.spec import ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    return loading.pipeline(spec, base, dtype)


def render(pipe: Any, settings: Settings, **call: Any) -> list[Any]:
    output = pipe(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        width=settings.width,
        height=settings.height,
        num_frames=settings.num_frames,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        max_sequence_length=512,
        output_type="pil",
        **call,
    )
    return list(output.frames[0])
