"""Every variation on every model (`mutate`), mutants of the code (`mutate-code`), and every model on every library
release (`matrix`)."""

import re
from difflib import get_close_matches
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
    variation: Annotated[
        list[str] | None, typer.Option(help='only this one, e.g. "lora off" (repeatable); the report keeps the others')
    ] = None,
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

    A run of all models writes reports/mutation.json and .md (with --variation, its part of them); in half precision
    mutation-sm90-bfloat16.md, or what the set of goldens is called that judged. Exits with 1 when a variation survives.
    """
    with user_errors(needs="check"):
        from lora_drift.harness import tags
        from lora_drift.harness.check import goldens
        from lora_drift.harness.deviations import mutation, mutation_report
        from lora_drift.harness.deviations.library import LIBRARY
        from lora_drift.pipelines import MODELS

        if capability and not re.fullmatch(r"\d+\.\d", capability):
            fail(f"--capability {capability}: a number like 8.0 or 12.1")
        for unknown in [name for name in variation or () if name not in LIBRARY]:
            meant = "".join(f' (did you mean "{near}"?)' for near in get_close_matches(unknown, LIBRARY, 1))
            fail(f"--variation {unknown}: no such variation{meant}")
        tag, where = tags.newest_of(model or []), mutation.Where(device, dtype, capability)
        variant = "" if model or case else goldens.variant(where.bench(tag).environment)
        if variation and variant:
            fail("--variation: the report of half precision is written whole; leave it out, or name a --model")
        file = results or Path("build") / "mutation.jsonl"
        with progress("mutating", len(model or MODELS), quiet=False) as advance:
            found = mutation.run(
                model or [], case or [], tag=tag, where=where, workers=workers, file=file.resolve(), resume=resume,
                progress=advance, variations=variation or list(LIBRARY),
            )  # fmt: skip
        mutation_report.show(found)
        if not model and not case:
            if variation:
                found = mutation_report.with_committed(found, variation, tag)
            typer.echo(f"report: {mutation_report.write(found, tag, variant)}")
        raise typer.Exit(0 if mutation_report.passing(found) else 1)


@app.command("mutate-code")
def mutate_code(
    file: Annotated[
        list[str] | None, typer.Option("--file", help="only this file of pipelines/, e.g. families/wan.py (repeatable)")
    ] = None,
    mutants: Annotated[int, typer.Option(min=1, help="mutants of each file")] = 16,
    seed: Annotated[str, typer.Option(help="which mutants are drawn")] = "1",
    results: Annotated[Path, typer.Option("--json", help="write a line of JSON for each mutant to this file")] = Path(
        "build"
    )
    / "code-mutation.jsonl",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="continue the file of --json; what survived is tried with the unit tests again"),
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="commit the scores: write reports/code-mutation.json and .md")
    ] = False,
) -> None:
    """Make random slips of the pen in pipelines/ (a comparison, a constant, a statement, ...): who would notice?

    Each mutant is tried on a few cases that run its line, then on the unit tests that do. The first run watches which
    lines they run, for some minutes. Linux only. Exits with 1 when a file, or all of them, come out worse than
    reports/code-mutation.json says, by more than chance.
    """
    with user_errors(needs="check"):
        from lora_drift.harness.deviations.code import run, scores

        if write and file:
            fail("--write needs a run over all files: leave out --file")
        with progress("mutating", mutants, quiet=False) as advance:
            try:
                found = run.run(file or [], mutants, seed, results.resolve(), resume=resume,
                                progress=lambda done, of, what: advance(done, what, total=of))  # fmt: skip
            except run.CodeMutationError as error:
                fail(error)
        scores.show(found)
        for line in (worse := scores.worse(found, scores.committed())):
            typer.echo(f"worse than committed: {line}")
        if write:
            typer.echo(f"report: {scores.write(found, seed)}")
        raise typer.Exit(1 if worse else 0)


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
