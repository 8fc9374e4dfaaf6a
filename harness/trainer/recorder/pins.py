"""Is this really the trainer version that the tag names, in the environment that it pins?"""

import json
import subprocess
from importlib.metadata import distribution, version
from pathlib import Path

from lora_drift.harness.trainer.recorder import bands


class PinError(Exception):
    """The checkout or the environment is not what the tag pins."""


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True)
    if done.returncode:
        raise PinError(f"{folder} is not a git checkout ({done.stderr.strip()})")
    return done.stdout.strip()


def _check_checkout(what: str, folder: Path, commit: str) -> None:
    at = _git(folder, "rev-parse", "HEAD")
    if at != commit:
        raise PinError(f"{what} checkout is at {at}, the tag pins {commit}: git -C {folder} checkout {commit}")
    _check_clean(what, folder)


def head(trainer: Path) -> str:
    """The commit of a clean checkout of the trainer.

    Raises:
        PinError: it is none, or not clean.
    """
    commit = _git(trainer, "rev-parse", "HEAD")
    _check_clean("trainer", trainer)
    return commit


def _check_clean(what: str, folder: Path) -> None:
    dirty = _git(folder, "status", "--porcelain", "--untracked-files=all")
    dirty_lines = [line for line in dirty.splitlines() if not line.endswith((".pyc", "__pycache__/"))]
    if dirty_lines:
        raise PinError(f"{what} checkout is not clean: {dirty_lines[0].strip()} (and {len(dirty_lines) - 1} more)")


def _check_installed_diffusers(checkout: Path | None, commit: str) -> str:
    """Returns how it was proven that the installed Diffusers is the pinned commit."""
    installed = Path(str(distribution("diffusers").locate_file("diffusers")))
    if checkout is not None:
        _check_checkout("Diffusers", checkout, commit)
        source = checkout / "src" / "diffusers"
        for path in source.rglob("*.py"):
            ours = installed / path.relative_to(source)
            if not ours.is_file() or ours.read_bytes() != path.read_bytes():
                raise PinError(f"the installed Diffusers differs from {commit} in {path.relative_to(source)}: "
                               f"pip install --no-deps {checkout}")  # fmt: skip
        return "every installed file equals the checkout"
    origin = json.loads(distribution("diffusers").read_text("direct_url.json") or "{}")
    found = origin.get("vcs_info", {}).get("commit_id")
    if found != commit:
        raise PinError(f"cannot prove that the installed Diffusers is {commit} (found {found}): install it from git "
                       "at that commit, or give --diffusers DIR, a checkout of it")  # fmt: skip
    return "direct_url.json"


def check_trainer(tag: str, trainer: Path) -> None:
    """Prove that the checkout `trainer` is the version that `tag` names.

    Raises:
        PinError: says what differs and how to mend it.
        TagError: there is no such tag.
    """
    pins = bands.row(tag)
    _check_checkout("trainer", trainer, pins.commit)
    declared = version_of(trainer)
    if declared != pins.version:
        raise PinError(f"trainer version.py says {declared}, tags.yaml says {pins.version}")


def version_of(trainer: Path) -> str:
    """What a checkout of the trainer calls itself."""
    declared: dict[str, str] = {}
    exec((trainer / "version.py").read_text(), declared)  # the trainer's own one-line version file
    return declared["VERSION"]


def check(tag: str, trainer: Path, diffusers: Path | None) -> dict[str, str]:
    """Prove the pins of `tag`, the environment's included; returns the `trainer` section of a golden.

    Raises:
        PinError: says what differs and how to mend it.
        TagError: there is no such tag.
    """
    check_trainer(tag, trainer)
    pins = bands.row(tag)
    proof = _check_installed_diffusers(diffusers, pins.diffusers)
    if version("transformers") != pins.transformers:
        raise PinError(f"transformers {version('transformers')} is installed, the trainer pins {pins.transformers}")
    return {
        "version": pins.version,
        "commit": pins.commit,
        "diffusers_commit": pins.diffusers,
        "diffusers_proof": proof,
    }
