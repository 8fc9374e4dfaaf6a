"""What there is to know: `models`, `version`, and the mini hub."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import user_errors

app = typer.Typer()
minihub_app = typer.Typer(no_args_is_help=True, help="The miniature Hugging Face cache that the mini cases run on.")
app.add_typer(minihub_app, name="minihub")


@app.command()
def models(
    model: Annotated[str | None, typer.Argument(help="show this model's page of the catalogue")] = None,
    as_json: options.Json = False,
    write: Annotated[Path | None, typer.Option(help="write the catalogue to this folder (docs/models)")] = None,
) -> None:
    """List the models and everything that changes their pictures; or show one of them with its verified status."""
    from lora_drift.pipelines import MODELS

    if write is not None:
        from lora_drift.harness.report import catalogue

        with user_errors():
            changed = catalogue.write(write)
        typer.echo("\n".join(map(str, changed)) or f"{write} is up to date")
        return
    if model is not None:
        with user_errors():
            from lora_drift.pipelines.registry import spec_of

            spec_of(model)
        show_model(model, as_json)
        return
    if as_json:
        typer.echo(json.dumps({name: asdict(spec) for name, spec in MODELS.items()}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "title", "base", "size", "steps", "guidance", "scheduler", "LoRA", box=None)
    for spec in MODELS.values():
        frames = f" x{spec.num_frames}" if spec.kind == "video" else ""
        table.add_row(spec.id, spec.title, spec.base, f"{spec.width}x{spec.height}{frames} /{spec.size_divisor}",
                      str(spec.steps), f"{spec.guidance_scale:g} {spec.guidance}", spec.scheduler.cls,
                      spec.lora_mode)  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def show_model(model: str, as_json: bool) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from lora_drift.harness.report import catalogue
    from lora_drift.pipelines import MODELS

    if as_json:
        typer.echo(json.dumps(asdict(MODELS[model]), indent=2))
    else:
        text = catalogue.page(model).split("-->\n", 1)[1]
        Console(width=None if sys.stdout.isatty() else 120).print(Markdown(text))


@app.command()
def version() -> None:
    """Versions of this package and of what pictures depend on."""
    from importlib.metadata import version as of

    for package in ("lora-drift", "torch", "diffusers", "transformers", "safetensors"):
        typer.echo(f"{package} {of(package)}")


@minihub_app.command("build")
def minihub_build(as_json: options.Json = False) -> None:
    """Build the mini hub (a second or two) and print its folder. Does nothing when it is there."""
    with user_errors():
        from lora_drift.harness.minihub import factory

        home = factory.build()
    typer.echo(json.dumps({"HF_HOME": str(home)}) if as_json else str(home))


@minihub_app.command("verify")
def minihub_verify() -> None:
    """Check every file of the mini hub against the committed manifest."""
    with user_errors():
        from lora_drift.harness.minihub import factory

        typer.echo(f"{factory.verify()} files are as the manifest says")


@minihub_app.command("path")
def minihub_path() -> None:
    """Print the folder to use as HF_HOME (with HF_HUB_OFFLINE=1) for any other program."""
    from lora_drift.harness.minihub import factory

    typer.echo(str(factory.default_home()))


@minihub_app.command("full")
def minihub_full(
    model: Annotated[list[str], typer.Option(help="a model of `harness/minihub/full.py` (repeatable)")],
    home: Annotated[Path, typer.Option(help="folder to build it in, to be used as HF_HOME")],
    prune: Annotated[bool, typer.Option(help="remove the weights of other models from that folder first")] = False,
) -> None:
    """Build models of the real size with random weights, as benchmarks/gpu.py measures them (tens of gigabytes)."""
    with user_errors():
        from lora_drift.harness.minihub import full

        full.build(home, model, typer.echo, prune=prune)


@minihub_app.command("manifest")
def minihub_manifest() -> None:
    """Developer command: rebuild from a changed factory and commit its hashes as the new truth."""
    from lora_drift.harness.minihub import factory

    shutil.rmtree(factory.default_home(), ignore_errors=True)
    factory.write_manifests(factory.build(check=False))
    typer.echo(str(factory.MANIFESTS))
