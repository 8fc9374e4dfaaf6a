"""Training jobs of ai-toolkit: their config, their folder, and whether our pipelines reproduce their samples."""

from lora_drift.pipelines.errors import RequestError


class JobError(RequestError):
    """A job cannot be read as it is; the message names the file, the field and the remedy."""
