"""Why does a sample differ? Asks the search behind `lora-drift diagnose`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_drift.harness.deviations.diagnosis.pictures import Picture

if TYPE_CHECKING:
    from lora_drift.pipelines import Pipeline
    from lora_drift.pipelines.settings import Request


def explain(pipeline: Pipeline, request: Request, picture: Picture, *, mini: bool, seconds: float) -> str:
    """In a sentence or two, what makes `pipeline`'s picture of `request` into `picture`."""
    from lora_drift.harness.deviations.diagnosis import words
    from lora_drift.harness.deviations.diagnosis.search import diagnose
    from lora_drift.harness.deviations.library import Subject

    found = diagnose(Subject.of(pipeline, request), picture, tier="mini" if mini else "full", seconds=seconds)
    return words.headline(found)
