"""All families and all models."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.families import (
    anima,
    chroma,
    ernie,
    flux,
    flux2,
    hidream,
    ideogram4,
    krea2,
    ltx2,
    lumina2,
    omnigen2,
    qwen,
    sd,
    wan,
    zimage,
)
from lora_drift.pipelines.family import Family
from lora_drift.pipelines.spec import NEWEST, TOOLKITS, ModelSpec, age, reproduced

FAMILIES: Mapping[str, Family[Any]] = {
    "sd": sd,
    "flux": flux,
    "chroma": chroma,
    "flux2": flux2,
    "qwen": qwen,
    "zimage": zimage,
    "krea2": krea2,
    "anima": anima,
    "ernie": ernie,
    "ideogram4": ideogram4,
    "lumina2": lumina2,
    "omnigen2": omnigen2,
    "hidream": hidream,
    "wan": wan,
    "ltx2": ltx2,
}
ROWS: Mapping[str, ModelSpec] = {row.id: row for family in FAMILIES.values() for row in family.ROWS}
"""As the newest trainer has them (`spec.NEWEST`)."""
MODELS: Mapping[str, ModelSpec] = {
    model: row.at(TOOLKITS[-1]) for model, row in ROWS.items() if row.default_toolkit == TOOLKITS[-1]
}
"""As the newest one that is recorded for every model has them. Models that it lacks are in `ROWS` only: who names one
gets it, as `NEWEST` samples it, and nothing else offers it."""


def spec_of(model: str, toolkit: str | None = None) -> ModelSpec:
    """The row of `model` as it was at a trainer version (None: `ModelSpec.default_toolkit`).

    Raises:
        RequestError: no such model or version, or that version does not have the model; lists what there is.
    """
    if model not in ROWS:
        meant = "".join(f"did you mean {near}? " for near in get_close_matches(model, ROWS, n=1))
        raise RequestError(f"unknown model {model!r}; {meant}the models are: {', '.join(ROWS)}")
    spec = ROWS[model]
    toolkit = spec.default_toolkit if toolkit is None else toolkit
    if not reproduced(toolkit):
        raise RequestError(f"unknown trainer version {toolkit!r}; reproduced are those from {TOOLKITS[0]} to {NEWEST}")
    if age(toolkit) < age(spec.since):
        raise RequestError(f"trainer {toolkit} does not know {model} yet; the first that does is {spec.since}")
    return spec.at(toolkit)
