"""Every command of README, CONTRIBUTING and docs/: run as it is written in a fresh environment made from the wheel, or,
where that is not possible (`NOT_RUN` says why), read by the parser of its program.

Blocks without a language, or with `sh`, are commands. What a page shows as `text` is what its commands print.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import pytest
import typer
from markdown_it import MarkdownIt

from lora_drift.harness.cli.main import app
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT

if TYPE_CHECKING:
    from installed import Installed

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]

NETWORK = "needs the network; the environment here is made from the same wheel"
TRAINER = "needs the trainer, a checkout of which this repository does not have"
LONG = "takes minutes; CI runs it, or the tests of its command run smaller ones"
GPU = "needs a GPU, or the real weights"
CHANGES = "changes the checkout"
NOT_RUN = {
    "README.md": {
        "git clone *": NETWORK,
        "make *": "runs all tests, these too",
        "python3 -m venv *": NETWORK,
        "pip install *": NETWORK,
        "lora-drift serve --loras lora_weights": "docs/tutorials/serve.md has the one that is run",
        "curl *": "docs/tutorials/serve.md has the one that is run",
        "lora-drift check *": LONG,
        "pytest cases/ *": LONG,
        "lora-drift report results.jsonl *": "makes a page of what was not run",
        "lora-drift matrix *": NETWORK,
        "lora-drift mutate *": LONG,
        "lora-drift diagnose --case *": "docs/diagnose.md has the one that is run",
    },
    "CONTRIBUTING.md": {
        "make test": "runs all tests, these too",
        ".venv/bin/python -m pytest *": "a test, as this is",
        ".venv/bin/pre-commit install": CHANGES,
        "pytest tests/test_completeness.py *": "a test, as this is",
        "python -m lora_drift.harness.minihub.read_layouts": TRAINER,
        "lora-drift minihub manifest": CHANGES,
        "lora-drift coverage *": LONG,
        "*lora-drift fuzz *": TRAINER,
        "lora-drift mutate-code *": LONG,
    },
    "docs/comfyui.md": {
        "git clone *": NETWORK,
        "pip install *": NETWORK,
        "ln -s *": "needs ComfyUI, a checkout of which this repository does not have",
        "lora-drift comfy *": "tests/test_comfyui.py writes and renders such workflows",
        "lora-drift comfy-check *": "needs a picture that ComfyUI saved; tests/test_native_check.py has one",
        "pytest -m comfyui *": "needs ComfyUI, a checkout of which this repository does not have",
    },
    "docs/diagnose.md": {
        "lora-drift diagnose --results *": "needs a case that drifts; tests/test_diagnose.py has one",
        "lora-drift report *": "makes a page of what was not run",
        "from lora_drift.harness.check.trace *": "a part of a script; tests/test_trace.py has a whole one",
        "from lora_drift.harness.deviations.diagnosis *": "a part of a script; tests/test_diagnose.py has a whole one",
    },
    "docs/goldens.md": {
        "*-m lora_drift.harness.trainer.recorder *": TRAINER,
        "lora-drift tolerances *": GPU,
        "lora-drift mutate *": GPU,
        "pytest cases*": GPU,
    },
    "docs/install.md": {
        "pip install *": NETWORK,
        "pytest --drift-cases *": "tests/test_install.py makes such a project",
        "lora-drift check --cases *": "tests/test_install.py makes such a project",
    },
    "docs/matrix.md": {"lora-drift matrix *": NETWORK},
    "docs/models/*.md": {"lora-drift *": GPU},
    "docs/performance.md": {"python *": GPU},
    "docs/report.md": {"*": "needs results; tests/test_report_runs.py has some"},
    "docs/server.md": {
        "pip wheel *": NETWORK,
        "podman *": "needs podman and the network; tests/test_container.py reads the recipe",
        "pip install *": NETWORK,
        "env DATABASE_URL=*": "needs such a database; tests/test_server_postgres.py and test_server_ray.py have one",
        "ray start *": "needs several hosts; tests/test_server_ray.py has several nodes on one",
    },
    "docs/tutorials/*.md": {
        "git clone *": NETWORK,
        "pip install *": NETWORK,
        "lora-drift download *": NETWORK,
        "lora-drift doctor": "says what this machine has",
        "lora-drift * --device cuda *": GPU,
        "lora-drift matrix *": NETWORK,
    },
    "docs/trainer-versions.md": {
        "lora-drift trainer-watch *": TRAINER,
        "python -m lora_drift.harness.trainer.fuzz.between *": TRAINER,
    },
    "docs/verify.md": {"python -m lora_drift.harness.trainer.recorder.folders *": TRAINER},
}
"""Page -> commands, as patterns, and why they are only read."""

INSTEAD = {
    "README.md": {
        "-o out.png\n": "-o out.png --width 128 --height 128 --steps 2\n",
        "seed=42,": "seed=42, width=128, height=128, steps=2,",
        "--device cuda": "--device cpu",
        'device="cuda"': 'device="cpu"',
    },
}
"""Page -> what is not as it is written there, so that it takes seconds."""


class Command(NamedTuple):
    text: str
    """A statement for the shell, or a whole block of Python."""
    language: str

    @property
    def words(self) -> list[str]:
        """As the shell passes them on, without comments."""
        return shlex.split(self.text.replace("\\\n", " "), comments=True)

    @property
    def flat(self) -> str:
        return " ".join(self.text.split() if self.language == "python" else self.words)


@cache
def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each block of code."""
    tokens = MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
    return [(token.info.strip(), token.content) for token in tokens if token.type in ("fence", "code_block")]


