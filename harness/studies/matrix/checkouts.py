"""Source trees of a user's Diffusers checkout, in clones of our own: the checkout itself is only read."""

import subprocess
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from lora_drift.harness.studies.matrix import MatrixError, folder


class CheckoutError(MatrixError):
    """The checkout is none, or does not know a commit."""


def git(folder: Path, *args: str) -> str:
    """Output of a git command.

    Raises:
        CheckoutError: git's message.
    """
    done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True)
    if done.returncode:
        raise CheckoutError(f"git {' '.join(args)} in {folder}: {done.stderr.strip()}")
    return done.stdout.strip()


def resolve(checkout: Path, ref: str) -> str:
    """The commit that `ref` names: a commit, a tag, a branch, or a branch of the checkout's origin.

    Raises:
        CheckoutError: it names none.
    """
    for name in (ref, f"origin/{ref}"):
        try:
            return git(checkout, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        except CheckoutError:
            continue
    git(checkout, "rev-parse", "--git-dir")  # says so if it is no checkout at all
    raise CheckoutError(f"{checkout} has no commit, tag or branch {ref!r}; `git fetch --tags` there may bring it")


def clone(checkout: Path, to: Path) -> Path:
    """A clone that borrows the checkout's objects: takes no room, and no command in it can change the checkout."""
    with FileLock(f"{to}.lock"):
        if not (to / ".git").is_dir():
            to.parent.mkdir(parents=True, exist_ok=True)
            git(to.parent, "clone", "--quiet", "--shared", "--no-checkout", str(checkout.resolve()), str(to))
    return to


def worktree(checkout: Path, ref: str) -> Path:
    """A clone at `ref`, kept for the next run."""
    commit = resolve(checkout, ref)
    place = sha256(str(checkout.resolve()).encode()).hexdigest()[:8]
    tree = folder() / "sources" / f"{place}-{commit[:12]}"
    tree.parent.mkdir(parents=True, exist_ok=True)
    clone(checkout, tree)
    git(tree, "checkout", "--quiet", "--force", "--detach", commit)
    return tree
