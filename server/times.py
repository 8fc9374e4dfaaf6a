"""Points in time: as clients read them, and as the server counts them."""

import time
from datetime import UTC, datetime
from typing import overload


@overload
def iso(seconds: float) -> str: ...
@overload
def iso(seconds: None) -> None: ...
def iso(seconds: float | None) -> str | None:
    """ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


class Clock:
    """Seconds since 1970 that only go forward: the machine's clock as it was at the start, plus what has gone by since.

    Whoever sets the machine's clock moves no deadline and makes no duration negative before the next start; and then, a
    clock that was set back goes on from the last moment that is known.
    """

    def __init__(self, seen: float, began: float) -> None:
        """`seen` is the last moment that is known from earlier runs, `began` the present one."""
        self.gap = began - seen if seen else 0.0
        """Seconds for which no server ran, as the machine's clock tells it."""
        self._offset = max(began, seen) - _running()

    def now(self) -> float:
        return self._offset + _running()


def _running() -> float:
    """Seconds for which the machine is up, asleep or not."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)
