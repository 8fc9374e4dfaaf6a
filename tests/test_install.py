"""The wheel, in fresh environments and an empty folder: what a user installs works without a checkout."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lora_drift.harness.check import cases, goldens, runner
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.recorder import store

if TYPE_CHECKING:
    from installed import Built, Installed

pytestmark = pytest.mark.slow

# ----------------------------------------------------------------------------------------------------- distributions


def test_the_sdist_builds_the_same_wheel(built: Built) -> None:
    def content(wheel: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(wheel) as archive:
            return {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}

    assert content(built.again) == content(built.wheel)


def test_the_wheel_has_one_package_and_its_description_links_to_the_web(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lora_drift"}
    assert not [name for name in names if name.startswith(("lora_drift/cases", "lora_drift/goldens"))]
    assert "lora_drift/py.typed" in names
    _, _, description = metadata.partition("\n\n")
    links = [part.split(")")[0] for part in description.split("](")[1:]]
    assert len(links) > 10 and all(link.startswith("https://") for link in links), links


# --------------------------------------------------------------------------------------------------------- rendering


def test_rendering_needs_no_package_of_the_other_extras(rendering: Installed) -> None:
    heavy = ("pytest", "xdist", "syrupy", "lpips", "pandas", "skimage", "flip_evaluator", "fastapi", "sqlalchemy")
    code = f"from importlib.util import find_spec; print([name for name in {heavy} if find_spec(name)])"
    assert rendering.prints(code) == "[]\n"


def test_importing_it_is_quick_and_brings_in_nothing_heavy(rendering: Installed) -> None:
    code = "import lora_drift, sys; print(sorted({'torch', 'numpy', 'pydantic', 'yaml', 'typer'} & set(sys.modules)))"
    assert rendering.prints(code) == "[]\n"


def test_what_describes_works_anywhere(rendering: Installed) -> None:
    version = distribution_version(rendering)
    assert rendering.ours("--version") == f"lora-drift {version}\n"
    assert f"lora-drift {version}" in rendering.ours("version")
    assert "wan22_14b_i2v" in rendering.ours("models")
    assert "FLUX.1 dev" in rendering.ours("models", "flux")
    assert json.loads(rendering.ours("models", "flux", "--json"))["id"] == "flux"
    assert Path(rendering.ours("minihub", "path").strip()) == factory.default_home()
    assert rendering.ours("minihub", "build") == rendering.ours("minihub", "path")
    assert "files are as the manifest says" in rendering.ours("minihub", "verify")
    assert list(rendering.work.iterdir()) == []


def distribution_version(installed: Installed) -> str:
    (info,) = installed.packages.glob("lora_drift-*.dist-info")
    return info.name.removeprefix("lora_drift-").removesuffix(".dist-info")


def test_sample_and_diagnose(rendering: Installed, tmp_path: Path) -> None:
    asked = ("--mini", "--model", "sd15", "--prompt", "a fox", "--width", 128, "--height", 128, "--steps", 3)
    rendering.ours("sample", *asked, "--seed", 43, "--output", "fox.png", cwd=tmp_path)
    receipt = json.loads((tmp_path / "fox.png.json").read_text())
    assert receipt["verified_by"]["case"] == "sd15/base" and receipt["verified_by"]["verdict"] == "match"
    said = rendering.ours("diagnose", *asked, "--seed", 42, "--image", "fox.png", "--budget", 60, cwd=tmp_path)
    assert "seed" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox.png", "fox.png.json"]


def test_verify_of_a_copied_job(rendering: Installed, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "jobs" / "sd15", tmp_path / "my_lora")
    said = rendering.ours("verify", "my_lora", "--mini", "--prompt", 0, "--json", "results.json", cwd=tmp_path)
    assert said.splitlines()[-1].endswith("3 match")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_lora", "results.json"]


def test_a_command_of_an_extra_says_how_to_get_it(rendering: Installed) -> None:
    for command in (["check"], ["mutate"], ["report", "results.jsonl"], ["matrix", "--diffusers", "0.42.1"]):
        line = rendering.refused(*command)
        assert "pytest" in line and "pandas" in line and line.endswith("pip install 'lora-drift[check]'"), line
    assert rendering.refused("verify", ".", "--html", "report").startswith("error: --html needs flip-evaluator, ")
    assert rendering.refused("serve", "--mini").endswith("not installed: pip install 'lora-drift[server]'")


# ---------------------------------------------------------------------------------------------------------- checking


def test_what_needs_cases_says_where_they_are(whole: Installed) -> None:
    for command in (["check"], ["mutate", "--model", "sd15"], ["diagnose", "--case", "sd15/base", "--image", "x.png"]):
        line = whole.refused(*command)
        assert line.startswith(f"error: no cases at {whole.work / 'cases'}: ") and "git clone https://" in line, line
    assert "git clone https://" in whole.refused("matrix", "--diffusers", "0.42.1")
    done = whole.run("python", "-m", "pytest", "cases")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, done.stderr.splitlines())
    assert line.startswith(f"ERROR: no cases at {whole.work / 'cases'}: ") and "git clone https://" in line


@pytest.fixture
def theirs(tmp_path: Path, golden_of: Callable[[str], Golden]) -> Path:
    """Somebody's project, with a case and its golden in folders of their own."""
    (tmp_path / "drift" / "sd15").mkdir(parents=True)
    shutil.copyfile(cases.CASES / "sd15" / "lora.yaml", tmp_path / "drift" / "sd15" / "mine.yaml")
    case, golden = cases.load(tmp_path / "drift" / "sd15" / "mine.yaml"), golden_of("sd15/lora")
    content = golden.model_dump(exclude={"artefacts", "seal"}, exclude_unset=True)
    content |= {"case": case.id, "case_sha256": case.sha256}
    store.write(content, {name: golden.path(name) for name in golden.artefacts}, tmp_path / "recorded")
    assert goldens.golden_path(runner.newest_tag(), case.id, tmp_path / "recorded").is_file()
    return tmp_path


