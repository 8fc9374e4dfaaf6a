"""benchmarks/diagnose.py takes too long to be run here; that it starts, saves what it draws, and is not told a cause of
what no library has, can be seen quickly."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lora_drift.harness.check import cases, runner
from lora_drift.harness.deviations.diagnosis.pictures import Picture
from lora_drift.harness.deviations.library import Subject
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import MODELS
from lora_drift.pipelines.settings import Request, resolve


@pytest.fixture(scope="module")
def benchmark() -> Any:
    found = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks" / "diagnose.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("codec", "count"), [("png", 1), ("jpeg", 1), ("webp", 1), ("ffv1", 1), ("h264", 1),
                                              ("webp", 5), ("ffv1", 5), ("h264", 5)])  # fmt: skip
def test_a_draw_is_saved_as_the_codec_says(benchmark: Any, codec: str, count: int) -> None:
    subject = SimpleNamespace(settings=resolve(MODELS["wan21_1b"], Request("a fox", num_frames=5)))
    frames = np.random.default_rng(0).integers(0, 256, (count, 64, 96, 3), dtype=np.uint8)
    theirs = benchmark.saved(frames, codec, subject)
    assert theirs.frames.shape == frames.shape
    assert theirs.lossless == (codec in ("png", "ffv1")) == np.array_equal(theirs.frames, frames)
    assert theirs.again is not None and np.array_equal(theirs.again(frames), theirs.frames)


@pytest.fixture(scope="module")
def drawn(benchmark: Any) -> tuple[Subject, dict[Any, Any], str]:
    """A scene, the renders of its searches, and the hash of its picture."""
    runner.use_minihub()
    bench, case = runner.Bench(), cases.load(cases.CASES / "sd15" / "lora.yaml")
    request = Request("a red fox", "blurry", 64, 64, 3, 4.0, seed=7, multiplier=0.8)
    subject = Subject.of(bench.pipeline(case, bench.golden(case)), request)
    return subject, {}, benchmark.picture_of(subject)


OUTSIDE = ("another prompt", "seed + 17", "guidance + 40 %", "LoRA at 55 %", "contrast + 15 %", "mirrored",
           "shifted by 3 pixels", "latents blurred", "latents times 1.07", "steps 4 % too far", "noise on the weights",
           "rest of another LoRA")  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_no_library_has_is_not_explained(
    benchmark: Any, drawn: tuple[Subject, dict[Any, Any], str], name: str
) -> None:
    assert set(benchmark.OUTSIDE) == set(OUTSIDE)
    subject, made, picture = drawn
    with benchmark.OUTSIDE[name](subject) as varied:
        frames = benchmark.rendered(varied)
    found = benchmark.searched(subject, Picture.of(frames), made)
    assert (found.verdict, found.complete) == ("unexplained", True), found.best
    assert found.reference > 3 * found.limit > 0, "it should be seen"
    said = benchmark.words.headline(found)
    assert ("The nearest is" in said) == (found.ranking[0].distance <= 0.8 * found.reference), said
    assert benchmark.picture_of(subject) == picture, "not put back"
