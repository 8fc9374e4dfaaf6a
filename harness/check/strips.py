"""How a check keeps a video: a PNG with its frames one below the other, which says how many they are."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FRAMES = "lora-drift frames"
"""Name of the note in the PNG."""


def write(path: Path, frames: np.ndarray) -> None:
    """`frames`: uint8 [frames, height, width, 3]."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text(FRAMES, str(len(frames)))
    Image.fromarray(np.concatenate(list(frames))).save(path, pnginfo=note)


def cut(frames: np.ndarray, notes: Mapping[Any, Any]) -> np.ndarray:
    """The frames of a picture [1, height, width, 3] whose notes (Pillow's `info`) tell their number; else as it is."""
    said = str(notes.get(FRAMES, "1"))
    count = int(said) if re.fullmatch(r"[1-9][0-9]{0,4}", said) else 1
    if len(frames) != 1 or frames.shape[1] % count:
        return frames
    return frames.reshape(count, frames.shape[1] // count, *frames.shape[2:])
