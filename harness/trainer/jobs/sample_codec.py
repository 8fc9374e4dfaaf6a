"""Sample files: read, and our pictures put through the same encoding, so that only what else differs is left."""

import math
import subprocess
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lora_drift.harness.check.metrics import Array, difference
from lora_drift.harness.deviations.diagnosis import pictures
from lora_drift.harness.deviations.diagnosis.pictures import Picture
from lora_drift.harness.trainer.jobs import JobError

WEBP_QUALITY = 80
"""Of the trainer's animations (GenerateImageConfig.save_image), and Pillow's default. A file tells its own roughly."""
COPIES, NUDGES = 5, 200
"""`floor` measures so many copies, and more until so many values were nudged: most nudges change nothing, and a small
picture has few of them a copy."""


def read(path: Path) -> Picture:
    """Decode a sample that the trainer encoded; `again` does the same to other frames.

    Raises:
        RequestError: not a readable picture.
        JobError: not in a form that the trainer writes.
    """
    sample = pictures.read(path)
    if sample.codec.startswith(("WebP", "WEBP")):
        again = partial(pictures.through, kind="WEBP", quality=WEBP_QUALITY)
        return replace(sample, codec=f"WebP, quality {WEBP_QUALITY}", again=again)
    if sample.codec.startswith("H.264") and isinstance(sample.again, partial):
        # PyAV, through which the trainer writes (Diffusers' encode_video), scales colours bilinearly.
        options = ["-sws_flags", "bilinear", *sample.again.keywords["options"]]
        return replace(sample, again=partial(pictures.h264, options=options))
    if sample.again is None:
        raise JobError(f"{path}: {sample.codec}; the trainer does not save samples so: take the file that it wrote")
    return sample


def sound(path: Path) -> bytes:
    """The sound of a sample as a WAV of 16-bit numbers; empty where it has none.

    Raises:
        JobError: what is there cannot be decoded.
    """
    import imageio_ffmpeg

    if path.suffix.lower() not in pictures.MOVIES:
        return b""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "sound.wav")
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-vn", "-c:a", "pcm_s16le"]
        # Without the tags that ffmpeg adds, a WAV is as long as its sound.
        done = subprocess.run([*command, "-map_metadata", "-1", "-fflags", "+bitexact", str(file)],
                              capture_output=True, text=True, errors="replace")  # fmt: skip
        if "does not contain any stream" in done.stderr:
            return b""
        if done.returncode:
            raise JobError(f"{path}: its sound cannot be decoded ({done.stderr.strip().splitlines()[-1]})")
        return file.read_bytes()


def encoded(frames: Array, sample: Picture) -> Array:
    """`frames` after the encoding of `sample`: what its file would show had it been ours."""
    assert sample.again is not None
    return sample.again(frames)


def nudges(frames: Array, share: float) -> int:
    """How many values of a copy are a level off."""
    return max(1, round(frames.size * share))


def nudged(frames: Array, share: float, seed: int) -> Array:
    """With a share of the values, and one at least, a level off."""
    places = np.random.default_rng(seed).choice(frames.size, nudges(frames, share), replace=False)
    values = frames.copy().reshape(-1)
    values[places] = np.where(values[places] > 127, values[places] - 1, values[places] + 1)
    return values.reshape(frames.shape)


def floor(frames: Array, sample: Picture, share: float) -> tuple[float, float]:
    """(largest, mean) difference that this encoding makes of `frames` and copies with a share of values one level off.

    An encoder decides by thresholds: one value that was rounded the other way can move a block by dozens of levels.
    """
    whole = encoded(frames, sample)
    largest, mean = 0.0, 0.0
    for seed in range(max(COPIES, math.ceil(NUDGES / nudges(frames, share)))):
        moved = difference(whole, encoded(nudged(frames, share, seed), sample))
        largest, mean = max(largest, float(moved.max())), max(mean, float(moved.mean()))
    return largest, mean
