"""Gates are measured spreads times stated factors; where nothing was measured, nothing can pass."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_drift.harness.check import tolerances
from lora_drift.harness.check.results import Metric
from lora_drift.harness.check.runner import GATED
from lora_drift.harness.check.tolerances import FACTORS, Gate, GateError
from lora_drift.harness.studies import spread as measure


def test_the_committed_gates_cover_what_a_verdict_needs() -> None:
    found = tolerances.load("mini", "cpu", "float32")
    assert set(found) == {*GATED, "audio_rel_l2", "trace"} == set(FACTORS)
    assert all(gate.factor == FACTORS[name] and "/" in gate.seen_in for name, gate in found.items())


@pytest.mark.parametrize("key", [("full", "cpu", "float32"), ("mini", "tpu", "float32"), ("mini", "cpu", "float64")])
def test_a_run_without_measured_gates_is_an_error(key: tuple[str, str, str]) -> None:
    with pytest.raises(GateError, match=f"no gates were measured for {'/'.join(key)}.*known: mini/cpu/float32"):
        tolerances.load(*key)


def test_gates_are_filled_in_and_other_metrics_left_alone() -> None:
    limits = {"pixel_max": Gate(spread=2, factor=1.5, seen_in="a test")}
    metrics = [Metric(name="pixel_max", value=3.0), Metric(name="ssim", value=0.5, better="higher")]
    filled = tolerances.apply(metrics, limits)
    assert (filled[0].gate, filled[0].floor) == (3.0, 2)
    assert filled[1] == metrics[1]
    assert metrics[0].gate is None


@given(st.floats(0, 1e3), st.floats(1, 10), st.floats(0, 1e5))
def test_a_value_is_within_its_gate_up_to_and_including_it(spread: float, factor: float, value: float) -> None:
    (metric,) = tolerances.apply(
        [Metric(name="x", value=value)], {"x": Gate(spread=spread, factor=factor, seen_in="a test")}
    )
    assert metric.within == (value <= spread * factor)
    assert metric.model_copy(update={"value": metric.gate}).within
    assert not metric.model_copy(update={"value": None}).within


def test_measured_spreads_become_gates_and_keep_those_of_other_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gates.json"
    file.write_text(tolerances.GATES.read_text())
    monkeypatch.setattr(tolerances, "GATES", file)
    before = json.loads(file.read_text())["gates"]
    measure.write({"pixel_max": (2.0, "sd15/lora: same code again"), "trace": (1e-6, "x/y: z")}, "mini/tpu/float32")
    after = json.loads(file.read_text())["gates"]
    assert after.pop("mini/tpu/float32") == {
        "pixel_max": {"spread": 2.0, "factor": FACTORS["pixel_max"], "seen_in": "sd15/lora: same code again"},
        "trace": {"spread": 1e-6, "factor": FACTORS["trace"], "seen_in": "x/y: z"},
    }
    assert after == before
