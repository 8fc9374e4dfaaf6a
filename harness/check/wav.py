"""How a check keeps sound: a WAV of 16-bit numbers, which every browser plays and which is a fraction of the floats."""

import io
import wave
from typing import Any

import numpy as np

WIDTH = 2
"""Bytes a number."""


def encoded(audio: Any, rate: int) -> bytes:
    """`audio`: float32 [channels, samples], clipped at -1 and 1; `rate`: samples a second."""
    levels = np.round(np.clip(np.asarray(audio, np.float64), -1, 1) * 32767).astype("<i2")
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(len(levels))
        file.setsampwidth(WIDTH)
        file.setframerate(rate)
        file.writeframes(levels.T.tobytes())
    return data.getvalue()


def rate(data: bytes) -> int:
    """Samples a second of a WAV.

    Raises:
        wave.Error, EOFError: it is none.
    """
    with wave.open(io.BytesIO(data)) as file:
        return file.getframerate()
