"""A render that is not made of numbers is never a picture, on any route, and says where that began."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_drift.harness.check.runner import Bench
from lora_drift.harness.cli.main import app
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import Pipeline, finite
from lora_drift.pipelines.errors import NotFinite
from lora_drift.pipelines.lora import Coverage, Delta, Lora, LowRank
from lora_drift.pipelines.settings import Request, resolve

PipelineOf = Callable[[str], Pipeline]
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 1}


def absurd(source: Path, target: Path, scale: float = 1e30) -> Path:
    tensors = load_file(source)
    up = next(key for key in tensors if "lora_up" in key or "lora_B" in key)
    save_file({**tensors, up: tensors[up].float() * scale}, target)
    return target


def test_a_lora_beyond_all_measure_leaves_no_picture(tmp_path: Path, lora_of: Callable[[str], Path]) -> None:
    lora = absurd(lora_of("sd15/lora"), tmp_path / "huge.safetensors")
    asked = ["sample", "--mini", "-m", "sd15", "--lora", lora, "-p", "a fox", "--width", 64, "--height", 64,
             "--steps", 2, "-o", tmp_path / "o.png"]  # fmt: skip
    done = CliRunner().invoke(app, [str(part) for part in asked])
    assert done.exit_code == 2, done.output
    assert "no numbers" in done.output and "denoising: unet" in done.output and "smaller multiplier" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["huge.safetensors"]


@pytest.mark.parametrize(("model", "mode"), [("sd15", "merged"), ("sd15", "live"), ("flux", "merged")])
def test_a_multiplier_beyond_all_measure_is_named(
    model: str, mode: Any, pipeline_of: PipelineOf, lora_of: Callable[[str], Path]
) -> None:
    pipeline = pipeline_of(model).with_lora(lora_of(f"{model}/lora"), mode=mode)
    with pytest.raises(NotFinite, match=r"not finite: .*multiplier 1e\+39"):
        pipeline.sample("a fox", multiplier=1e39, **SMALL)
    assert pipeline.sample("a fox", multiplier=1.0, **SMALL).frames  # and the base is whole again


@pytest.mark.parametrize(
    ("component", "stage"),
    [("text_encoder", "encoding the prompt: text_encoder"), ("unet", "denoising: unet"), ("vae", "decoding: vae")],
)
def test_the_first_stage_that_is_not_finite_is_named(component: str, stage: str, pipeline_of: PipelineOf) -> None:
    pipeline = pipeline_of("sd15")
    module = getattr(pipeline.base.pipe, component)
    part = module.decoder if component == "vae" else module
    name, values = [(n, p) for n, p in part.named_parameters() if p.ndim == 1 or p.ndim == 2][-1]
    before = values.data.clone()
    try:
        values.data = torch.full_like(before, float("nan"))
        with pytest.raises(NotFinite, match=f"they began at {stage}"):
            pipeline.sample("a fox", **SMALL)
    finally:
        values.data = before
    assert pipeline.sample("a fox", **SMALL).frames, name


def test_what_is_watched_leaves_no_trace(pipeline_of: PipelineOf) -> None:
    pipe = pipeline_of("sd15").base.pipe
    pipeline_of("sd15").sample("a fox", **SMALL)
    assert "decode" not in vars(pipe.vae)
    assert not pipe.unet._forward_hooks and not pipe.text_encoder._forward_hooks


def test_sound_is_watched_too(pipeline_of: PipelineOf) -> None:
    pipeline = pipeline_of("ltx2")
    values = next(pipeline.base.pipe.audio_vae.decoder.parameters())
    before = values.data.clone()
    try:
        values.data = torch.full_like(before, float("nan"))
        with pytest.raises(NotFinite, match="they began at decoding: audio_vae"):
            pipeline.sample("a fox", width=64, height=64, steps=2, num_frames=9)
    finally:
        values.data = before


def test_verify_says_so_of_the_sample(tmp_path: Path) -> None:
    job = Path(shutil.copytree(ROOT / "jobs" / "sd15", tmp_path / "sd15"))
    for file in job.glob("*.safetensors"):
        absurd(file, file)
    done = CliRunner().invoke(app, ["verify", str(job), "--mini", "--step", "4", "--prompt", "0"])
    assert done.exit_code == 1, done.output
    assert "error" in done.output and "the render holds no numbers" in done.output


def test_the_harness_still_measures_it(pipeline_of: PipelineOf, lora_of: Callable[[str], Path]) -> None:
    # A check wants to know where such a run left its golden, and a control that makes one is a control that is seen.
    pipeline = pipeline_of("sd15").with_lora(lora_of("sd15/lora"))
    settings = replace(resolve(pipeline.spec, Request("a fox", **SMALL)), multiplier=1e39)
    rendered = Bench.render(pipeline, settings)
    assert rendered.trace.sketches and rendered.frames.shape == (1, 64, 64, 3)


def test_stages_are_counted_from_one_and_the_first_that_broke_is_told() -> None:
    stages = finite.Stages()
    stages.call("denoising: unet", torch.ones(2))
    stages.call("denoising: unet", [torch.ones(2), {"last_hidden_state": torch.tensor([1.0, float("nan")])}])
    assert stages.first == ""  # what was decoded decides
    stages.call("decoding: vae", torch.tensor([float("inf"), 0.0]))
    assert stages.first == "denoising: unet (call 2)"
    quiet = finite.Stages()
    quiet.call("decoding: vae", (torch.empty(0), torch.ones(2, dtype=torch.int64), torch.tensor([-1.0])))
    assert quiet.first == ""
    quiet.call("decoding: vae", torch.tensor([float("-inf")]))
    assert quiet.first == "decoding: vae (call 2)"


@pytest.mark.parametrize("role", ["vae", "audio_vae"])
def test_what_is_decoded_is_watched_and_nothing_of_the_call_is_lost(role: str) -> None:
    class Vae:
        def decode(self, latents: torch.Tensor, *, return_dict: bool = True) -> tuple[torch.Tensor, bool]:
            return latents * float("inf"), return_dict

    vae = Vae()
    with finite.watched({role: vae, "other": Vae()}, {}) as stages:
        assert vae.decode(torch.ones(1), return_dict=False)[1] is False
    assert stages.first == f"decoding: {role} (call 1)"
    assert "decode" not in vars(vae)


@pytest.mark.parametrize(
    ("size", "weight", "words"),
    [
        (1.0, 1.0, r"changes weights by up to 2 at multiplier 2; without it, or in float32 \(this is bfloat16\)"),
        (1e5, 1.0, r"by up to 2e\+05 at multiplier 2: that is no training's"),
        (float("inf"), 1.0, r"change of layer is not finite: its scale \(alpha / rank\) is 1, the multiplier 2"),
        (None, 1.0, "The base model itself makes them in bfloat16"),
        (None, float("nan"), "The base model's unet.weight is not finite: fetch the base model again"),
    ],
)
def test_the_cause_is_told_in_words(size: float | None, weight: float, words: str) -> None:
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, weight)
    lora = None
    if size is not None:
        change = LowRank(torch.ones(1, 1), torch.full((1, 1), size), 1.0)
        lora = Lora((), (), (Delta("unet", "layer", change),), Coverage(0, 0, 0, (), (), (), ()))
    assert re.search(words, finite.words("denoising: unet", {"unet": layer}, lora, 2.0, "bfloat16"))
