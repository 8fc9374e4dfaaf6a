"""Failing cases by what they have in common: fifteen cases with one cause are one thing to mend."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from lora_drift.harness.report.details import View

NAMED = 12
"""Cases that a card names; it links to the others."""
NUMBER = r"\d[\d.]*(e[+-]?\d+)?"


class Cause(NamedTuple):
    """Failing cases with one cause, the worst first."""

    views: list[View]

    @property
    def title(self) -> str:
        """ "15 cases: scheduler schedule", "3 cases: OSError: no space left"; of one case its name."""
        first = self.views[0]
        if len(self.views) == 1:
            return first.result.case
        return f"{len(self.views)} cases: {first.blame.part or _short(first.message) or first.result.verdict}"

    @property
    def named(self) -> list[View]:
        return self.views[:NAMED] if len(self.views) > 1 else []

    @property
    def unnamed(self) -> int:
        return len(self.views) - NAMED if len(self.views) > NAMED else 0

    @property
    def query(self) -> str:
        """What the filter finds these cases with (and maybe a few others that began there)."""
        first = self.views[0].result
        part = self.views[0].blame.part
        return f'status:{first.verdict} part:"{part}"' if part else f"status:{first.verdict}"


def by_cause(failing: Iterable[View]) -> list[Cause]:
    """In the order of their worst case."""
    found: dict[tuple[str, ...], list[View]] = {}
    for view in failing:
        found.setdefault(_key(view), []).append(view)
    return [Cause(views) for views in found.values()]


def issue(cause: Cause, tag: str) -> str:
    """Text of an issue; the first line is its title, which is the same as long as the cause is."""
    first = cause.views[0]
    said = ": ".join(filter(None, (first.blame.part, _short(_key(first)[-1])))) or first.result.verdict
    cases = "\n".join(f"- `{view.result.case}`: {view.message or view.result.verdict}" for view in cause.views[:100])
    more = f"\n\n... and {len(cause.views) - 100} more." if len(cause.views) > 100 else ""
    return (
        f"{first.result.verdict} at {tag}: {said}\n\n{first.blame.cause}\n\n"
        f"{len(cause.views)} cases:\n\n{cases}{more}\n"
    )


def _key(view: View) -> tuple[str, ...]:
    """Equal for cases that fail for the same reason: names of cases and numbers do not tell reasons apart."""
    said = view.blame.cause if view.blame.part else view.message
    for own in (view.result.case, view.result.model):
        said = said.replace(own, "CASE")
    return view.result.verdict, view.blame.part, re.sub(NUMBER, "N", said)


def _short(message: str) -> str:
    line = message.partition("\n")[0]
    return line if len(line) <= 100 else line[:99] + "…"
