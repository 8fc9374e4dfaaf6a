"""Trainer versions between the tags of which a few samples were rendered by the trainer itself: the rows of bands.yaml.

A band is a range of versions in which nothing that matters to a model's samples changed. Tags lie in most of them; in
those where none does, one of these versions does. They are pinned as tags are, and nothing offers them.
"""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from lora_drift.harness import tags
from lora_drift.harness.check import cases
from lora_drift.harness.check.cases import Case
from lora_drift.harness.tags import Tag

BANDS = Path(__file__).parent / "bands.yaml"


class Rendered(BaseModel):
    """One sample of a version: a case, and what it has otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: str
    name: str = ""
    """In place of the case's own, where it has something otherwise."""
    quantization: dict[str, Any] | None = None
    sample: dict[str, Any] = {}
    """Fields of the case's `sample`."""
    trainer_model: dict[str, Any] = {}
    """Further fields of the job's `model:`."""

    def made(self) -> Case:
        """The case that the trainer is asked for."""
        model, _, stem = self.case.partition("/")
        case = cases.load(cases.CASES / model / f"{stem}.yaml")
        said = case.model_dump(by_alias=True, exclude_unset=True) | {"id": f"{model}/{self.name or stem}"}
        for name, value in said["sample"].items():
            if name.startswith("ctrl_img"):
                said["sample"][name] = Path(value).name
        said["sample"] |= self.sample
        own = {"quantization": self.quantization, "trainer_model": self.trainer_model}
        return Case.model_validate(said | {name: value for name, value in own.items() if value})


class Band(Tag):
    """A row of bands.yaml."""

    samples: tuple[Rendered, ...]


@cache
def rows() -> list[Band]:
    """The rows, oldest first."""
    found = yaml.safe_load(BANDS.read_text(encoding="utf-8"))
    return [Band.model_validate({"tag": row["version"], **row}) for row in found]


def row(tag: str) -> Tag:
    """The pins of a tag, or of a version of `rows`.

    Raises:
        TagError: it is neither.
    """
    return next((band for band in rows() if band.version == tag), None) or tags.row(tag)
