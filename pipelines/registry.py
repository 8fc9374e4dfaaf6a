"""All families and all models."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.families import (
    chroma,
    flux,
    flux2,
    hidream,
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
    "lumina2": lumina2,
    "omnigen2": omnigen2,
    "hidream": hidream,
    "wan": wan,
    "ltx2": ltx2,
}
ROWS: Mapping[str, ModelSpec] = {row.id: row for family in FAMILIES.values() for row in family.ROWS}
"""As the newest trainer has them (`spec.NEWEST`)."""
MODELS: Mapping[str, ModelSpec] = {model: row.at(TOOLKITS[-1]) for model, row in ROWS.items()}
"""As the newest one that is recorded for every model has them."""


def spec_of(model: str, toolkit: str = TOOLKITS[-1]) -> ModelSpec:
    """The row of `model` as it was at a trainer version.

    Raises:
        RequestError: no such model or version, or that version does not have the model; lists what there is.
    """
    if model not in MODELS:
        meant = "".join(f"did you mean {near}? " for near in get_close_matches(model, MODELS, n=1))
        raise RequestError(f"unknown model {model!r}; {meant}the models are: {', '.join(MODELS)}")
    if not reproduced(toolkit):
        raise RequestError(f"unknown trainer version {toolkit!r}; reproduced are those from {TOOLKITS[0]} to {NEWEST}")
    spec = ROWS[model]
    if age(toolkit) < age(spec.since):
        raise RequestError(f"trainer {toolkit} does not know {model} yet; the first that does is {spec.since}")
    return spec.at(toolkit)
