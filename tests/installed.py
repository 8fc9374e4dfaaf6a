"""The wheel in fresh environments, as fixtures: built once a run, with exactly what its own metadata require.

The packages are links to those of the running environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lora_drift.harness.check import user_cache
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT

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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def rendering(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """`pip install lora-drift`."""
    installed = Installed(tmp_path_factory.mktemp("rendering"), built.wheel, ())
    yield installed
    assert installed.files() == installed.before


@pytest.fixture(scope="session")
def whole(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """`pip install 'lora-drift[check,server]'`."""
    installed = Installed(tmp_path_factory.mktemp("whole"), built.wheel, ("check", "server"))
    yield installed
    assert installed.files() == installed.before
