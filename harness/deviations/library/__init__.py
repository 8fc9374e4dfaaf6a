"""Variations: named, realistic deviations of the inference graph.

One library, two uses: every variation that applies to a model must be caught by its cases (`lora-drift mutate`), and
`lora-drift diagnose` looks for the one that explains a picture. They change *our* pipelines, at run time and for the
length of a `with` block:

    subject = Subject.of(pipelines.load("flux").with_lora(file), Request("a fox", seed=7))
    for variation in applicable(subject):
        with variation.applied(subject) as varied:
            output = varied.pipeline.render(varied.settings)     # or Bench.render(varied.pipeline, varied.settings)
        print(variation.name, variation.about, variation.shows(subject))

Afterwards everything is as it was: rendering `subject` again gives the same bytes. Two variations are combined by
applying the second to what the first yields. What a variation needs is `Subject` in, `Subject` out; see `base.py`.
"""

from collections.abc import Iterator

from lora_drift.harness.deviations.library import (  # noqa: F401  each adds its variations
    adapter,
    control,
    denoiser,
    encode,
    guidance,
    noise,
    output,
    precision,
    references,
    request,
    schedule,
    solvers,
    text,
)
from lora_drift.harness.deviations.library.base import Subject, Variation, library

__all__ = ["LIBRARY", "Subject", "Variation", "applicable"]

LIBRARY = library()
"""Every variation by its name, in the order of the inference graph."""


def applicable(subject: Subject) -> Iterator[Variation]:
    """The variations that mean something for this model with these settings and this LoRA."""
    return (v for v in LIBRARY.values() if v.applies(subject))
