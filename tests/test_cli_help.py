"""What a newcomer types first: help, completion, names that are nearly right, several prompts at once."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner, Result

from lora_drift.harness import tags
from lora_drift.harness.cli.help import PANELS
from lora_drift.harness.cli.main import app
from lora_drift.pipelines import MODELS

SIZE = ("--mini", "-m", "sd15", "--width", "64", "--height", "64", "--steps", "2")


def lora_drift(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})


def test_every_command_has_its_place_in_the_help() -> None:
    shown = lora_drift("--help").stdout
    titles = [line for line in shown.splitlines() if line.startswith("╭─")]
    assert [title.split("─ ")[1].split(" ─")[0] for title in titles] == ["Options", *PANELS]
    assert sorted(get_command(app).commands) == sorted(name for names in PANELS.values() for name in names)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", ["", "sample", "report", "verify", "known add", "matrix", "minihub full"])
def test_help_names_values_in_words_and_not_in_types(command: str) -> None:
    shown = lora_drift(*command.split(), "--help").stdout
    assert not any(word in shown for word in ("list[", "<bool>", "<path>", "<str>", "<int>"))


def test_help_says_what_brackets_are_for() -> None:
    shown = " ".join(lora_drift("sample", "--help").stdout.split())
    assert '"a photo of [trigger]"' in shown
    assert "replaces [trigger]" in shown


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sample --model zimage_", ["zimage_turbo", "zimage_deturbo"]),
        ("check --model sd", ["sd15", "sdxl"]),
        ("check --case sd15/b", ["sd15/base"]),
        ("diagnose --case full/sd1", ["full/sd15"]),
        ("models lumi", ["lumina2"]),
        ("check --tag v0.7.2", [tag for tag in tags.names() if tag.startswith("v0.7.2")]),
    ],
)
def test_the_shell_completes_models_cases_and_tags(typed: str, offered: list[str]) -> None:
    words = ["lora-drift", *typed.split()]
    completing = {
        "_LORA_DRIFT_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = CliRunner().invoke(app, [], prog_name="lora-drift", env=completing)
    assert done.stdout.split() == offered


def test_the_table_of_models_keeps_ids_whole_on_80_columns() -> None:
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    command = [sys.executable, "-m", "lora_drift.harness.cli.main", "models"]
    with subprocess.Popen(command, stdout=child, env=environment) as process:
        os.close(child)
        shown = b""
        try:
            while part := os.read(parent, 65536):
                shown += part
        except OSError:  # Linux says so that the other side has closed
            pass
    os.close(parent)
    assert process.returncode == 0
    lines = shown.decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:-1] if line[:1].strip()] == list(MODELS)


# ---------------------------------------------------------------------------------------------------- several prompts


def test_prompts_of_options_and_of_a_file_are_rendered_in_order(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red fox --w 128\n\n  a blue fox --seed 5  \n")
    done = lora_drift("sample", *SIZE, "-p", "a fox", "--prompts", file, "-o", tmp_path / "out.png", "--json")
    assert done.exit_code == 0, done.stderr
    receipts = json.loads(done.stdout)
    assert [(r["settings"]["prompt"], r["settings"]["seed"]) for r in receipts] == [
        ("a fox", 42), ("a red fox", 42), ("a blue fox", 5),
    ]  # fmt: skip
    for number, width in enumerate((64, 128, 64), 1):
        with Image.open(tmp_path / f"out-{number}.png") as image:
            assert image.size == (width, 64)
        assert json.loads((tmp_path / f"out-{number}.png.json").read_text()) == receipts[number - 1]
    alone = lora_drift("sample", *SIZE, "-p", "a blue fox --seed 5", "-o", tmp_path / "alone.png", "--json")
    assert json.loads(alone.stdout) == receipts[2]


def test_one_wrong_prompt_of_several_renders_nothing(tmp_path: Path) -> None:
    done = lora_drift("sample", *SIZE, "-p", "a fox", "-p", "a fox --w wide", "-o", tmp_path / "out.png")
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "prompt flag --w" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [((), "say what to render: --prompt"), (("--prompts", "nowhere.txt"), "--prompts nowhere.txt: cannot be read")],
)
def test_no_prompt_is_a_wrong_request(args: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = lora_drift("sample", *SIZE, *args, "-o", tmp_path / "out.png")
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert said in done.stderr


def test_a_trigger_that_stays_in_the_prompt_is_said_and_rendered(tmp_path: Path) -> None:
    ask = ("sample", *SIZE, "-p", "a photo of [trigger]", "-o", tmp_path / "out.png")
    done = lora_drift(*ask)
    assert done.exit_code == 0
    assert done.stderr == "! [trigger] stays in the prompt as it is; --trigger WORD replaces it\n"
    assert json.loads((tmp_path / "out.png.json").read_text())["settings"]["prompt"] == "a photo of [trigger]"
    assert lora_drift(*ask, "--trigger", "sks").stderr == ""
