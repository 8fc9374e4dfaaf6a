"""The release matrix: the mini cases on combinations of library releases. `command.py` is where it begins."""


class MatrixError(Exception):
    """The matrix cannot run as asked; the message says how to mend it."""
