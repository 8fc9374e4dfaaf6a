"""Writing renders: losslessly by default, the receipt next to them, and never half a file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.errors import RequestError

if TYPE_CHECKING:
    from PIL import Image

    from pipelines.runtime import Output

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
VIDEOS = {".mkv": "ffv1", ".mp4": "libx264"}


class Media(NamedTuple):
    """What a family renders."""

    frames: list[Image.Image]
    audio: Any = None
    """float32 array [channels, samples], for models that make sound."""
    sample_rate: int = 0


def check_path(path: Path, frames: int) -> None:
    """Refuse, before anything renders, a path that could not be written.

    Raises:
        RequestError: unknown suffix for this kind of output, or no such folder.
    """
    known = {".webp", *VIDEOS} if frames > 1 else set(PICTURES)
    if path.suffix.lower() not in known:
        what = f"{frames} frames" if frames > 1 else "one picture"
        raise RequestError(f"output {path}: cannot write {what} as {path.suffix or 'a file without suffix'}; "
                           f"use {', '.join(sorted(known))}")  # fmt: skip
    if not path.parent.is_dir():
        raise RequestError(f"output {path}: the folder {path.parent} does not exist; create it first")


def save(output: Output, path: Path, *, quality: int | None = None) -> Path:
    """Write frames by the path's suffix (.png, .mkv lossless; .jpg, .webp, .mp4 lossy) and `<path>.json`.

    Sound goes into .mkv (lossless) and .mp4 (AAC), and as a .wav next to what cannot hold it.

    `quality` is that of JPEG and WebP (1 to 100); None takes what the trainer uses: 75 for JPEG, 80 for WebP.
    """
    frames, suffix, media = output.frames, path.suffix.lower(), output.media
    check_path(path, len(frames))
    sound = None if media.audio is None else path.with_suffix(".wav")
    if sound is not None:
        _atomically(sound, lambda part: _write_wav(media.audio, media.sample_rate, part))
    if suffix in VIDEOS and len(frames) > 1:
        _atomically(path, lambda part: _write_video(frames, part, VIDEOS[suffix], output.settings.fps, sound))
        if sound is not None:
            sound.unlink()  # it is in the video now
    elif len(frames) > 1:
        # As toolkit/config_modules.py save_image does.
        options = {"save_all": True, "append_images": frames[1:], "duration": 1000 // output.settings.fps, "loop": 0}
        _atomically(path, lambda part: frames[0].save(part, "WEBP", quality=quality or 80, **options))
    else:
        options = {} if suffix == ".png" else {"quality": quality or (75 if suffix != ".webp" else 80)}
        _atomically(path, lambda part: frames[0].save(part, PICTURES[suffix], **options))
    receipt = json.dumps(output.receipt, indent=2, ensure_ascii=False) + "\n"
    _atomically(path.with_name(path.name + ".json"), lambda part: part.write_text(receipt, encoding="utf-8"))
    return path


def _atomically(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        raise RequestError(f"output {path}: could not be written ({error.strerror or error}); nothing was left behind"
                           ) from error  # fmt: skip
    finally:
        part.unlink(missing_ok=True)


def _write_wav(audio: Any, sample_rate: int, path: Path) -> None:
    """float32 [channels, samples] as a WAV of 32-bit floats."""
    channels = len(audio)
    data = audio.T.astype("<f4").tobytes()
    ieee_float, width = 3, 4
    form = struct.pack("<HHIIHH", ieee_float, channels, sample_rate, sample_rate * channels * width, channels * width,
                       8 * width)  # fmt: skip
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def _write_video(frames: list[Image.Image], path: Path, codec: str, fps: int, sound: Path | None) -> None:
    import imageio_ffmpeg

    # bgr0 holds RGB exactly; yuv420p is what players expect of H.264.
    pixels = "bgr0" if codec == "ffv1" else "yuv420p"
    options = {"codec": codec, "pix_fmt_out": pixels, "macro_block_size": 1, "ffmpeg_log_level": "error"}
    if codec == "ffv1":
        options["quality"] = None
        options["output_params"] = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-level", "3"]
    if sound is not None:
        options |= {"audio_path": str(sound), "audio_codec": "pcm_f32le" if codec == "ffv1" else "aac"}
    writer = imageio_ffmpeg.write_frames(str(path), frames[0].size, fps=fps, **options)
    writer.send(None)
    for frame in frames:
        writer.send(frame.convert("RGB").tobytes())
    writer.close()
