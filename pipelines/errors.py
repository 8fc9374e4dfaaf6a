"""Errors that a user can mend. Each message is one paragraph that names the field and the remedy."""


class RequestError(ValueError):
    """The request cannot be rendered as asked (raised before any weight loads)."""


class Unsupported(RequestError):
    """The installed packages cannot render this model: one is missing, or of a release without the model's classes."""


class LoraError(RequestError):
    """A LoRA file is unreadable, or does not belong to the model."""


class Cancelled(Exception):
    """The step callback asked to stop."""
