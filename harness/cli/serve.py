"""`lora-drift serve`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lora_drift.harness import extras
from lora_drift.harness.cli.shared import fail

app = typer.Typer()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on (HOST, 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="(PORT, 8000)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 (DEVICE, cuda)")] = None,
    loras: Annotated[Path | None, typer.Option(help="folder of LoRA files (WORKFLOWS_BASE_PATH)")] = None,
    output: Annotated[Path | None, typer.Option(help="folder for outputs (OUTPUT_BASE_PATH)")] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="render on this Ray cluster; auto: this host's (RAY_CLUSTER)")
    ] = None,
    mini: Annotated[
        bool, typer.Option("--mini", help="use the miniature base models, on the CPU (to try things out)")
    ] = False,
) -> None:
    """Serve the models over HTTP (docs/server.md).

    Every setting has an environment variable, named here in parentheses with its default. Options override them.
    """
    if sys.version_info < (3, 11):
        fail("the server needs Python 3.11 or later (FastAPI's limit for request bodies does)")
    if lacking := extras.lacking("server"):
        fail(f"the server {lacking}")
    if ray is not None and (lacking := extras.lacking("ray")):
        fail(f"--ray {lacking}")
    given = {
        "RAY_CLUSTER": ray,
        "HOST": host,
        "PORT": port,
        "DEVICE": device,
        "WORKFLOWS_BASE_PATH": loras,
        "OUTPUT_BASE_PATH": output,
    }
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    if mini:
        from lora_drift.harness.check import runner

        runner.use_minihub()
        os.environ.setdefault("DEVICE", "cpu")
    from lora_drift.server.command import run

    raise typer.Exit(run())
