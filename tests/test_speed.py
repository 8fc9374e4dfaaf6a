"""Synthetic models of the real size, and the benchmark that runs on them."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from lora_drift import pipelines
from lora_drift.harness.minihub import factory, full
from lora_drift.harness.minihub.factory import MiniHubError
from lora_drift.harness.minihub.repos import REPOS
from lora_drift.harness.minihub.repos.flux2_files import Autoencoder, Transformer
from lora_drift.harness.paths import ROOT
from lora_drift.harness.studies.speed import table

BILLIONS = {
    "black-forest-labs/FLUX.1-dev/transformer": 11.901,
    "black-forest-labs/FLUX.1-dev/text_encoder_2": 4.762,
    "stabilityai/stable-diffusion-xl-base-1.0/unet": 2.567,
    "stabilityai/stable-diffusion-xl-base-1.0/text_encoder_2": 0.695,
    "Tongyi-MAI/Z-Image-Turbo/transformer": 6.155,
    "Qwen/Qwen3-4B/model.safetensors": 4.022,
    "Qwen/Qwen-Image/transformer": 20.430,
    "Qwen/Qwen-Image/text_encoder": 8.292,
    "black-forest-labs/FLUX.2-klein-base-4B": 3.876,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/transformer": 1.419,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/text_encoder": 5.681,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers/transformer": 5.000,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae": 0.705,
    "lodestones/Chroma1-Base": 8.900,
}
"""Parameters of the released models."""
NARROW: Mapping[str, Mapping[str, Any]] = {
    "black-forest-labs/FLUX.1-dev": {
        "text_encoder": {},
        "text_encoder_2": {"num_layers": 24},
        "transformer": {"num_layers": 19, "num_single_layers": 38},
        "vae": {},
    },
    "ostris/Flex.1-alpha": {"text_encoder_2": {"num_layers": 24}},
}
"""The real depth in the miniature's width."""


@pytest.mark.parametrize("part", BILLIONS)
def test_a_model_has_as_many_parameters_as_the_released_one(part: str) -> None:
    (found,) = [p for repo in REPOS.values() for p in full.parts(repo) if f"{p.repo}/{p.path}".startswith(part)]
    count = sum(int(np.prod(shape, dtype=np.int64)) for shape in found.shapes().values())
    assert count / 1e9 == pytest.approx(BILLIONS[part], abs=0.0006)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub of the real depth in a miniature's width, written by the installed transformers for itself."""
    monkeypatch.setattr(full, "COMPONENTS", NARROW)
    monkeypatch.setattr(full, "FILES", {"lodestones/Chroma1-Base": {"Chroma1-Base.safetensors": {"w": (3, 4)}}})
    monkeypatch.setattr(full, "_check_transformers", lambda: None)
    full.build(tmp_path, ["flux", "chroma"], lambda _: None)
    return tmp_path


def test_activations_keep_their_size_through_the_real_depth(narrow: Path) -> None:
    base = factory.snapshot(narrow, "black-forest-labs/FLUX.1-dev")
    pipeline = pipelines.load("flux", base=str(base), dtype="bfloat16")
    sizes: list[float] = []
    pipeline.base.pipe.transformer.register_forward_hook(lambda *a: sizes.append(a[-1][0].float().std().item()))
    first, again, other = (
        np.asarray(pipeline.sample(prompt, width=64, height=64, steps=2, seed=1).frames[0], np.float32)
        for prompt in ("a fox", "a fox", "a lighthouse by night")
    )
    assert all(0.5 < size < 2 for size in sizes)
    assert 30 < first.std() < 90 and ((first == 0) | (first == 255)).mean() < 0.1
    assert (first == again).all() and np.abs(first - other).mean() > 3


def test_equal_components_are_drawn_once_and_those_of_other_models_can_be_removed(narrow: Path) -> None:
    inodes = {
        (factory.snapshot(narrow, repo) / "text_encoder_2/model.safetensors").stat().st_ino
        for repo in ("black-forest-labs/FLUX.1-dev", "ostris/Flex.1-alpha")
    }
    assert len(inodes) == 1
    before = {path.name: path.read_bytes() for path in (narrow / "drawn").iterdir()}
    full.build(narrow, ["chroma"], lambda _: None, prune=True)
    left = {path.name for path in (narrow / "drawn").iterdir()}
    assert {path.name for path in (narrow / "hub").iterdir()} == {
        "models--lodestones--Chroma1-Base",
        "models--ostris--Flex.1-alpha",
    }
    full.build(narrow, ["flux"], lambda _: None)
    assert left < before.keys() and before == {path.name: path.read_bytes() for path in (narrow / "drawn").iterdir()}


