"""Models without a graph of ComfyUI's own nodes: the first stage that differs, why, and how much that costs.

ComfyUI's side was read in its sources, not rendered. The size is of that one thing done as ComfyUI does it in our own
pipeline (`studies/comfyui/unmatched.py`), so the whole distance in ComfyUI may be another.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

FILE = Path(__file__).with_name("unmatched.json")
CASE = "base"
"""In which the cost is measured."""


class Reason(NamedTuple):
    stage: str
    """The first that differs: "prompt", "schedule" or "guidance"."""
    why: str


class Measured(BaseModel):
    """In levels of 255."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    golden: str
    """Seal of the golden that it is measured against."""
    pixel_max: float
    pixel_mean: float


UNMATCHED: dict[str, Reason] = {
    **dict.fromkeys(
        ("qwen_image_edit", "qwen_image_edit_plus", "qwen_image_edit_plus_2511"),
        Reason(
            "prompt",
            "the trainer's text encoder sees control images nearly black (divided by 255 twice) and of other sizes, "
            "ComfyUI's as bright as they are",
        ),
    ),
    **dict.fromkeys(
        ("hidream", "hidream_e1"), Reason("prompt", "the trainer pads Llama's tokens in front, ComfyUI behind")
    ),
    "ltx2": Reason(
        "schedule",
        "LTXVScheduler shifts by the number of latent tokens, the trainer by 2.05 whatever the size (ManualSigmas "
        "could say that; what differs then is not known)",
    ),
    "ltx2.3": Reason(
        "guidance",
        "the trainer has two passes more (perturbed; sound and picture apart), rescales, and guides sound by itself; "
        "CFGGuider has none of these",
    ),
}


@cache
def measured() -> dict[str, Measured]:
    """Model -> what the reason costs."""
    return {model: Measured.model_validate(found) for model, found in json.loads(FILE.read_text()).items()}


def size(model: str) -> str:
    """The cost in words, largest / mean of 255."""
    found = measured()[model]
    return f"{found.pixel_max:g} / {found.pixel_mean:.2g}"
