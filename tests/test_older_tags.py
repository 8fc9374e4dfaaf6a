"""Every model at every tag but the newest, two of its cases a day, so that a week sees them all. (`pytest cases` checks
the newest tag whole; `pytest cases --drift-tag TAG` an older one.)"""

from datetime import date
from pathlib import Path

import pytest
import torch
from turns import A_WEEK, chosen, today

from lora_drift.harness import tags
from lora_drift.harness.check import cases, goldens, runner
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.results import PASSING
from lora_drift.harness.check.runner import Bench

A_DAY = 2
TAGS = [row.tag for row in tags.all_rows() if row.tag != tags.newest()]
MODELS = sorted({file.stem for tag in TAGS for file in goldens.GOLDENS.glob(f"{tag}/*.json")})


def recorded(model: str, tag: str) -> list[Case]:
    """The cases of a model that have a golden at the tag."""
    bench, found = Bench(tag=tag), []
    for case in (case for case in cases.known(tag) if case.model == model):
        try:
            bench.golden(case)
        except goldens.Missing:
            continue
        found.append(case)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_a_model_matches_at_every_older_tag(model: str, tmp_path: Path) -> None:
    runner.use_minihub()
    torch.set_num_threads(1)
    wrong, seen = [], 0
    for tag in TAGS:
        bench = Bench(tag=tag, controls=False)
        for case in chosen(recorded(model, tag), today(), A_DAY):
            result = runner.check(bench, case, tmp_path)
            seen += 1
            if result.verdict not in PASSING:
                wrong.append(f"{tag} {case.id}: {result.verdict}: {result.message}")
    assert not wrong, "\n".join(wrong)
    assert seen, f"{model} has a golden at no older tag"


@pytest.mark.parametrize(("tag", "model"), [(TAGS[0], "sd15"), (TAGS[4], "flux2_klein_4b"), (TAGS[4], "sd15")])
def test_a_week_sees_every_case(tag: str, model: str) -> None:
    runner.use_minihub()
    every, begin = recorded(model, tag), date(2026, 11, 30)
    week = [chosen(every, date.fromordinal(begin.toordinal() + n), A_DAY) for n in range(A_WEEK)]
    assert {case.id for day in week for case in day} == {case.id for case in every}
    assert all(len({case.id for case in day}) == len(day) for day in week)