def commands(page: str) -> list[Command]:
    found = []
    for language, text in blocks(page):
        if language in ("", "sh"):
            found += [Command(statement, "sh") for statement in statements(text)]
        elif language == "python":
            found.append(Command(text, "python"))
    return found


def statements(block: str) -> Iterator[str]:
    """Lines, joined where a quote or a backslash goes over their end; without those that are empty or a comment."""
    text = ""
    for line in block.splitlines(keepends=True):
        text += line
        try:
            words = shlex.split(text, comments=True)
        except ValueError:
            continue  # within quotes
        if not re.search(r"\\\n\Z", re.sub(r"\s+#.*", "", text)):
            if words:
                yield text
            text = ""
    assert not text, text


def why_not_run(page: str, command: Command) -> str | None:
    for pages, patterns in NOT_RUN.items():
        if fnmatch(page, pages):
            return next((why for pattern, why in patterns.items() if fnmatch(command.flat, pattern)), None)
    return None


# ------------------------------------------------------------------------------------------------------------ run


def prepare_readme(folder: Path, lora_of: Callable[[str], Path]) -> None:
    shutil.copyfile(ROOT / "jobs" / "flux" / "flux.safetensors", folder / "my.safetensors")
    shutil.copytree(ROOT / "jobs" / "sd15", folder / "output" / "my_lora")
    (folder / "jobs").symlink_to(ROOT / "jobs")


def prepare_clone(folder: Path, lora_of: Callable[[str], Path]) -> None:
    """What commands look for in a clone; what runs is the wheel."""
    for name in ("cases", "goldens", "jobs"):
        (folder / name).symlink_to(ROOT / name)


def prepare_server(folder: Path, lora_of: Callable[[str], Path]) -> None:
    (folder / "loras").mkdir()
    shutil.copyfile(lora_of("sd15/lora"), folder / "loras" / "my_lora.safetensors")


def prepare_nothing(folder: Path, lora_of: Callable[[str], Path]) -> None:
    pass


RUN = {
    "README.md": prepare_readme,
    "docs/diagnose.md": prepare_nothing,
    "docs/tutorials/comfyui.md": prepare_clone,
    "docs/tutorials/first-lora.md": prepare_clone,
    "docs/tutorials/new-diffusers.md": prepare_clone,
    "docs/tutorials/serve.md": prepare_server,
    "docs/tutorials/verify-my-job.md": prepare_clone,
    "docs/verify.md": prepare_clone,
}
"""Page -> what lies in the folder in which its commands run, one after the other."""
LEFT = {
    "README.md": ["out.png", "out.png.json", "fox.png", "report/index.html"],
    "docs/tutorials/new-diffusers.md": ["out/index.html"],
    "docs/tutorials/serve.md": ["outputs/*_output_0.jpg", "outputs/*_output_0.png"],
    "docs/verify.md": ["results.json", "report/index.html", "rain.png"],
}
"""Page -> some of what they leave there."""
PRINTED = {
    "README.md": ["6 samples: 6 match"],
    "docs/tutorials/serve.md": ['"status":"succeeded"'],
    "docs/verify.md": ["6 samples: 6 match", "the pixels are the same, bit for bit"],
}
"""Page -> what they print, beside what the page shows as `text`."""


