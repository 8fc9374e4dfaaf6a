"""Sample files: read, and our pictures put through the same encoding, so that only what else differs is left."""

import io
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from harness.jobs import JobError
from harness.metrics import Array

WEBP_QUALITY = 80
"""Of the trainer's animations (GenerateImageConfig.save_image) and Pillow's default; a file does not say its own."""

NUDGES = 5
"""Copies that `floor` measures."""


class Picture(NamedTuple):
    """A decoded sample file."""

    frames: Array
    """uint8 [frames, height, width, 3]"""
    codec: str
    """How it was encoded, in words."""
    options: dict[str, Any]
    """What Pillow (for a video, ffmpeg) needs to encode another picture the same way."""


def read(path: Path) -> Picture:
    """Decode a sample.

    Raises:
        JobError: not a readable picture.
    """
    try:
        if path.suffix == ".mp4":
            options = _x264(path.read_bytes())
            return Picture(_decoded_mp4(path), f"H.264 in mp4, crf {options[1]}", {"ffmpeg": options})
        with Image.open(path) as image:
            return Picture(_frames(image), *_settings(image))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise JobError(f"{path}: not a readable sample ({error}); it may be truncated: copy it again") from error


def encoded(frames: Array, sample: Picture, path: Path, fps: int) -> Array:
    """`frames` after the encoding of `sample` (the file at `path`): what its file would show had it been ours."""
    if path.suffix == ".mp4":
        return _through_mp4(frames, fps, sample.options["ffmpeg"])
    images = [Image.fromarray(frame) for frame in frames]
    more: dict[str, Any] = {}
    if len(images) > 1:
        more = {"save_all": True, "append_images": images[1:], "duration": 1000 // fps, "loop": 0}
    buffer = io.BytesIO()
    images[0].save(buffer, **sample.options, **more)
    with Image.open(buffer) as image:
        return _frames(image)


def _settings(image: Image.Image) -> tuple[str, dict[str, Any]]:
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        subsampling = JpegImagePlugin.get_sampling(image)
        options = {"format": "JPEG", "qtables": image.quantization, "subsampling": subsampling}
        names = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
        usual = image.quantization == _default_tables() and subsampling == 2
        quality = "quality 75" if usual else "tables of its own (not the trainer's: was it saved again?)"
        return f"JPEG, {quality}, {names.get(subsampling, 'grey')}", options
    if image.format == "WEBP":
        kind = "animated " if getattr(image, "n_frames", 1) > 1 else ""
        return f"{kind}WebP, quality {WEBP_QUALITY}", {"format": "WEBP", "quality": WEBP_QUALITY}
    return f"{image.format}, lossless", {"format": image.format}


def _default_tables() -> dict[int, list[int]]:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    with Image.open(buffer) as image:
        return dict(image.quantization)  # type: ignore[attr-defined]


def _frames(image: Image.Image) -> Array:
    """Frames that an encoder joined because they are equal count as often as they are shown."""
    frames, shown = [], []
    for i in range(getattr(image, "n_frames", 1)):
        image.seek(i)
        image.load()
        frames.append(np.asarray(image.convert("RGB")))
        shown.append(image.info.get("duration") or 1)
    shortest = min(shown)
    return np.stack([f for f, time in zip(frames, shown, strict=True) for _ in range(max(1, round(time / shortest)))])


def _decoded_mp4(path: Path) -> Array:
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    try:
        width, height = next(reader)["source_size"]
        return np.stack([np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader])
    except (RuntimeError, StopIteration, ValueError) as error:
        raise OSError(str(error).strip().partition("\n")[0] or "no video in it") from error


def _x264(data: bytes) -> list[str]:
    """ffmpeg's options for what x264 wrote into a file that it made. The trainer's PyAV scales colours bilinearly."""
    said = re.search(rb"x264 - core.*? threads=(\d+).*? crf=([\d.]+)", data, re.DOTALL)
    threads, crf = (said[1].decode(), said[2].decode()) if said else ("1", "23.0")
    return ["-crf", crf, "-threads", threads, "-pix_fmt", "yuv420p", "-sws_flags", "bilinear"]


def _through_mp4(frames: Array, fps: int, options: list[str]) -> Array:
    """As Diffusers' `encode_video` writes it for the trainer (pipelines/ltx2/export_utils.py), without the sound."""
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", str(fps), "-i", "-", "-c:v", "libx264", *options]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ours.mp4")
        subprocess.run([*command, str(path)], input=frames.tobytes(), capture_output=True, check=True)
        return _decoded_mp4(path)


def floor(frames: Array, sample: Picture, path: Path, fps: int, share: float) -> tuple[float, float]:
    """(largest, mean) difference that this encoding makes of `frames` and copies with a share of values one level off.

    An encoder decides by thresholds: one value that was rounded the other way can move a block by dozens of levels.
    """
    whole = encoded(frames, sample, path, fps)
    largest, mean = 0.0, 0.0
    for seed in range(NUDGES):
        generator = np.random.default_rng(seed)
        places = generator.choice(frames.size, max(1, round(frames.size * share)), replace=False)
        nudged = frames.copy().reshape(-1)
        nudged[places] = np.where(nudged[places] > 127, nudged[places] - 1, nudged[places] + 1)
        difference = np.abs(encoded(nudged.reshape(frames.shape), sample, path, fps).astype(np.int16) - whole)
        largest, mean = max(largest, float(difference.max())), max(mean, float(difference.mean()))
    return largest, mean