def test_the_flux2_autoencoder_loads_with_levels_of_several_widths(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    size = Transformer(hidden=64, heads=4, depth=1, single=1, context=96, guidance=False)
    file = "flux-2-klein-base-4b.safetensors"
    vae = Autoencoder(channels=32, multipliers=(1, 2, 4, 4), blocks=2).shapes()
    klein = "black-forest-labs/FLUX.2-klein-base-4B"
    monkeypatch.setattr(full, "COMPONENTS", {})
    monkeypatch.setattr(full, "FILES", {klein: {file: size.shapes(), "ae.safetensors": vae}})
    monkeypatch.setattr(full, "_check_transformers", lambda: None)
    full.build(tmp_path, ["flux2_klein_4b"], lambda _: None)
    base = str(factory.snapshot(tmp_path, klein))
    picture = pipelines.load("flux2_klein_4b", base=base).sample("a fox", width=64, height=64, steps=2).frames[0]
    assert 20 < np.asarray(picture, np.float32).std() < 100


def test_the_weights_are_bfloat16_at_the_miniatures_scale(narrow: Path) -> None:
    path = factory.snapshot(narrow, "black-forest-labs/FLUX.1-dev") / "transformer/diffusion_pytorch_model.safetensors"
    with safe_open(path, framework="pt") as file:
        matrix = file.get_tensor("transformer_blocks.0.ff.net.0.proj.weight")
        norm = file.get_tensor("transformer_blocks.0.attn.norm_q.weight")
    assert str(matrix.dtype) == "torch.bfloat16"
    assert matrix.float().std().item() == pytest.approx(matrix.shape[1] ** -0.5, rel=0.05)
    assert norm.min() >= 0.9 and norm.max() <= 1.1


def test_an_environment_with_other_tensor_names_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "5.1.0")
    with pytest.raises(MiniHubError, match=r"transformers 5\.1\.0 is installed: .* trainer's environment"):
        full.build(tmp_path / "new", ["flux"])
    with pytest.raises(MiniHubError, match="no full-size config of sd15"):
        full.build(tmp_path / "new", ["sd15"])
    assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------------------------------------- benchmark


