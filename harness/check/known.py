"""Known drifts: differences that were measured and explained, and are waiting for a mend.

`cases/known.yaml` is a list of entries with a case, its measured size, the cause, and a date after which it counts as
drift again. An entry never widens a tolerance: it renames the verdict, visibly, while the drift stays within its size.
"""

from datetime import date
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lora_drift.harness.check.cases import CASES, CaseError
from lora_drift.harness.check.results import Excuse, Result

KNOWN = CASES / "known.yaml"
SLACK = 1.1
"""A drift may exceed its recorded size by this factor before it is a new one."""


class Known(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    case: str
    tag: str | None = None
    device: str | None = None
    dtype: str | None = None
    cause: str
    pixel_max: float
    latents_rel_l2: float
    expires: date

    def covers(self, result: Result) -> bool:
        """Is it about this case, tag, device and dtype?"""
        asked = ((self.tag, result.tag), (self.device, result.device), (self.dtype, result.dtype))
        return self.case == result.case and all(ours in (None, its) for ours, its in asked)


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
    """Turn a drift that is listed and unexpired into `known`; say so where an entry expired or is no longer needed."""
    today = today or date.today()
    for entry in entries(path):
        if not entry.covers(result) or (result.verdict == "drift" and not _within(entry, result)):
            continue
        excuse = Excuse(cause=entry.cause, expires=entry.expires, expired=today > entry.expires)
        if result.verdict == "match":
            result.excuse = excuse
        elif result.verdict == "drift":
            result.excuse = excuse
            if excuse.expired:
                result.message += f". Listed as known, but the entry expired on {entry.expires}: {entry.cause}"
            else:
                result.verdict = "known"
                result.message = f"{entry.cause} (known until {entry.expires}; {result.message})"
    return result


def add(found: list[Result], case: str, cause: str, expires: date, path: Path | None = None) -> Known:
    """Append an entry for the drift that `found` measured; its size is copied from there, never typed.

    Raises:
        CaseError: the case was not checked or did not drift, the cause is empty, or the date has passed.
    """
    path = path or KNOWN
    drifts = [r for r in found if r.case == case and r.verdict == "drift" and r.metrics]
    if not drifts:
        seen = sorted({r.verdict for r in found if r.case == case})
        raise CaseError(
            f"{case}: {', '.join(seen) or 'not among these results'}; only a drift whose size was measured can be "
            f"listed. Run `lora-drift check --case {case} --json FILE` and give that file as --results"
        )
    if not cause.strip():
        raise CaseError("--cause is empty: say what causes the drift, in words that its next reader understands")
    if expires <= date.today():
        raise CaseError(f"--expires {expires} has passed: an entry lasts until a date by which the drift is mended")
    worst = max(drifts, key=lambda r: _size(r)["pixel_max"])
    if any(entry.covers(worst) for entry in entries(path)):
        raise CaseError(f"{path.name} already lists {case}; edit or remove that entry")
    entry = Known(
        case=case,
        tag=worst.tag,
        device=worst.device,
        dtype=worst.dtype,
        cause=cause.strip(),
        expires=expires,
        **_size(worst),
    )
    text = path.read_text(encoding="utf-8") if path.is_file() else HEAD
    lines = yaml.safe_dump([entry.model_dump()], sort_keys=False, allow_unicode=True, width=118)
    path.write_text(text + lines, encoding="utf-8")
    entries.cache_clear()
    return entry


HEAD = "# Drifts that are explained but not mended; `lora-drift known add` writes them. See CONTRIBUTING.md.\n"


def _within(entry: Known, result: Result) -> bool:
    """A drift of shape has no size and is never within one."""
    size = _size(result)
    return len(size) == 2 and all(size[name] <= getattr(entry, name) * SLACK for name in size)


def _size(result: Result) -> dict[str, float]:
    measured = {m.name: m.value or 0.0 for m in result.metrics}
    return {name: measured[name] for name in ("pixel_max", "latents_rel_l2") if name in measured}
