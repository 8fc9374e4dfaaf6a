"""Known drifts: differences that were measured and explained, and are waiting for a mend.

`cases/known.yaml` is a list of entries with a case, its measured size, the cause, and a date after which it counts as
drift again. An entry never widens a tolerance: it renames the verdict, visibly, while the drift stays within its size.
It is small and does not last: what is larger than `LARGEST` or lasts longer than `LONGEST` excuses nothing, nor what no
`lora-drift known add` has written for the very golden that is there.
"""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lora_drift.harness.check.cases import CASES, CaseError
from lora_drift.harness.check.results import Excuse, Result

KNOWN = CASES / "known.yaml"
SLACK = 1.1
"""A drift may exceed its recorded size by this factor before it is a new one."""
LARGEST = {"pixel_max": 8.0, "latents_rel_l2": 0.05}
"""Nothing larger is excused: such a difference can be seen, or is as large as a mistake."""
LONGEST = timedelta(days=180)
"""How long, from today, an entry may last."""


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
    golden: str = ""
    """Seal of the golden from which this was measured, its first 16 digits."""
    measured: str = ""
    """Of all other fields; `add` writes it with what it copies from a measurement."""

    @property
    def digest(self) -> str:
        fields = self.model_dump(mode="json", exclude={"measured"})
        return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def faults(self, result: Result, today: date) -> Iterator[str]:
        """Why it excuses nothing."""
        if self.measured != self.digest:
            yield "`lora-drift known add` did not write it, or it was edited since"
        if self.golden != _seal(result):
            yield "it was measured from another golden"
        if self.expires - today > LONGEST:
            yield f"it lasts until {self.expires}; at most {LONGEST.days} days are allowed"
        for name, most in LARGEST.items():
            if getattr(self, name) > most:
                yield f"its {name} is {getattr(self, name):g}; at most {most:g} can be excused"
        weakest = {name: min((c.distances[name] for c in result.controls), default=None) for name in LARGEST}
        if any(least is not None and least <= getattr(self, name) * SLACK for name, least in weakest.items()):
            yield "it is as large as one of the mistakes that the case must notice"

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
        fault = next(entry.faults(result, today), None)
        if fault is not None:
            if result.verdict == "drift":
                result.message += f". Listed as known, but not to be excused: {fault}"
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
    if expires - date.today() > LONGEST:
        raise CaseError(f"--expires {expires} is more than {LONGEST.days} days away; and it is looked at again then: "
                        "name an earlier day")  # fmt: skip
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
        golden=_seal(worst),
        pixel_max=_size(worst)["pixel_max"],
        latents_rel_l2=_size(worst)["latents_rel_l2"],
    )
    entry = entry.model_copy(update={"measured": entry.digest})
    if fault := next(entry.faults(worst, date.today()), None):
        raise CaseError(f"{case}: {fault}; mend it instead")
    text = path.read_text(encoding="utf-8") if path.is_file() else HEAD
    lines = yaml.safe_dump([entry.model_dump()], sort_keys=False, allow_unicode=True, width=118)
    path.write_text(text + lines, encoding="utf-8")
    entries.cache_clear()
    return entry


HEAD = "# Drifts that are explained but not mended; `lora-drift known add` writes them. See CONTRIBUTING.md.\n"


def _within(entry: Known, result: Result) -> bool:
    """A drift of shape has no size and is never within one, nor is what no distance tells."""
    size = _size(result)
    if result.disagreements or len(size) < 2:
        return False
    return all(size[name] <= getattr(entry, name) * SLACK for name in size)


def _seal(result: Result) -> str:
    return str(result.provenance.get("seal", ""))[:16]


def _size(result: Result) -> dict[str, float]:
    measured = {m.name: m.value or 0.0 for m in result.metrics}
    return {name: measured[name] for name in ("pixel_max", "latents_rel_l2") if name in measured}
