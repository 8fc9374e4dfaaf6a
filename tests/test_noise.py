"""Noise in half precision: either stream of torch's, on any torch, in every draw of a render."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from lora_drift import pipelines
from lora_drift.pipelines import noise
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.spec import NOISE_STREAMS, NoiseStream

HERE = Path(__file__).parent
DRAWN: dict[NoiseStream, Any] = json.loads((HERE / "noise_streams.json").read_text(encoding="utf-8"))
record_noise = SimpleNamespace(**runpy.run_path(str(HERE / "record_noise.py")))
RUNNING: NoiseStream = "torch-2.11" if Version(torch.__version__) < Version("2.12") else "torch-2.13"
dtypes = st.sampled_from(record_noise.DTYPES)


@given(st.sampled_from(NOISE_STREAMS), dtypes, st.sampled_from(record_noise.SIZES))
def test_either_stream_is_what_the_torch_of_its_name_drew(stream: NoiseStream, dtype: str, size: int) -> None:
    def draw(count: int, generator: Any, kind: torch.dtype) -> torch.Tensor:
        return noise.normal((count,), generator, kind)

    drawn = record_noise.digest(draw, noise.seeded(size, stream), size, dtype)
    assert drawn == DRAWN[stream][dtype][str(size)]


@given(dtypes, st.integers(0, 5000), st.integers(0, 2**64 - 1))
def test_the_stream_of_the_torch_that_runs_is_its_own(dtype: str, size: int, seed: int) -> None:
    kind = getattr(torch, dtype)
    ours, theirs = noise.seeded(seed, RUNNING), torch.Generator("cpu").manual_seed(seed)
    for _ in range(2):
        drawn = noise.normal((size,), ours, kind)
        assert torch.equal(drawn.view(torch.int16), record_noise.randn(size, theirs, kind).view(torch.int16))
    assert torch.equal(ours.get_state(), theirs.get_state())


@given(st.sampled_from(NOISE_STREAMS), st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_float32_is_drawn_by_every_torch_alike(stream: NoiseStream, shape: list[int]) -> None:
    drawn = noise.normal(tuple(shape), noise.seeded(5, stream), torch.float32)
    assert torch.equal(drawn, torch.randn(shape, generator=torch.Generator("cpu").manual_seed(5)))


def test_diffusers_draws_through_it_only_inside_the_block_and_only_from_our_generators() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    other: NoiseStream = "torch-2.11" if RUNNING == "torch-2.13" else "torch-2.13"

    def drawn(generator: torch.Generator) -> torch.Tensor:
        return randn_tensor((2, 16), generator=generator, dtype=torch.bfloat16)

    plain = drawn(torch.Generator("cpu").manual_seed(1))
    with noise.diffusers_draws_ours():
        assert torch.equal(drawn(torch.Generator("cpu").manual_seed(1)), plain)
        assert torch.equal(drawn(noise.seeded(1, RUNNING)), plain)
        assert not torch.equal(drawn(noise.seeded(1, other)), plain)
    assert torch.equal(drawn(noise.seeded(1, other)), plain)


def test_the_stream_decides_the_first_noise_and_that_of_each_ddpm_step_and_leaves_nothing_behind() -> None:
    """In bfloat16 of the other stream than this torch's, sd15 draws nothing from torch's own; A-B-A gives A's bytes."""
    old, new = (pipelines.load("sd15", dtype="bfloat16", noise_stream=stream) for stream in NOISE_STREAMS)
    drawn: list[NoiseStream] = []

    def pixels(pipeline: pipelines.Pipeline) -> tuple[bytes, str]:
        output = pipeline.sample("a fox", width=64, height=64, steps=3, seed=3)
        return np.asarray(output.frames[0]).tobytes(), output.receipt["noise_stream"]

    normal = noise.normal

    def watched(shape: tuple[int, ...], generator: noise.Generator, dtype: torch.dtype) -> torch.Tensor:
        assert dtype is torch.bfloat16
        drawn.append(generator.stream)
        return normal(shape, generator, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "normal", watched)
        first = pixels(old)
    assert drawn == ["torch-2.11"] * 4, "the first noise, and that of each of three steps"
    second, third = pixels(new), pixels(old)
    assert first == third
    assert first[0] != second[0]
    assert (first[1], second[1]) == NOISE_STREAMS


def test_an_unknown_stream_is_refused_and_the_default_is_that_of_the_torch_that_the_trainer_recommends() -> None:
    with pytest.raises(RequestError, match=r"noise_stream 'torch-2': use torch-2\.11 or torch-2\.13"):
        pipelines.load("sd15", noise_stream="torch-2")
    assert pipelines.load("sd15").base.noise_stream == "torch-2.11"
