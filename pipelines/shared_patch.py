"""One attribute of a library, replaced while at least one render needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class SharedPatch:
    """Puts `make(original)` in place of `owner.name` while any thread is inside the block, and then puts it back.

    The replacement must do nothing but call the original for whoever is not inside: other threads meet it, too.
    """

    def __init__(self, name: str, make: Callable[[Any], Any]) -> None:
        self._name, self._make = name, make
        self._lock, self._inside = threading.Lock(), 0
        self._original: Any = None

    @contextmanager
    def on(self, owner: Any) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._original = getattr(owner, self._name)
                setattr(owner, self._name, self._make(self._original))
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    setattr(owner, self._name, self._original)
