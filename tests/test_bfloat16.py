"""The bfloat16 path, guarded without a GPU: on the processor that recorded the goldens all 32 models render the
trainer's bits, on any other what two architectures differ by."""

from pathlib import Path

import pytest
import torch

from lora_drift.harness import tags
from lora_drift.harness.check import cases, goldens, runner, tolerances
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.results import PASSING, Result
from lora_drift.harness.check.runner import Bench

MODELS = sorted({case.model for case in cases.known(tags.newest())})


def check(model: str, out: Path, *, controls: bool, capability: str = "") -> tuple[Result, Golden]:
    runner.use_minihub()
    torch.set_num_threads(1)
    bench = Bench("cpu", "bfloat16", tag=tags.newest(), controls=controls, capability=capability)
    case = cases.load(cases.CASES / model / "lora.yaml")
    return runner.check(bench, case, out), bench.golden(case)


@pytest.mark.parametrize("model", MODELS)
def test_a_lora_in_bfloat16_is_the_trainers(model: str, tmp_path: Path) -> None:
    result, golden = check(model, tmp_path, controls=False)
    assert result.verdict in PASSING, result.message
    elsewhere = tolerances.elsewhere(result.environment, golden.environment)
    assert ("not equal" in (result.message or "")) is elsewhere  # at home, the tolerance is 0


FOREIGN = "8.0"
"""The compute capability of a GPU without goldens of its own, an A100."""


def test_a_gpu_without_goldens_is_held_to_those_of_the_nearest_and_says_what_that_proves(tmp_path: Path) -> None:
    result, golden = check("flux", tmp_path, controls=True, capability=FOREIGN)
    assert (result.verdict, golden.environment["gpu"]) == ("match", "NVIDIA H100 80GB HBM3"), result.message
    assert "recorded on sm90" in result.message and "not equal" in result.message
    assert all(control.caught for control in result.controls) and len(result.controls) >= 5
    judged = {metric.name for metric in result.metrics if metric.gate is not None}
    assert judged >= {"latents_rel_l2", "pixel_max", "pixel_mean", "ssim", "flip"}


def test_a_mistake_in_half_precision_is_no_difference_between_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Golden, "noise_stream", "torch-2.13")
    result, _ = check("flux", tmp_path, controls=False, capability=FOREIGN)
    assert result.verdict == "drift" and "ssim" in result.message, result.message


def test_the_nearest_set_is_one_of_a_gpu(tmp_path: Path) -> None:
    for name in ("v1@sm90-bfloat16", "v1@sm120-bfloat16", "v1@cpu-bfloat16"):
        (tmp_path / name).mkdir()
    nearest = {wanted: goldens.nearest("v1", f"{wanted}-bfloat16", tmp_path) for wanted in ("sm80", "sm100", "sm121")}
    assert nearest == {"sm80": "sm90-bfloat16", "sm100": "sm90-bfloat16", "sm121": "sm120-bfloat16"}
    assert goldens.nearest("v1", "cpu-bfloat16", tmp_path) == "cpu-bfloat16"
    assert goldens.nearest("v2", "sm80-bfloat16", tmp_path) == "sm80-bfloat16", "nothing was recorded"
