"""The release matrix: the mini cases on combinations of library releases. `command.py` is where it begins."""

from pathlib import Path

from lora_drift.harness.minihub.factory import default_home


class MatrixError(Exception):
    """The matrix cannot run as asked; the message says how to mend it."""


def folder() -> Path:
    """Where environments, source trees, pictures and outcomes are kept."""
    return default_home().parent.parent / "matrix"
