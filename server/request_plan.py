"""What is to be rendered, as the queue keeps it and the worker receives it."""

from typing import Any, Literal

from pydantic import BaseModel

from lora_drift.pipelines.quantize import Quantization


class LoraFile(BaseModel):
    expert: Literal["", "high", "low"] = ""
    label: str
    """What the client called it; server paths and signed URLs stay out of messages and receipts."""
    strength: float = 1.0
    file: str | None = None
    """None until it is downloaded."""
    sha256: str | None = None


class Prompt(BaseModel):
    fields: dict[str, Any]
    """Arguments of `Pipeline.sample`; the seed is a number, so that a second try renders the same."""
    controls: dict[str, str] = {}
    """Path of a control image -> field that it came in."""


class Job(BaseModel):
    id: str
    model: str
    quantization: Quantization = Quantization()
    loras: list[LoraFile]
    prompts: list[Prompt]
    lora_mode: Literal["merged", "live"] | None = None
    picture_format: str = "jpg"
    video_format: str = "mp4"
    quality: int = 95
    output_folder: str
    verified: dict[str, Any] | None = None
    require_verified: bool = False
    """Fail rather than render what no case vouches for, as far as that shows when the LoRA is read only."""

    @property
    def base(self) -> str:
        """What has to be loaded: jobs with the same render one after the other."""
        return f"{self.model} {self.quantization}"


class Secrets(BaseModel):
    """What is forgotten when the request ends."""

    hf_token: str | None = None
    urls: dict[int, str] = {}
    """Index of a LoRA -> where to download it."""
