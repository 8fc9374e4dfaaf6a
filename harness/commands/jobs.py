"""`lora-drift verify`, `case from-job` and `replay`: training jobs and receipts."""

from pathlib import Path
from typing import Annotated

import typer

from harness.commands import fail, progress, user_errors

app = typer.Typer()
case_app = typer.Typer(no_args_is_help=True, help="Case files.")
app.add_typer(case_app, name="case")

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")]
Mini = Annotated[bool, typer.Option("--mini", help="use the miniature base models (to try things out)")]


@app.command()
def verify(
    job: Annotated[Path, typer.Argument(help="the trainer's output folder of one job (OUTPUT/NAME)")],
    step: Annotated[str, typer.Option(help="only the samples of this step, or all")] = "all",
    prompt: Annotated[int | None, typer.Option(help="only the samples of this prompt, counted from 0")] = None,
    tag: Annotated[str | None, typer.Option(help="trainer version (default: the LoRA files')")] = None,
    html: Annotated[Path | None, typer.Option(help="folder for a report with the training's timeline")] = None,
    results: Annotated[Path | None, typer.Option("--json", help="write the results to this file")] = None,
    device: Device = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16 (default: the job's)")] = None,
    quantize: Annotated[bool, typer.Option(help="quantise the base model as the job did")] = True,
    diagnose: Annotated[str, typer.Option(help="explain the first sample that differs, all, or none")] = "first",
    budget: Annotated[float, typer.Option(help="seconds for each explanation; what is known by then is said")] = 300.0,
    mini: Mini = False,
) -> None:
    """Does my training job reproduce? Renders its samples again, with its LoRA files, and compares.

    Ours are put through each sample's own encoding first. Exits with 0 only when every sample that has its LoRA is
    reproduced: `match` (equal, or at the codec floor) or `rounding` (apart by less than rounding alone makes).

        lora-drift verify output/my_lora --html report
    """
    with user_errors():
        from harness.commands.sample import check_device
        from harness.jobs import folder, plan, reader, words
        from harness.jobs import verify as verifying

        read = reader.read(job)
        place = job if job.is_dir() else job.parent
        found = folder.scan(place, read)
        planned = plan.plan(read, found, tag, dtype)
        samples = verifying.chosen(read, found, step, prompt)
        asked = verifying.ask(read, found, planned, samples, place)
        if diagnose not in ("first", "all", "none"):
            fail(f"--diagnose {diagnose}: use first, all or none")
        options = verifying.Options(device, mini, quantize, diagnose, budget)
        check_device(device)
        _prepare(mini)
        typer.echo(words.heading(read, planned, found, quantized=quantize))
        with progress(read.name, len(samples), quiet=False) as advance:
            verified = verifying.run(read, found, planned, asked, options=options, progress=advance)
        typer.echo(words.table(verified))
        if results is not None:
            results.write_text(words.as_json(verified), encoding="utf-8")
        if html is not None:
            from harness.jobs import page

            typer.echo(f"report: {page.write(verified, html)}")
        if not any(result.metrics for result in verified.results) and verified.passing:
            fail(f"{job}: nothing could be verified; each sample above says why")
        raise typer.Exit(0 if verified.passing else 1)


def _prepare(mini: bool) -> None:
    from harness import runner
    from harness.quiet import quiet

    if mini:
        runner.use_minihub()
    quiet()


@case_app.command("from-job")
def from_job(
    job: Annotated[Path, typer.Argument(help="the trainer's output folder of one job, or its job file")],
    prompt: Annotated[int, typer.Option(help="which of the job's prompts, counted from 0")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="default: cases/MODEL/JOB-PROMPT.yaml")] = None,
) -> None:
    """Write a case file that asks what one prompt of a job asks, with a network of the job's kind.

    The recorder makes the golden for it (docs/goldens.md).
    """
    with user_errors():
        from harness.jobs import cases

        typer.echo(cases.write(job, prompt, output))


@app.command()
def replay(
    receipt: Annotated[Path, typer.Argument(help="OUT.png.json, or a PNG that carries its receipt")],
    lora: Annotated[list[Path] | None, typer.Option(help="where its LoRA file lies now (repeatable)")] = None,
    control: Annotated[list[Path] | None, typer.Option(help="where its control image lies now (repeatable)")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="keep the new render here")] = None,
    device: Annotated[str | None, typer.Option(help="default: the receipt's")] = None,
    mini: Mini = False,
) -> None:
    """Render a receipt again: are the pixels the same, and if not, which version, file or setting is another one?

    Exits with 0 when they are, and with 1 when they are not.
    """
    with user_errors():
        from harness import replaying
        from harness.commands.sample import check_device

        read = replaying.read(receipt)
        check_device(device or read.device)
        _prepare(mini)
        replayed = replaying.replay(read, lora or [], control or [], device or read.device)
        for line in replayed.lines:
            typer.echo(line)
        if output is not None:
            replayed.output.save(output)
        raise typer.Exit(0 if replayed.equal else 1)
