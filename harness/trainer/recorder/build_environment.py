"""Builds the environment that the trainer of a tag runs in, from a committed lock:

python -m lora_drift.harness.trainer.recorder env --tag TAG --trainer DIR

Two folders come of it: `venv`, with the packages of the tag's lock (locks/*.txt) and Diffusers, and `diffusers`, a
checkout of the commit that the tag pins, from which that Diffusers was installed.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from lora_drift.harness import tags
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import HARNESS, ROOT
from lora_drift.harness.trainer.recorder import bands, pins
from lora_drift.harness.trainer.recorder.pins import PinError

LOCKS = HARNESS / "trainer" / "recorder" / "locks"
PYTHON = "3.11"
"""What the locks are for."""
DIFFUSERS = "https://github.com/huggingface/diffusers"
LEFT_OUT = {"bitsandbytes", "opencv-python"}
"""Requirements of the trainer that no lock holds; the locks say why."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lora_drift.harness.trainer.recorder env",
        description="Build the environment in which the trainer of a tag runs (Linux, about 6 GB; needs uv), and say "
        "how to record with it. Run it with the Python of lora-drift, from a checkout.",
        epilog="Run again, it mends what is not as the lock says. The lock of a tag is named in harness/tags.yaml and "
        "lies in harness/trainer/recorder/locks; it says how it was made.",
    )
    parser.add_argument("--tag", default=tags.newest(), help="a row of harness/tags.yaml (%(default)s)")
    parser.add_argument("--trainer", type=Path, required=True, metavar="DIR", help="clean ostris/ai-toolkit checkout")
    parser.add_argument("--diffusers", metavar="DIR", default=DIFFUSERS, help="a Git repository that has the pinned "
                        "Diffusers commit; it is cloned (%(default)s)")  # fmt: skip
    parser.add_argument("--home", type=Path, metavar="DIR", help="where to build (default: a folder of the tag in "
                        "$LORA_DRIFT_CACHE/trainer or ~/.cache/lora-drift/trainer)")  # fmt: skip
    return parser.parse_args(argv)


def lock_file(tag: str) -> Path:
    """The lock of a tag.

    Raises:
        TagError: there is no such tag.
    """
    return LOCKS / f"{bands.row(tag).lock}.txt"


def locked(file: Path) -> dict[str, str]:
    """Package -> version."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def requirements(trainer: Path, name: str = "requirements.txt") -> list[str]:
    """The lines of the trainer's requirements.txt, and of the files that it includes."""
    found: list[str] = []
    for line in map(str.strip, (trainer / name).read_text(encoding="utf-8").splitlines()):
        if line.startswith("-r "):
            found += requirements(trainer, line.removeprefix("-r ").strip())
        elif line and not line.startswith("#"):
            found.append(line)
    return found


def unmet(lines: Sequence[str], versions: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Those `lines` of the trainer's requirements, Diffusers aside, that these `versions` do not fulfil, each with the
    version that is there instead, if any."""
    for line in lines:
        if line.startswith("git+"):
            continue
        wanted = Requirement(line)
        version = versions.get(wanted.name.lower().replace("_", "-"))
        if wanted.name not in LEFT_OUT and (version is None or version not in wanted.specifier):
            yield line, version


def check_lock(tag: str, lines: Sequence[str]) -> None:
    """Does the tag's lock hold what the `lines` of the trainer's requirements ask for?

    Raises:
        PinError: it does not.
    """
    file, commit = lock_file(tag), bands.row(tag).diffusers
    for line in lines:
        if line.startswith("git+") and line.replace(".git@", "@") != f"git+{DIFFUSERS}@{commit}":
            raise PinError(f"the trainer's requirements say {line}, tags.yaml says Diffusers {commit}")
    for line, version in unmet(lines, locked(file)):
        raise PinError(f"the trainer's requirements say {line}, {file.name} has {version or 'none'}: name "
                       f"another `lock` for {tag} in harness/tags.yaml ({file} says how it was made)")  # fmt: skip


def run(*command: str | Path) -> None:
    if subprocess.run(command).returncode:
        raise PinError(f"this failed (see above): {' '.join(map(str, command))}")


def checkout(source: str, commit: str, to: Path) -> None:
    """Make `to` a clean checkout of `commit` of the repository `source`."""
    if not to.is_dir():
        part = ["--filter=blob:none"] if source == DIFFUSERS else []
        run("git", "clone", "--quiet", "--no-checkout", *part, source, to)
    git = ("git", "-C", to)
    if subprocess.run([*git, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True).returncode:
        run(*git, "fetch", "--quiet", source, commit)
    run(*git, "-c", "advice.detachedHead=false", "checkout", "--quiet", "--force", commit)
    run(*git, "clean", "-fdxq")


def build(lock: Path, commit: str, diffusers: str, home: Path, more: Sequence[str] = ()) -> Path:
    """Build or mend in `home` the environment of a lock and a `commit` of the repository `diffusers`; returns its
    Python. `more`: requirements that the lock does not fulfil.

    Raises:
        PinError: uv is missing, or a command failed.
    """
    if shutil.which("uv") is None:
        raise PinError("uv, which installs the environment, is not on the PATH: pip install uv")
    venv, source = home / "venv", home / "diffusers"
    python = venv / "bin" / "python"
    if not python.is_file():
        run("uv", "venv", "--python", PYTHON, venv)
    into = ("--compile-bytecode", "--python", python)  # else each import of the trainer compiles it all again
    run("uv", "pip", "sync", *into, lock)  # installs no requirement that is not in the lock
    if more:
        run("uv", "pip", "install", *into, *more)  # leaves what is installed alone, where that will do
    checkout(diffusers, commit, source)
    run("uv", "pip", "install", *into, "--no-deps", "--refresh-package", "diffusers", source)
    return python


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    try:
        pins.check_trainer(args.tag, args.trainer)
        check_lock(args.tag, requirements(args.trainer))
        home = (args.home or factory.default_home().parent.parent / "trainer" / args.tag).resolve()
        python = build(lock_file(args.tag), bands.row(args.tag).diffusers, args.diffusers, home)
    except (PinError, tags.TagError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"The environment is ready. Record with it, in {ROOT} (--help says more):\n\n"
        f"    {python} -m lora_drift.harness.trainer.recorder --tag {args.tag} --trainer {args.trainer.resolve()} "
        f"--diffusers {home / 'diffusers'}\n"
    )
    return 0
