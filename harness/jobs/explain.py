"""Why does a sample differ? Asks the search behind `lora-drift diagnose`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.diagnosis.pictures import Picture

if TYPE_CHECKING:
    from pipelines import Pipeline
    from pipelines.settings import Request


def explain(pipeline: Pipeline, request: Request, picture: Picture, *, mini: bool, seconds: float) -> str:
    """In a sentence or two, what makes `pipeline`'s picture of `request` into `picture`."""
    from harness.diagnosis import words
    from harness.diagnosis.search import diagnose
    from harness.variations import Subject

    found = diagnose(Subject.of(pipeline, request), picture, tier="mini" if mini else "full", seconds=seconds)
    return words.headline(found)
