"""Case files as pytest items: what a verdict needs, how it is told, and that no run can write a golden."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from typer.testing import CliRunner

from lora_drift.harness.check import cases, goldens, negative_controls, runner, tolerances
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.results import Result
from lora_drift.harness.cli import main
from lora_drift.harness.environment import facts, same_processor
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.recorder import store

pytest_plugins = ["pytester"]

TAG = runner.newest_tag()
CASE = "sd15/base"
CONTROLS = negative_controls.controls
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")


def forge(golden: Golden, root: Path, **artefacts: Path) -> None:
    """Store a golden with other artefacts under `root`, with hashes and seal in order."""
    content = golden.model_dump(exclude={"artefacts", "seal"}, exclude_unset=True)
    store.write(content, {name: artefacts.get(name, golden.path(name)) for name in golden.artefacts}, root)


@pytest.fixture(scope="module")
def hub() -> Path:
    """The cache folder of the mini hub, found before `pytester` moves the home folder away."""
    return factory.default_home().parent.parent


@pytest.fixture(scope="module")
def warm(golden_of: Callable[[str], Golden], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Imports what a check needs, all metrics included: `pytester` forgets what is first imported in an inner run."""
    folder = tmp_path_factory.mktemp("warm")
    forge(golden_of(CASE), folder, picture=golden_of("sd15/lora").path("picture"))
    case = cases.load(cases.CASES / f"{CASE}.yaml")
    assert runner.check(runner.Bench(goldens=folder), case, folder / "out").verdict == "drift"


class Lab:
    """A folder with one case file and its golden, where pytest runs in this very process."""

    def __init__(self, pytester: pytest.Pytester, recorded: Callable[[str], Golden]) -> None:
        self.pytester = pytester
        self.golden, self.other, self.smaller = map(recorded, (CASE, "sd15/lora", "sd15/snapped"))
        self.goldens = pytester.mkdir("goldens")
        self.case = pytester.mkdir("cases") / f"{CASE}.yaml"
        self.case.parent.mkdir()
        shutil.copyfile(cases.CASES / f"{CASE}.yaml", self.case)
        self.forge()

    def forge(self, **artefacts: Path) -> None:
        forge(self.golden, self.goldens, **artefacts)

    def run(self, *args: str, plugins: tuple[object, ...] = ()) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess(
            self.case, *OPTIONS, "--drift-json=results.jsonl", *args, plugins=plugins
        )

    def result(self) -> Result:
        (line,) = (self.pytester.path / "results.jsonl").read_text().splitlines()
        return Result.model_validate_json(line)


@pytest.fixture
def lab(
    hub: Path,
    warm: None,
    golden_of: Callable[[str], Golden],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> Lab:
    monkeypatch.setenv("LORA_DRIFT_CACHE", str(hub))
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):  # the inner run is nobody's worker
        monkeypatch.delenv(name, raising=False)
    lab = Lab(pytester, golden_of)
    monkeypatch.setattr(negative_controls, "controls", lambda *args: islice(CONTROLS(*args), 1))  # the others cost time
    return lab


class Watcher:
    """Reads the results file as soon as the case is reported, while pytest still runs."""

    seen = ""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.seen = Path("results.jsonl").read_text()


# ---------------------------------------------------------------------------------------------------------- verdicts


def test_a_match_passes_and_is_written_down_at_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negative_controls, "controls", CONTROLS)
    watcher = Watcher()
    run = lab.run("--junitxml=junit.xml", plugins=(watcher,))
    run.assert_outcomes(passed=1)
    result = lab.result()
    assert (result.case, result.tag, result.verdict, result.message) == (CASE, TAG, "match", "")
    assert {control.name for control in result.controls} >= {"seed + 1", "one step fewer"}
    assert all(control.caught for control in result.controls)
    assert Result.model_validate_json(watcher.seen) == result
    xml = ElementTree.parse(lab.pytester.path / "junit.xml")
    properties = {p.get("name"): p.get("value") or "" for p in xml.iter("property")}
    assert properties["drift_verdict"] == "match"
    assert set(json.loads(properties["drift_metrics"])) == {"latents_rel_l2", "pixel_max", "pixel_mean"}


def test_another_picture_is_a_drift_and_says_by_how_much(lab: Lab) -> None:
    lab.forge(picture=lab.other.path("picture"))
    run = lab.run()
    assert run.ret == 1
    run.assert_outcomes(failed=1)
    run.stdout.re_match_lines(
        [rf"drift: {CASE} at {TAG}: Largest pixel difference \d+ of 255 \(limit 1\), mean pixel difference .*"]
    )
    assert lab.result().verdict == "drift"


