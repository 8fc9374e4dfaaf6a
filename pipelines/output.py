"""Writing renders: losslessly by default, the receipt next to them, and never half a file."""

from __future__ import annotations

import json
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

    `quality` is that of JPEG and WebP (1 to 100); None takes what the trainer uses: 75 for JPEG, 80 for WebP.
    """
    frames, suffix = output.frames, path.suffix.lower()
    check_path(path, len(frames))
    if suffix in VIDEOS and len(frames) > 1:
        _atomically(path, lambda part: _write_video(frames, part, VIDEOS[suffix], output.settings.fps))
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


def _write_video(frames: list[Image.Image], path: Path, codec: str, fps: int) -> None:
    import imageio_ffmpeg

    # bgr0 holds RGB exactly; yuv420p is what players expect of H.264.
    pixels = "bgr0" if codec == "ffv1" else "yuv420p"
    options = {"codec": codec, "pix_fmt_out": pixels, "macro_block_size": 1, "ffmpeg_log_level": "error"}
    if codec == "ffv1":
        options["quality"] = None
        options["output_params"] = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-level", "3"]
    writer = imageio_ffmpeg.write_frames(str(path), frames[0].size, fps=fps, **options)
    writer.send(None)
    for frame in frames:
        writer.send(frame.convert("RGB").tobytes())
    writer.close()
