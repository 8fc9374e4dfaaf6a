"""Golden, output and difference pictures as data URIs, so that the page needs nothing beside it."""

import io
from base64 import b64encode
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

Array: TypeAlias = np.ndarray[Any, Any]

INLINE_LIMIT = 400_000
"""Largest PNG, in bytes, that goes into the page as it is; a larger picture is shown as a JPEG preview."""
JPEG_MAX_SIDE = 65_500
"""The most rows or columns that JPEG can hold (a long video is one tall strip)."""
SHOWN_WIDTH = 384
"""Pictures are enlarged by the largest whole factor that stays within this width, in CSS pixels."""


@dataclass(frozen=True)
class Strip:
    """One picture file, or why there is none."""

    pixels: Array | None
    """uint8 [frames x height, width, 3]: the frames one below the other."""
    uri: str = ""
    problem: str = ""
    preview: bool = False
    """True: `uri` is a compressed, perhaps reduced copy; the metrics were taken on the PNG."""


@dataclass(frozen=True)
class Comparison:
    """What a case's picture row shows."""

    golden: Strip
    output: Strip
    frames: int

    @cached_property
    def identical(self) -> bool:
        return self._changes is not None and not self._changes.any()

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of one frame; None without any picture."""
        for strip in (self.golden, self.output):
            if strip.pixels is not None:
                return strip.pixels.shape[1], strip.pixels.shape[0] // self.frames
        return None

    @property
    def both(self) -> bool:
        return self.golden.pixels is not None and self.output.pixels is not None

    @property
    def shown_width(self) -> int:
        """CSS pixels: a whole multiple of the picture's width where one fits, so that each pixel is a square."""
        width = self.size[0] if self.size else SHOWN_WIDTH
        return width * max(SHOWN_WIDTH // width, 1)

    @cached_property
    def largest(self) -> int:
        """Largest difference of a channel, 0..255."""
        return int(self._changes.max()) if self._changes is not None else 0

    @property
    def share(self) -> str:
        """How many of the pixels differ, in percent."""
        share = float(self._changes.any(axis=2).mean()) if self._changes is not None else 0.0
        return f"{share:.1%}" if share >= 0.001 else "<0.1%"

    @cached_property
    def gain(self) -> int:
        """What the difference is multiplied by: all but the top hundredth of the differing values stay below white."""
        if not self.largest or self._changes is None:
            return 1
        return max(int(255 // np.percentile(self._changes[self._changes > 0], 99)), 1)

    @cached_property
    def difference(self) -> Strip:
        """|output - golden| x `gain`, per channel, or why there is none."""
        if self.golden.pixels is None or self.output.pixels is None:
            return Strip(None, problem="needs both pictures")
        if self._changes is None:
            sizes = [f"{s.shape[1]}×{s.shape[0]}" for s in (self.golden.pixels, self.output.pixels)]
            frames = " (all frames)" if self.frames > 1 else ""
            return Strip(None, problem=f"sizes differ: golden {sizes[0]}, output {sizes[1]}{frames}")
        amplified = np.minimum(self._changes.astype(np.int32) * self.gain, 255).astype(np.uint8)
        return _strip(Image.fromarray(amplified))

    @cached_property
    def _changes(self) -> Array | None:
        a, b = self.golden.pixels, self.output.pixels
        if a is None or b is None or a.shape != b.shape:
            return None
        return np.abs(b.astype(np.int16) - a.astype(np.int16)).astype(np.uint8)


def compare(golden: Path | None, output: Path | None, frames: int) -> Comparison:
    """Read both files; one that is absent or broken becomes a message."""
    return Comparison(_read(golden), _read(output), frames)


def _read(path: Path | None) -> Strip:
    if path is None:
        return Strip(None, problem="no picture")
    try:
        with Image.open(path) as image:
            return _strip(image.convert("RGB"), path.read_bytes())
    except FileNotFoundError:
        return Strip(None, problem=f"file not found: {path.name}")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's, for broken files
        return Strip(None, problem=f"cannot be read: {path.name} ({type(error).__name__})")


def _strip(image: Image.Image, png: bytes | None = None) -> Strip:
    pixels = np.asarray(image)
    png = png or _encoded(image, "PNG")
    if len(png) <= INLINE_LIMIT:
        return Strip(pixels, _uri("png", png))
    while max(image.size) > JPEG_MAX_SIDE:
        image = image.reduce(2)
    return Strip(pixels, _uri("jpeg", _encoded(image, "JPEG", quality=90, subsampling=0)), preview=True)


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"
