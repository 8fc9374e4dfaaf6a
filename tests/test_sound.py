"""Saving what has sound: in the video where it can be, next to it where it cannot."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from lora_drift.pipelines.output import Media, Output, save
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.settings import Request, resolve

RATE = 24000
SOUND = np.sin(np.arange(2 * RATE // 2, dtype=np.float32) / 40).reshape(2, -1) * np.float32(0.3)
"""float32 [2, 12000]: half a second."""


def clip() -> Output:
    frames = [Image.new("RGB", (32, 32), (40 * i, 90, 200)) for i in range(5)]
    settings = resolve(spec_of("ltx2"), Request("a fox", width=64, height=64, num_frames=9, fps=10))
    return Output(Media(frames, SOUND, RATE), settings, {"model": "ltx2"})


def decoded(path: Path) -> np.ndarray:
    """The sound of a file as float32 [channels, samples]."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "f32le", "-"]
    raw = subprocess.run([*command[:-1], "-vn", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, dtype="<f4").reshape(-1, 2).T


def test_mkv_holds_the_sound_without_loss(tmp_path: Path) -> None:
    save(clip(), tmp_path / "clip.mkv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mkv", "clip.mkv.json"]
    assert np.array_equal(decoded(tmp_path / "clip.mkv"), SOUND)


def test_mp4_holds_sound(tmp_path: Path) -> None:
    save(clip(), tmp_path / "clip.mp4")
    found = decoded(tmp_path / "clip.mp4")
    assert abs(found.shape[1] - SOUND.shape[1]) < 3000
    assert 0.05 < found.std() < 0.4


def test_webp_gets_a_wav_beside_it(tmp_path: Path) -> None:
    save(clip(), tmp_path / "clip.webp")
    assert np.array_equal(decoded(tmp_path / "clip.wav"), SOUND)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
def test_silent_video_has_no_sound_track(tmp_path: Path, name: str) -> None:
    silent = replace(clip(), media=Media(clip().frames))
    save(silent, tmp_path / name)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / name)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "Video:" in shown and not re.search(r"Audio:", shown)
