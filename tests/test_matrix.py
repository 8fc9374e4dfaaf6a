"""The release matrix: a fault in Diffusers is found and bisected, a killed run goes on, nothing is left out."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from lora_drift import pipelines
from lora_drift.harness.check.cases import CASES, load
from lora_drift.harness.check.trace import Trace
from lora_drift.harness.cli.main import app
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.studies.matrix import checkouts, findings, report, run, run_cases
from lora_drift.harness.studies.matrix.environment import Combination, Environment
from lora_drift.harness.studies.matrix.findings import Finding
from lora_drift.harness.studies.matrix.run_cases import Outcome, Status
from lora_drift.pipelines import runtime
from lora_drift.pipelines.errors import Unsupported

HERE = version("diffusers")
FAULT = (' = "fixed_small"', ' = "fixed_large"')
SCHEDULER = "schedulers/scheduling_ddpm.py"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, with the mini hub that is there; no test asks a package registry."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "minihub").symlink_to(factory.build().parent, target_is_directory=True)
    monkeypatch.setenv("LORA_DRIFT_CACHE", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return folder


def matrix(*args: object) -> Result:
    return CliRunner().invoke(app, ["matrix", *map(str, args)])


def git(folder: Path, *args: str) -> str:
    who = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org")
    return subprocess.run(["git", "-C", str(folder), *who, *args], check=True, capture_output=True, text=True).stdout


# ----------------------------------------------------------------------------------------------------------- a fault


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A checkout of the installed Diffusers with four commits, `good` to `bad`; the third changes one default."""
    checkout = tmp_path / "diffusers"
    package = checkout / "src" / "diffusers"
    (spec,) = [importlib.util.find_spec("diffusers")]
    assert spec is not None and spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(checkout))
    for number, subject in enumerate(("The release", "A comment", "Variance as in the paper", "Another comment")):
        source = package / ("utils/constants.py" if number != 2 else SCHEDULER)
        text = source.read_text(encoding="utf-8")
        assert number != 2 or text.count(FAULT[0]) == 1
        source.write_text(text.replace(*FAULT) if number == 2 else text + f"# {number}\n", encoding="utf-8")
        git(checkout, "add", "--all")
        git(checkout, "commit", "--quiet", "--message", subject)
    git(checkout, "branch", "good", "HEAD~3")
    git(checkout, "branch", "bad", "HEAD")
    return checkout


