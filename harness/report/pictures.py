"""Golden and output pictures and sounds for the page: each file once, as it is, by a name taken from its bytes.

The page's script computes the difference, the heat map and the pixel read-out from the two pictures. A passing output
is nearly its golden, so the page carries only the (tiny, lossless) change from one to the other.
"""

import io
import wave
from base64 import b64encode
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from safetensors.numpy import load

from lora_drift.harness.check import golden_store, metrics, wav

Array: TypeAlias = np.ndarray[Any, Any]

INLINE_BUDGET = 20_000_000
"""Characters of pictures and sounds that the page itself may hold, worst cases first; others become files beside it."""

THUMBNAIL = 160
"""Pixels of the longer side."""
KEPT = 400
"""Files that stay in memory."""


@dataclass(frozen=True)
class Strip:
    """One picture or sound file, or why there is none."""

    data: bytes = b""
    problem: str = ""
    kind: str = "image/png"

    @cached_property
    def key(self) -> str:
        return sha256(self.data).hexdigest()[:16] if self.data else ""

    @property
    def uri(self) -> str:
        return f"data:{self.kind};base64,{b64encode(self.data).decode()}"

    @cached_property
    def pixels(self) -> Array | None:
        """uint8 [frames x height, width, 3]: the frames one below the other; None without a readable picture."""
        try:
            with Image.open(io.BytesIO(self.data)) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's, for broken files
            return None


@dataclass(frozen=True)
class Comparison:
    """The pictures of one case."""

    golden: Strip
    output: Strip
    frames: int

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of one frame; None without any picture."""
        for strip in (self.golden, self.output):
            if strip.pixels is not None:
                return strip.pixels.shape[1], strip.pixels.shape[0] // self.frames
        return None

    @cached_property
    def change(self) -> Strip:
        """What added to the golden, modulo 256, gives the output: almost nothing where they are almost equal."""
        assert self.golden.pixels is not None and self.output.pixels is not None
        return Strip(png(self.output.pixels - self.golden.pixels))  # uint8 wraps round, as is wanted

    @cached_property
    def difference(self) -> Strip:
        """|output - golden|, amplified as viewer.js does: for readers without a script."""
        assert self._distance is not None
        return Strip(png(np.minimum(self._distance.astype(np.int32) * self.gain, 255).astype(np.uint8)))

    @property
    def comparable(self) -> bool:
        return self._distance is not None

    @cached_property
    def gain(self) -> int:
        """Nine tenths of the pixels that differ do not become white by it, and one of them nearly does."""
        assert self._distance is not None
        counts = np.bincount(self._distance.max(axis=2).ravel(), minlength=256)[1:]
        most = int(np.searchsorted(np.cumsum(counts), 0.9 * counts.sum())) + 1
        return 255 // most

    @cached_property
    def largest(self) -> int:
        """Largest difference of a channel, 0..255."""
        return int(self._distance.max()) if self._distance is not None else 0

    @property
    def sentence(self) -> str:
        """What a reader without a script is told about the difference."""
        if self._distance is None:
            shapes = [_shape(s.pixels, self.frames) for s in (self.golden, self.output)]
            return f"golden {shapes[0]}, output {shapes[1]}"
        if not self.largest:
            return "the same pixels"
        share = float(self._distance.any(axis=2).mean())
        percent = f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
        return f"differs by at most {self.largest}/255, in {percent} of pixels"

    @cached_property
    def _distance(self) -> Array | None:
        a, b = self.golden.pixels, self.output.pixels
        if a is None or b is None or a.shape != b.shape:
            return None
        return metrics.difference(a, b).astype(np.uint8)


@dataclass
class Album:
    """Reads picture files; the last few hundred stay, because goldens are shared by devices and releases."""

    kept: dict[Path, Strip] = field(default_factory=dict)
    heard: dict[tuple[Path, int], Strip] = field(default_factory=dict)
    controls: dict[Path, str] = field(default_factory=dict)

    def control(self, path: Path) -> str:
        """A control image, small, as a data URI; empty where it is not on this machine."""
        if path not in self.controls:
            try:
                with Image.open(path) as image:
                    self.controls[path] = thumbnail(image.convert("RGBA"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's, for broken files
                self.controls[path] = ""
        return self.controls[path]

    def sounds(self, golden: Path | None, output: Path | None) -> dict[str, Strip]:
        """Title -> WAV, of a case with sound; empty of any other.

        A golden's file does not say its rate: it is played at the output's (`agreements.sound` has compared them).
        """
        found, ours = {}, Strip() if output is None else _wav(output)
        if golden is not None and not ours.data:
            found["golden"] = Strip(problem="cannot be played: only the output's file says how fast")
        elif golden is not None:
            key = golden, wav.rate(ours.data)
            if key not in self.heard:
                if len(self.heard) >= KEPT:
                    del self.heard[next(iter(self.heard))]
                self.heard[key] = _golden_wav(*key)
            found["golden"] = self.heard[key]
        return found if output is None else {**found, "output": ours}

    def strip(self, path: Path | None) -> Strip:
        """The file at `path`, put together if it is stored as a difference; one that is absent becomes a message."""
        if path is None:
            return Strip(problem="no picture")
        if path not in self.kept:
            if len(self.kept) >= KEPT:
                del self.kept[next(iter(self.kept))]
            try:
                whole = golden_store.base_of(path) is None
                self.kept[path] = Strip(path.read_bytes() if whole else golden_store.png(golden_store.read(path)))
            except golden_store.Damaged as error:
                self.kept[path] = Strip(problem=f"{error.path.name} {error}")
            except OSError as error:
                self.kept[path] = Strip(problem=f"file not found: {path.name} ({type(error).__name__})")
        return self.kept[path]


def _wav(path: Path) -> Strip:
    try:
        data = path.read_bytes()
        wav.rate(data)
    except (OSError, EOFError, wave.Error) as error:
        return Strip(problem=f"cannot be played: {path.name} ({type(error).__name__})")
    return Strip(data, kind="audio/wav")


def _golden_wav(path: Path, rate: int) -> Strip:
    try:
        return Strip(wav.encoded(load(golden_store.read(path))["audio"], rate), kind="audio/wav")
    except golden_store.Damaged as error:
        return Strip(problem=f"{error.path.name} {error}")


def thumbnail(image: Image.Image) -> str:
    """A small PNG as a data URI."""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Strip(buffer.getvalue()).uri


def _shape(pixels: Array | None, frames: int) -> str:
    if pixels is None:
        return "cannot be read"
    return f"{pixels.shape[1]}×{pixels.shape[0] // frames}" + (f", {frames} frames" if frames > 1 else "")


def png(pixels: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
