"""The `lora-drift` command. Each module beside this one adds its commands."""

import os
import sys

import typer

from lora_drift.harness.cli import check, diagnose, sample, serve, show, study, verify

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Render LoRAs trained with ostris/ai-toolkit as the trainer samples them, and prove it.",
    epilog="Exit codes: 0 all well; 1 a case does not match; 2 the request is wrong (the message says how to fix it).",
)
for part in (sample, verify, check, diagnose, study, show, serve):
    app.add_typer(part.app)


def main() -> None:
    """Entry point."""
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1" if sys.argv[1:2] in (["check"], ["mutate"]) else str(os.cpu_count() or 1)
    )
    app()


if __name__ == "__main__":
    main()
