"""Known drifts: differences that were measured and explained, and are waiting for a mend.

`cases/known.yaml` is a list of entries with a case, its measured size, the cause, and a date after which it counts as
drift again. An entry never widens a gate: it renames the verdict, visibly, while the drift stays within its size.
"""

from datetime import date
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from harness.cases import CASES, CaseError
from harness.results import Result

KNOWN = CASES / "known.yaml"
SLACK = 1.1
"""A drift may exceed its recorded size by this factor before it is a new one."""


class Known(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    case: str
    tag: str | None = None
    device: str | None = None
    cause: str
    pixel_max: float
    latents_rel_l2: float
    expires: date


@cache
def entries(path: Path = KNOWN) -> list[Known]:
    """Raises CaseError when the file has a wrong field."""
    if not path.is_file():
        return []
    try:
        return TypeAdapter(list[Known]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or [])
    except ValidationError as error:
        raise CaseError(f"{path}: {error}") from error


def judge(result: Result, today: date | None = None, path: Path = KNOWN) -> Result:
    """Turn a drift that is listed and unexpired into `known`."""
    if result.verdict != "drift" or not result.metrics:
        return result
    measured = {m.name: m.value or 0.0 for m in result.metrics}
    for entry in entries(path):
        if (
            entry.case == result.case
            and entry.tag in (None, result.tag)
            and entry.device in (None, result.device)
            and measured["pixel_max"] <= entry.pixel_max * SLACK
            and measured["latents_rel_l2"] <= entry.latents_rel_l2 * SLACK
        ):
            if (today or date.today()) > entry.expires:
                result.message += f". Listed as known, but the entry expired on {entry.expires}: {entry.cause}"
            else:
                result.verdict = "known"
                result.message = f"{entry.cause} (known until {entry.expires}; {result.message})"
    return result
