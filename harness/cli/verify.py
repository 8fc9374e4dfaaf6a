"""`lora-drift verify`, `case from-job` and `replay`: training jobs and receipts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_drift.harness import extras
from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import fail, progress, user_errors

if TYPE_CHECKING:
    from lora_drift.harness.trainer.jobs.verify import Verified

app = typer.Typer()
case_app = typer.Typer(no_args_is_help=True, help="Case files.")
app.add_typer(case_app, name="case")


@app.command()
def verify(
    job: Annotated[Path, typer.Argument(help="the trainer's output folder of one job (OUTPUT/NAME)")],
    step: Annotated[str, typer.Option(help="only the samples of this step, or all")] = "all",
    prompt: Annotated[int | None, typer.Option(help="only the samples of this prompt, counted from 0")] = None,
    tag: Annotated[
        str | None,
        typer.Option(
            help="trainer version (default: the one that made the LoRA files)", autocompletion=options.tag_names
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="folder for a report with the training's timeline")] = None,
    results: Annotated[
        Path | None, typer.Option("--json", help="file for the results, written after each sample")
    ] = None,
    base: Annotated[str | None, typer.Option(help="hub id or folder of the base model (default: the job's)")] = None,
    device: options.Device = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16 (default: the job's)")] = None,
    quantize: Annotated[bool, typer.Option(help="quantise the base model as the job did")] = True,
    diagnose: Annotated[
        str, typer.Option(help="explain the first sample that differs, all of them, or none")
    ] = "first",
    budget: Annotated[float, typer.Option(help="seconds for each explanation")] = 300.0,
    mini: options.Mini = False,
) -> None:
    """Does my training job reproduce? Renders its samples again with its LoRA files, and compares.

    Reads the job's config.yaml, pairs samples with LoRA files by step, renders with the job's settings and trainer
    version, and saves each picture as the sample was saved. The verdict on a sample is one of:

        match      equal, or as near as its encoding can tell
        rounding   differs by as much as an unavoidable rounding makes, which is named
        differs    differs by more; the likely cause is searched for
        unpaired   the LoRA of its step has been deleted (or half of it), or its seed was drawn
        error      it cannot be read or rendered

        lora-drift verify output/my_lora --device cuda --html report
        lora-drift verify output/my_lora --step 500 --prompt 0 --diagnose all
        lora-drift verify jobs/sd15 --mini

    Exits with 0 when every sample that has its LoRA matches (or differs by rounding only), 1 when one does not, 2 when
    the folder or an option is wrong, and 130 when interrupted. Ctrl-C keeps the results so far.
    """
    from lora_drift.harness.trainer.jobs import verify as verifying

    with user_errors(remedies=verifying.REMEDIES):
        from lora_drift.harness.cli.sample import check_device
        from lora_drift.harness.trainer.jobs import folder, plan, reader, verify_text

        if html is not None and (lacking := extras.lacking("check")):
            fail(f"--html {lacking}")
        if diagnose not in ("first", "all", "none"):
            fail(f"--diagnose {diagnose}: use first, all or none")
        if not budget > 0:
            fail(f"--budget {budget:g}: give a number of seconds above 0")
        read = reader.read(job, {} if dtype is None else {"train.dtype": dtype})
        place = job if job.is_dir() else job.parent
        found = folder.scan(place, read)
        folder.check_network(read)
        planned = plan.plan(read, found, tag, base, quantized=quantize)
        samples = verifying.chosen(read, found, step, prompt)
        asked = verifying.ask(read, found, planned, samples, place)
        verified = verifying.Verified(read, planned, found)
        check_device(device)
        _keep(verified, results, html)  # an unwritable place is said before an hour of rendering
        _prepare(mini)
        typer.echo(verify_text.heading(read, planned, found, quantized=quantize))
        with progress(read.name, len(samples), quiet=False) as advance:

            def note(done: int, sample: str) -> None:
                _keep(verified, results)
                advance(done, sample, len(samples))

            verifying.run(verified, asked, verifying.Options(device, mini, quantize, diagnose, budget), note)
        typer.echo(verify_text.table(verified))
        _keep(verified, results, html)
        if html is not None:
            from lora_drift.harness.trainer.jobs import verify_page

            typer.echo(f"report: {html / verify_page.NAME}")
        if verified.complete and verified.passing and not any(result.metrics for result in verified.results):
            fail(f"{job}: nothing could be verified; each sample above says why")
        raise typer.Exit(130 if not verified.complete else int(not verified.passing))


def _keep(verified: Verified, results: Path | None, html: Path | None = None) -> None:
    """Write what is known by now."""
    from lora_drift.harness.trainer.jobs import verify_text

    try:
        if results is not None:
            results.write_text(verify_text.as_json(verified), encoding="utf-8")
        if html is not None:
            from lora_drift.harness.trainer.jobs import verify_page

            verify_page.write(verified, html)
    except OSError as error:
        option = "--json" if error.filename == str(results) else "--html"
        fail(f"{option} {error.filename}: {error.strerror}; name a place that can be written")


def _prepare(mini: bool) -> None:
    from lora_drift.harness.check import runner
    from lora_drift.harness.hf_logging import quiet

    if mini:
        runner.use_minihub()
    quiet()


@case_app.command("from-job")
def from_job(
    job: Annotated[Path, typer.Argument(help="the trainer's output folder of one job, or its job file")],
    prompt: Annotated[int, typer.Option(help="which of the job's prompts, counted from 0")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file (default: cases/MODEL/JOB-PROMPT.yaml)")
    ] = None,
) -> None:
    """Write a case file that asks for the same as one prompt of a job, with a network of the job's kind.

    The recorder then makes the golden for it (docs/goldens.md).
    """
    with user_errors():
        from lora_drift.harness.trainer.jobs import case_from_job

        typer.echo(case_from_job.write(job, prompt, output))


@app.command()
def replay(
    receipt: Annotated[Path, typer.Argument(help="OUT.png.json, or a PNG that carries its receipt")],
    lora: Annotated[list[Path] | None, typer.Option(help="where its LoRA file lies now (repeatable)")] = None,
    control: Annotated[list[Path] | None, typer.Option(help="where its control image lies now (repeatable)")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="save the new render here")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps (default: the receipt's)")] = None,
    mini: options.Mini = False,
) -> None:
    """Render the picture of a receipt again. Are the pixels (and the sound) the same, and if not, what has changed?

        lora-drift replay out.png --lora my_lora.safetensors

    Exits with 0 when they are the same, 1 when they are not, 2 when the receipt or one of its files cannot be read.
    """
    with user_errors():
        from lora_drift.harness import replay
        from lora_drift.harness.cli.sample import check_device

        read = replay.read(receipt)
        check_device(device or read.device)
        _prepare(mini)
        replayed = replay.replay(read, lora or [], control or [], device or read.device)
        for line in replayed.lines:
            typer.echo(line)
        if output is not None:
            replayed.output.save(output)
        raise typer.Exit(0 if replayed.equal else 1)
