"""The commits of a trainer checkout, and a clone in which each of them is checked out in turn."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from lora_drift.harness.tags import Tag
from lora_drift.harness.trainer.recorder import pins

ASIDE = ("ui", "docker", "notebooks", "assets", "config/examples", ".github", "*.md")
"""Paths of the trainer that its Python does not read: a commit that touches nothing else changes no sample."""


class HistoryError(Exception):
    """The checkout lacks what is asked of its history."""


class Commit(NamedTuple):
    sha: str
    date: str
    subject: str
    version: str

    @property
    def short(self) -> str:
        return self.sha[:8]


def _git(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True)


def _said(folder: Path, *args: str) -> str:
    done = _git(folder, *args)
    if done.returncode:
        raise HistoryError(f"git {' '.join(args)} failed in {folder}: {done.stderr.strip()}")
    return done.stdout.strip()


class History:
    """`shas`: the commit of the tag `base`, and those after it up to the checkout's that may change a sample, oldest
    first; of what was merged, the merge alone."""

    def __init__(self, trainer: Path, base: Tag, scratch: Path) -> None:
        """
        Raises:
            PinError: `trainer` is no Git checkout, or not clean.
            HistoryError: the tag's commit is not in its history.
        """
        self.head = pins.head(trainer)
        self._source, self._clone = trainer.resolve(), scratch / "trainer"
        self._check_ancestor(base)
        aside = [f":(exclude){path}" for path in ASIDE]
        between = _said(trainer, "rev-list", "--reverse", "--first-parent", f"{base.commit}..HEAD", "--", ".", *aside)
        self.shas = [base.commit, *between.split()]

    def _check_ancestor(self, base: Tag) -> None:
        known = _git(self._source, "cat-file", "-e", f"{base.commit}^{{commit}}").returncode == 0
        if not known:
            raise HistoryError(
                f"{self._source} does not have {base.commit}, the commit of {base.tag}: fetch its history "
                f"(git -C {self._source} fetch --unshallow), or name another tag with --from"
            )
        if _git(self._source, "merge-base", "--is-ancestor", base.commit, "HEAD").returncode:
            raise HistoryError(
                f"HEAD of {self._source}, {self.head[:8]}, does not come after {base.commit[:8]}, the commit of "
                f"{base.tag}: check out a newer one, or name an older tag with --from"
            )

    def commit(self, sha: str) -> Commit:
        date, subject = _said(self._source, "log", "-1", "--format=%cs%n%s", sha).split("\n", 1)
        declared = _git(self._source, "show", f"{sha}:version.py").stdout
        return Commit(sha, date, subject, declared.partition("=")[2].strip().strip("\"'"))

    def at(self, sha: str) -> Path:
        """A clean checkout of the commit, in a clone of its own: the given one is never moved."""
        if self._clone.is_dir() and _git(self._clone, "config", "remote.origin.url").stdout.strip() != str(
            self._source
        ):
            shutil.rmtree(self._clone)
        if not self._clone.is_dir():
            self._clone.parent.mkdir(parents=True, exist_ok=True)
            _said(self._source, "clone", "--quiet", "--no-checkout", "--shared", str(self._source), str(self._clone))
            if _git(self._source, "config", "core.sparseCheckout").stdout.strip() == "true":
                # What the checkout leaves out may not even be there.
                patterns = _said(self._source, "sparse-checkout", "list").splitlines()
                _said(self._clone, "sparse-checkout", "set", "--no-cone", *patterns)
        _said(self._clone, "-c", "advice.detachedHead=false", "checkout", "--quiet", "--force", sha)
        _said(self._clone, "clean", "-fdxq")
        return self._clone
