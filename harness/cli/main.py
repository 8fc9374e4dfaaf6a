"""The `lora-drift` command. Each module beside this one adds its commands."""

import os
import sys
from typing import Annotated

import typer

from lora_drift.harness.cli import check, comfy, diagnose, fuzz, hub, sample, serve, show, study, trainer_watch, verify
from lora_drift.harness.cli.help import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Render LoRAs trained with ostris/ai-toolkit as the trainer samples them, and prove it.",
    epilog="Exit codes: 0 all well; 1 a case does not match; 2 the request is wrong (the message says how to fix it).",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"lora-drift {version('lora-drift')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


for part in (sample, comfy, verify, check, diagnose, fuzz, trainer_watch, study, show, serve, hub):
    app.add_typer(part.app)


def main() -> None:
    """Entry point."""
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1" if sys.argv[1:2] in (["check"], ["mutate"]) else str(os.cpu_count() or 1)
    )
    app()


if __name__ == "__main__":
    main()
