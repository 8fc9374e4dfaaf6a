"""The `lora-drift` command. Heavy libraries are imported inside the commands: `--help` must not wait for torch."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Render LoRAs trained with ostris/ai-toolkit as the trainer samples them, and prove it.",
    epilog="Exit codes: 0 all well; 1 a case does not match; 2 the request is wrong (the message says how to mend it).",
)
minihub_app = typer.Typer(no_args_is_help=True, help="The miniature Hugging Face cache that the mini cases run on.")
app.add_typer(minihub_app, name="minihub")
known_app = typer.Typer(no_args_is_help=True, help="Known drifts: explained, measured, and with an expiry date.")
app.add_typer(known_app, name="known")

Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
Models = Annotated[list[str] | None, typer.Option("--model", "-m", help="only this model (repeatable)")]


def fail(message: object) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


@contextmanager
def user_errors() -> Iterator[None]:
    """Errors that a user can mend end in one paragraph and exit code 2."""
    from harness.cases import CaseError
    from harness.gates import GateError
    from harness.matrix import MatrixError
    from harness.minihub.factory import MiniHubError
    from harness.recorder.pins import PinError
    from pipelines import RequestError

    try:
        yield
    except (RequestError, CaseError, GateError, MiniHubError, PinError, MatrixError) as error:
        fail(error)


# ---------------------------------------------------------------------------------------------------------- sample


@app.command()
def sample(
    model: Annotated[str, typer.Option("--model", "-m", help="model id; `lora-drift models` lists them")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="may hold [trigger] and flags (--w 512 ...)")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".png .mkv are lossless; .jpg .webp .mp4 are not")],
    lora: Annotated[list[str] | None, typer.Option(help="LoRA file; high=FILE, low=FILE for two experts")] = None,
    negative: Annotated[str, typer.Option("--negative", "-n")] = "",
    width: Annotated[int | None, typer.Option(help="pixels; snapped as the trainer does")] = None,
    height: Annotated[int | None, typer.Option()] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    guidance: Annotated[float | None, typer.Option(help="in the model's own convention")] = None,
    guidance_rescale: Annotated[float, typer.Option(help="SDXL only")] = 0.0,
    seed: Annotated[int, typer.Option(help="-1 draws one")] = 42,
    multiplier: Annotated[float, typer.Option(help="LoRA strength")] = 1.0,
    frames: Annotated[int | None, typer.Option(help="video models")] = None,
    fps: Annotated[int | None, typer.Option(help="video models")] = None,
    control: Annotated[list[Path] | None, typer.Option(help="control image, in order (repeatable)")] = None,
    trigger: Annotated[str | None, typer.Option(help="replaces [trigger] in the prompt")] = None,
    name: Annotated[str | None, typer.Option(help="the training job's name; replaces [name] in the prompt")] = None,
    lora_mode: Annotated[str | None, typer.Option(help="merged or live; default: what the trainer does")] = None,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="accept a LoRA that matches in part")] = False,
    base: Annotated[str | None, typer.Option(help="hub id or folder of another base model")] = None,
    tag: Annotated[str | None, typer.Option(help="trainer version to reproduce (default: the newest)")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default by device")] = None,
    mini: Annotated[bool, typer.Option("--mini", help="use the miniature base models (to try things out)")] = False,
    as_json: Json = False,
) -> None:
    """Render one picture or video, with a receipt (OUTPUT.json) that says exactly how it came to be.

    Weights are read from the ordinary Hugging Face cache, or downloaded to it.

        lora-drift sample -m flux --lora my.safetensors -p "a photo of [trigger]" --trigger sks -o out.png
    """
    with user_errors():
        import pipelines
        from harness import coverage, runner
        from harness.quiet import quiet
        from harness.recorder import pins
        from pipelines.output import check_path
        from pipelines.settings import Request, resolve, spec_of

        toolkit = pins.row(tag or pins.newest()).version
        spec = spec_of(model, toolkit)
        settings = resolve(
            spec,
            Request(prompt, negative, width, height, steps, guidance, guidance_rescale, seed, multiplier, frames, fps,
                    trigger, name, [str(path) for path in control or ()]),
        )  # fmt: skip
        check_path(output, settings.num_frames)
        files = lora_files(lora or [])
        if lora_mode not in (None, "merged", "live"):
            fail(f"--lora-mode {lora_mode}: use merged or live")
        check_device(device)
        if mini:
            runner.use_minihub()
        if as_json or mini or not sys.stderr.isatty():
            quiet()
        pipeline = pipelines.load(model, base=base, device=device, dtype=dtype, toolkit=toolkit)
        if files:
            pipeline = pipeline.with_lora(**files, mode=lora_mode, allow_partial=allow_partial)  # type: ignore[arg-type]
        with progress(f"{spec.id}: denoising", settings.steps, quiet=as_json) as advance:
            rendered = pipeline.render(settings, on_step=lambda step, _total: advance(step))
        rendered.receipt["verified_by"] = coverage.covering_case(pipeline)
        rendered.save(output)
    if as_json:
        typer.echo(json.dumps(rendered.receipt, indent=2))
    else:
        typer.echo(f"{output}  {settings.width}x{settings.height}, seed {settings.seed}; receipt {output}.json")


def lora_files(given: list[str]) -> dict[str, Path]:
    """`FILE`, or `high=FILE` and `low=FILE`, as arguments of `Pipeline.with_lora`."""
    named = {item.split("=")[0]: Path(item.split("=", 1)[1]) for item in given if item.startswith(("high=", "low="))}
    plain = [Path(item) for item in given if not item.startswith(("high=", "low="))]
    if len(plain) + len(named) != len(given) or len(plain) > 1 or (plain and named):
        fail("--lora: give one FILE, or for a model with two experts high=FILE and low=FILE (or one of them)")
    return {"path": plain[0]} if plain else named


def check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        fail(f"--device {device}: not usable here ({reason}); use cpu or another device")


@contextmanager
def progress(label: str, total: int, *, quiet: bool) -> Iterator[Any]:
    """A bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)

        def advance(done: int, description: str = label) -> None:
            bar.update(task, completed=done, description=description)

        yield advance


