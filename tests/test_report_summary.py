"""What a run leaves for git, for a pull request and for CI, and how files of several machines become one report."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from lora_drift.harness.check import results as result_files
from lora_drift.harness.check import trusted
from lora_drift.harness.check.results import Control, Divergence, Metric, Result, Verdict
from lora_drift.harness.cli.main import app
from lora_drift.harness.report import changes, summary
from lora_drift.harness.report.render import render

TAG = "v1.2.3"


def result(case: str = "flux/lora", verdict: Verdict = "match", **more: Any) -> Result:
    fixed = {"model": case.split("/")[0], "tag": TAG, "tier": "mini", "device": "cpu", "dtype": "float32"}
    return Result.model_validate({**fixed, "case": case, "verdict": verdict, **more})


def believed(case: str) -> Result:
    """A result that the command takes for one of this code; nothing was measured, so it is no match."""
    return result(case, "missing", made=trusted.made())


def latents(value: float) -> list[Metric]:
    return [Metric(name="latents_rel_l2", value=value, gate=8e-6, floor=2e-6)]


def lines(path: Path, *results: Result) -> Path:
    path.write_text("".join(r.model_dump_json() + "\n" for r in results))
    return path


def run(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_committed_summary_depends_on_nothing_but_the_code(tmp_path: Path) -> None:
    metric = Metric(name="latents_rel_l2", value=1.23456e-5, gate=1e-4)
    ssim = Metric(name="ssim", value=0.99962345, better="higher")
    first = [result("b/x", metrics=[metric, ssim], seconds=1.0), result("a/x", "drift", message="on host one")]
    second = [
        result("a/x", "drift", message="on host two", environment={"cpu": "another"}),
        result("b/x", seconds=7.0, metrics=[metric.model_copy(update={"value": 1.23401e-5}), ssim]),
    ]
    for folder, found in (("one", first), ("two", second)):
        render(found, TAG, tmp_path / folder, tmp_path)
    assert (tmp_path / "one" / "summary.md").read_bytes() == (tmp_path / "two" / "summary.md").read_bytes()
    content, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert other.pop("run") == {"machine": "another"}, "the only part that tells when and where it was"
    assert content.pop("run") == {} and content == other
    assert content["sentence"] == "1 of 2 checks match the trainer (miniature models, CPU, float32); 1 needs attention."
    assert content["verdicts"] == {"drift": 1, "match": 1}
    assert [case["case"] for case in content["cases"]] == ["a/x", "b/x"]
    assert content["cases"][1]["metrics"] == {
        "latents_rel_l2": {"value": 1.23e-5, "gate": 1e-4},
        "ssim": {"value": 0.999623},
    }
    table = (tmp_path / "one" / "summary.md").read_text()
    assert "| b/x | mini | cpu float32 | match | – | 1.23e-5 (0.0001) | 0.999623 | – | – |" in table


def test_the_summary_keeps_how_far_each_control_moved_the_picture(tmp_path: Path) -> None:
    controls = [Control(name="seed + 1", pixel_max=200, latents_rel_l2=1, caught=True)]
    render([result(controls=controls)], TAG, tmp_path, tmp_path)
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text)["cases"][0]["controls"] == {"seed + 1": {"pixel_max": 200, "caught": True}}
    assert len(text.splitlines()) == 3, "one line a case, for git"


def test_junit_has_a_suite_a_model_and_says_what_failed_and_why(tmp_path: Path) -> None:
    first = Divergence(boundary="step0/noise", error=1, gate=1e-5, place="initial noise")
    drift = result("sd15/lora", "drift", message="outside its tolerance", first_divergence=first, seconds=1.5)
    render([result(), drift, result("sd15/base", "error", message="\x00boom")], TAG, tmp_path, tmp_path)
    suites = {suite.attrib["name"]: suite for suite in ElementTree.parse(tmp_path / "junit.xml").getroot()}
    assert suites["flux"].attrib | {"time": ""} == {
        "name": "flux", "tests": "1", "failures": "0", "errors": "0", "skipped": "0", "time": "",
    }  # fmt: skip
    assert (suites["sd15"].attrib["failures"], suites["sd15"].attrib["errors"]) == ("1", "1")
    error, failure = (case[0] for case in suites["sd15"])
    assert (error.tag, error.attrib["message"]) == ("error", "�boom")
    assert (failure.tag, failure.attrib["type"]) == ("failure", "drift")
    assert "began at: step0/noise\ncause: Everything before agrees; look at the seed" in (failure.text or "")


def test_a_pull_request_is_told_what_fails_and_what_changed(tmp_path: Path) -> None:
    before = tmp_path / "before"
    render([result(), result("sd15/x")], TAG, before, tmp_path)
    found = [result(), result("sd15/x", "drift", message="a | b", metrics=latents(1))]
    render(found, TAG, tmp_path, tmp_path, since=before / "summary.json")
    comment = (tmp_path / "comment.md").read_text()
    assert comment.startswith(
        f"### lora-drift {TAG}: 1 of 2 checks match the trainer (miniature models, CPU, float32);"
    )
    assert "| sd15/x | drift | – | a \\| b |" in comment
    assert "Since the previous run: 1 broken (sd15/x)." in comment
    assert "| sd15 | 1 | drift | – | 1 | – |" in comment


def test_a_comment_stays_short_enough_for_a_pull_request(tmp_path: Path) -> None:
    found = [result(f"m{i % 30}/c{i}", "drift", message="x" * 1000) for i in range(1000)]
    render(found, TAG, tmp_path, tmp_path)
    comment = (tmp_path / "comment.md").read_text()
    assert "... and 970 more." in comment
    assert len(comment) < 65_536


@pytest.mark.parametrize(
    ("then", "now", "sentence"),
    [
        ([result("a/x")], [result("a/x", "drift")], "1 broken (a/x)"),
        ([result("a/x", "missing")], [result("a/x")], "1 mended (a/x)"),
        ([result("a/x", "known")], [result("a/x")], "no verdict changed"),
        ([result("a/x"), result("a/y")], [result("a/x"), result("a/z")], "1 new (a/z); 1 gone (a/y)"),
        ([result("a/x"), result("b/x")], [result("a/x")], "no verdict changed"),
        ([result("a/x", metrics=latents(1e-6))], [result("a/x", metrics=latents(5e-6))], "1 further off (a/x)"),
        ([result("a/x", metrics=latents(1e-7))], [result("a/x", metrics=latents(1e-6))], "no verdict changed"),
        ([result("a/x")], [result("a/x", device="cuda")], "1 new (a/x); 1 gone (a/x)"),
        (
            [result("a/x", environment={"torch": "2.14", "diffusers": "0.42"})],
            [result("a/x", environment={"torch": "2.15", "diffusers": "0.42", "transformers": "5"})],
            "no verdict changed; torch 2.14 → 2.15",
        ),
    ],
)
def test_what_changed_since_an_earlier_run(then: list[Result], now: list[Result], sentence: str) -> None:
    earlier = summary.summarise(summary.table(then), TAG)
    assert changes.compare(now, "then", earlier).sentence == sentence


def test_what_was_not_run_is_not_gone(tmp_path: Path) -> None:
    (tmp_path / "cases" / "a").mkdir(parents=True)
    (tmp_path / "cases" / "a" / "there.yaml").touch()
    before = tmp_path / "before"
    render([result("a/x"), result("a/there"), result("a/removed")], TAG, before, tmp_path)
    render([result("a/x")], TAG, tmp_path, tmp_path, since=before / "summary.json", cases=tmp_path / "cases")
    comment = (tmp_path / "comment.md").read_text()
    assert "1 gone (a/removed)" in comment and "a/there" not in comment


def test_one_case_of_a_model_leaves_its_siblings_in_peace() -> None:
    ran, *others = sorted(f"sd15/{file.stem}" for file in (changes.CASES / "sd15").glob("*.yaml"))
    earlier = summary.summarise(summary.table([result(case) for case in (ran, *others)]), TAG)
    assert others and changes.compare([result(ran)], "then", earlier).sentence == "no verdict changed"


def test_shards_are_merged_and_the_last_run_of_a_case_counts(tmp_path: Path) -> None:
    one = lines(tmp_path / "1.jsonl", result("b/x", "error"), result("a/x"))
    two = lines(tmp_path / "2.jsonl", result("b/x"), result("b/x", device="cuda"))
    merged = [(r.case, r.device, r.verdict) for r in result_files.merge([one, two])]
    assert merged == [("a/x", "cpu", "match"), ("b/x", "cpu", "match"), ("b/x", "cuda", "match")]


def test_the_command_merges_files_and_writes_every_form(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "1.jsonl", believed("a/x")), lines(tmp_path / "2.jsonl", believed("b/x"))
    done = run("report", one, two, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.output.split() == [str(tmp_path / "out" / "index.html")]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"index.html", "summary.json", "summary.md", "comment.md", "junit.xml", "causes", "history.json"}
    assert "0 of 2 checks match the trainer" in (tmp_path / "out" / "index.html").read_text()


def test_each_tag_gets_its_own_report(tmp_path: Path) -> None:
    other = believed("a/x").model_copy(update={"tag": "v0"})
    done = run("report", lines(tmp_path / "r.jsonl", believed("a/x"), other), "-o", tmp_path)
    assert done.output.split() == [str(tmp_path / "v0" / "index.html"), str(tmp_path / TAG / "index.html")]
    index = run("report", "--index", "-o", tmp_path / "overview")
    assert index.exit_code == 0, index.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one or more result files, or give --index"),
        (["missing.jsonl"], "missing.jsonl"),
    ],
)
def test_a_wrong_request_is_answered_in_one_paragraph(arguments: list[str], message: str) -> None:
    done = run("report", *arguments)
    assert done.exit_code == 2
    assert message in done.output and "Traceback" not in done.output


def test_a_file_without_results_is_no_report(tmp_path: Path) -> None:
    done = run("report", lines(tmp_path / "empty.jsonl"), "-o", tmp_path)
    assert done.exit_code == 2 and "holds no results" in done.output
