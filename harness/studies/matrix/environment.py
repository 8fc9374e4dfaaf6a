"""One environment per combination of releases: a venv that holds the combination and borrows everything else.

Each is a thin layer: pip installs the combination (and what it requires in other versions than those at hand) on top
of the packages of the running environment, which a .pth file puts behind the venv's own. That takes 20 seconds and
200 MB instead of minutes and 6 GB, and only what is under test differs. (It is pip because uv 0.13 does not
see packages that a .pth file lends, and would install torch and CUDA once more.)
"""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from lora_drift.harness.environment import PACKAGES, version_of
from lora_drift.harness.paths import ROOT
from lora_drift.harness.studies.matrix import checkouts, folder

FROM_GIT = "git:"
"""A Diffusers "release" that begins so is a commit, branch or tag of the checkout."""
COMPANIONS = ("accelerate", "huggingface_hub", "peft")
"""Libraries that limit each other: named to pip without a version, so that it finds ones that fit the combination."""
PIP = ("--no-input", "--disable-pip-version-check", "--progress-bar", "off")


class Combination(BaseModel):
    """Releases that are tried together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    diffusers: str
    """A version, or `git:REF` of the checkout."""
    transformers: str
    torch: str | None = None
    """None: that of the running environment."""

    @property
    def name(self) -> str:
        torch = f" · torch {self.torch}" if self.torch else ""
        return f"diffusers {self.diffusers} · transformers {self.transformers}{torch}"


class NotInstallable(Exception):
    """pip could not install a combination; the message is pip's."""


class Environment:
    """Where the interpreter of a combination is and which folders it imports from first."""

    def __init__(self, python: Path, paths: tuple[Path, ...]) -> None:
        self.python, self.paths = python, paths

    def with_source(self, source: Path) -> "Environment":
        """The same with the Diffusers of a source tree in front of the installed one."""
        return Environment(self.python, (source, *self.paths))

    def variables(self) -> dict[str, str]:
        """For a subprocess: the project's working tree, no others' settings."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(str(path) for path in (*self.paths, ROOT)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }


def borrowed() -> list[str]:
    """Folders of the running environment that hold packages."""
    return [path for path in sys.path if path.rstrip("/").endswith(("site-packages", "dist-packages"))]


@cache
def borrowed_versions() -> tuple[str | None, ...]:
    """Versions of what environments borrow, as far as pictures depend on it."""
    return tuple(version_of(package) for package in PACKAGES)


def requirements(combination: Combination) -> list[str]:
    wanted = [f"transformers=={combination.transformers}", *COMPANIONS]
    if not combination.diffusers.startswith(FROM_GIT):
        wanted.insert(0, f"diffusers=={combination.diffusers}")
    if combination.torch:
        wanted += [f"torch=={combination.torch}", "torchvision"]
    return wanted


def build(combination: Combination, checkout: Path | None = None) -> Environment:
    """The environment of `combination`, from the cache if it was built before.

    Raises:
        NotInstallable: pip's message. Nothing is kept, so that the next run tries again.
        CheckoutError: `git:REF` names nothing in the checkout.
    """
    wanted = requirements(combination)
    words = re.sub(r"[^\w.=]+", "-", "-".join(w for w in wanted if "==" in w))
    home = (
        folder()
        / "envs"
        / f"{words}-{sha256(repr((wanted, borrowed(), borrowed_versions())).encode()).hexdigest()[:8]}"
    )
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):
        if not (home / "complete").is_file():
            shutil.rmtree(home, ignore_errors=True)
            _install(home, python, wanted)
            (home / "complete").touch()
    if combination.diffusers.startswith(FROM_GIT):
        assert checkout is not None  # the command line asks for it
        source = checkouts.worktree(checkout, combination.diffusers.removeprefix(FROM_GIT))
        return Environment(python, (source / "src",))
    return Environment(python, ())


def _install(home: Path, python: Path, wanted: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    (packages / "borrowed.pth").write_text("\n".join(borrowed()) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *PIP, *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(home, ignore_errors=True)
        raise NotInstallable(_message(done.stdout, done.stderr) or f"pip ended with {done.returncode}")


def _message(stdout: str, stderr: str) -> str:
    """pip's errors, without the list of all versions there are, and what it says of a conflict."""
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR:")]
    _, _, conflict = stdout.partition("The conflict is caused by:\n")
    lines += [line.strip() + ";" for line in conflict.partition("\n\n")[0].splitlines()]
    return re.sub(r" \(from versions: .*?\)", "", " ".join(line for line in lines if "for help visit" not in line))
