"""Finds the Diffusers commit with which a drift or crash begins, with `git bisect run` in a clone of the checkout.

python -m lora_drift.harness.studies.matrix.bisect QUESTION     what `git bisect run` calls at each commit
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lora_drift.harness.paths import ROOT
from lora_drift.harness.studies.matrix import checkouts, environment, folder, run_cases
from lora_drift.harness.studies.matrix.checkouts import CheckoutError, git
from lora_drift.harness.studies.matrix.environment import FROM_GIT, Combination, Environment
from lora_drift.harness.studies.matrix.findings import Bisection, Finding
from lora_drift.harness.studies.matrix.run_cases import Mode, Outcome

GOOD, BAD, SKIP = 0, 1, 125
"""What `git bisect run` understands."""


class NotBisected(Exception):
    """Why there is no commit to name."""


def ref_of(checkout: Path, release: str) -> tuple[str, str]:
    """(commit, "" or a remark) of a release: its tag, or the newest commit where the checkout ends before it."""
    if release.startswith(FROM_GIT):
        return checkouts.resolve(checkout, release.removeprefix(FROM_GIT)), ""
    try:
        return checkouts.resolve(checkout, f"v{release}"), ""
    except CheckoutError:
        for newest in ("origin/HEAD", "main", "HEAD"):
            try:
                return checkouts.resolve(
                    checkout, newest
                ), f"the checkout has no v{release}; its newest commit was used"
            except CheckoutError:
                continue
        raise


class Bisector:
    """Bisects findings, one after the other: a commit that explained one, or one of an earlier run, is tried first."""

    def __init__(self, checkout: Path, *, tag: str, mode: Mode) -> None:
        self.checkout, self.tag, self.mode = checkout, tag, mode
        self._file = folder() / "culprits"
        self.culprits = self._file.read_text(encoding="utf-8").split() if self._file.is_file() else []

    def explain(self, finding: Finding, reference: Outcome | None) -> Bisection:
        """The commit with which `finding` begins. `reference`: of a plain drift, the outcome before it.

        Raises:
            NotBisected, CheckoutError: why there is none.
        """
        before, first = finding.before, finding.first
        if before is None:
            raise NotBisected("the oldest release given shows it already: give an older one")
        if before.diffusers == first.diffusers:
            raise NotBisected(f"Diffusers is the same: it comes from {_others(before, first)}")
        good, _ = ref_of(self.checkout, before.diffusers)
        bad, remark = ref_of(self.checkout, first.diffusers)
        with tempfile.TemporaryDirectory(prefix="lora-drift-bisect-") as scratch:
            clone = checkouts.clone(self.checkout, Path(scratch) / "diffusers")
            asked = Path(scratch) / "question.json"
            asked.write_text(json.dumps(self._question(finding, reference)), encoding="utf-8")
            ask = _Ask(clone, asked)
            for culprit in set(self.culprits) & set(git(clone, "rev-list", f"{good}..{bad}").split()):
                if ask.at(culprit) == BAD and ask.at(f"{culprit}^") == GOOD:
                    return describe(self.checkout, culprit)
            # A release on the package registry may differ from what the checkout has for it.
            if not before.diffusers.startswith(FROM_GIT):
                _expect(ask.at(good), GOOD, good, f"Diffusers {before.diffusers}")
            if not first.diffusers.startswith(FROM_GIT):
                _expect(ask.at(bad), BAD, bad, f"Diffusers {first.diffusers}" + (f" ({remark})" if remark else ""))
            commit = _bisect(clone, good, bad, ask.command)
        self._keep(commit)
        return describe(self.checkout, commit)

    def _question(self, finding: Finding, reference: Outcome | None) -> dict[str, Any]:
        return {
            "environment": str(environment.build(finding.first, self.checkout).python),
            "combination": finding.first.model_dump(),
            "case": finding.cases[0],
            "status": finding.status,
            "kind": finding.message.partition(":")[0] if finding.status == "crash" else None,
            "tag": self.tag,
            "mode": self.mode,
            "reference": reference.pictures if reference else None,
        }

    def _keep(self, commit: str) -> None:
        self.culprits.append(commit)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text("\n".join(self.culprits) + "\n", encoding="utf-8")


def _others(before: Combination, first: Combination) -> str:
    changed = [name for name in ("transformers", "torch") if getattr(before, name) != getattr(first, name)]
    return " and ".join(f"{name} {getattr(before, name)} -> {getattr(first, name)}" for name in changed)


def _expect(found: int, wanted: int, commit: str, what: str) -> None:
    if found != wanted:
        shows = {GOOD: "does not show it", BAD: "shows it too", SKIP: "fails otherwise"}[found]
        raise NotBisected(f"the checkout at {commit[:12]}, which stands for {what}, {shows}")


class _Ask:
    """The question, asked at any commit of the clone."""

    def __init__(self, clone: Path, asked: Path) -> None:
        self.clone = clone
        # Absolute, because `git bisect run` starts it in the clone.
        self.command = [sys.executable, "-m", "lora_drift.harness.studies.matrix.bisect", str(asked), str(clone)]

    def at(self, commit: str) -> int:
        git(self.clone, "checkout", "--quiet", "--force", "--detach", commit)
        return subprocess.run(self.command, env=_ours(), cwd=self.clone, capture_output=True).returncode


def _ours() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _bisect(clone: Path, good: str, bad: str, command: list[str]) -> str:
    git(clone, "bisect", "start", bad, good, "--", "src/diffusers")
    done = subprocess.run(["git", "bisect", "run", *command], cwd=clone, env=_ours(), capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise NotBisected(f"git bisect found no single commit: {' '.join(said[-6:])[:500]}")
    return git(clone, "rev-parse", "refs/bisect/bad")


def describe(checkout: Path, commit: str) -> Bisection:
    date, _, subject = git(checkout, "show", "--no-patch", "--format=%cs %s", commit).partition(" ")
    changed: dict[str, None] = {}
    file = ""
    for line in git(checkout, "show", "--unified=0", "--format=", commit, "--", "src/diffusers").splitlines():
        if line.startswith("+++ "):
            file = line.removeprefix("+++ b/src/diffusers/")
        elif line.startswith("@@") and line.count("@@") >= 2:
            inside = line.split("@@", 2)[2].strip()  # git says in which top-level class or function a hunk is
            name = inside.removeprefix("class ").removeprefix("def ").split("(")[0].rstrip(":")
            changed[f"{name} ({file})" if inside.startswith(("class ", "def ")) else file] = None
    return Bisection(commit=commit, date=date, subject=subject, changed=list(changed))


def answer(question: dict[str, Any], source: Path) -> int:
    """GOOD, BAD or SKIP for the source tree as it is now."""
    ready = Environment(Path(question["environment"]), (source / "src",))
    with tempfile.TemporaryDirectory() as keep:
        (outcome,) = run_cases.run(
            ready, Combination(**question["combination"]), [question["case"]], tag=question["tag"],
            mode=question["mode"], keep=Path(keep),
        )  # fmt: skip
        if question["status"] == "crash":
            if outcome.status != "crash":
                return GOOD
            return BAD if outcome.message.partition(":")[0] == question["kind"] else SKIP
        if outcome.status == "crash" or outcome.status == "lacks":
            return SKIP
        if question["mode"] == "golden":
            return BAD if outcome.status == "drift" else GOOD
        from lora_drift.harness.studies.stock_diffusers import difference, stored

        before, now = stored(Path(question["reference"]), outcome.case), stored(Path(keep), outcome.case)
        return GOOD if difference(before, now)["within"] else BAD


if __name__ == "__main__":
    sys.exit(answer(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])))
