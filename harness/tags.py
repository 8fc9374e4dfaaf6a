"""The supported trainer versions: the rows of tags.yaml."""

from collections.abc import Collection
from functools import cache

import yaml
from pydantic import BaseModel, ConfigDict

from lora_drift.harness.paths import HARNESS
from lora_drift.pipelines.spec import NEWEST, TOOLKITS, reproduced

TAGS = HARNESS / "tags.yaml"


class TagError(Exception):
    """There is no such tag, or its trainer lacks what was asked for."""


class Tag(BaseModel):
    """A row of tags.yaml: one trainer version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tag: str
    version: str
    commit: str
    diffusers: str
    """The Diffusers commit that the trainer pins."""
    transformers: str
    lock: str
    """The environment that its goldens are recorded in: a file in harness/trainer/recorder/locks."""
    lacks: tuple[str, ...] = ()
    """Models that this version does not know yet: nothing to record, nothing to check."""
    begun: bool = False
    """It is being recorded: only who names it gets it."""


@cache
def all_rows() -> list[Tag]:
    """The rows of tags.yaml, oldest first."""
    return [Tag.model_validate(row) for row in yaml.safe_load(TAGS.read_text(encoding="utf-8"))]


@cache
def rows() -> list[Tag]:
    """The rows of the tags that are recorded, oldest first."""
    return [row for row in all_rows() if not row.begun]


def row(tag: str) -> Tag:
    """The row of `tag`.

    Raises:
        TagError: there is none.
    """
    for entry in all_rows():
        if entry.tag == tag:
            return entry
    raise TagError(f"unknown tag {tag!r}; tags.yaml knows {', '.join(r.tag for r in rows())}")


def version_of(given: str | None) -> str:
    """The trainer version that is meant by a tag, or by a version of the trainer itself; None: the newest.

    Raises:
        TagError: neither.
    """
    if given is not None and not reproduced(given):
        try:
            return row(given).version
        except TagError as error:
            raise TagError(f"{error}; or give any trainer version from {TOOLKITS[0]} to {NEWEST}") from None
    return given or row(newest()).version


def names() -> list[str]:
    """The tags, oldest first."""
    return [entry.tag for entry in rows()]


def newest() -> str:
    return rows()[-1].tag


def newest_of(models: Collection[str]) -> str:
    """The newest tag whose trainer has all of `models`: a recorded one, or if there is none, one that is begun.

    Raises:
        TagError: no trainer has them all.
    """
    for row in reversed([*(row for row in all_rows() if row.begun), *rows()]):
        if not set(models) & set(row.lacks):
            return row.tag
    raise TagError(f"no tag's trainer has all of {', '.join(sorted(models))}")