@pytest.fixture(scope="module")
def programs(whole: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the PATH with the wheel's `lora-drift` and `python`, which need not import torch at each call."""
    folder = tmp_path_factory.mktemp("programs")
    script, python = ROOT / "tests" / "preloaded.py", whole.bin("python")
    for name in ("lora-drift", "python"):
        own = f'case "$1" in serve|-m) exec "{whole.bin(name)}" "$@";; esac\n'  # a server starts its own processes
        (folder / name).write_text(f'#!/bin/sh\n{own}exec "{python}" -S -E "{script}" "{folder}/s" {name} "$@"\n')
        (folder / name).chmod(0o755)
    command = [python, str(script), str(folder / "s"), "serve"]
    with subprocess.Popen(command, env=her_environment(whole), stdout=subprocess.PIPE, cwd=folder) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        yield folder
        server.terminate()


def her_environment(whole: Installed) -> dict[str, str]:
    """With the mini hub for her Hugging Face cache, so that commands for the real weights run as they are."""
    return {**whole.environment(), "HF_HOME": str(factory.default_home()), "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_commands_run_as_they_are_written(
    page: str, whole: Installed, programs: Path, lora_of: Callable[[str], Path], tmp_path: Path
) -> None:
    RUN[page](tmp_path, lora_of)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = ""
    for number, (text, language) in enumerate(c for c in commands(page) if not why_not_run(page, c)):
        if language == "python":
            (tmp_path / f"{number}.py").write_text(instead(page, text))
            text = f"python {number}.py\n"
        script += instead(page, text)
    environment = her_environment(whole) | {"PORT": port}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    command = ["bash", "-e", "-o", "pipefail", "-c", f"{script.replace('8000', port)}\njobs -p | xargs -r kill\nwait"]
    try:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    finally:
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(tmp_path):
                process.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [text.rstrip("\n") for language, text in blocks(page) if language == "text"]
    for text in (*shown, *PRINTED.get(page, ())):
        assert text in done.stdout, f"{text}\n\nis not in:\n\n{done.stdout}"
    for pattern in LEFT.get(page, ()):
        assert list(tmp_path.glob(pattern)), f"{pattern} is not there\n{done.stdout}{done.stderr}"


def instead(page: str, text: str) -> str:
    for old, new in INSTEAD.get(page, {}).items():
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_or_has_a_reason(page: str) -> None:
    found = commands(page)
    assert page in RUN or all(why_not_run(page, command) for command in found)
    for old in INSTEAD.get(page, ()):
        assert any(old in command.text for command in found), old


def test_every_reason_has_a_command() -> None:
    for pages, patterns in NOT_RUN.items():
        flat = [command.flat for page in PAGES if fnmatch(page, pages) for command in commands(page)]
        assert [pattern for pattern in patterns if not any(fnmatch(text, pattern) for text in flat)] == []


# ----------------------------------------------------------------------------------------------------------- read


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_every_command_is_read_by_its_program(page: str, pytestconfig: pytest.Config) -> None:
    for command in commands(page):
        if command.language == "python":
            imports = [line for line in command.text.splitlines() if re.match(r"(from|import) ", line)]
            exec(compile("\n".join(imports), page, "exec"), {})
            compile(command.text, page, "exec")
        elif why_not_run(page, command):
            words = [re.sub(r"^\S*venv/bin/", "", word) for word in command.words]
            assert not (problem := refused(words, pytestconfig)), f"{command.text}{problem}"


def refused(words: list[str], pytestconfig: pytest.Config) -> str:
    """What the program of this command does not know; "" if it takes it."""
    while re.match(r"[A-Z_]+=", words[0]):  # a variable of the environment stands before the program
        words = words[1:]
    program, *args = words
    if args[:2] == ["-m", "pytest"]:
        program, *args = args[1:]
    if program == "lora-drift":
        return refused_by_lora_drift(args)
    if program == "pytest":
        _, unknown = pytestconfig._parser.parse_known_and_unknown_args(args)
        return ", ".join(unknown)
    if program == "python":
        return refused_by_script(args)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return ", ".join(set(args) - set(targets))
    if program == "podman":
        return refused_by_container(args)
    if program == "pip":
        extras = metadata("lora-drift").get_all("Provides-Extra") or ()
        return ", ".join({extra for word in args for extra in re.findall(r"\[(\w+)\]", word)} - set(extras))
    return "" if Path(sys.executable).with_name(program).exists() or shutil.which(program) else f"no {program} here"


def refused_by_container(args: list[str]) -> str:
    """What the recipe or our program in the image does not know; the engine need not be here."""
    if args[0] == "build":
        known = re.findall(r"^ARG (\w+)", (ROOT / "Containerfile").read_text(encoding="utf-8"), re.MULTILINE)
        return ", ".join({word.partition("=")[0] for word in args if "=" in word} - set(known))
    ours = [place for place, word in enumerate(args) if re.fullmatch(r"lora-drift(:cpu)?", word)]
    told = args[max(ours) + 1 :]
    return refused_by_lora_drift(told) if told else ""


def refused_by_lora_drift(args: list[str]) -> str:
    command: Any = typer.main.get_command(app)
    name = "lora-drift"
    while isinstance(command, typer.core.TyperGroup):
        name, *args = args
        if name not in command.commands:
            return f"no command {name}"
        command = command.commands[name]
    try:
        command.make_context(name, list(args))
    except Exception as error:  # noqa: BLE001 - of click, which typer has under another name in each release
        return str(getattr(error, "message", error))
    return ""


def refused_by_script(args: list[str]) -> str:
    """`-m module` or a file, whose parser is argparse: it has each option in its source."""
    path = ROOT.joinpath(*args[1].split(".")) if args[0] == "-m" else ROOT / args[0]
    files = path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    options = [word for word in args[1:] if word.startswith("--")]
    return ", ".join(option for option in options if f'"{option}"' not in source) if source else f"no {path}"