def test_other_latents_alone_are_a_drift_and_the_trace_says_where(lab: Lab) -> None:
    lab.forge(latents=lab.other.path("latents"), trace=lab.other.path("trace"))
    lab.run().assert_outcomes(failed=1)
    result = lab.result()
    assert "Latents differ by" in result.message
    assert "pixel" not in result.message
    assert result.first_divergence is not None
    assert f"it begins in: {result.first_divergence.place} [{result.first_divergence.boundary}" in result.message


def test_another_size_is_a_drift(lab: Lab) -> None:
    lab.forge(picture=lab.smaller.path("picture"))
    lab.run().assert_outcomes(failed=1)
    assert "the trainer rendered 104x152, we rendered 128x128" in lab.result().message


def test_a_missing_golden_fails(lab: Lab) -> None:
    goldens.golden_path(TAG, CASE, lab.goldens).unlink()
    run = lab.run()
    assert run.ret == 1
    assert lab.result().verdict == "missing"
    run.stdout.fnmatch_lines([f"missing: {CASE} at {TAG}: no golden *--case {CASE}*"])


def test_a_corrupt_golden_fails(lab: Lab) -> None:
    next(lab.goldens.glob("objects/sd15/*.png")).write_bytes(b"not a picture")
    assert lab.run().ret == 1
    assert lab.result().verdict == "corrupt"


def test_a_changed_case_is_stale(lab: Lab) -> None:
    lab.case.write_text(lab.case.read_text().replace("seed: 42", "seed: 43"))
    assert lab.run().ret == 1
    assert lab.result().verdict == "stale"


