"""Environments of the trainer, as `recorder env` builds them: for each commit the one that its requirements ask for.

What a sample is depends on them as much as on the trainer's code: a commit that moves Diffusers changes pictures that
its own lines leave alone.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from lora_drift.harness.trainer.recorder import build_environment
from lora_drift.harness.trainer.recorder.pins import PinError

_DIFFUSERS = re.compile(r"diffusers(?:\.git)?@([0-9a-f]{40})")


class Lacking(NamedTuple):
    """What the trainer's requirements ask for, and an environment does not have."""

    asked: str
    here: str | None
    """What it has instead."""

    @property
    def unfit(self) -> bool:
        """Another Diffusers or transformers may render otherwise, and without a package the trainer may not run; other
        versions of the rest are let pass."""
        return self.here is None or re.match(r"(git\+.*/)?(diffusers|transformers)\b", self.asked) is not None

    def __str__(self) -> str:
        return f"{self.asked} (here {self.here or 'none'})"


class Environment(NamedTuple):
    """A folder with `venv` and `diffusers`."""

    folder: Path
    diffusers: str
    versions: Mapping[str, str]
    """Package -> version."""

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    def lacks(self, lines: Sequence[str]) -> list[Lacking]:
        other = [Lacking(line, self.diffusers) for line in lines if _pinned(line) not in (None, self.diffusers)]
        return [*other, *(Lacking(*unmet) for unmet in build_environment.unmet(lines, self.versions))]

    def misfit(self, lines: Sequence[str]) -> tuple[int, int]:
        """How much makes it unfit, and how much is otherwise: the less the better."""
        lacking = self.lacks(lines)
        return sum(each.unfit for each in lacking), len(lacking)


def _pinned(line: str) -> str | None:
    """The Diffusers commit that a line of the trainer's requirements pins."""
    found = _DIFFUSERS.search(line)
    return found[1] if found else None


def there(home: Path) -> Iterator[Environment]:
    """The environments in the folders of `home`."""
    for python in sorted(home.glob("*/venv/bin/python")):
        folder = python.parents[2]
        git = ["git", "-C", str(folder / "diffusers"), "rev-parse", "HEAD"]
        head = subprocess.run(git, capture_output=True, text=True)
        if head.returncode == 0:
            sites = [str(site) for site in folder.glob("venv/lib/python*/site-packages")]
            packages = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions(path=sites)}
            yield Environment(folder, head.stdout.strip(), packages)


def choose(home: Path, lines: Sequence[str], *, build: bool) -> Environment:
    """The environment in `home` that fits these requirements best; an unfit one only if none is to be built, or that
    fails.

    Raises:
        PinError: there is none at all.
    """
    best = min(there(home), key=lambda each: each.misfit(lines), default=None)
    pinned = next(filter(None, map(_pinned, lines)), None)
    if best is not None and (best.misfit(lines)[0] == 0 or not build or pinned is None):
        return best
    if not build or pinned is None:
        raise PinError(
            f"no environment of the trainer in {home}: --build builds it (needs uv), or name the folder that holds "
            "some with --environments; `python -m lora_drift.harness.trainer.recorder env --help` says what one is"
        )
    locks = {file: build_environment.locked(file) for file in sorted(build_environment.LOCKS.glob("*.txt"))}
    unmet = {file: [line for line, _ in build_environment.unmet(lines, locks[file])] for file in locks}
    # What was locked for this transformers, if there is such a lock, before what lacks least.
    lock = min(locks, key=lambda file: (any(line.startswith("transformers") for line in unmet[file]), len(unmet[file])))
    more = unmet[lock]
    suffix = [sha256("\n".join(more).encode()).hexdigest()[:6]] if more else []
    made = home / "-".join([pinned[:8], lock.stem, *suffix])
    try:
        build_environment.build(lock, pinned, build_environment.DIFFUSERS, made, more)
    except PinError:
        if best is None:
            raise
        return best  # what it lacks is told
    return next(each for each in there(home) if each.folder == made)
