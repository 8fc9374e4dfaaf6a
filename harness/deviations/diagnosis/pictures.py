"""Other people's pictures and videos: their pixels, and what their codec would have made of other pixels.

A lossy picture is never compared with a clean render: the render is saved the same way first. JPEG files hold their
quantisation tables and subsampling, WebP files the quantisers that follow from a quality, H.264 files of x264 its crf.
"""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lora_drift.harness.check import strips
from lora_drift.harness.deviations.diagnosis import webp
from lora_drift.pipelines.errors import RequestError

Frames = np.ndarray[Any, Any]
"""uint8 [frames, height, width, 3]"""

STILLS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MOVIES = (".mp4", ".mkv", ".mov", ".webm", ".avi")
EXACT = ("bgr0", "gbrp", "rgb24", "bgr24", "bgra", "rgb0")
"""Pixel formats of a video that hold RGB as it is."""


@dataclass(frozen=True)
class Picture:
    """A picture or video of somebody else's."""

    frames: Frames
    codec: str
    """In words, with what is known of its quality."""
    again: Callable[[Frames], Frames] | None
    """What this codec at this quality makes of other frames of the same size; None where that cannot be known."""
    lossless: bool = False

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        count, height, width = self.frames.shape[:3]
        return count, height, width

    @classmethod
    def of(cls, frames: Frames, codec: str = "no codec: pixels") -> Picture:
        """Pixels that went through no codec, as a caller in this process has them."""
        return cls(frames, codec, lambda other: other, lossless=True)


