"""What `--help` looks like: commands in groups, and a word for each value instead of its Python type."""

from pathlib import Path
from typing import Any, get_args

from typer.core import TyperGroup

PANELS = {
    "Render": ("sample", "replay", "comfy", "models", "download", "doctor"),
    "Verify": ("verify", "diagnose", "comfy-check"),
    "Serve / Check": ("serve", "check"),
    "Report": ("report", "known"),
    "Study / Maintain": (
        "matrix",
        "mutate",
        "mutate-code",
        "fuzz",
        "trainer-watch",
        "coverage",
        "tolerances",
        "case",
        "minihub",
        "version",
    ),
}
"""Title -> commands. Everything has a place here (tests/test_cli_help.py)."""
WORDS = {
    "model": "MODEL",
    "case": "CASE",
    "tag": "TAG",
    "device": "DEVICE",
    "dtype": "DTYPE",
    "lora": "FILE",
    "control": "FILE",
    "recovery": "FILE",
    "base": "REPO",
    "cause": "WHY",
    "expires": "DATE",
    "seed": "N",
}
"""Option -> what its value is, where its type does not say it."""
OF_TYPES = {"int": "N", "float": "NUMBER", "str": "TEXT", "bool": ""}


class Commands(TyperGroup):
    """All commands, described in words."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        places = {name: title for title, names in PANELS.items() for name in names}
        for name, command in self.commands.items():
            command.rich_help_panel = places.get(name)  # type: ignore[attr-defined]
        self.commands = {name: self.commands[name] for name in (*places, *self.commands) if name in self.commands}
        _describe(self)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


def _describe(command: Any) -> None:
    """Let the parameters of a command, and of those below it, say what their values are."""
    for inner in getattr(command, "commands", {}).values():
        _describe(inner)

    def described(ctx: Any) -> list[Any]:
        params = type(command).get_params(command, ctx)  # with --help, which typer makes only here
        for param in params:
            if param.metavar is None and (word := _word(param)) is not None:
                param.metavar = word
                if param.param_type_name == "argument":
                    param.display_type_rich = lambda ctx: ""  # the name is the word already
        return params

    command.get_params = described


def _word(param: Any) -> str | None:
    """What stands for the value: `FILE`, `MODEL`; None leaves it to typer (choices, and typer before 0.29)."""
    described = getattr(param, "type_descriptor", None)
    if described is None or described.is_choice:
        return None
    kind = next(iter(get_args(described.annotation)), described.annotation)  # of list[Path], Path
    if param.name in WORDS:
        return WORDS[param.name]
    if kind is Path:
        return "FOLDER" if "folder" in (param.help or "") else "FILE"
    return OF_TYPES.get(kind.__name__)
