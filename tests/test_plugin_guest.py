"""The pytest plugin as a guest: what a run of somebody else's project sees of it. (tests/test_install.py has the same
with the installed wheel.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_drift.harness.check import cases

pytest_plugins = ["pytester"]

OPTIONS = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
THEIRS = "import os\n\ndef test_theirs():\n    assert 'CUDA_VISIBLE_DEVICES' not in os.environ\n"
GPU = """
import os, pytest

@pytest.mark.gpu
@pytest.mark.parametrize("n", range(4))
def test_theirs(n, request):
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == "5,6"
    assert not request.config.pluginmanager.has_plugin("lora-drift-items")
"""
OURS = (cases.CASES / "sd15" / "base.yaml").read_text(encoding="utf-8")


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return pytester


def test_the_plugin_alone_imports_nothing_heavy() -> None:
    code = "import lora_drift.harness.check.plugin, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "pydantic", "yaml", "xdist.scheduler", "lora_drift.pipelines"}
    ours = {name for name in loaded if name.startswith("lora_drift.")}
    check = "lora_drift.harness.check"
    assert ours == {"lora_drift.harness", check, f"{check}.plugin", f"{check}.plugin_options"}


@pytest.mark.parametrize(
    "text",
    ["schema: 1\nname: theirs\n", "model: x\nsample: 3\n", "{{ a template }}: [\n", "\x00", "  schema: 1\n"],
    ids=["another schema", "no schema", "a template", "no text", "deeper"],
)
def test_a_yaml_file_that_is_no_case_is_not_collected(text: str, project: pytest.Pytester) -> None:
    put(project.path, "cases/foo/x.yaml", text)
    put(project.path, "test_theirs.py", THEIRS)
    project.runpytest_inprocess(*OPTIONS).assert_outcomes(passed=1)


def test_a_case_is_collected_from_a_folder_cases_or_the_named_one(project: pytest.Pytester) -> None:
    put(project.path, "cases/sd15/base.yaml", OURS)
    put(project.path, "drift/sd15/base.yaml", OURS)
    found = project.runpytest_inprocess("--collect-only", "-q", *OPTIONS).outlines
    assert [line for line in found if "::" in line] == ["cases/sd15/base.yaml::sd15/base"]
    put(project.path, "pytest.ini", "[pytest]\ndrift_cases = drift\n")
    for args in ((), ("--drift-cases=drift",)):
        found = project.runpytest_inprocess("--collect-only", "-q", *OPTIONS, *args).outlines
        assert "drift/sd15/base.yaml::sd15/base" in found


def test_in_the_named_folder_a_file_that_is_no_case_is_a_mistake(project: pytest.Pytester) -> None:
    put(project.path, "drift/sd15/base.yaml", OURS.replace("schema: 1\n", ""))
    run = project.runpytest_inprocess("--drift-cases=drift", *OPTIONS)
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines(["*base.yaml: `schema`: Field required*"])
    run.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize("option", ["cases", "goldens"])
def test_a_named_folder_that_is_not_there_stops_the_run(option: str, project: pytest.Pytester) -> None:
    run = project.runpytest_inprocess(f"--drift-{option}=nowhere", *OPTIONS)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([f"ERROR: drift_{option}: no such folder: *nowhere"])


def test_an_unknown_profile_is_told(project: pytest.Pytester) -> None:
    put(project.path, "cases/sd15/base.yaml", OURS)
    run = project.runpytest_inprocess("--drift-profile=quick", *OPTIONS)
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines(["--drift-profile quick: use reference, compiled or fast"])


@pytest.mark.parametrize("workers", [(), ("-n", "2"), ("-n", "auto")], ids=" ".join)
def test_their_gpu_marker_and_devices_are_left_alone(
    workers: tuple[str, ...], project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "2")
    put(project.path, "pytest.ini", "[pytest]\nmarkers = gpu: theirs\naddopts = --strict-markers\n")
    put(project.path, "test_theirs.py", GPU)
    run = project.runpytest_subprocess("-m", "gpu", "-v", *workers, *OPTIONS)
    run.assert_outcomes(passed=4)
    if workers:
        run.stdout.fnmatch_lines(["scheduling tests via LoadScheduling"])


def test_cases_have_their_markers_also_where_nobody_registered_them(project: pytest.Pytester) -> None:
    put(project.path, "pytest.ini", "[pytest]\naddopts = --strict-markers\n")
    put(project.path, "cases/sd15/base.yaml", OURS)
    found = project.runpytest_inprocess("-m", "gpu", "--collect-only", "-q", *OPTIONS).outlines
    assert "cases/sd15/base.yaml::sd15/base[cuda]" in found


def test_with_cases_their_workers_are_given_out_by_model(project: pytest.Pytester) -> None:
    put(project.path, "test_theirs.py", THEIRS)
    put(project.path, "cases/sd15/base.yaml", OURS)
    run = project.runpytest_subprocess("-n", "2", "-v", *OPTIONS)
    run.stdout.fnmatch_lines(["scheduling tests via ModelScheduling", "*missing: sd15/base at *: no golden *"])
    run.assert_outcomes(passed=1, failed=1)