# ----------------------------------------------------------------------------------------------------------- check


@app.command()
def check(
    model: Models = None,
    tag: Annotated[str | None, typer.Option(help="trainer version (default: the newest)")] = None,
    case: Annotated[list[str] | None, typer.Option(help="only this case, e.g. flux/lora (repeatable)")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="worker processes")] = 1,
    results: Annotated[Path | None, typer.Option("--json", help="write one JSON object per case to this file")] = None,
    report: Annotated[bool, typer.Option(help="write reports/<tag>/index.html")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show pytest's own output")] = False,
) -> None:
    """Render every case and compare it with what the trainer rendered. The same run as `pytest cases/`.

    Exits with 0 only when every verdict is `match`, or `known` and not expired.
    """
    with user_errors():
        from harness import checking

        raise typer.Exit(
            checking.run(
                model or [],
                case or [],
                tag=tag,
                device=device,
                jobs=jobs,
                json_file=results,
                report=report,
                verbose=verbose,
            )
        )


@app.command()
def report(
    results: Annotated[
        list[Path] | None, typer.Argument(help="files of `check --json` or `pytest --drift-json`")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder (default: reports/<tag>)")] = None,
    since: Annotated[
        Path | None, typer.Option(help="summary.json to compare with (default: the committed one)")
    ] = None,
    index: Annotated[bool, typer.Option("--index", help="the overview of all summaries instead")] = False,
) -> None:
    """Render the report from result files, without rendering a picture again. Files of several machines are merged.

    Writes index.html, summary.json, summary.md, comment.md (for a pull request) and junit.xml. With --index, writes
    the overview of every summary.json under reports/: a column a tag or release, a row a model.
    """
    with user_errors():
        from harness import checking

        try:
            if index:
                from harness.report import overview

                typer.echo(overview.render(checking.REPORTS, out or checking.REPORTS))
            elif not results:
                fail("report: name one or more result files, or give --index")
            else:
                for page in checking.write_reports(results, out, since):
                    typer.echo(page)
        except (OSError, ValueError) as error:
            fail(error)


@known_app.command("add")
def known_add(
    case: Annotated[str, typer.Argument(help="case id, e.g. flux/lora")],
    cause: Annotated[str, typer.Option(help="why it drifts, in words that the next reader understands")],
    expires: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="after this day it is drift again")],
    results: Annotated[list[Path] | None, typer.Option(help="take the size from here, instead of checking now")] = None,
    tag: Annotated[str | None, typer.Option(help="trainer version (default: the newest)")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """List a drift in cases/known.yaml: with its measured size, its cause, and a day on which it expires, loudly."""
    with user_errors():
        from harness import checking, known

        try:
            entry = known.add(checking.measured(case, results, tag, device), case, cause, expires.date())
        except (OSError, ValueError) as error:
            fail(error)
    typer.echo(f"{case} is a known drift of up to {entry.pixel_max:g}/255 until {entry.expires}: {known.KNOWN}")


@app.command()
def mutate(
    model: Models = None,
    case: Annotated[list[str] | None, typer.Option(help="only this case, e.g. flux/lora (repeatable)")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="worker processes, a model each")] = 1,
    results: Annotated[Path | None, typer.Option("--json", help="keep one JSON object per variation here")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what the file of --json holds already")] = False,
) -> None:
    """Render named deviations (variations) on every model: would its cases notice each, and say where it begins?

    A run of all models writes reports/mutation.json and .md. Exits with 1 when a variation survives.
    """
    with user_errors():
        from harness import mutation, runner, scores
        from pipelines import MODELS

        tag = runner.newest_tag()
        file = results or Path("build") / "mutation.jsonl"
        with progress("mutating", len(model or MODELS), quiet=False) as advance:
            found = mutation.run(
                model or [], case or [], tag=tag, jobs=jobs, file=file.resolve(), resume=resume, progress=advance
            )
        scores.show(found)
        if not model and not case:
            typer.echo(f"report: {scores.write(found, tag)}")
        raise typer.Exit(0 if scores.passing(found) else 1)


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
    diffusers: Annotated[list[str], typer.Option(help="releases, oldest first (`git:REF`: of the checkout)")],
    transformers: Annotated[list[str] | None, typer.Option(help="releases (default: the installed one)")] = None,
    torch: Annotated[list[str] | None, typer.Option(help="releases (default: the installed one)")] = None,
    model: Models = None,
    case: Annotated[list[str] | None, typer.Option(help="only this case, e.g. flux/lora, or `base` of each")] = None,
    tag: Annotated[str | None, typer.Option(help="trainer version (default: the newest)")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="plain Diffusers scripts, compared between releases")] = False,
    checkout: Annotated[Path | None, typer.Option(help="a Diffusers checkout; bisects what is found")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="combinations at a time")] = 1,
    results: Annotated[Path | None, typer.Option("--json", help="write the merged report to this file")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder for matrix.md and matrix.json")] = None,
) -> None:
    """Run the mini cases on every combination of library releases, and name the release with which something begins.

    Options that take several releases may be given several at once. Each combination gets an environment (cached; it
    borrows what is not under test from this one). Interrupted, the next run goes on; what changed is measured again.

        lora-drift matrix --diffusers 0.37.1 0.38.0 0.42.1 --transformers 4.57.3 5.23.0 --checkout diffusers -o reports

    Exits with 0 only when every case of every combination is green, or the release lacks the model's classes.
    """
    with user_errors():
        from harness.matrix import command

        raise typer.Exit(
            command.run(
                command.combinations(diffusers, transformers or [], torch or []),
                model or [],
                case or [],
                tag=tag,
                plain=plain,
                checkout=checkout,
                jobs=jobs,
                json_file=results,
                folder=output,
            )
        )