@pytest.mark.slow
def test_a_changed_default_is_found_and_bisected_to_its_commit(faulty: Path, tmp_path: Path) -> None:
    before = git(faulty, "status", "--porcelain", "--branch"), git(faulty, "for-each-ref"), git(faulty, "reflog")
    done = matrix(
        "--diffusers", "git:good", "git:bad", "--checkout", faulty, "--case", "sd15/base", "-o", tmp_path / "o"
    )
    assert done.exit_code == 1, done.output
    content = json.loads((tmp_path / "o" / "matrix.json").read_text())
    good, bad = content["combinations"]
    assert good["models"]["sd15"] == "green"
    assert bad["models"]["sd15"]["status"] == "drift"
    (finding,) = content["findings"]
    culprit = git(faulty, "rev-parse", "HEAD~1").strip()
    assert (finding["first"]["diffusers"], finding["before"]["diffusers"]) == ("git:bad", "git:good")
    assert finding["bisection"]["commit"] == culprit
    assert finding["bisection"]["changed"] == [f"DDPMScheduler ({SCHEDULER})"]
    assert finding["boundary"] == bad["models"]["sd15"]["boundary"] == "step0/latents"
    for words in (culprit, "Variance as in the paper", "DDPMScheduler", "step0/latents", "5 steps", "--case sd15/base"):
        assert words in finding["paragraph"]
        assert words in done.stdout
        assert words in (tmp_path / "o" / "matrix.md").read_text()
    assert before == (
        git(faulty, "status", "--porcelain", "--branch"), git(faulty, "for-each-ref"), git(faulty, "reflog"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ resume


def test_a_killed_run_goes_on_where_it_was(cache: Path) -> None:
    cases = ("sd15/base", "zimage_turbo/base", "zimage_turbo/snapped")
    command = [sys.executable, "-m", "lora_drift", "matrix", "--diffusers", HERE, "--case", *cases]
    store = cache / "matrix" / "golden.jsonl"
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        patience = time.monotonic() + 120
        while not (store.is_file() and store.read_text().endswith("\n")):
            assert first.poll() is None and time.monotonic() < patience
            time.sleep(0.01)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    known = store.read_text().splitlines()
    assert 1 <= len(known) < len(cases)
    store.write_text("\n".join([*known, known[0][:40]]))  # and the last line was cut short
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert f"{len(known)} of 3 cases are known from before" in second.stderr
    lines = store.read_text().splitlines()
    assert lines[: len(known)] == known
    assert [json.loads(line)["outcome"]["case"] for line in lines] == list(cases)


def test_a_result_counts_until_something_changes_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    case = load(CASES / "sd15" / "base.yaml")
    one = Combination(diffusers="0.38.0", transformers="4.57.3")

    def key(**changes: Any) -> str:
        asked: dict[str, Any] = {"case": case, "combination": one, "tag": "v0.7.29.202603241", "mode": "golden"}
        return run.key_of(**{**asked, **changes}, checkout=None)

    changed = [
        key(),
        key(case=case.model_copy(update={"sample": case.sample.model_copy(update={"seed": 7})})),
        key(combination=one.model_copy(update={"transformers": "5.0.0"})),
        key(mode="plain"),
    ]
    assert key() == changed[0]
    for part in ("_source", "_family"):
        monkeypatch.setattr(run, part, lambda _: "other code")
        changed.append(key())
    monkeypatch.setattr(factory, "manifest_sha256", lambda *_repositories: "another mini hub")
    changed.append(key())
    assert len(set(changed)) == len(changed)


def test_two_runs_at_a_time_are_refused(cache: Path) -> None:
    from filelock import FileLock

    (cache / "matrix").mkdir()
    with FileLock(cache / "matrix" / "golden.lock"):
        done = matrix("--diffusers", HERE, "--case", "sd15/base")
    assert done.exit_code == 2
    assert "another `lora-drift matrix` is using" in done.stderr


# ------------------------------------------------------------------------------------------------------- the request


def test_a_combination_that_cannot_be_installed_is_reported(tmp_path: Path) -> None:
    done = matrix(
        "--diffusers", "0.0.0", "--case", "sd15/base", "zimage/base", "-o", tmp_path, "--json", tmp_path / "j"
    )
    assert done.exit_code == 1
    content = json.loads((tmp_path / "j").read_text())
    assert content["counts"] == {"not installable": 2}
    assert "diffusers==0.0.0" in content["combinations"][0]["not_installable"]
    assert "not installable: " in done.stdout and "diffusers==0.0.0" in done.stdout
    text = (tmp_path / "matrix.md").read_text()
    assert "| zimage | not installable |" in text and "diffusers==0.0.0" in text


def test_a_torch_is_part_of_the_combination(tmp_path: Path) -> None:
    here = version("torch")
    done = matrix("--diffusers", HERE, "--torch", here, "0.0.0", "--case", "sd15/base", "-o", tmp_path)
    assert done.exit_code == 1  # of the torch that there is not
    content = json.loads((tmp_path / "matrix.json").read_text())
    assert [c["torch"] for c in content["combinations"]] == [here, "0.0.0"]
    assert content["combinations"][0]["models"] == {"sd15": "green"}
    assert "torch==0.0.0" in content["combinations"][1]["not_installable"]
    assert not {"torch", "torchvision"} & set(content["otherwise"])  # they are not the same everywhere
    assert f"× torch {here} |" in (tmp_path / "matrix.md").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--diffusers", "git:main"), "give --checkout DIR"),
        (("--diffusers", HERE, "--model", "flux9"), "no such case or model: flux9"),
        (("--diffusers", HERE, "--case", "flux/nothing"), "no such case or model: flux/nothing"),
        (("--diffusers", HERE, "--case", "flux/base", "--model", "sd15"), "no case belongs to both"),
        (("--diffusers", HERE, "--tag", "v9"), "unknown tag 'v9'"),
        (("--diffusers", HERE, "--checkout", "nowhere"), "nowhere"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_paragraph(args: tuple[str, ...], words: str) -> None:
    done = matrix(*args)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_checkout_that_lacks_a_commit_says_how_to_get_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", str(tmp_path / "empty"))
    with pytest.raises(checkouts.CheckoutError, match=r"no commit, tag or branch 'v1'; `git fetch --tags` there"):
        checkouts.resolve(tmp_path / "empty", "v1")


# -------------------------------------------------------------------------------------------------------- a dying one


def interpreter(folder: Path, body: str) -> Environment:
    """An environment whose interpreter is a script: `cases` are the case ids asked for, `tell` writes a result."""
    script = folder / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, re, sys, time\n"
        "cases = [m[1] for m in (re.search(r'cases/(.+/.+)\\.yaml$', word) for word in sys.argv) if m]\n"
        "out = sys.argv[sys.argv.index('--drift-json') + 1]\n"
        "def tell(case, **fields):\n"
        "    with open(out, 'a') as stream:\n"
        "        result = {'case': case, 'model': case.split('/')[0], 'tag': 't', 'tier': 'mini', 'device': 'cpu'}\n"
        "        stream.write(json.dumps(result | {'dtype': 'float32', 'verdict': 'match'} | fields) + '\\n')\n" + body
    )
    script.chmod(0o755)
    return Environment(script, ())


def outcomes_of(environment: Environment, cases: list[str], folder: Path) -> dict[str, Outcome]:
    combination = Combination(diffusers="1", transformers="1")
    found = list(run_cases.run(environment, combination, cases, tag="t", mode="golden", keep=folder))
    assert len(found) == len(cases)
    return {outcome.case: outcome for outcome in found}


def test_a_process_that_dies_takes_only_one_case_with_it(tmp_path: Path) -> None:
    body = "for case in cases:\n    if case == 'b/two': os.abort()\n    tell(case)\n"
    cases = ["a/one", "b/one", "b/two", "b/three", "c/one"]
    found = outcomes_of(interpreter(tmp_path, body), cases, tmp_path)
    assert {case: o.status for case, o in found.items()} == {
        **dict.fromkeys(cases, "green"), "b/two": "crash", "b/three": "green",
    }  # fmt: skip
    assert "SIGABRT" in found["b/two"].message


def test_an_environment_in_which_nothing_starts_is_asked_twice(tmp_path: Path) -> None:
    count = tmp_path / "count"
    body = f"open({str(count)!r}, 'a').write('x')\nsys.exit('ImportError: broken')\n"
    found = outcomes_of(interpreter(tmp_path, body), ["a/one", "a/two", "b/one", "c/one", "d/one"], tmp_path)
    assert {o.status for o in found.values()} == {"crash"}
    assert {o.message for o in found.values()} == {"the process ended (exit code 1): ImportError: broken"}
    assert count.read_text() == "xx"


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cases, "PATIENCE", 1.0)
    found = outcomes_of(interpreter(tmp_path, "tell(cases[0])\ntime.sleep(600)\n"), ["a/one", "a/two"], tmp_path)
    assert found["a/one"].status == "green"
    assert found["a/two"].message == "no case ended within 1 s"


def test_a_release_without_the_classes_is_refused_at_load_and_counts_as_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "version", lambda package: "0.37.1")
    with pytest.raises(Unsupported) as refused:
        pipelines.load("ltx2.3")
    assert str(refused.value).startswith("ltx2.3 needs diffusers>=0.38, 0.37.1 is installed: pip install")
    assert pipelines.load("ltx2").spec.id == "ltx2"
    message = f"Unsupported: {refused.value}"
    body = f"tell('ltx2.3/base', verdict='error', message={message!r})\n"
    found = outcomes_of(interpreter(tmp_path, body), ["ltx2.3/base"], tmp_path)["ltx2.3/base"]
    assert (found.status, found.message) == ("lacks", message)