def read(path: Path) -> Picture:
    """A picture or video file.

    Raises:
        RequestError: it is not there, or nothing that can be read.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise RequestError(f"image {path}: no such file")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise RequestError(f"image {path}: cannot be read ({error.strerror})") from error
    if _is_movie(head):
        return _movie(path)
    try:
        with Image.open(path) as image:
            if image.format not in STILLS:
                raise RequestError(f"image {path}: {image.format} is not read; use {', '.join(STILLS)}, or a video as "
                                   f"{', '.join(MOVIES)}")  # fmt: skip
            colours = _colours(image)
            frames, kind, data = strips.cut(_decoded(image), image.info), image.format, path.read_bytes()
            if kind == "JPEG":
                return _jpeg(image, frames)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError(f"image {path}: not a picture that can be read ({error})") from error
    if kind == "WEBP" and not webp.lossless(data):
        return _webp(data, frames)
    if kind == "GIF":
        return Picture(frames, "GIF, 256 colours (chosen as Pillow does)", partial(through, kind="GIF"))
    if colours:
        return Picture(
            frames, f"{kind}, {colours} colours (chosen as Pillow does)", partial(_in_colours, count=colours)
        )
    return Picture(frames, f"{kind}, lossless", lambda other: other, lossless=True)


def unstacked(picture: Picture, height: int, width: int) -> Picture:
    """Of a strip without a note (a golden's), the frames; any other picture as it is.

    The frames of the video that it should be are `width` times `height` pixels; how many there are, the strip says.
    """
    frames = picture.frames
    if len(frames) != 1 or frames.shape[1] % height or frames.shape[2] != width or not picture.lossless:
        return picture
    return Picture.of(frames.reshape(-1, height, *frames.shape[2:]), picture.codec)


def _is_movie(head: bytes) -> bool:
    """By what is in the file: a name says nothing. (AVIF and HEIC are pictures in a container of films.)"""
    mp4 = head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") and head[8:12] not in (b"avif", b"avis", b"heic", b"mif1")
    return mp4 or head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def _colours(image: Any) -> int:
    """How many colours the file's palette has, to which somebody brought the picture down; 0 where it has none."""
    return len(image.getpalette()) // 3 if image.mode == "P" else 2 if image.mode == "1" else 0


def _in_colours(frames: Frames, count: int) -> Frames:
    from PIL import Image

    reduced = (Image.fromarray(frame).quantize(count) for frame in frames)
    return np.stack([np.asarray(frame.convert("RGB")) for frame in reduced])


def _eight_bits(image: Any) -> Any:
    """The picture with 8 bits a channel. Pillow clips 16 bits of grey, instead of scaling them."""
    from PIL import Image

    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        return Image.fromarray(np.clip(np.round(np.asarray(image).astype(np.float64) / 257), 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point numbers, whose white is nowhere said; save it with 8 or 16 bits")
    return image


def _decoded(image: Any) -> Frames:
    from PIL import ImageSequence

    frames, times = [], []
    for frame in ImageSequence.Iterator(image):
        frames.append(np.asarray(_eight_bits(frame).convert("RGB")))
        times.append(frame.info.get("duration") or 0)
    # Writers make one long frame of equal ones.
    shortest = min(times)
    return np.repeat(np.stack(frames), [round(t / shortest) if shortest else 1 for t in times], axis=0)


def through(frames: Frames, kind: str, **options: Any) -> Frames:
    """What Pillow reads back of what it wrote."""
    from PIL import Image

    with Image.open(io.BytesIO(_written(frames, kind, **options))) as image:
        return _decoded(image)


def _written(frames: Frames, kind: str, **options: Any) -> bytes:
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    data = io.BytesIO()
    more = {"save_all": True, "append_images": others, "duration": 60, "loop": 0} if others else {}
    first.save(data, kind, **options, **more)
    return data.getvalue()


# -------------------------------------------------------------------------------------------------------------- JPEG


def _jpeg(image: Any, frames: Frames) -> Picture:
    from PIL import JpegImagePlugin

    sampling = JpegImagePlugin.get_sampling(image)
    if sampling == -1:  # one channel, or four
        return Picture(frames, "JPEG in an unusual layout, which cannot be written again", None)
    tables = {number: list(table) for number, table in image.quantization.items()}
    words = f"JPEG, {_quality(tables)}, {('4:4:4', '4:2:2', '4:2:0')[sampling]}"
    return Picture(frames, words, partial(through, kind="JPEG", qtables=tables, subsampling=sampling))


def _quality(tables: dict[int, list[int]]) -> str:
    """The quality whose tables these are, by libjpeg's rule."""
    from PIL import Image

    dot = Image.new("RGB", (8, 8))
    for quality in range(100, 0, -1):
        data = io.BytesIO()
        dot.save(data, "JPEG", quality=quality)
        with Image.open(data) as image:
            if {n: list(t) for n, t in image.quantization.items()} == tables:  # type: ignore[attr-defined]
                return f"quality {quality}"
    return "with quantisation tables of its own"


# -------------------------------------------------------------------------------------------------------------- WebP


def _webp(data: bytes, frames: Frames) -> Picture:
    wanted = webp.quantisers(data)
    fitted = _fitting(frames, wanted, 80)

    def again(other: Frames) -> Frames:
        quality = _fitting(other, wanted, fitted)
        return through(other, "WEBP", quality=quality)

    return Picture(frames, f"WebP, quality about {fitted}", again)


def _fitting(frames: Frames, wanted: tuple[int, ...], start: int) -> int:
    """The quality at which these frames are quantised most nearly as `wanted`.

    libwebp's quantisers follow from the quality and from the picture, and grow as the quality falls.
    """

    def miss(quality: int) -> int:
        found = webp.quantisers(_written(frames, "WEBP", quality=quality))
        return sum(abs(a - b) for a, b in zip(found, wanted, strict=True))

    best, least = start, miss(start)
    step = 16
    while step and least:
        near = {q: miss(q) for q in (best - step, best + step) if 0 <= q <= 100}
        quality = min(near, key=near.__getitem__)
        if near[quality] < least:
            best, least = quality, near[quality]
        else:
            step //= 2
    return best


# ------------------------------------------------------------------------------------------------------------- video


def _movie(path: Path) -> Picture:
    import imageio_ffmpeg

    try:
        reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
        about = next(reader)
        width, height = about["source_size"]
        frames = np.stack([np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader])
    except (OSError, RuntimeError, StopIteration, ValueError) as error:
        raise RequestError(f"image {path}: not a video that can be read ({str(error).splitlines()[0]})") from error
    codec, layout = str(about["codec"]).rstrip(","), re.split(r"\W", str(about["pix_fmt"]))[0]
    if codec == "ffv1" and layout in EXACT:
        return Picture(frames, "FFV1, lossless", lambda other: other, lossless=True)
    known = re.search(rb"x264 - core.*?threads=(\d+).*?crf=([\d.]+)", path.read_bytes(), re.DOTALL)
    if codec != "h264" or known is None:
        return Picture(frames, f"{codec}, whose quality the file does not tell", None)
    threads, crf = known[1].decode(), known[2].decode()
    options = ["-crf", crf, "-threads", threads, "-pix_fmt", layout, "-r", f"{about['fps']:g}"]
    return Picture(frames, f"H.264, crf {crf}, {layout}", partial(h264, options=options))


def h264(frames: Frames, options: list[str]) -> Frames:
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24"]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "again.mp4"))
        rate = options[-2:]
        into = [*ffmpeg, *raw, "-s", f"{width}x{height}", *rate, "-i", "-", "-c:v", "libx264", *options[:-2], file]
        subprocess.run(into, input=frames.tobytes(), capture_output=True, check=True)
        back = subprocess.run([*ffmpeg, "-i", file, *raw, "-"], capture_output=True, check=True).stdout
    return np.frombuffer(back, np.uint8).reshape(-1, height, width, 3)
