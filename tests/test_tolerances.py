"""Tolerances are measured spreads times stated factors; where nothing was measured, nothing can pass."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_drift.harness.check import tolerances
from lora_drift.harness.check.goldens import CPU
from lora_drift.harness.check.results import Metric, Result, Verdict
from lora_drift.harness.check.tolerances import FACTORS, Tolerance, ToleranceError
from lora_drift.harness.studies import spread as measure


def test_the_committed_tolerances_cover_what_a_verdict_needs() -> None:
    found = tolerances.load("mini", CPU)
    assert set(found) == set(FACTORS)
    assert all(tolerance.factor == FACTORS[name] and "/" in tolerance.seen_in for name, tolerance in found.items())


CUDA = {"device": "cuda", "gpu": "a GPU", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("tier", "changed", "key"),
    [
        ("full", {}, "full/cpu/float32"),
        ("mini", {"dtype": "float64"}, "mini/cpu/float64"),
        (
            "mini",
            {"device": "cuda", "gpu": "X", "compute_capability": "5.2", "dtype": "bfloat16"},
            "mini/sm52/bfloat16",
        ),
    ],
)
def test_a_run_without_measured_tolerances_is_an_error(tier: str, changed: dict[str, str], key: str) -> None:
    with pytest.raises(ToleranceError, match=f"no tolerances were measured for {key}.*known: mini/cpu/float32"):
        tolerances.load(tier, CPU | changed)


def test_another_processor_than_that_of_the_golden_has_tolerances_of_its_own() -> None:
    here = CPU | {"cpu": "AMD EPYC", "cpu_capability": "AVX512"}
    same, other = (tolerances.load("mini", here, golden) for golden in (here, here | {"cpu": "Intel(R) Xeon(R)"}))
    assert other == tolerances.load("mini", here, here | {"cpu_capability": "AVX2"})
    assert same == tolerances.load("mini", CPU)
    assert all(other[name].spread >= tolerance.spread for name, tolerance in same.items())
    assert "the trainer on" in other["latents_rel_l2"].seen_in


def test_on_another_processor_a_stage_is_held_to_what_its_kind_was_measured_to_spread() -> None:
    here = CPU | {"cpu": "AMD EPYC", "cpu_capability": "AVX2"}
    limits = tolerances.load("mini", here, here | {"cpu_capability": "AVX512"}, "flux_kontext")
    noise, prediction = (tolerances.of_stage(limits, stage) for stage in ("step0/noise", "step1/denoiser#0"))
    least = tolerances.load("mini", here)["trace"].limit
    assert noise == pytest.approx(least), "noise is equal to the bit, but legal variants of one processor are not"
    assert prediction > 2 * least
    assert tolerances.of_stage(limits, "step0/noise") < limits["trace"].limit
    same = tolerances.load("mini", here, here, "flux_kontext")
    assert tolerances.of_stage(same, "step1/denoiser#0") == same["trace"].limit


def test_the_spread_of_stages_comes_from_cases_that_match_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = CPU | {"cpu": "A"}, CPU | {"cpu": "B"}

    def ran(case: str, verdict: Verdict, golden: dict[str, str], trace: dict[str, float | None]) -> Result:
        return Result(case=case, model=case.split("/")[0], tag="t", tier="mini", device="cpu", dtype="float32",
                      verdict=verdict, environment=here, golden_environment=golden, trace=trace)  # fmt: skip

    found = measure.of_stages([
        ran("flux/a", "match", there, {"step0/noise": 0.0, "step0/denoiser#0": 1e-5, "step1/denoiser#0": None}),
        ran("flux/b", "match", there, {"step0/denoiser#0": 3e-5, "step0/denoiser#0.timestep": 1e-8}),
        ran("flux/c", "drift", there, {"step0/denoiser#0": 0.5}),
        ran("flux/d", "match", here, {"step0/denoiser#0": 0.5}),
    ])  # fmt: skip
    key = "mini/cpu/float32/another processor"
    assert found == {key: {"flux": {"initial noise": 0.0, "denoiser": 3e-5, "schedule": 1e-8}}}

    file = tmp_path / "tolerances.json"
    file.write_text(tolerances.TOLERANCES.read_text())
    monkeypatch.setattr(tolerances, "TOLERANCES", file)
    before = tolerances.load("mini", here, there, "sd15")
    measure.write_stages(found)
    limits = tolerances.load("mini", here, there, "flux")
    assert tolerances.of_stage(limits, "step3/denoiser#1") == pytest.approx(8 * 3e-5)
    assert tolerances.load("mini", here, there, "sd15") == before, "other models keep theirs"


def test_tolerances_are_filled_in_and_other_metrics_left_alone() -> None:
    limits = {"pixel_max": Tolerance(spread=2, factor=1.5, seen_in="a test")}
    metrics = [Metric(name="pixel_max", value=3.0), Metric(name="ssim", value=0.5, better="higher")]
    filled = tolerances.apply(metrics, limits)
    assert (filled[0].gate, filled[0].floor) == (3.0, 2)
    assert filled[1] == metrics[1]
    assert metrics[0].gate is None


@given(st.floats(0, 1e3), st.floats(1, 10), st.floats(0, 1e5))
def test_a_value_is_within_its_tolerance_up_to_and_including_it(spread: float, factor: float, value: float) -> None:
    (metric,) = tolerances.apply(
        [Metric(name="x", value=value)], {"x": Tolerance(spread=spread, factor=factor, seen_in="a test")}
    )
    assert metric.within == (value <= spread * factor)
    assert metric.model_copy(update={"value": metric.gate}).within
    assert not metric.model_copy(update={"value": None}).within


def test_measured_spreads_become_tolerances_and_keep_those_of_other_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gates.json"
    file.write_text(tolerances.TOLERANCES.read_text())
    monkeypatch.setattr(tolerances, "TOLERANCES", file)
    before = json.loads(file.read_text())["gates"]
    measure.write({"pixel_max": (2.0, "sd15/lora: same code again"), "trace": (1e-6, "x/y: z")}, "mini/tpu/float32")
    after = json.loads(file.read_text())["gates"]
    assert after.pop("mini/tpu/float32") == {
        "pixel_max": {"spread": 2.0, "factor": FACTORS["pixel_max"], "seen_in": "sd15/lora: same code again"},
        "trace": {"spread": 1e-6, "factor": FACTORS["trace"], "seen_in": "x/y: z"},
    }
    assert after == before
