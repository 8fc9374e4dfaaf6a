"""What no distance tells is held against the trainer, too: settings, rates, sound, parts, and how files are saved."""

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from lora_drift.harness import tags
from lora_drift.harness.check import agreements, cases, goldens, runner
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.trace import Rendered, Trace
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines.output import Media, Output
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.settings import Request, resolve

SAMPLES = sorted(path for path in (ROOT / "jobs").glob("*/samples/*") if path.suffix in (".jpg", ".webp", ".mp4"))


def recorded(tag: str) -> Iterator[tuple[cases.Case, Golden]]:
    for case in cases.of_both_tiers():
        content = goldens.content(tag, case.id)
        if content is not None:
            yield case, Golden.model_validate(content)


@pytest.mark.parametrize("tag", goldens.tags())
def test_of_every_golden_our_resolved_settings_are_the_trainers(tag: str) -> None:
    """Every case at every tag, without rendering any."""
    toolkit, count = tags.row(tag).version, 0
    for case, golden in recorded(tag):
        asked = resolve(spec_of(case.model, toolkit), runner.Bench.request(case))
        assert list(agreements.settings(golden, asked)) == [], case.id
        count += 1
    assert count > (0 if tags.row(tag).begun else 100)


@pytest.mark.parametrize("name", sorted(set(agreements.SETTINGS.values())))
def test_any_other_setting_is_told(name: str, golden_of: Callable[[str], Golden]) -> None:
    case = cases.load(cases.CASES / "sdxl" / "lora.yaml")
    asked = resolve(spec_of("sdxl"), runner.Bench.request(case))
    value = getattr(asked, name)
    other: Any = f"{value}." if isinstance(value, str) else value + 1
    (told, *_) = agreements.settings(golden_of("sdxl/lora"), replace(asked, **{name: other}))
    assert repr(value) in told and repr(other) in told


def heard(golden: Golden, audio: Any, rate: int) -> list[str]:
    pipe = SimpleNamespace(vocoder=SimpleNamespace(config=SimpleNamespace(output_sampling_rate=24000)))
    ours = Rendered(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.float32), Trace(), {}, audio, rate)
    return list(agreements.sound(golden, ours, pipe))


def test_sound_is_there_where_the_trainers_is_and_at_its_rate(golden_of: Callable[[str], Golden]) -> None:
    audio = np.zeros((2, 100), np.float32)
    video, still = golden_of("ltx2/i2v"), golden_of("ltx2/still")
    assert heard(video, audio, 24000) == []
    assert "12000 samples a second, and the vocoder makes 24000" in heard(video, audio, 12000)[0]
    assert "there is no sound" in heard(video, None, 0)[0]
    assert heard(still, None, 0) == []
    assert "the trainer's sample has none" in heard(still, audio, 24000)[0]


def checked(bench: runner.Bench, case: str, out: Path) -> Any:
    return runner.check(bench, cases.load(cases.CASES / f"{case}.yaml"), out)


def test_a_part_that_changes_pictures_and_a_setting_that_shows_nothing_make_a_drift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.use_minihub()
    bench = runner.Bench(controls=False)
    result = checked(bench, "sd15/base", tmp_path)
    assert (result.verdict, result.disagreements) == ("match", [])
    bench._loaded.base.pipe.watermark = object()  # which Stable Diffusion 1.5 does not read
    settings = bench.settings
    monkeypatch.setattr(bench, "settings", lambda case: replace(settings(case), fps=7))
    result = checked(bench, "sd15/base", tmp_path)
    assert result.verdict == "drift"
    assert result.message == "fps is 16 in the trainer, 7 here; a watermark is loaded, and the trainer has none"


# -------------------------------------------------------------------------------------------------- files as they are


def job_of(sample: Path) -> Any:
    import yaml

    return yaml.safe_load((sample.parents[1] / "config.yaml").read_text())["config"]["process"][0]["sample"]


def saved(frames: list[Image.Image], path: Path, fps: int, audio: Any = None, rate: int = 0) -> Path:
    settings = replace(resolve(spec_of("wan21_1b"), Request("a fox")), num_frames=len(frames), fps=fps)
    receipt: dict[str, Any] = {"control_sha256": [], "settings": settings.as_dict()}
    return Output(Media(frames, audio, rate), settings, receipt).save(path)


def test_there_are_samples_of_each_kind() -> None:
    assert {path.suffix for path in SAMPLES} == {".jpg", ".webp", ".mp4"}


@pytest.mark.parametrize("sample", [p for p in SAMPLES if p.suffix == ".jpg"], ids=lambda p: f"{p.parents[1].name}")
def test_a_jpeg_is_compressed_as_the_trainers(sample: Path, tmp_path: Path) -> None:
    with Image.open(sample) as image:
        theirs: Any = image
        theirs.load()
    with Image.open(saved([theirs.convert("RGB")], tmp_path / "ours.jpg", 16)) as image:
        ours: Any = image
        ours.load()
    assert ours.quantization == theirs.quantization
    assert ours.layer == theirs.layer  # how colours are sampled
    assert ("progressive" in ours.info) == ("progressive" in theirs.info)


@pytest.mark.parametrize("sample", [p for p in SAMPLES if p.suffix == ".webp"], ids=lambda p: f"{p.name}")
def test_an_animation_moves_as_the_trainers_and_is_as_large(sample: Path, tmp_path: Path) -> None:
    def facts(path: Path) -> Any:
        with Image.open(path) as image:
            animation: Any = image
            frames, durations = [], []
            for n in range(animation.n_frames):
                animation.seek(n)
                animation.load()
                frames.append(animation.convert("RGB"))
                durations.append(animation.info["duration"])
            return frames, (animation.n_frames, durations, animation.info["loop"], animation.size)

    frames, theirs = facts(sample)
    path = saved(frames, tmp_path / "ours.webp", job_of(sample)["fps"])
    assert facts(path)[1] == theirs
    # Compressed once more at the same quality it stays about as large (at 60 it is 0.7 of that, at 95 twice).
    assert 0.85 < path.stat().st_size / sample.stat().st_size < 1.15


def streams(path: Path) -> tuple[str, str, str]:
    """Frames a second; rate and channels of the sound."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    told = subprocess.run(command, capture_output=True, text=True).stderr
    fps, sound = re.search(r"([\d.]+) fps", told), re.search(r"(\d+) Hz, (\w+)", told)
    assert fps and sound, told
    return fps[1], sound[1], sound[2]


@pytest.mark.parametrize("sample", [p for p in SAMPLES if p.suffix == ".mp4"], ids=lambda p: f"{p.name}")
def test_a_film_runs_and_sounds_at_the_trainers_rates(sample: Path, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), (n, n, n)) for n in range(9)]
    audio = np.zeros((2, 9000), np.float32)
    path = saved(frames, tmp_path / "ours.mp4", job_of(sample)["fps"], audio, 24000)
    assert streams(path) == streams(sample)


def test_one_frame_of_what_was_asked_as_a_film_can_be_saved_as_one(tmp_path: Path) -> None:
    settings = resolve(spec_of("ltx2"), Request("a fox", num_frames=5, fps=24))
    receipt: dict[str, Any] = {"control_sha256": [], "settings": settings.as_dict()}
    media = Media([Image.new("RGB", (64, 64))], np.zeros((2, 1000), np.float32), 24000)
    path = Output(media, settings, receipt).save(tmp_path / "short.mp4")
    assert streams(path)[1:] == ("24000", "stereo")
