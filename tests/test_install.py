"""The wheel, in fresh environments and an empty folder: what a user installs works without a checkout.

An environment has exactly what the wheel's own metadata require, as links to the packages of the running environment.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import venv
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lora_drift.harness.check import cases, goldens, runner, user_cache
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.recorder import store

pytestmark = pytest.mark.slow

PARTS = ("lora_drift", "harness", "pipelines", "server", "docs/models", "pyproject.toml", "setup.py", "README.md",
         "LICENSE", "tests")  # fmt: skip
"""What a distribution is built from."""
BACKEND = "import setuptools.build_meta as backend, sys; print(getattr(backend, sys.argv[1])(sys.argv[2]))"
HERS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "COLUMNS")
"""Variables of this process that are not of the user's shell."""


class Built(NamedTuple):
    sdist: Path
    wheel: Path
    """From the source tree."""
    again: Path
    """From the sdist."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """From a copy of the tree: a build leaves files behind, which later builds take up."""
    folder = tmp_path_factory.mktemp("build")
    for part in PARTS:
        source, target = ROOT / part, folder / "source" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    sdist = folder / build("build_sdist", folder / "source", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheels = [
        folder / name / build("build_wheel", tree, folder / name)
        for name, tree in (("wheel", folder / "source"), ("again", unpacked))
    ]
    return Built(sdist, *wheels)


def build(what: str, tree: Path, out: Path) -> str:
    out.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", BACKEND, what, str(out)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout.splitlines()[-1]


class Installed:
    """A virtual environment with the wheel, and an empty folder to work in."""

    def __init__(self, folder: Path, wheel: Path, extras: tuple[str, ...]) -> None:
        self.home, self.work = folder / "env", folder / "work"
        self.work.mkdir(parents=True)
        venv.create(self.home)
        (self.packages,) = (self.home / "lib").glob("python*/site-packages")
        (metadata,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
        for needed in required(PathDistribution(metadata), extras):
            borrow(needed, self.packages)
        pip = [sys.executable, "-m", "pip", "--python", self.bin("python"), "--disable-pip-version-check"]
        command = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
        subprocess.run(command, env=self.environment(), check=True)
        self.before = self.files()

    def bin(self, name: str) -> str:
        return str(self.home / "bin" / name)

    def environment(self) -> dict[str, str]:
        """The user's own, with this run's mini hub for those who ask for it."""
        kept = user_cache.own()
        return {
            **{n: v for n, v in kept.items() if n not in HERS and not n.startswith(("PYTEST_", "COV_"))},
            "LORA_DRIFT_CACHE": str(factory.default_home().parent.parent),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "300",
        }

    def run(self, *command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        name, *args = map(str, command)
        return subprocess.run(
            [self.bin(name), *args], cwd=cwd or self.work, env=self.environment(), capture_output=True, text=True
        )

    def ours(self, *args: object, cwd: Path | None = None) -> str:
        """What `lora-drift` prints, which must succeed."""
        done = self.run("lora-drift", *args, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def prints(self, code: str) -> str:
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *args: object) -> str:
        """The one line of a command that ends with exit code 2."""
        done = self.run("lora-drift", *args)
        assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        return line

    def files(self) -> dict[str, str]:
        """Every file of the package and its hash; Python's own cache of compiled modules left out."""
        found = (path for path in sorted((self.packages / "lora_drift").rglob("*")) if "__pycache__" not in path.parts)
        return {str(path): sha256(path.read_bytes()).hexdigest() for path in found if path.is_file()}


def required(root: Distribution, extras: tuple[str, ...]) -> list[Distribution]:
    """What pip would install for `root[extras]`, as far as it is there: the whole of it, or `pip check` would fail."""
    found: dict[tuple[str, str], Distribution] = {}

    def visit(distribution_: Distribution, extra: str) -> None:
        for line in distribution_.requires or ():
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
                continue
            for key in ((canonicalize_name(wanted.name), of) for of in ("", *wanted.extras)):
                if key not in found:
                    found[key] = distribution(wanted.name)
                    visit(found[key], key[1])

    for extra in ("", *extras):
        visit(root, extra)
    return list({name: needed for (name, _), needed in found.items()}.values())


def borrow(needed: Distribution, packages: Path) -> None:
    for top in {file.parts[0] for file in needed.files or () if file.parts[0] not in ("..", "__pycache__")}:
        if not (packages / top).is_symlink():
            (packages / top).symlink_to(str(needed.locate_file(top)))


@pytest.fixture(scope="module")
def rendering(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """`pip install lora-drift`."""
    installed = Installed(tmp_path_factory.mktemp("rendering"), built.wheel, ())
    yield installed
    assert installed.files() == installed.before


@pytest.fixture(scope="module")
def whole(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """`pip install 'lora-drift[check,server]'`."""
    installed = Installed(tmp_path_factory.mktemp("whole"), built.wheel, ("check", "server"))
    yield installed
    assert installed.files() == installed.before


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
