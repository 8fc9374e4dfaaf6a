"""Every variation on every model (`mutate`), and every model on every library release (`matrix`)."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import fail, progress, user_errors

app = typer.Typer()


@app.command()
def mutate(
    model: options.Models = None,
    case: options.Cases = None,
    workers: Annotated[int, typer.Option("--jobs", "-j", help="worker processes, a model each")] = 1,
    results: Annotated[
        Path | None, typer.Option("--json", help="write a line of JSON for each variation to this file")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the file of --json")] = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    capability: Annotated[
        str,
        typer.Option(
            metavar="MAJOR.MINOR",
            help="judge as on a GPU of this compute capability, e.g. 8.0: one without goldens is held to the nearest "
            "set, within what architectures differ by",
        ),
    ] = "",
) -> None:
    """Render every known mistake (variation) on every model: would its cases notice it, and name the right stage?

    A run of all models writes reports/mutation.json and .md; in half precision mutation-sm90-bfloat16.md, or what the
    set of goldens is called that judged. Exits with 1 when a variation survives.
    """
    with user_errors(needs="check"):
        from lora_drift.harness.check import goldens, runner
        from lora_drift.harness.deviations import mutation, mutation_report
        from lora_drift.pipelines import MODELS

        if capability and not re.fullmatch(r"\d+\.\d", capability):
            fail(f"--capability {capability}: a number like 8.0 or 12.1")
        tag, where = runner.newest_tag(), mutation.Where(device, dtype, capability)
        file = results or Path("build") / "mutation.jsonl"
        with progress("mutating", len(model or MODELS), quiet=False) as advance:
            found = mutation.run(
                model or [], case or [], tag=tag, where=where, workers=workers, file=file.resolve(), resume=resume,
                progress=advance,
            )  # fmt: skip
        mutation_report.show(found)
        if not model and not case:
            variant = goldens.variant(where.bench(tag).environment)
            typer.echo(f"report: {mutation_report.write(found, tag, variant)}")
        raise typer.Exit(0 if mutation_report.passing(found) else 1)


class SeveralValues(TyperCommand):
    """A command without arguments whose list options take several values: `--diffusers 0.37.1 0.38.0`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in lists else ""
            elif option and spread[-1] != option:
                spread.append(option)
            spread.append(word)
        return super().parse_args(ctx, spread)


@app.command(cls=SeveralValues)
def matrix(
    diffusers: Annotated[list[str], typer.Option(help="releases, oldest first; git:REF is a commit of --checkout")],
    transformers: Annotated[list[str] | None, typer.Option(help="releases (default: the installed one)")] = None,
    torch: Annotated[list[str] | None, typer.Option(help="releases (default: the installed one)")] = None,
    model: options.Models = None,
    case: Annotated[
        list[str] | None,
        typer.Option(help="only this case, e.g. flux/lora, or `base` of each", autocompletion=options.case_ids),
    ] = None,
    tag: options.Tag = None,
    stock: Annotated[bool, typer.Option("--stock", help="stock Diffusers scripts, compared between releases")] = False,
    checkout: Annotated[
        Path | None, typer.Option(help="folder of a Diffusers checkout, in which findings are bisected")
    ] = None,
    workers: Annotated[int, typer.Option("--jobs", "-j", min=1, help="combinations to run at once")] = 1,
    results: Annotated[Path | None, typer.Option("--json", help="write the merged report to this file")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder for matrix.md and matrix.json")] = None,
) -> None:
    """Run the mini cases on every combination of library releases, and name the release in which a difference begins.

    Each combination gets an environment of its own (cached), which borrows from this one what is not under test. An
    interrupted run continues the next time; what has changed since is measured again.

        lora-drift matrix --diffusers 0.37.1 0.38.0 0.42.1 --transformers 4.57.3 5.23.0 --checkout diffusers -o reports

    Exits with 0 only when every case of every combination matches, or the release lacks the model's classes.
    """
    with user_errors(needs="check"):
        from lora_drift.harness.paths import IN_CHECKOUT, homepage
        from lora_drift.harness.studies.matrix import command

        if not IN_CHECKOUT:
            fail(f"matrix compares a checkout's own files: git clone {homepage()}, and run it there")
        raise typer.Exit(
            command.run(
                command.combinations(diffusers, transformers or [], torch or []),
                model or [],
                case or [],
                tag=tag,
                stock=stock,
                checkout=checkout,
                workers=workers,
                json_file=results,
                folder=output,
            )
        )