def test_others_check_cases_of_their_own(whole: Installed, theirs: Path) -> None:
    named = ("--drift-cases", "drift", "--drift-goldens", "recorded", "--drift-no-controls")
    done = whole.run("python", "-m", "pytest", "drift", *named, "-p", "no:cacheprovider", cwd=theirs)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    said = whole.ours("check", "--cases", "drift", "--goldens", "recorded", cwd=theirs)
    assert "1 match" in said.splitlines()
    assert (theirs / "build" / "report" / "index.html").is_file()
    (theirs / "pytest.ini").write_text("[pytest]\ndrift_cases = drift\ndrift_goldens = recorded\n")
    (theirs / "drift" / "sd15" / "mine.yaml").write_text("model: sd15\n")
    done = whole.run("python", "-m", "pytest", "-p", "no:cacheprovider", cwd=theirs)
    assert done.returncode == 2 and "`schema`: Field required" in done.stdout, done.stdout + done.stderr


def test_serve(whole: Installed, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [whole.bin("lora-drift"), "serve", "--mini", "--port", str(port), "--loras", "loras", "--output", "out"]
    (tmp_path / "loras").mkdir()
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=whole.environment(), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/readyz"):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        body = {"model": "sd15", "prompt": "a fox", "size": "128x128", "response_format": "b64_json", "seed": 42}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/images/generations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            (picture,) = json.load(answer)["data"]
        assert picture["b64_json"].startswith("iVBORw0KGgo")  # a PNG
    finally:
        server.terminate()
        server.wait(30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "loras", "out"]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


# --------------------------------------------------------------------------------------------------- another project


SECOND = {
    "pytest.ini": "[pytest]\nmarkers = gpu: theirs\naddopts = --strict-markers\n",
    "harness/__init__.py": "MINE = 'harness'\n",
    "server/__init__.py": "MINE = 'server'\n",
    "pipelines/__init__.py": "MINE = 'pipelines'\n",
    "cases/foo/x.yaml": "schema: 3\nname: theirs\n",
    "cases/foo/broken.yaml": "{{ a template }}: [\n",
    "tests/test_theirs.py": """
import os, sys
import harness, pipelines, pytest, server

def test_folders():
    assert (harness.MINE, server.MINE, pipelines.MINE) == ("harness", "server", "pipelines")

@pytest.mark.gpu
def test_gpu():
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not {"torch", "numpy", "pydantic", "yaml", "lora_drift.pipelines"} & set(sys.modules)
""",
}


@pytest.mark.parametrize("args", [(), ("-m", "gpu"), ("-n", "2", "-v"), ("-n", "2", "-v", "-m", "gpu")], ids=" ".join)
def test_another_project_does_not_notice_it(whole: Installed, args: tuple[str, ...], tmp_path: Path) -> None:
    for name, text in SECOND.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {n: v for n, v in whole.environment().items() if n != "CUDA_VISIBLE_DEVICES"}
    command = [whole.bin("python"), "-m", "pytest", "-p", "no:cacheprovider", *args]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("1 passed" if "gpu" in args else "2 passed") in done.stdout and "warning" not in done.stdout, done.stdout
    if "-n" in args:
        assert "scheduling tests via LoadScheduling" in done.stdout
    markers = subprocess.run([*command[:3], "--markers"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "@pytest.mark.gpu: theirs" in markers.stdout and "CUDA" not in markers.stdout