def gpu(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_benchmark_measures_what_it_can_and_names_what_failed(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()  # nothing in it
    given = ("--home", factory.build(), "--model", "flux", "--device", "cpu", "--steps", 3, "--repeats", 1)
    done = gpu(*given, "--trainer", tmp_path / "trainer", "--without", "deterministic", "--json", tmp_path / "r.jsonl")
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert "No module named 'toolkit'" in line["trainer"]["ended"] and str(ROOT) not in json.dumps(line)
    ours, plain = line["ours"]["ours_seconds"], line["ours"]["plain_seconds"]
    for found in (ours, plain):
        assert 0 < found["encode"] + 3 * found["step"] + found["decode"] < 1.5 * found["total"]
    assert "deterministic" not in line["ours"] and line["ours"]["in_turn"] and "ours_repeat" not in line["ours"]
    floor = line["ours"]["floor"]
    assert floor["calls_per_step"] == 1 and floor["step_over_floor"] > 0  # below 1 where others use the machine
    shown = gpu("--markdown", tmp_path / "r.jsonl").stdout
    assert "| flux | ours |" in shown and "| flux | stock Diffusers |" in shown
    assert "- flux, trainer: 1: " in shown and "## Memory" not in shown


def test_what_finds_no_time_any_more_is_listed(tmp_path: Path) -> None:
    given = ("--home", factory.build(), "--model", "flux", "--device", "cpu", "--limit-s", 0)
    both = ("--profile", "compiled", "--profile", "fast")
    assert gpu(*given, *both, "--json", tmp_path / "r.jsonl").returncode == 0
    shown = gpu("--markdown", tmp_path / "r.jsonl").stdout
    assert all(f"- flux, {part}, all of it: no time left" in shown for part in ("ours", "compiled", "fast"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--home", ".", "--model", "flux", "--json", "r"), "no Hugging Face cache"),
        (("--home", ".", "--model", "sd15", "--json", "r"), "--model sd15: there are sdxl, flux"),
        (("--model", "flux"), "--home, --model and --json are needed"),
    ],
)
def test_a_wrong_request_is_refused(given: tuple[str, ...], said: str) -> None:
    done = gpu(*given)
    assert done.returncode == 2 and said in done.stderr


def measured() -> dict[str, Any]:
    """A line as on a GPU."""
    return {
        "model": "flux", "synthetic": True, "command": "python benchmarks/gpu.py --home DIR --model flux --json FILE",
        "settings": {"width": 1024, "height": 1024, "num_frames": 1, "steps": 8}, "rank": 32,
        "trainer": {"seconds": {"load": 30.0, "step": 0.25, "total": 4.0, "peak_gb": 40.0}, "noise": [0, 2]},
        "ours": {
            "environment": {"gpu": "NVIDIA H100 80GB HBM3", "dtype": "bfloat16", "torch": "2.11.0"},
            "load": 20.0, "resident_gb": 33.9, "first": {"peak_gb": 36.0}, "lora": {
                "read": 0.5, "in_pageable_memory": {"first": 8.5, "another": 7.5},
                "on_device": {"first": 1.0, "another": 0.5}},
            "against_trainer": {"equal": True, "pixel_max": 0.0, "pixel_mean": 0.0, "latents_rel_l2": 0.0},
            "plain": {"load": 19.0, "lora": 2.5, "lora_error": "ValueError: no", "against_trainer": {
                "equal": False, "pixel_max": 12.0, "pixel_mean": 0.5}},
            "ours_seconds": {"step": 0.2, "total": 3.0}, "plain_seconds": {"step": 0.2, "total": 2.0},
            "offload_model": {"peak_gb": 25.0, "total": 9.0}, "offload_group": {"peak_gb": 4.0, "total": 20.0},
            "skipped": ["deterministic"],
        },
        "compiled": {"seconds": {"step": 0.16, "total": 2.5, "peak_gb": 36.0}, "first": {"total": 30.0, "drift": {
            "equal": False, "pixel_max": 5.0, "pixel_mean": 0.3, "latents_rel_l2": 0.005}}},
        "fast": {"seconds": {"step": 0.1, "total": 2.0, "peak_gb": 47.5}, "first": {"total": 40.0, "drift": {
            "equal": False, "pixel_max": 9.0, "pixel_mean": 0.4, "latents_rel_l2": 0.01}}},
        "flux-fast": {"seconds": {"step": 0.16, "total": 2.4}, "first": {"total": 300.0, "drift": {
            "equal": False, "pixel_max": 19.0, "pixel_mean": 1.4}}},
    }  # fmt: skip


def test_the_tables_say_how_ours_compares_and_what_fits_where() -> None:
    text = table.render([{**measured(), "settings": {}}, measured()])  # the later line of a model counts
    assert "| flux | 1024x1024 | equal to the bit | 2 |  | 12 / 0.5 |" in text
    assert "| flux | trainer | 30 |  |  | 0.25 |  | 4 | 0.80 / 0.75 |" in text
    assert "| flux | stock Diffusers | 19 | 2.5 |  | 0.2 |  | 2 | 1.00 / 1.50 |" in text
    assert "24: group offload, 48: all, 80: all" in text
    assert "| flux, 1024x1024 | flux-fast | 0.16 | 2.4 | 300 | 1.25 | 1.25 |  | 19 / 1.4 |" in text
    assert "| flux | ours, originals in pageable memory (until 0.1) | 9 | 8 | 40% |" in text
    assert "| flux | ours, originals on the device | 1.5 | 1 | 5% |" in text
    assert "| flux | stock Diffusers | 2.5 | 2.5 | 12% |" in text
    assert "| flux, 1024x1024 | compiled | 0.16 | 2.5 | 30 | 1.25 | 1.20 | 36.0 | 5 / 0.3; 0.005 |" in text
    assert "| flux, 1024x1024 | fast | 0.1 | 2 | 40 | 2.00 | 1.50 | 47.5 | 9 / 0.4; 0.01 |" in text
    assert "- flux, ours, the LoRA in stock Diffusers: ValueError: no" in text
    assert "- flux, ours, deterministic: no time left" in text and "## Floor" not in text
    del (line := measured())["ours"]["offload_group"]
    assert "24: not measured, 48: all, 80: all" in table.render([line])
