"""Errors that a user can mend. Each message is one paragraph that names the field and the remedy."""

from collections.abc import Mapping
from typing import Any

REMEDIES = {
    "allow_partial": "To apply the matching part only, give allow_partial=True.",
    "experts": "Give the file of one expert as high or low.",
    "control": "Give them as control, in order.",
    "base": "Give the model's folder, file or hub id as base.",
}
"""What mends an error, in the words of Python's callers. Others call it otherwise, or lack it (`told`)."""


class RequestError(ValueError):
    """The request cannot be rendered as asked (raised before any weight loads)."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        """`problem` is what everybody is told; `remedy` is a key of a caller's remedies, which has the words for it."""
        super().__init__(f"{problem} {REMEDIES.get(remedy, '')}".rstrip())
        self.problem, self.remedy = problem, remedy

    def told(self, remedies: Mapping[str, str]) -> str:
        """The message for a caller whose words for remedies these are."""
        return f"{self.problem} {remedies.get(self.remedy, '')}".rstrip()


class Unsupported(RequestError):
    """The installed packages cannot render this model: one is missing, or of a release without the model's classes."""


class LoraError(RequestError):
    """A LoRA file is unreadable, or does not belong to the model."""


class Cancelled(Exception):
    """The step callback asked to stop."""


class NotFinite(RequestError):
    """A render holds NaN or infinity. Raised at its end; the message names the stage at which they began."""

    def __init__(self, problem: str, output: Any = None) -> None:
        """`output` is what was rendered, for those who look into it (the harness): no picture."""
        super().__init__(problem)
        self.output = output
