"""Files: written whole or not at all, and weight files looked into without reading a weight."""

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


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Tensor name -> shape, from the head of a safetensors file.

    Raises:
        FileNotFoundError, safetensors.SafetensorError: no such file, or not a whole one.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  not a mapping
