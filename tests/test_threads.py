"""Renders in several threads of one process, beside a thread that resizes pictures of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import PIL.Image
import pytest
from diffusers.utils import torch_utils
from PIL import Image

from lora_drift import pipelines
from lora_drift.harness.check.cases import ASSETS
from lora_drift.pipelines import Pipeline
from lora_drift.pipelines.shared_patch import SharedPatch

STREAMS = ("torch-2.11", "torch-2.13")
ORDERS = ("pillow-12", "pillow-13")
AGAIN = 3


def test_two_renders_and_a_resize_at_once_give_the_bytes_that_they_give_alone() -> None:
    """Each of the two draws and resizes as another release does, so that one would show in the other."""
    loaded = [
        pipelines.load("flux_kontext", dtype="bfloat16", noise_stream=stream, resize_order=order)
        for stream, order in zip(STREAMS, ORDERS, strict=True)
    ]
    picture = Image.open(ASSETS / "tall.png").convert("RGB")
    meet = threading.Barrier(3)

    def render(pipeline: Pipeline) -> str:
        control = [str(ASSETS / "tall.png")]
        receipt = pipeline.sample("a fox", width=128, height=128, steps=2, seed=3, control=control).receipt
        return str(receipt["pixels_sha256"])

    def resize() -> bytes:
        return picture.resize((96, 40), Image.Resampling.BICUBIC).tobytes()

    def together(do: Callable[[], object], times: int) -> list[object]:
        meet.wait()
        return [do() for _ in range(times)]

    alone = [render(pipeline) for pipeline in loaded], resize()
    assert alone[0][0] != alone[0][1]
    with ThreadPoolExecutor(3) as threads:
        renders = [threads.submit(together, lambda p=p: render(p), AGAIN) for p in loaded]  # type: ignore[misc]
        resized = threads.submit(together, resize, 300)
        assert [future.result() for future in renders] == [[one] * AGAIN for one in alone[0]]
        assert set(resized.result()) == {alone[1]}


def test_while_a_render_runs_other_threads_resize_and_draw_as_ever_and_afterwards_nothing_is_left() -> None:
    import torch

    resize, theirs = PIL.Image.Image.resize, torch_utils.torch
    pipeline = pipelines.load("flux_kontext", resize_order="pillow-12" if PIL.__version__ >= "13" else "pillow-13")
    picture = Image.open(ASSETS / "tall.png").convert("RGB")

    def elsewhere() -> tuple[bytes, list[float]]:
        noise = torch_utils.randn_tensor((2, 16), generator=torch.Generator().manual_seed(1), dtype=torch.bfloat16)
        return picture.resize((96, 40)).tobytes(), noise.float().flatten().tolist()

    before, during = elsewhere(), []

    def on_step(_step: int, _steps: int) -> None:
        assert PIL.Image.Image.resize is not resize
        assert torch_utils.torch is not theirs
        with ThreadPoolExecutor(1) as thread:
            during.append(thread.submit(elsewhere).result())

    pipeline.sample("a fox", width=64, height=64, steps=2, control=[str(ASSETS / "tall.png")], on_step=on_step)
    assert during == [before] * 2
    assert PIL.Image.Image.resize is resize
    assert torch_utils.torch is theirs


def test_a_patch_stays_until_the_last_leaves_it_also_by_an_error() -> None:
    class Owner:
        value = "theirs"

    patch = SharedPatch("value", lambda original: f"ours over {original}")
    with patch.on(Owner):
        with pytest.raises(RuntimeError, match="stop"), patch.on(Owner):
            raise RuntimeError("stop")
        assert Owner.value == "ours over theirs"
    assert Owner.value == "theirs"
