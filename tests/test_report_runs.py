"""What a report says of a run: its heading, what failing cases have in common, and what earlier runs found."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lora_drift.harness.check.results import Divergence, Made, Metric, Result, Verdict
from lora_drift.harness.report import heading, trend
from lora_drift.harness.report.causes import by_cause, issue
from lora_drift.harness.report.details import views
from lora_drift.harness.report.render import render

TAG = "v1"


def result(case: str = "flux/base", verdict: Verdict = "match", place: str = "", **more: Any) -> Result:
    first = Divergence(boundary="step0/latents", error=1.0, gate=1e-5, place=place) if place else None
    fixed = {"model": case.split("/")[0], "tag": TAG, "tier": "mini", "device": "cpu", "dtype": "float32"}
    return Result.model_validate({**fixed, "case": case, "verdict": verdict, "first_divergence": first, **more})


def made(at: str) -> Made:
    return Made(code="code", commit="abc", at=datetime.fromisoformat(at), machine="a machine")


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        ([], "Nothing was checked."),
        ([result()], "The check matches the trainer (miniature models, CPU, float32)."),
        ([result()] * 177, "All 177 checks match the trainer (miniature models, CPU, float32)."),
        (
            [result(), result(verdict="known"), result(verdict="drift", device="cuda", dtype="bfloat16", tier="full")],
            "1 of 3 checks match the trainer (miniature models and real weights, CPU and GPU, bfloat16 and float32); "
            "1 needs attention; 1 differs as is known.",
        ),
    ],
)
def test_the_first_sentence_counts_and_says_where(results: list[Result], sentence: str) -> None:
    assert heading.sentence(results) == sentence


def test_the_heading_says_when_where_and_with_what(tmp_path: Path) -> None:
    ran: dict[str, Any] = {"made": made("2026-11-30T07:05:09+00:00"),
           "environment": {"cpu": "A CPU", "platform": "Linux x86_64", "torch": "2.15.0"}}  # fmt: skip
    page = render([result(**ran)], TAG, tmp_path, tmp_path).read_text()
    wanted = {
        "checked": "2026-11-30 07:05 UTC",
        "commit": "abc",
        "machine": "A CPU, Linux x86_64",
        "versions": "torch 2.15.0",
    }
    said = json.loads((tmp_path / "summary.json").read_text())
    assert {name: said["run"][name] for name in wanted} == wanted
    assert all(f"<dt>{name}</dt><dd>{text}</dd>" in page for name, text in wanted.items())
    assert "pictures look like noise by design" in page
    ci = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "a/b", "GITHUB_RUN_ID": "7"}
    assert heading.run([result()], ci)["CI run"] == "https://github.com/a/b/actions/runs/7"


def test_cases_with_one_cause_are_one_card(tmp_path: Path) -> None:
    found = [
        *(result(f"m{i}/base", "drift", "schedule: timesteps") for i in range(15)),
        *(result(f"m{i}/lora", "error", message=f"OSError: m{i}/lora: no file {i}") for i in range(3)),
        result("sd15/base", "drift", "initial noise"),
    ]
    page = render(found, TAG, tmp_path, tmp_path).read_text()
    assert page.count('<li class="card') == 3
    assert "15 cases: schedule" in page and "and 3 more</a>" in page
    assert "3 cases: OSError: m0/lora: no file 0" in page
    assert 'href="#case-sd15-base">sd15/base</a>' in page
    assert len(list((tmp_path / "causes").iterdir())) == 3
    render(found[-1:], TAG, tmp_path, tmp_path)
    assert len(list((tmp_path / "causes").iterdir())) == 1, "those that are gone are not kept"


def test_the_title_of_a_cause_does_not_change_with_its_cases() -> None:
    def title(results: list[Result]) -> str:
        (cause,) = by_cause(views(results, {}))
        return issue(cause, TAG).partition("\n")[0]

    few = [result("flux/base", "drift", "schedule: timesteps")]
    assert title(few) == title([*few, result("sd15/lora", "drift", "schedule: timesteps")])
    assert title(few) != title([result("flux/base", "drift", "initial noise")])


def night(day: int, verdict: Verdict, error: float) -> Result:
    metrics = [Metric(name="latents_rel_l2", value=error, gate=1e-5, floor=1e-6)]
    return result(verdict=verdict, metrics=metrics, made=made(f"2026-11-{day:02}T03:17:00+00:00"))


def test_a_report_says_what_changed_since_the_run_before_and_how_a_case_fared(tmp_path: Path) -> None:
    first = render([night(1, "match", 1e-6)], TAG, tmp_path, tmp_path).read_text()
    assert "Since the run of" not in first and '"trend":[]' in first
    second = render([night(2, "drift", 0.5)], TAG, tmp_path, tmp_path).read_text()
    assert 'Since the run of 2026-11-01 03:17 UTC: <b class="outside">1 broken (flux/base)</b>.' in second
    assert '"trend":[["2026-11-01T03:17:00+00:00","match",1e-06],["2026-11-02T03:17:00+00:00","drift",0.5]]' in second
    again = render([night(2, "drift", 0.5)], TAG, tmp_path, tmp_path).read_text()
    assert again == second, "the same run is not one more"


def test_a_fortnight_is_kept_and_a_broken_file_begun_anew(tmp_path: Path) -> None:
    for day in range(1, 20):
        trend.remember(tmp_path, [night(day, "match", 1e-6)])
    kept = json.loads((tmp_path / trend.NAME).read_text())["runs"]
    assert [run["checked"][8:10] for run in kept] == [f"{day:02}" for day in range(6, 20)]
    (tmp_path / trend.NAME).write_text('{"runs": [')
    assert trend.remember(tmp_path, [night(20, "match", 1e-6)]) == []
    assert len(json.loads((tmp_path / trend.NAME).read_text())["runs"]) == 1
    assert trend.remember(tmp_path / "no folder", [result()]) == [], "a run that says not when it was is not kept"


def test_the_prompt_is_told_beside_the_pictures(tmp_path: Path) -> None:
    asked = {"prompt": "a fox", "negative_prompt": "blurry", "control": ["nowhere.png"]}
    page = render([result(settings=asked)], TAG, tmp_path, tmp_path).read_text()
    assert '"asked":{"words":{"Prompt":"a fox","Negative":"blurry"},"images":[]}' in page
