"""Saving what has sound: in the video where it can be, next to it where it cannot. And what reports play of it."""

import io
import re
import subprocess
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from lora_drift.harness.check import cases, runner, wav
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.paths import ROOT
from lora_drift.harness.report.pictures import Album
from lora_drift.harness.trainer.jobs import JobError, sample_codec
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


def levels(data: bytes) -> np.ndarray:
    """What a WAV of 16 bits holds, float32 [channels, samples]."""
    with wave.open(io.BytesIO(data)) as file:
        assert file.getsampwidth() == 2
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    return heard.T.astype(np.float32) / 32767


def test_a_check_keeps_its_sound_for_the_report_which_plays_it_beside_the_goldens(
    golden_of: Callable[[str], Golden], tmp_path: Path
) -> None:
    case = cases.load(cases.CASES / "ltx2/short.yaml")
    result = runner.check(Bench(controls=False), case, tmp_path)
    assert result.golden_sound is not None and result.output_sound is not None
    output = result.output_file(result.output_sound)
    found = Album().sounds(ROOT / result.golden_sound, output)
    assert list(found) == ["golden", "output"]
    golden = golden_of("ltx2/short").audio()
    for strip in found.values():
        assert wav.rate(strip.data) == RATE
        assert np.abs(levels(strip.data) - golden).max() < 1.01 / 32767
        assert strip.uri.startswith("data:audio/wav;base64,")


def test_a_sound_that_cannot_be_played_says_why(golden_of: Callable[[str], Golden], tmp_path: Path) -> None:
    golden, output = golden_of("ltx2/short").stored("audio"), tmp_path / "ours.wav"
    sounds = Album().sounds
    assert sounds(None, None) == {}
    gone = sounds(golden, output)
    assert gone["output"].problem == "cannot be played: ours.wav (FileNotFoundError)"
    assert gone["golden"].problem == sounds(golden, None)["golden"].problem
    assert gone["golden"].problem == "cannot be played: only the output's file says how fast"
    output.write_bytes(b"RIFF and no more")
    assert sounds(None, output)["output"].problem == "cannot be played: ours.wav (Error)"
    output.write_bytes(wav.encoded(SOUND, RATE))
    assert sounds(tmp_path / "lost.safetensors.xz", output)["golden"].problem == "lost.safetensors.xz was deleted"


def test_numbers_beyond_one_are_clipped_in_what_is_played() -> None:
    assert levels(wav.encoded(np.array([[-3.0, 0, 0.5, 7]], np.float32), RATE)).tolist() == [
        [-1, 0, pytest.approx(0.5, abs=1 / 32767), 1]
    ]


def test_the_sound_of_a_sample_is_decoded(tmp_path: Path) -> None:
    save(clip(), tmp_path / "clip.mkv")
    heard = sample_codec.sound(tmp_path / "clip.mkv")
    assert wav.rate(heard) == RATE and np.abs(levels(heard) - SOUND).max() < 2 / 32767
    save(replace(clip(), media=Media(clip().frames)), tmp_path / "silent.mp4")
    assert sample_codec.sound(tmp_path / "silent.mp4") == b""
    save(clip(), tmp_path / "clip.webp")
    assert sample_codec.sound(tmp_path / "clip.webp") == b""
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and no more")
    with pytest.raises(JobError, match=r"broken.mp4: its sound cannot be decoded \(.*Invalid data"):
        sample_codec.sound(tmp_path / "broken.mp4")
