"""The tables of docs/performance.md, from the lines of benchmarks/gpu.py."""

from collections.abc import Sequence
from typing import Any

Line = dict[str, Any]


def render(lines: Sequence[Line]) -> str:
    """Markdown."""
    return "\n".join(str(line["model"]) for line in lines)
