"""Bisection that finds every change between two commits, and goes around those that cannot be recorded."""

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
Key = TypeVar("Key")

TRIES = 12
"""Commits between two that are tried before the answer is a range."""


class Step(NamedTuple, Generic[T]):
    """A change after commit `low` and not after `high`; if these are not neighbours, no commit between was recorded."""

    low: int
    high: int
    before: T
    after: T


Search = Generator[int, T | None, list[Step[T]]]
"""Asks for what was recorded at a commit (None: nothing), until it knows the steps, oldest first."""


def search(low: int, high: int, before: T, after: T, same: Callable[[T, T], bool]) -> Search[T]:
    """The steps from `before`, recorded at `low`, to `after`. What came and went between two commits that are the same
    is not found."""
    if same(before, after):
        return []
    for middle in islice(_middles(low, high), TRIES):
        recorded = yield middle
        if recorded is not None:
            earlier = yield from search(low, middle, before, recorded, same)
            later = yield from search(middle, high, recorded, after, same)
            return earlier + later
    return [Step(low, high, before, after)]


def _middles(low: int, high: int) -> Iterator[int]:
    """All between, those first that halve the largest parts."""
    parts = [(low, high)]
    while parts:
        first, last = parts.pop(0)
        middle = (first + last) // 2
        if middle > first:
            yield middle
            parts += [(first, middle), (middle, last)]


def together(
    searches: Mapping[Key, Search[T]], record: Callable[[int, Collection[Key]], Mapping[Key, T | None]]
) -> Iterator[tuple[Key, list[Step[T]]]]:
    """Run searches side by side, so that what several ask of one commit is recorded at once; yields each when done."""
    waiting: dict[Key, int] = {}
    answers: dict[Key, T | None] = dict.fromkeys(searches)
    while answers or waiting:
        for key, answer in answers.items():
            try:
                waiting[key] = searches[key].send(answer)  # the first: None, which starts it
            except StopIteration as done:
                waiting.pop(key, None)
                yield key, done.value
        if not waiting:
            return
        [(wanted, _)] = Counter(waiting.values()).most_common(1)
        answers = dict(record(wanted, [key for key, index in waiting.items() if index == wanted]))
