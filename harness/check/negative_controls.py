"""Negative controls: deliberate mistakes, which must be outside the tolerance, or the case proves nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_drift.pipelines import Pipeline
from lora_drift.pipelines.settings import Settings

LONG = 60
"""Words; fewer than any encoder cuts."""


def negative_counts(pipeline: Pipeline, settings: Settings) -> bool:
    """Does this model read the negative prompt at this guidance?"""
    return pipeline.spec.reads_negative(settings.guidance_scale)


def controls(pipeline: Pipeline, settings: Settings) -> Iterator[tuple[str, Pipeline, Settings]]:
    """(name, pipeline, settings) of every control that applies to a case."""
    yield "seed + 1", pipeline, replace(settings, seed=settings.seed + 1)
    prompt = settings.prompt
    if len(prompt.split()) < LONG:
        yield "prompt without its last word", pipeline, replace(settings, prompt=prompt.rpartition(" ")[0])
    else:  # whose end may be more than the encoder reads
        yield "prompt without its first word", pipeline, replace(settings, prompt=prompt.partition(" ")[2])
    if pipeline.lora is not None:
        yield "LoRA off", replace(pipeline, lora=None), settings
        yield "multiplier x 0.9", pipeline, replace(settings, multiplier=settings.multiplier * 0.9)
    if settings.steps > 1:
        yield "one step fewer", pipeline, replace(settings, steps=settings.steps - 1)
    if pipeline.spec.guidance == "embedded" or pipeline.spec.guides(settings.guidance_scale + 0.5):
        yield "guidance + 0.5", pipeline, replace(settings, guidance_scale=settings.guidance_scale + 0.5)
    if settings.control:
        flipped = (*settings.control[1:], settings.control[0])
        unlike = "other.inpaint.png" if ".inpaint." in settings.control[0] else "other.png"
        other = flipped if len(settings.control) > 1 else (str(Path(settings.control[0]).with_name(unlike)),)
        if not Path(other[0]).is_file():
            raise FileNotFoundError(f"{other[0]}: put a picture there, unlike that of the case; it must be told apart")
        yield "another control image", pipeline, replace(settings, control=other, shown=())
    if negative_counts(pipeline, settings) and settings.negative_prompt:
        yield "negative prompt dropped", pipeline, replace(settings, negative_prompt="", negative_prompt_2="")