# ------------------------------------------------------------------------------------------------------ information


@app.command()
def models(
    model: Annotated[str | None, typer.Argument(help="show this model's page of the catalogue")] = None,
    as_json: Json = False,
    write: Annotated[Path | None, typer.Option(help="write the catalogue to this folder (docs/models)")] = None,
) -> None:
    """List the models and everything that changes their pictures; or show one of them with its verified status."""
    from pipelines import MODELS

    if write is not None:
        from harness import catalogue

        with user_errors():
            changed = catalogue.write(write)
        typer.echo("\n".join(map(str, changed)) or f"{write} is up to date")
        return
    if model is not None:
        with user_errors():
            from pipelines.settings import spec_of

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

    from harness import catalogue
    from pipelines import MODELS

    if as_json:
        typer.echo(json.dumps(asdict(MODELS[model]), indent=2))
    else:
        text = catalogue.page(model).split("-->\n", 1)[1]
        Console(width=None if sys.stdout.isatty() else 120).print(Markdown(text))


@app.command()
def gates(
    save: Annotated[Path | None, typer.Option(help="only keep this environment's renders in this folder")] = None,
    against: Annotated[Path | None, typer.Option(help="folder that --save wrote in another environment")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    write: Annotated[bool, typer.Option("--write", help="store the derived gates in harness/gates.json")] = False,
    as_json: Json = False,
) -> None:
    """Measure the spread between legal repeats, from which the gates are derived.

    Repeats: the same code again, merged against live LoRA, one thread against two, and (--against) another torch.
    """
    with user_errors():
        from harness import cases, measure

        total = len(cases.load_all())
        with progress("measuring", total, quiet=as_json) as advance:
            seen: list[str] = []

            def note(case_id: str) -> None:
                seen.append(case_id)
                advance(len(seen) - 1, case_id)

            if save is not None:
                measure.save(save, note)
                raise typer.Exit
            spread = measure.measure(device, against, note)
        if write:
            measure.write(spread, f"mini/{device}/float32")
    if as_json:
        typer.echo(json.dumps(spread, indent=2))
    else:
        for name, (value, where) in sorted(spread.items()):
            typer.echo(f"{name:16} {value:.3g}  ({where})")


@app.command()
def version() -> None:
    """Versions of this package and of what pictures depend on."""
    from importlib.metadata import version as of

    for package in ("lora-drift", "torch", "diffusers", "transformers", "safetensors"):
        typer.echo(f"{package} {of(package)}")


# ----------------------------------------------------------------------------------------------------------- server


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="HOST; default 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="PORT; default 8000")] = None,
    device: Annotated[str | None, typer.Option(help="DEVICE; default cuda")] = None,
    loras: Annotated[Path | None, typer.Option(help="WORKFLOWS_BASE_PATH, the folder of LoRA files")] = None,
    output: Annotated[Path | None, typer.Option(help="OUTPUT_BASE_PATH")] = None,
    mini: Annotated[bool, typer.Option("--mini", help="miniature base models, on the CPU (to try things out)")] = False,
) -> None:
    """Serve the models over HTTP (docs/server.md). Every setting has an environment variable; options win over them."""
    given = {"HOST": host, "PORT": port, "DEVICE": device, "WORKFLOWS_BASE_PATH": loras, "OUTPUT_BASE_PATH": output}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    if mini:
        from harness import runner

        runner.use_minihub()
        os.environ.setdefault("DEVICE", "cpu")
    try:
        from server.command import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("server", "harness", "pipelines"):
            raise
        fail(f"the server needs {error.name}, which is not installed: pip install 'lora-drift[server]'")
    raise typer.Exit(run())


