"""Coverage of inputs: every case has one value on every axis, and what is proposed visits what is missing."""

from itertools import combinations
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_drift.harness.check import cases, coverage
from lora_drift.harness.cli.main import app
from lora_drift.pipelines import MODELS
from lora_drift.pipelines.registry import spec_of

CASES = cases.load_all()
"""Share of values and of pairs below which the cases of a model must not fall."""
LEAST_VALUES, LEAST_PAIRS = 0.6, 0.3


def case(model: str, name: str, **sample: Any) -> cases.Case:
    return cases.load(cases.CASES / model / f"{name}.yaml").model_copy(
        update={"sample": cases.load(cases.CASES / model / f"{name}.yaml").sample.model_copy(update=sample)}
    )


@pytest.mark.parametrize("model", MODELS)
def test_every_case_has_a_value_that_its_model_knows_on_every_axis(model: str) -> None:
    spec = spec_of(model)
    known = {(axis.name, value) for axis in coverage.AXES for value in axis.values(spec)}
    for one in (one for one in CASES if one.model == model):
        seen = coverage.visited(one, spec)
        assert [axis for axis, _ in seen] and len(seen) == len(coverage.AXES), one.id
        assert seen <= known, (one.id, seen - known)
        assert all(coverage.possible(pair) for pair in combinations(sorted(seen), 2)), one.id


@pytest.mark.parametrize("model", MODELS)
def test_the_cases_of_no_model_visit_less_than_they_did(model: str) -> None:
    found = coverage.measure(model, CASES)
    assert found.visited_values >= LEAST_VALUES * found.values, found.unvisited
    assert found.visited_pairs >= LEAST_PAIRS * found.pairs


def test_a_case_that_asks_otherwise_visits_more() -> None:
    before = coverage.measure("flux", CASES)
    for sample, value in (
        ({"prompt": "A Fox In The Snow"}, ("prompt", "capitals")),
        ({"prompt": "a fox\u2019s den"}, ("prompt", "beyond ASCII")),
        ({"seed": -7}, ("seed", "negative")),
        ({"seed": 2**40}, ("seed", "of 32 bits and more")),
        ({"network_multiplier": -0.5}, ("multiplier", "negative")),
        ({"width": 64, "height": 128}, ("shape", "tall")),
    ):
        more = case("flux", "lora", **sample)
        assert value in coverage.visited(more, spec_of("flux"))
        after = coverage.measure("flux", [*CASES, more])
        assert value not in after.unvisited
        assert after.visited_pairs >= before.visited_pairs + (value in before.unvisited)


def test_a_refused_case_visits_nothing() -> None:
    asked = case("qwen_image", "base", ctrl_img=str(cases.ASSETS / "wide.png"))
    assert coverage.visited(asked, spec_of("qwen_image")) == set()


@pytest.mark.parametrize("model", ["flux", "sd15", "wan22_5b", "qwen_image_edit_plus"])
def test_what_is_proposed_visits_every_missing_pair_with_few_requests(model: str) -> None:
    missing = set(coverage.measure(model, CASES).unvisited_pairs)
    rows = list(coverage.proposed(model, CASES))
    made = {pair for row in rows for pair in combinations([(a.name, row[a.name]) for a in coverage.AXES], 2)}
    assert len(missing - made) <= 0.02 * len(missing)
    assert len(rows) <= 40
    values = {axis.name: set(axis.values(spec_of(model))) for axis in coverage.AXES}
    assert all(row[name] in values[name] for row in rows for name in values)


def test_values_that_exclude_each_other_are_no_pair() -> None:
    assert not coverage.possible([("network", "none"), ("LoRA", "live")])
    assert not coverage.possible([("LoRA", "merged"), ("base", "quantised")])
    assert not coverage.possible([("control images", "0"), ("control field", "ctrl_img")])
    assert coverage.possible([("network", "none"), ("multiplier", "no LoRA")])
    assert coverage.possible([("network", "lora"), ("base", "quantised")])


def test_the_command_says_what_is_missing() -> None:
    done = CliRunner().invoke(app, ["coverage", "--model", "krea2", "--propose"])
    assert done.exit_code == 0, done.output
    assert "values" in done.output and "never: " in done.output and "propose: " in done.output
    assert CliRunner().invoke(app, ["coverage", "--model", "sd16"]).exit_code == 2
