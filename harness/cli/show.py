"""`models`, `version`, and the mini hub."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import fail, user_errors

app = typer.Typer()
minihub_app = typer.Typer(no_args_is_help=True, help="The miniature Hugging Face cache on which the mini cases run.")
app.add_typer(minihub_app, name="minihub")


@app.command()
def models(
    model: Annotated[
        str | None, typer.Argument(help="show this model's page of the catalogue", autocompletion=options.model_ids)
    ] = None,
    as_json: options.Json = False,
    fits: Annotated[
        float | None,
        typer.Option(metavar="GB", help="say what each model takes, and whether a GPU of that size has it"),
    ] = None,
    write: Annotated[Path | None, typer.Option(help="write the catalogue to this folder (docs/models)")] = None,
) -> None:
    """List the models with what changes their pictures, or show the page of one.

    `--fits 24` asks the hub for sizes, gates and licences, and computes the memory from them: for bfloat16, a merged
    LoRA and the default size. Where the peak was measured (docs/performance.md), that counts.
    """
    from lora_drift.pipelines import MODELS

    if write is not None:
        with user_errors(needs="check"):
            from lora_drift.harness.paths import IN_CHECKOUT
            from lora_drift.harness.report import catalogue

            if not IN_CHECKOUT:
                fail("--write: the catalogue is made from a checkout's cases, goldens and reports; run this there")
            changed = catalogue.write(write)
        typer.echo("\n".join(map(str, changed)) or f"{write} is up to date")
        return
    if model is not None:
        with user_errors():
            from lora_drift.pipelines.registry import spec_of

            spec_of(model)
    if fits is not None:
        show_needs([model] if model else list(MODELS), fits, as_json)
        return
    if model is not None:
        show_model(model, as_json)
        return
    if as_json:
        typer.echo(json.dumps({name: asdict(spec) for name, spec in MODELS.items()}, indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    narrow = console.width < 160
    name = Column("model", no_wrap=True, min_width=max(map(len, MODELS)))  # to be typed: whole, whatever else folds
    table = Table(name, Column("title", overflow="fold"), "size", "steps", "guidance", box=None, pad_edge=False)
    for column in () if narrow else ("base", "scheduler", "LoRA"):
        table.add_column(column)
    for spec in MODELS.values():
        frames = f" x{spec.num_frames}" if spec.kind == "video" else ""
        size = f"{spec.width}x{spec.height}{frames} /{spec.size_divisor}"
        guidance = f"{spec.guidance_scale:g}" if narrow else f"{spec.guidance_scale:g} {spec.guidance}"
        more = () if narrow else (spec.base, spec.scheduler.cls, spec.lora_mode)
        table.add_row(spec.id, spec.title, size, str(spec.steps), guidance, *more)
    console.print(table)
    if narrow:
        console.print("A terminal of 160 columns shows more, and --json everything.", style="dim", highlight=False)


@app.command()
def coverage(
    model: Annotated[list[str] | None, typer.Option(help="only this model (repeatable; default: all)")] = None,
    propose: Annotated[bool, typer.Option("--propose", help="list requests that would visit what is missing")] = False,
    as_json: options.Json = False,
) -> None:
    """Show which values of a model's inputs its cases visit, and which pairs of values.

    Samples of random jobs that the trainer rendered (`lora-drift fuzz --render --keep`) count apart; what neither
    visits is what is missing.
    """
    with user_errors(needs="check"):
        from lora_drift.harness import tags
        from lora_drift.harness.check import cases, coverage, sketched
        from lora_drift.pipelines import MODELS
        from lora_drift.pipelines.registry import spec_of

        chosen = [spec_of(name).id for name in model or MODELS]
        known = cases.load_all()
        drawn = {name: sketched.cases_of(tags.newest(), name) for name in chosen}
        alone = {name: coverage.measure(name, known) for name in chosen}
        found = {name: coverage.measure(name, [*known, *drawn[name]]) for name in chosen}
        wanted = {name: list(coverage.proposed(name, [*known, *drawn[name]])) for name in chosen} if propose else {}
    if as_json:
        told = {name: {**of._asdict(), "cases_alone": {"values": alone[name].visited_values,
                                                       "pairs": alone[name].visited_pairs},
                       **({"proposed": wanted[name]} if propose else {})} for name, of in found.items()}  # fmt: skip
        typer.echo(json.dumps(told, indent=2))
        return
    for name, of in found.items():
        more = f"; with {len(drawn[name])} random samples {of.words}" if drawn[name] else ""
        typer.echo(f"{name:28} {alone[name].words}{more}")
        if model and of.unvisited:
            typer.echo("  never: " + ", ".join(f"{axis} {value}" for axis, value in of.unvisited))
        for row in wanted.get(name, ()):
            typer.echo("  propose: " + ", ".join(f"{axis} {value}" for axis, value in row.items()))


def show_model(model: str, as_json: bool) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from lora_drift.harness.report import PAGES
    from lora_drift.pipelines.registry import spec_of

    if as_json:
        typer.echo(json.dumps(asdict(spec_of(model)), indent=2))
    else:
        text = (PAGES / f"{model}.md").read_text(encoding="utf-8").split("-->\n", 1)[1]
        Console(width=None if sys.stdout.isatty() else 120).print(Markdown(text))


def show_needs(models: list[str], memory: float, as_json: bool) -> None:
    from lora_drift.harness.machine import downloads
    from lora_drift.harness.machine.fits import needs

    found = needs(models)
    if as_json:
        told = [
            {
                **downloads.as_json(need.model, need.parts), "problem": need.problem or None,
                "gb": None if need.problem else {
                    "weights": need.weights, "measured": need.measured, "computed": need.computed,
                    "computed_with_model_offload": need.computed_offloaded,
                },
                "fits": None if need.problem else need.way(memory) or "no",
            }
            for need in found
        ]  # fmt: skip
        typer.echo(json.dumps(told, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", f"in {memory:g} GB", "download", box=None, pad_edge=False)
    for column in ("measured", "computed", "offloaded, computed"):
        table.add_column(column, justify="right")
    table.add_column("licence", overflow="fold")
    for need in found:
        if need.problem:
            table.add_row(need.model, "unknown", *[""] * 4, need.problem)
            continue
        gated = ", gated" if any(part.gated for part in need.parts) else ""
        size = downloads.gigabytes(sum(part.size for part in need.parts))
        peak = f"{need.measured:.1f} GB" if need.measured else ""
        licence = ", ".join(dict.fromkeys(part.licence for part in need.parts)) + gated
        figures = (peak, f"{need.computed:.1f} GB", f"{need.computed_offloaded:.1f} GB")
        table.add_row(need.model, need.way(memory) or "no", size, *figures, licence)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    typer.echo(
        "Peaks of GPU memory at the default size, in bfloat16. Measured: docs/performance.md. Computed: the weights, "
        "and what measured renders took beside theirs. Model offload: `offload=True` in Python, "
        "ENABLE_CPU_OFFLOAD=true for the server."
    )


@app.command()
def version() -> None:
    """Print the versions of this package and of the libraries that pictures depend on."""
    from importlib.metadata import version as of

    for package in ("lora-drift", "torch", "diffusers", "transformers", "safetensors"):
        typer.echo(f"{package} {of(package)}")


@minihub_app.command("build")
def minihub_build(as_json: options.Json = False) -> None:
    """Build the mini hub, unless it is there already, and print its folder. Takes a second or two."""
    with user_errors():
        from lora_drift.harness.minihub import factory

        home = factory.build()
    typer.echo(json.dumps({"HF_HOME": str(home)}) if as_json else str(home))


@minihub_app.command("verify")
def minihub_verify() -> None:
    """Compare the hash of every file of the mini hub with the committed manifests."""
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
    home: Annotated[Path, typer.Option(help="folder to build in; use it as HF_HOME")],
    prune: Annotated[bool, typer.Option(help="first remove the weights of other models from that folder")] = False,
) -> None:
    """Build models of the real size with random weights, as benchmarks/gpu.py measures them (tens of gigabytes)."""
    with user_errors():
        from lora_drift.harness.minihub import full

        full.build(home, model, typer.echo, prune=prune)


@minihub_app.command("manifest")
def minihub_manifest() -> None:
    """For developers: build the mini hub again after a change, and write the hashes of its files to the manifests."""
    from lora_drift.harness.minihub import factory
    from lora_drift.harness.paths import IN_CHECKOUT

    if not IN_CHECKOUT:
        fail("the manifest is a file of lora-drift's repository; run this in a checkout")
    shutil.rmtree(factory.default_home(), ignore_errors=True)
    factory.write_manifests(factory.build(check=False))
    typer.echo(str(factory.MANIFESTS))
