"""Writing renders: losslessly by default, the receipt next to them, and never half a file."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.files import whole
from lora_drift.pipelines.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
VIDEOS = {".mkv": "ffv1", ".mp4": "libx264"}
LOSSLESS = (".png",)
"""Pictures that hold the very pixels."""
RECEIPT_KEY = "lora-drift"
"""Key of the text chunk in which a PNG carries its receipt."""


class Media(NamedTuple):
    """What a family renders."""

    frames: list[Image.Image]
    audio: Any = None
    """float32 array [channels, samples], for models that make sound."""
    sample_rate: int = 0


@dataclass(frozen=True)
class Output:
    """Rendered frames (one for a picture) and the receipt that says how they came to be."""

    media: Media
    settings: Settings
    receipt: dict[str, Any]

    @property
    def frames(self) -> list[Image.Image]:
        return self.media.frames

    def save(self, path: str | Path, *, quality: int | None = None) -> Path:
        """Write the picture or video and `<path>.json`, the receipt, next to it. See the function `save`."""
        return save(self, Path(path), quality=quality)


def check_path(path: Path, frames: int, *, moving: bool = False) -> None:
    """Refuse, before anything renders, a path that could not be written. `moving`: a video was asked for, so that one
    frame may be written as one.

    Raises:
        RequestError: unknown suffix for this kind of output, or no such folder.
    """
    known = {".webp", *VIDEOS} if frames > 1 else {*PICTURES, *(VIDEOS if moving else ())}
    if path.suffix.lower() not in known:
        what = f"{frames} frames" if frames > 1 else "one picture"
        raise RequestError(f"output {path}: cannot write {what} as {path.suffix or 'a file without suffix'}; "
                           f"use {', '.join(sorted(known))}")  # fmt: skip
    if not path.parent.is_dir():
        raise RequestError(f"output {path}: the folder {path.parent} does not exist; create it first")


def save(output: Output, path: Path, *, quality: int | None = None) -> Path:
    """Write frames by the path's suffix (.png, .mkv lossless; .jpg, .webp, .mp4 lossy) and `<path>.json`.

    A PNG carries the receipt itself, too.

    Sound goes into .mkv (lossless) and .mp4 (AAC), and as a .wav next to what cannot hold it.

    `quality` is that of JPEG and WebP (1 to 100); None takes what the trainer uses: 75 for JPEG, 80 for WebP.
    """
    frames, suffix, media = output.frames, path.suffix.lower(), output.media
    check_path(path, len(frames), moving=output.settings.moving)
    is_video = suffix in VIDEOS
    receipt = json.dumps(output.receipt, indent=2, ensure_ascii=False) + "\n"
    files: dict[Path, Callable[[Path], object]] = {}
    if is_video:
        files[path] = lambda part: _write_video(output, part, VIDEOS[suffix])
    elif len(frames) > 1:
        # As toolkit/config_modules.py save_image does.
        more = {"save_all": True, "append_images": frames[1:], "duration": 1000 // output.settings.fps, "loop": 0}
        files[path] = lambda part: frames[0].save(part, "WEBP", quality=quality or 80, **more)
    else:
        options: dict[str, Any] = {"quality": quality or (75 if suffix != ".webp" else 80)}
        if suffix == ".png":
            options = {"pnginfo": _text_chunk(output.receipt)}
        files[path] = lambda part: frames[0].save(part, PICTURES[suffix], **options)
    if media.audio is not None and not is_video:
        files[path.with_suffix(".wav")] = lambda part: _write_wav(media, part)
    files[path.with_name(path.name + ".json")] = lambda part: part.write_text(receipt, encoding="utf-8")
    _atomically(files)
    return path


def _atomically(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write all files beside their places, then move them there, the first one first: all or none."""
    try:
        with ExitStack() as stack:
            for path, write in reversed(list(files.items())):
                write(stack.enter_context(whole(path)))
    except OSError as error:
        raise RequestError(f"output {next(iter(files))}: could not be written ({error.strerror or error}); nothing was "
                           "left behind") from error  # fmt: skip


def _text_chunk(receipt: Mapping[str, Any]) -> Any:
    """The receipt for whoever gets the picture: control images by their content, not by where they lay here."""
    from PIL.PngImagePlugin import PngInfo

    pictures = {"control": receipt["control_sha256"], "shown": receipt.get("shown_sha256", [])}
    carried = {**receipt, "settings": {**receipt["settings"], **pictures}}
    chunk = PngInfo()
    chunk.add_itxt(RECEIPT_KEY, json.dumps(carried, ensure_ascii=False), zip=True)
    return chunk


def pixels_sha256(frames: list[Image.Image]) -> str:
    """Hash of what is shown: size and RGB values of all frames, whatever file they go to."""
    digest = hashlib.sha256(f"{frames[0].width}x{frames[0].height}".encode())
    for frame in frames:
        digest.update(frame.convert("RGB").tobytes())
    return digest.hexdigest()


def audio_sha256(media: Media) -> str:
    """Hash of the sound: sample rate, channels and samples."""
    digest = hashlib.sha256(f"{media.sample_rate}x{len(media.audio)}".encode())
    digest.update(media.audio.astype("<f4").tobytes())
    return digest.hexdigest()


def _write_wav(media: Media, path: Path) -> None:
    """The sound as a WAV of 32-bit floats."""
    channels = len(media.audio)
    data = media.audio.T.astype("<f4").tobytes()
    ieee_float, width, rate = 3, 4, media.sample_rate
    form = struct.pack("<HHIIHH", ieee_float, channels, rate, rate * channels * width, channels * width, 8 * width)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def _write_video(output: Output, path: Path, codec: str) -> None:
    """Through ffmpeg itself: `imageio_ffmpeg.write_frames` does not look at its exit code (a full disk goes unseen)."""
    import imageio_ffmpeg

    # bgr0 holds RGB exactly; yuv420p is what players expect of H.264.
    exact = ["-pix_fmt", "bgr0", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-level", "3"]
    width, height = output.frames[0].size
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", str(output.settings.fps), "-i", "-"]
    with tempfile.TemporaryDirectory() as scratch:
        if output.media.audio is not None:
            sound = Path(scratch, "sound.wav")
            _write_wav(output.media, sound)
            command += ["-i", str(sound), "-c:a", "pcm_f32le" if codec == "ffv1" else "aac"]
        command += ["-c:v", codec, *(exact if codec == "ffv1" else ["-crf", "25", "-pix_fmt", "yuv420p"])]
        pixels = b"".join(frame.convert("RGB").tobytes() for frame in output.frames)
        done = subprocess.run([*command, str(path)], input=pixels, capture_output=True)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip().partition("\n")[0] or "ffmpeg was killed")
