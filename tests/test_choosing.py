"""Which cases a request names: one function for `check`, `matrix`, `mutate` and the recorder."""

import pytest

from lora_drift.harness import tags
from lora_drift.harness.check import cases
from lora_drift.harness.check.cases import CaseError, choose
from lora_drift.harness.tags import TagError

NEWEST = tags.newest()
KNOWN = cases.of_both_tiers()


def ids(*, tag: str = NEWEST, models: tuple[str, ...] = (), named: tuple[str, ...] = ()) -> list[str]:
    return [case.id for case in choose(KNOWN, models, named, tag=tag)]


def test_nothing_named_is_all_of_the_mini_tier() -> None:
    assert ids() == [case.id for case in cases.known(NEWEST)]


def test_a_model_and_a_case_narrow_each_other_down() -> None:
    assert set(ids(models=("sd15",))) == {case.id for case in KNOWN if case.model == "sd15" and case.tier == "mini"}
    assert ids(models=("sd15", "flux"), named=("flux/lora",)) == ["flux/lora"]
    assert ids(models=("sd15", "flux"), named=("lora",)) == ["flux/lora", "sd15/lora"]


def test_the_full_tier_comes_only_by_its_whole_name() -> None:
    assert ids(named=("full/flux",)) == ["full/flux"]
    with pytest.raises(CaseError, match="no such case or model: flux; there are flux/base, "):
        ids(named=("flux",))


def test_what_a_trainer_lacks_is_left_out_unless_nothing_else_was_asked_for() -> None:
    tag, lacking = next((row.tag, row.lacks) for row in tags.rows() if row.lacks)
    assert not any(name.startswith(f"{lacking[0]}/") for name in ids(tag=tag, models=(lacking[0], "sd15")))
    with pytest.raises(TagError, match=f"the trainer of {tag} does not know {lacking[0]} yet"):
        ids(tag=tag, models=lacking[:1])


@pytest.mark.parametrize(
    ("models", "named", "message"),
    [
        (("sd16",), (), r"no such case or model: sd16 \(did you mean sd15\?\); there are the models anima, "),
        (
            (),
            ("sd15/lroa",),
            r"no such case or model: sd15/lroa \(did you mean sd15/lora\?\); there are sd15/apostrophe, ",
        ),
        ((), ("nowhere/x",), "no such case or model: nowhere/x; there are the models anima, "),
        (("sd15",), ("flux/lora",), "no case belongs to both --model sd15 and --case flux/lora"),
    ],
)
def test_a_request_that_names_nothing_says_so(models: tuple[str, ...], named: tuple[str, ...], message: str) -> None:
    with pytest.raises(CaseError, match=message):
        ids(models=models, named=named)
