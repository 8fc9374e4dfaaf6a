"""The scripts of the workflows, run here with stand-ins for `gh`; and the workflows, read by zizmor."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_drift.harness.check import trusted
from lora_drift.harness.check.results import Divergence, Result, write
from lora_drift.harness.paths import ROOT
from lora_drift.harness.report.render import render

GITHUB = ROOT / ".github"
RUN = {
    "GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "a/b", "GITHUB_RUN_ID": "7",
}  # fmt: skip
GH = """#!/usr/bin/env python3
import json, os, pathlib, sys
if sys.argv[1:3] == ["issue", "list"]:
    print(os.environ["OPEN"])
body = sys.argv[sys.argv.index("--body-file") + 1] if "--body-file" in sys.argv else ""
text = pathlib.Path(body).read_text() if body else ""
with open(os.environ["LOG"], "a") as log:
    log.write(json.dumps([sys.argv[1:], text]) + "\\n")
"""


def result(case: str, verdict: str, place: str = "", **more: Any) -> Result:
    first = Divergence(boundary="step0/latents", error=1.0, gate=1e-5, place=place) if place else None
    fixed = {"model": case.split("/")[0], "tag": "v1", "tier": "mini", "device": "cpu", "dtype": "float32"}
    return Result.model_validate({**fixed, "case": case, "verdict": verdict, "first_divergence": first, **more})


def issues(tmp_path: Path, results: list[Result], already: list[dict[str, Any]]) -> list[tuple[list[str], str]]:
    """What `gh` is asked for after a nightly run with these results, while these issues are open."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "gh").write_text(GH)
    (tools / "gh").chmod(0o755)
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    render(results, "v1", tmp_path / "report", tmp_path)
    environment = {
        **os.environ,
        **RUN,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "OPEN": json.dumps(already),
        "LOG": str(log),
    }
    command = [str(GITHUB / "issues"), "nightly", str(tmp_path / "report" / "causes")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    return [(args, body) for args, body in asked if args[:2] not in (["label", "create"], ["issue", "list"])]


needs_jq = pytest.mark.skipif(
    shutil.which("jq") is None, reason="no jq on the PATH: the script of the issues was not run"
)


@needs_jq
def test_a_cause_is_one_issue_that_is_commented_while_it_lasts_and_closed_when_it_is_gone(tmp_path: Path) -> None:
    red = [result("flux/base", "drift", "schedule: timesteps"), result("flux/lora", "drift", "schedule: timesteps"),
           result("sd15/base", "error", message="OSError: no such file")]  # fmt: skip
    opened = issues(tmp_path, red, [])
    assert [args[:2] for args, _ in opened] == [["issue", "create"]] * 2
    titles = [args[args.index("--title") + 1] for args, _ in opened]
    assert titles[0] == "error at v1: OSError: no such file"
    assert titles[1].startswith("drift at v1: schedule: ")
    assert "2 cases:" in opened[1][1] and "`flux/lora`" in opened[1][1]
    assert opened[0][1].endswith("Run: https://github.com/a/b/actions/runs/7\n")

    already = [{"number": number, "title": title} for number, title in enumerate(titles, 3)]
    more = [*red[:2], result("sd15/lora", "drift", "schedule: timesteps")]
    lasting = issues(tmp_path, more, already)
    assert [args[:3] for args, _ in lasting] == [["issue", "comment", "4"], ["issue", "close", "3"]]
    assert "3 cases:" in lasting[0][1], "the title does not count them"

    green = issues(tmp_path, [result("flux/base", "match")], already)
    assert [args[:3] for args, _ in green] == [["issue", "close", "3"], ["issue", "close", "4"]]


def test_the_summary_of_a_run_is_its_comment(tmp_path: Path) -> None:
    results, out, page = tmp_path / "results.jsonl", tmp_path / "report", tmp_path / "page.md"
    write(results, [result("flux/base", "error", message="no memory", made=trusted.made())])
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    script = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m lora_drift.harness.cli.main "$@"\n'
    (tmp_path / ".venv" / "bin" / "lora-drift").write_text(script)
    (tmp_path / ".venv" / "bin" / "lora-drift").chmod(0o755)
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(page)}
    command = [GITHUB / "summary", results, out]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert page.read_text() == (out / "comment.md").read_text()
    assert "0 of 1 checks match the trainer (miniature models, CPU, float32); 1 needs attention" in page.read_text()


def test_a_run_that_checked_nothing_says_so(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(page)}
    subprocess.run([GITHUB / "summary", tmp_path / "none", tmp_path / "out"], env=environment, check=True)
    assert (
        page.read_text()
        == (tmp_path / "out" / "comment.md").read_text()
        == ("The run failed before it checked a case: its log says why.\n")
    )


def test_zizmor_finds_nothing() -> None:
    command = [str(Path(sys.executable).with_name("zizmor")), "--offline", "--no-progress", str(GITHUB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_scripts_that_workflows_call_are_there_and_can_be_run() -> None:
    for workflow in (GITHUB / "workflows").glob("*.yml"):
        steps = [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]
        for word in " ".join(step.get("run", "") for step in steps).split():
            if word.startswith(".github/"):
                assert os.access(ROOT / word, os.X_OK), f"{workflow.name}: {word}"
