"""A remedy must exist where it is printed: no message advises an option that its command lacks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from lora_drift.harness.cli import sample
from lora_drift.harness.cli.main import app
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.jobs import verify

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+[a-z]")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
FROM_JOB = COMMANDS["case"].commands["from-job"]
FLAGS = {"--ctrl_idx", "--ctrl"}
"""Flags of prompts, which every command takes."""


def options_of(*commands: str) -> set[str]:
    """Options that all of the commands have."""
    known = {**COMMANDS, "case from-job": FROM_JOB}
    sets = [
        {option for parameter in known[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name in commands
    ]
    return set.intersection(*sets)


def advised(text: str) -> set[str]:
    return set(OPTION.findall(text)) - FLAGS


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each string in a module that is no docstring: what may be said to somebody."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


USED_BY = {
    "harness/trainer/jobs/verify.py": ("verify",),
    "harness/trainer/jobs/verify_text.py": ("verify",),
    "harness/trainer/jobs/sample_options.py": ("sample",),
    "harness/trainer/jobs/case_from_job.py": ("case from-job",),
    "harness/replay.py": ("replay",),
}
"""Modules of one command only; what all others say, several callers say."""
SHARED = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("pipelines", "harness/trainer/jobs")
    for path in (ROOT / folder).rglob("*.py")
    if path.parent.name != "families"
)


@pytest.mark.parametrize("module", sorted({*SHARED, *USED_BY}))
def test_a_message_names_options_of_its_only_caller_or_none(module: str) -> None:
    allowed = options_of(*USED_BY[module]) if module in USED_BY else set()
    said = {(line, option) for line, text in messages(ROOT / module) for option in advised(text) - allowed}
    assert not said


@pytest.mark.parametrize(
    ("remedies", "commands"),
    [
        (sample.REMEDIES, ("sample", "diagnose")),
        (sample.REMEDIES_OF_JOB, ("sample",)),
        (verify.REMEDIES, ("verify",)),
    ],
)
def test_each_remedy_of_a_command_is_an_option_of_it(remedies: dict[str, str], commands: tuple[str, ...]) -> None:
    for words in remedies.values():
        assert advised(words) <= options_of(*commands), words


def test_every_remedy_that_an_error_names_is_known_to_somebody() -> None:
    known = {*sample.REMEDIES_OF_JOB, *verify.REMEDIES}
    found = {
        text.value
        for module in SHARED
        for node in ast.walk(ast.parse((ROOT / module).read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("RequestError", "LoraError", "JobError")
        for text in node.args[1:2]
        if isinstance(text, ast.Constant)
    }
    assert found and found <= known, found - known
