"""benchmarks/diagnose.py takes too long to be run here; that it starts and saves what it draws can be seen quickly."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

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