def test_a_case_that_notices_nothing_is_rejected(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(pipeline: Any, settings: Any) -> Any:
        yield "the fps", pipeline, replace(settings, fps=settings.fps + 1)

    monkeypatch.setattr(negative_controls, "controls", blind)
    assert lab.run().ret == 1
    assert lab.result().verdict == "error"
    assert "insensitive case: it would not notice the fps" in lab.result().message


def test_a_crash_is_the_verdict_of_its_case(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: Any) -> None:
        raise ZeroDivisionError("by a test")

    monkeypatch.setattr(runner.Bench, "render", crash)
    assert lab.run().ret == 1
    assert (lab.result().verdict, lab.result().message) == ("error", "ZeroDivisionError: by a test")


# -------------------------------------------------------------------------------------------------------- collection


def test_a_mistake_in_a_case_file_is_told_without_a_traceback(lab: Lab) -> None:
    content = yaml.safe_load(lab.case.read_text())
    content["sample"]["sampel_steps"] = 3
    lab.case.write_text(yaml.safe_dump(content))
    run = lab.run()
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines([f"*{CASE}.yaml: unknown field `sample.sampel_steps` (known here: *sample_steps*)"])
    run.stdout.no_fnmatch_line("*Traceback*")


def test_only_files_below_a_folder_named_cases_are_cases(lab: Lab) -> None:
    elsewhere = lab.pytester.mkdir("settings") / "sd15" / "base.yaml"
    elsewhere.parent.mkdir()
    shutil.copyfile(lab.case, elsewhere)
    run = lab.pytester.runpytest_inprocess("settings", "--collect-only", *OPTIONS)
    assert run.ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_asking_for_a_gpu_where_there_is_none_is_one_error_at_once(lab: Lab) -> None:
    run = lab.run("-m", "gpu")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(["ERROR: cases were asked for on cuda, and torch * sees no CUDA device: leave `-m gpu`*"])
    assert not run.outlines or "collected" not in run.stdout.str()
    lab.run("-m", "gpu", "--collect-only").stdout.fnmatch_lines(["*1 test collected*"])


def test_a_run_that_verified_nothing_is_not_green(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    foreign = {"gpu": "NVIDIA GeForce GTX 970", "compute_capability": "5.2"}
    monkeypatch.setattr(runner, "facts", lambda *where: facts("cpu", where[1]) | {"device": "cuda"} | foreign)
    run = lab.run("-m", "gpu", "--drift-dtype=bfloat16")
    run.assert_outcomes(skipped=1)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(["lora-drift: nothing was verified. None of 1 cases has a golden*"])


def test_a_gpu_without_goldens_of_its_own_is_checked_in_float32(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {"device": "cuda", "gpu": "NVIDIA GeForce GTX 970", "compute_capability": "5.2"}
    monkeypatch.setattr(runner, "facts", lambda _device, dtype: foreign | {"dtype": dtype})
    case = cases.load(lab.case)
    assert runner.dtype_of("cuda", TAG, case, goldens.GOLDENS) == "float32"
    monkeypatch.setitem(foreign, "compute_capability", "9.0")
    assert runner.dtype_of("cuda", TAG, case, goldens.GOLDENS) == "bfloat16"
    assert runner.dtype_of("cpu", TAG, case, goldens.GOLDENS) == "float32"


def test_a_cpu_case_is_no_gpu_test(lab: Lab) -> None:
    lab.run("-m", "gpu", "--drift-device=cpu").assert_outcomes(deselected=1)
    lab.run("-m", "not gpu", "--collect-only").stdout.fnmatch_lines(["*1 test collected*"])


def test_the_noise_floor_is_measured_on_request_and_tolerances_derived_from_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    tolerances_file = lab.pytester.path / "gates.json"
    tolerances_file.write_text('{"gates": {}, "stages": {}}')
    monkeypatch.setattr(tolerances, "TOLERANCES", tolerances_file)
    recorded_on = {name: lab.golden.environment[name] for name in ("cpu", "cpu_capability")}
    monkeypatch.setattr(runner, "facts", lambda *where: facts(*where) | recorded_on)
    lab.run("--drift-floor").assert_outcomes(failed=1)  # nothing passes before there are tolerances
    found = lab.result()
    assert "no tolerances were measured for mini/cpu/float32" in found.message
    assert found.noise_floor["same code again"] == dict.fromkeys(found.noise_floor["same code again"], 0.0)

    done = CliRunner().invoke(main.app, ["tolerances", "--results", "results.jsonl", "--write"])
    assert done.exit_code == 0 and "mini/cpu/float32" in done.stdout and CASE in done.stdout, done.output
    if not same_processor(facts("cpu", "float32"), recorded_on):
        return  # it is further from the golden than from itself
    lab.run("--drift-no-controls").assert_outcomes(passed=1)
    limits = {m.name: m.gate for m in lab.result().metrics}
    spread = found.noise_floor["one thread against two"]["latents_rel_l2"]
    assert limits["latents_rel_l2"] == pytest.approx(spread * tolerances.FACTORS["latents_rel_l2"], rel=0.01)
    empty = CliRunner().invoke(main.app, ["tolerances", "--results", "results.jsonl"])
    assert empty.exit_code == 2 and "holds no noise floor" in empty.output


def test_a_results_file_that_cannot_be_written_stops_the_run(lab: Lab) -> None:
    run = lab.pytester.runpytest_inprocess(lab.case, f"--drift-json={lab.case}/results.jsonl", *OPTIONS)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(["ERROR: --drift-json *"])


UNRENDERED = """
from lora_drift.harness.check import runner
from lora_drift.harness.check.results import Result

def check(bench, case, out):
    verdict = "drift" if case.id == "flux/lora" else "match"
    return Result(
        case=case.id, model=case.model, tag=bench.tag, tier="mini", device="cpu", dtype="float32", verdict=verdict
    )

runner.check = check
"""


def test_under_two_workers_each_model_stays_with_one_and_every_result_arrives(tmp_path: Path) -> None:
    (tmp_path / "unrendered.py").write_text(UNRENDERED)
    chosen = [path for path in cases.files() if path.parent.name in ("sd15", "flux", "wan21_1b")]
    results, junit = tmp_path / "results.jsonl", tmp_path / "junit.xml"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, chosen), "-n", "2", "-v", "-p", "unrendered", *OPTIONS,
         "--drift-json", str(results), "--junitxml", str(junit)],
        cwd=ROOT, capture_output=True, text=True, env=inherited | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    ran = [line.split() for line in done.stdout.splitlines() if line.startswith("[gw") and "%]" in line]
    workers: dict[str, set[str]] = {}
    for line in ran:
        workers.setdefault(line[-1].partition("::")[2].split("/")[0], set()).add(line[0])
    assert set(workers) == {"sd15", "flux", "wan21_1b"}
    assert all(len(used) == 1 for used in workers.values()), workers
    assert set.union(*workers.values()) == {"[gw0]", "[gw1]"}
    verdicts = {f"{path.parent.name}/{path.stem}": "match" for path in chosen} | {"flux/lora": "drift"}
    lines = [Result.model_validate_json(line) for line in results.read_text().splitlines()]
    assert {line.case: line.verdict for line in lines} == verdicts
    assert len(lines) == len(ran) == len(verdicts)
    reported = [p.get("value") for p in ElementTree.parse(junit).iter("property") if p.get("name") == "drift_verdict"]
    assert sorted(map(str, reported)) == sorted(verdicts.values())


def interrupted(command: list[str], folder: Path, *, all_of_them: bool) -> tuple[int, str, list[str]]:
    """Exit code, output, and cases in r.jsonl of a run that gets Ctrl-C after its first case.

    A case takes a quarter of a second. A terminal tells all processes; `kill` tells one.
    """
    slow = UNRENDERED.replace("def check(bench, case, out):", "def check(bench, case, out):\n    time.sleep(0.25)")
    assert "sleep" in slow
    (folder / "slow.py").write_text(f"import time\n{slow}")
    results = folder / "r.jsonl"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    inherited |= {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTEST_ADDOPTS": f"-p slow {' '.join(OPTIONS)}"}
    # A shell's background job ignores Ctrl-C, and so would all that it starts.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    run = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=inherited, start_new_session=True,
                           preexec_fn=heeding, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    end = time.monotonic() + 120
    while not (results.is_file() and results.stat().st_size) and run.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    if all_of_them:
        os.killpg(run.pid, signal.SIGINT)
    else:
        run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=120)
    return run.returncode, output, [Result.model_validate_json(line).case for line in results.read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_keeps_what_is_known_and_says_so(workers: int, tmp_path: Path) -> None:
    chosen = [path for path in cases.files() if path.parent.name in ("sd15", "flux", "wan21_1b")]
    command = ["pytest", "-n", str(workers), "--drift-json", str(tmp_path / "r.jsonl"), *map(str, chosen)]
    code, output, found = interrupted(command, tmp_path, all_of_them=True)
    assert code == 130, output
    assert 0 < len(found) < len(chosen)
    said = f"interrupted: {len(found)} of {len(chosen)} cases were checked; their results are in {tmp_path / 'r.jsonl'}"
    assert said in output, output


def test_ctrl_c_in_tests_that_are_no_cases_is_none_of_our_business(lab: Lab) -> None:
    file = lab.pytester.makepyfile("def test_it(): raise KeyboardInterrupt")
    done = lab.pytester.runpytest_inprocess(*OPTIONS, file, no_reraise_ctrlc=True)
    assert done.ret == pytest.ExitCode.INTERRUPTED and "lora-drift: " not in done.stdout.str()


@pytest.mark.parametrize("all_of_them", [True, False], ids=["of a terminal", "of kill"])
def test_a_check_that_is_interrupted_shows_what_it_has(all_of_them: bool, tmp_path: Path) -> None:
    command = ["lora_drift", "check", "-m", "sd15", "-m", "flux", "-m", "wan21_1b", "-m", "wan21_14b", "-j", "2",
               "--no-report", "--json", str(tmp_path / "r.jsonl")]  # fmt: skip
    code, output, found = interrupted(command, tmp_path, all_of_them=all_of_them)
    assert code == 130 and found, output
    assert f"interrupted: {len(found)} of " in output and f"their results are in {tmp_path / 'r.jsonl'}" in output
    assert "Traceback" not in output and f"{found[0]} " in output, output


# --------------------------------------------------------------------------------------------------- nothing writes


def tree(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def test_a_case_that_ends_its_worker_ends_alone(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(
        "import os\nfrom lora_drift.harness.check import runner\nrender = runner.Bench.render\n"
        "def ends(pipeline, settings):\n    return render(pipeline, settings) if pipeline.lora else os._exit(1)\n"
        "runner.Bench.render = staticmethod(ends)\n"
    )
    files = [str(cases.CASES / "sd15" / f"{name}.yaml") for name in ("base", "lora", "snapped")]
    command = [sys.executable, "-m", "pytest", *files, *OPTIONS, "-n", "1", "-p", "ends", "--drift-no-controls"]
    done = subprocess.run(
        [*command, "--drift-json=r.jsonl", f"--rootdir={ROOT}"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "1 failed, 2 passed" in done.stdout and "crashed while running" in done.stdout, done.stdout
    found = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert [(r["case"], r["verdict"]) for r in found] == [("sd15/lora", "match"), ("sd15/snapped", "match")]


@pytest.mark.parametrize("drifts", [False, True], ids=["a match", "a drift"])
def test_updating_snapshots_cannot_write_a_golden(drifts: bool, lab: Lab) -> None:
    if drifts:
        lab.forge(picture=lab.other.path("picture"))
    lab.pytester.makepyfile("def test_a_snapshot(snapshot): assert {'a': 1} == snapshot")
    before = tree(lab.goldens), tree(goldens.GOLDENS), tree(lab.case.parent)
    run = lab.run(str(lab.pytester.path), "--snapshot-update")
    run.assert_outcomes(passed=1 if drifts else 2, failed=int(drifts))
    run.stdout.fnmatch_lines(["*1 snapshot generated*"])
    assert lab.result().verdict == ("drift" if drifts else "match")
    assert (tree(lab.goldens), tree(goldens.GOLDENS), tree(lab.case.parent)) == before
