"""Whose turn it is today: of what is too much for each run of the tests, so much a day that a week sees all."""

import itertools
import os
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import TypeVar

A_WEEK = 7
T = TypeVar("T")


def today() -> date:
    """LORA_DRIFT_DAY=2026-11-30 repeats the choice of that day."""
    given = os.environ.get("LORA_DRIFT_DAY")
    return date.fromisoformat(given) if given else datetime.now(UTC).date()


def chosen(all_of_them: Sequence[T], day: date, least: int) -> list[T]:
    """Those whose turn it is: `least` a day, or as many as a week needs."""
    count = max(least, -(-len(all_of_them) // A_WEEK))
    turning = itertools.islice(itertools.cycle(all_of_them), day.toordinal() * count % max(1, len(all_of_them)), None)
    return list(itertools.islice(turning, min(count, len(all_of_them))))