# ---------------------------------------------------------------------------------------------------------- minihub


@minihub_app.command("build")
def minihub_build(as_json: Json = False) -> None:
    """Build the mini hub (a second or two) and print its folder. Does nothing when it is there."""
    with user_errors():
        from harness.minihub import factory

        home = factory.build()
    typer.echo(json.dumps({"HF_HOME": str(home)}) if as_json else str(home))


@minihub_app.command("verify")
def minihub_verify() -> None:
    """Check every file of the mini hub against the committed manifest."""
    with user_errors():
        from harness.minihub import factory

        typer.echo(f"{factory.verify()} files are as the manifest says")


@minihub_app.command("path")
def minihub_path() -> None:
    """Print the folder to use as HF_HOME (with HF_HUB_OFFLINE=1) for any other program."""
    from harness.minihub import factory

    typer.echo(str(factory.default_home()))


@minihub_app.command("manifest")
def minihub_manifest() -> None:
    """Developer command: rebuild from a changed factory and commit its hashes as the new truth."""
    from harness.minihub import factory

    shutil.rmtree(factory.default_home(), ignore_errors=True)
    factory.write_manifests(factory.build(check=False))
    typer.echo(str(factory.MANIFESTS))


def main() -> None:
    """Entry point."""
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1" if sys.argv[1:2] in (["check"], ["mutate"]) else str(os.cpu_count() or 1)
    )
    app()


if __name__ == "__main__":
    main()
