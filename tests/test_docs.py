"""What the prose promises is there: links and their headings, files, commands and options."""

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import typer

from lora_drift.harness.cli.main import app
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.jobs.verify import Verdict
from lora_drift.server.app import app as server
from lora_drift.server.config import Settings

PAGES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    if not name.startswith(("reports/", ".github/"))
]
WRITTEN = [page for page in PAGES if page.parent.name != "models"]
"""Those that no program writes."""
OF_TODAY = [page for page in WRITTEN if page.name != "CHANGELOG.md" and page.parent.name != "changes"]
"""Those that do not name what is gone."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@cache
def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("page", OF_TODAY, ids=name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:pipelines|harness|server|tests|cases|docs|benchmarks|\.github)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def commands() -> dict[str, set[str]]:
    """ "sample" or "known add" -> its options."""
    found = {}
    for words, command in walk(typer.main.get_command(app), ()):
        found[" ".join(words)] = {option for part in command.params for option in (*part.opts, *part.secondary_opts)}
    return found


def walk(command: object, words: tuple[str, ...]) -> list[tuple[tuple[str, ...], typer.core.TyperCommand]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        assert isinstance(command, typer.core.TyperCommand)
        return [(words, command)]
    return [found for key, part in inner.items() for found in walk(part, (*words, key))]


@pytest.mark.parametrize("page", OF_TODAY, ids=name)
def test_commands_in_sentences_exist_with_their_options(page: Path) -> None:
    """Those in blocks are read, or run, by tests/test_docs_run.py."""
    known = commands()
    text = page.read_text(encoding="utf-8")
    for line in (" ".join(part.split()) for part in re.findall(r"`(lora-drift [^`]*)`", without_code(text))):
        words = line.split()[1:]
        command = next((" ".join(words[:count]) for count in (2, 1) if " ".join(words[:count]) in known), None)
        group = any(key.startswith(f"{words[0]} ") for key in known)
        assert command or group, line
        options = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)}
        assert options <= known[command] | {"--help", "--version"} if command else not options, line


def test_the_glossary_is_short_and_linked() -> None:
    words = re.findall(r"^\| \*\*", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert 0 < len(words) <= 15
    assert "docs/glossary.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_verdict_on_a_sample_is_explained() -> None:
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    assert all(f"| `{verdict}` |" in text for verdict in get_args(Verdict))


def test_every_setting_and_every_call_of_the_server_is_documented() -> None:
    text = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    for setting in Settings.model_fields:
        assert f"`{setting.upper()}`" in text, setting
    for path in server.openapi()["paths"]:
        assert path.replace("request_id", "id").removeprefix("/v1/images") in text, path
