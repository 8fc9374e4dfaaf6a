"""`lora-drift fuzz`."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import fail, user_errors

app = typer.Typer()


@app.command()
def fuzz(
    trainer: Annotated[Path, typer.Option(help="clean checkout of the trainer at the tag's commit")],
    python: Annotated[Path, typer.Option(help="Python of the trainer's environment (docs/goldens.md#record)")],
    tag: options.Tag = None,
    model: Annotated[list[str] | None, typer.Option(help="only this model (repeatable; default: all)")] = None,
    examples: Annotated[int, typer.Option(min=1, help="how many jobs to draw")] = 10_000,
    minutes: Annotated[float | None, typer.Option(help="draw as many as fit into this time instead")] = None,
    seed: Annotated[int, typer.Option(help="another seed draws other jobs")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="add what is new to tests/corpus")] = False,
    as_json: options.Json = False,
) -> None:
    """Draw jobs from all that the trainer reads, resolve them with it and with us, and compare.

    A difference is shrunk to the smallest job that shows it, and printed; the exit code is then 1. Nothing is rendered.
    """
    with user_errors():
        from lora_drift.harness import tags
        from lora_drift.harness.trainer.fuzz import corpus, settings
        from lora_drift.harness.trainer.recorder import pins
        from lora_drift.harness.trainer.recorder.job_config import MODELS

        row = tags.row(tag or tags.newest())
        there = [name for name in MODELS if name not in row.lacks]
        models = model or there
        if unknown := [name for name in models if name not in there]:
            fail(f"--model {unknown[0]}: not a model of {row.tag}; it has {', '.join(there)}")
        try:
            pins.check_trainer(row.tag, trainer)
            ask = settings.Trainer(python, trainer)
        except (pins.PinError, RuntimeError, OSError) as error:
            fail(error)
        kept = corpus.Corpus(corpus.file_of(row.tag), {"tag": row.tag, "commit": row.commit})
        offer = kept.offer if keep else lambda job, answer: None
        started, count, found = time.monotonic(), 0, list[settings.Difference]()
        try:
            while True:
                part = examples if minutes is None else 500
                done, more = settings.search(ask, models, row.version, examples=part, seed=seed + count, keep=offer)
                count += done
                found += [one for one in more if one.about not in {other.about for other in found}]
                if minutes is None or time.monotonic() - started > 60 * minutes:
                    break
            for one in found if keep else ():
                kept.add(one.job, ask(one.job))
        finally:  # a run that is interrupted keeps what it drew
            ask.close()
            if keep:
                kept.save()
    if as_json:
        told = {"examples": count, "models": models, "found": [one._asdict() for one in found]}
        typer.echo(json.dumps(told, indent=2))
    else:
        for one in found:
            typer.echo(f"{one.about} ({', '.join(one.models)}): {one.told}\n  {json.dumps(one.job)}")
        typer.echo(f"{count} jobs, {len(models)} models, {len(found)} differences, {time.monotonic() - started:.0f} s")
    sys.exit(1 if found else 0)
