"""Files that are there whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. It becomes `path` as the block ends; after an error nothing is left of it.

    Processes may write the same file at once: each has a place of its own, and the last one's stays.
    """
    part = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.part{path.suffix}")  # the suffix tells writers the format
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
