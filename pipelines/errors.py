"""Errors that a user can mend. Each message is one paragraph that names the field and the remedy."""

from typing import Any


class RequestError(ValueError):
    """The request cannot be rendered as asked (raised before any weight loads)."""


class Unsupported(RequestError):
    """The installed packages cannot render this model: one is missing, or of a release without the model's classes."""


class LoraError(RequestError):
    """A LoRA file is unreadable, or does not belong to the model."""


class Cancelled(Exception):
    """The step callback asked to stop."""


class NotFinite(RequestError):
    """A render holds NaN or infinity. Raised at its end; the message names the stage at which they began."""

    def __init__(self, message: str, output: Any) -> None:
        """`output` is what was rendered, for those who look into it (the harness): no picture."""
        super().__init__(message)
        self.output = output