# --------------------------------------------------------------------------------------------------------- workflows

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize(
    "linter",
    [("check-jsonschema", "--builtin-schema", "vendor.github-workflows"), ("zizmor", "--offline", "--no-progress")],
)
def test_the_workflows_are_valid_and_safe(linter: tuple[str, ...]) -> None:
    command = [str(Path(sys.executable).with_name(linter[0])), *linter[1:], *map(str, WORKFLOWS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert {path.stem for path in WORKFLOWS} >= {"nightly", "pull-request", "release"}
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------------------- findings


def outcomes(rows: dict[str, str], case: str = "flux/base", transformers: str = "5") -> list[Outcome]:
    """Release -> status, in order."""
    return [
        Outcome(
            combination=Combination(diffusers=release, transformers=transformers), case=case, status=status,  # type: ignore[arg-type]
            message="KeyError: 'x'" if status == "crash" else "",
        )
        for release, status in rows.items()
    ]  # fmt: skip


def found_in(rows: dict[str, str]) -> list[tuple[str, str, str | None]]:
    found = findings.find(outcomes(rows), "golden")
    return [(f.status, f.first.diffusers, f.before.diffusers if f.before else None) for f in found]


def test_the_first_release_that_shows_it_is_named() -> None:
    assert found_in({"1": "green", "2": "green", "3": "drift", "4": "drift"}) == [("drift", "3", "2")]
    assert found_in({"1": "green", "2": "not installable", "3": "crash"}) == [("crash", "3", "1")]
    assert found_in({"1": "drift", "2": "green", "3": "drift"}) == [("drift", "1", None), ("drift", "3", "2")]
    assert found_in({"1": "lacks", "2": "crash"}) == [("crash", "2", None)]
    assert found_in({"1": "green", "2": "crash", "3": "drift"}) == [("crash", "2", "1"), ("drift", "3", None)]
    assert found_in({"1": "lacks", "2": "green"}) == []


def test_alike_cases_and_transformers_make_one_finding() -> None:
    rows = {"1": "green", "2": "drift"}
    every = [
        *outcomes(rows, "flux/base", "4"), *outcomes(rows, "flux/lora", "4"),
        *outcomes(rows, "flux/base", "5"), *outcomes(rows, "sd15/base", "5"),
    ]  # fmt: skip
    first, second = findings.find(every, "golden")
    assert (first.model, first.cases, first.transformers) == ("flux", ["flux/base", "flux/lora"], ["4", "5"])
    assert (second.model, second.cases, second.transformers) == ("sd15", ["sd15/base"], ["5"])


def test_only_green_and_lacking_cells_end_with_0() -> None:
    def code(*statuses: Status) -> int:
        return report.exit_code(outcomes({str(number): status for number, status in enumerate(statuses)}))

    assert code("green", "lacks") == 0
    assert [code("green", bad) for bad in ("drift", "crash", "not installable")] == [1, 1, 1]


def rendered(folder: Path, release: str, transformers: str, level: int) -> Outcome:
    """A stored plain render: a grey picture."""
    place = folder / f"{release}-{transformers}"
    (place / "flux").mkdir(parents=True)
    np.save(place / "flux" / "base.npy", np.full((1, 8, 8, 3), level, np.uint8))
    trace = Trace()
    trace.add("schedule/sigmas", np.full(4, 0.5))
    trace.add("step0/latents", np.full(4, float(level)))
    trace.save(place / "flux" / "base.safetensors")
    combination = Combination(diffusers=release, transformers=transformers)
    return Outcome(combination=combination, case="flux/base", status="green", pictures=str(place), script="pipe()")


def test_plain_renders_are_compared_with_the_release_before(tmp_path: Path) -> None:
    levels = {("1", "4"): 10, ("2", "4"): 10, ("3", "4"): 90, ("4", "4"): 90, ("1", "5"): 10, ("2", "5"): 40}
    every = [rendered(tmp_path, d, t, level) for (d, t), level in levels.items()]
    found = findings.find(every, "plain")
    assert [(f.first.diffusers, f.before and f.before.diffusers, f.transformers) for f in found] == [
        ("3", "2", ["4"]), ("2", "1", ["5"]),
    ]  # fmt: skip
    assert (found[0].boundary, found[0].pixel_max) == ("step0/latents", 80)
    assert [o.status for o in every] == ["green", "green", "drift", "green", "green", "drift"]


def test_a_change_between_transformers_releases_is_told_from_one_of_diffusers(tmp_path: Path) -> None:
    every = [rendered(tmp_path, "1", "4", 10), rendered(tmp_path, "1", "5", 60), rendered(tmp_path, "2", "5", 60)]
    (finding,) = findings.find(every, "plain")
    assert finding.before == Combination(diffusers="1", transformers="4")
    text = report.paragraph(finding, "plain")
    assert "diffusers 1 · transformers 4 → diffusers 1 · transformers 5" in text
    assert "lora-drift matrix --stock --diffusers 1 --transformers 4 5 --case flux/base" in text
    assert "pipe()" in text


def test_what_a_torch_changes_is_not_laid_at_diffusers_door() -> None:
    every = outcomes({"1": "green", "2": "green"}) + outcomes({"1": "crash", "2": "crash"})
    for outcome, torch in zip(every, ("8", "8", "7", "7"), strict=True):
        outcome.combination = outcome.combination.model_copy(update={"torch": torch})
    (finding,) = findings.find(every, "golden")
    text = report.paragraph(finding, "golden")
    assert "diffusers 1 · transformers 5 · torch 8 → diffusers 1 · transformers 5 · torch 7" in text
    assert "Seen with transformers 5, torch 7, float32" in text
    assert "`lora-drift matrix --diffusers 1 --transformers 5 --torch 8 7 --case flux/base`" in text


def test_markup_in_messages_stays_text() -> None:
    finding = Finding(model="flux", cases=["flux/base"], status="crash", before=None, transformers=["5"],
                      first=Combination(diffusers="1", transformers="5"), message="KeyError: [red]",
                      settings="8x8, 5 steps")  # fmt: skip
    text = report.paragraph(finding, "golden")
    assert "`KeyError: [red]`" in text and "in flux/base (8x8, 5 steps)." in text
