"""`lora-drift fuzz`."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import fail, user_errors

if TYPE_CHECKING:
    from lora_drift.harness.tags import Tag

app = typer.Typer()

JOBS, SAMPLES = 10_000, 60
"""How many are drawn if nobody says: jobs to resolve, and samples of each model to render."""


@app.command()
def fuzz(
    trainer: Annotated[Path, typer.Option(help="clean checkout of the trainer at the tag's commit")],
    python: Annotated[Path, typer.Option(help="Python of the trainer's environment (docs/goldens.md#record)")],
    tag: options.Tag = None,
    model: Annotated[list[str] | None, typer.Option(help="only this model (repeatable; default: all)")] = None,
    render: Annotated[bool, typer.Option("--render", help="render what is drawn, and compare pictures")] = False,
    examples: Annotated[
        int | None, typer.Option(min=1, help="how many jobs to draw (10000); with --render, samples a model (60)")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="end after this time; draw as many as fit into it")] = None,
    seed: Annotated[int, typer.Option(help="another seed draws other jobs")] = 0,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="add what is new to tests/corpus; with --render write samples there, and reports/fuzz.json",
        ),
    ] = False,
    scratch: Annotated[
        Path, typer.Option(help="folder for what --render draws and finds; a run goes on with what is there")
    ] = Path("build/fuzz"),
    as_json: options.Json = False,
) -> None:
    """Draw jobs from all that the trainer reads, let it and us resolve or render them, and compare.

    A difference is shrunk to the smallest job that shows it, and told; the exit code is then 1. With --render it is
    written as a case, MODEL/NAME.yaml in the folder `cases` of --scratch.
    """
    with user_errors(needs="check"):
        from lora_drift.harness import tags
        from lora_drift.harness.trainer.recorder import pins
        from lora_drift.harness.trainer.recorder.job_config import MODELS

        row = tags.row(tag or tags.newest())
        there = [name for name in MODELS if name not in row.lacks]
        models = model or there
        if unknown := [name for name in models if name not in there]:
            fail(f"--model {unknown[0]}: not a model of {row.tag}; it has {', '.join(there)}")
        try:
            pins.check_trainer(row.tag, trainer)
            if render:
                told, found = _rendered(row, models, trainer, python, examples or SAMPLES, minutes, seed, keep, scratch)
            else:
                told, found = _resolved(row, models, trainer, python, examples or JOBS, minutes, seed, keep)
        except (pins.PinError, RuntimeError, OSError) as error:
            fail(error)
    typer.echo(json.dumps(told, indent=2) if as_json else "\n".join(found))
    sys.exit(1 if told["found"] else 0)


def _resolved(
    row: "Tag", models: Sequence[str], trainer: Path, python: Path, examples: int, minutes: float | None, seed: int,
    keep: bool,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Settings alone. Returns what --json tells, and the lines for a person."""
    from lora_drift.harness.trainer.fuzz import corpus, settings

    ask = settings.Trainer(python, trainer)
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
    told = {"examples": count, "models": list(models), "found": [one._asdict() for one in found]}
    lines = [f"{one.about} ({', '.join(one.models)}): {one.told}\n  {json.dumps(one.job)}" for one in found]
    took = time.monotonic() - started
    return told, [*lines, f"{count} jobs, {len(models)} models, {len(found)} differences, {took:.0f} s"]


def _rendered(
    row: "Tag", models: Sequence[str], trainer: Path, python: Path, examples: int, minutes: float | None, seed: int,
    keep: bool, scratch: Path,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """With pictures. Returns as `_resolved` does."""
    from lora_drift.harness.check.runner import use_minihub

    use_minihub()
    from lora_drift.harness.check import cases, sketched
    from lora_drift.harness.trainer.fuzz import kept, record, rendered, side_by_side
    from lora_drift.pipelines.registry import spec_of

    place = rendered.Scratch(scratch.resolve())
    ask = side_by_side.Renderer(python, trainer, place.assets, place.folder / "trainer.log", row.version)
    bench = side_by_side.Bench(row.tag, ask.environment, place.folder)
    started = time.monotonic()
    fuzzer = rendered.Fuzzer(ask, bench, place, models, seed, note=lambda line: typer.echo(line, err=True))
    try:
        fuzzer.run(examples, lambda: minutes is None or time.monotonic() - started < 60 * minutes)
    finally:
        ask.close()
    told = {
        "tag": row.tag,
        "seed": seed,
        "models": dict(rendered.figures(place, models)),
        "found": [{"kind": one.kind, "models": one.models, "told": one.told, "case": str(one.file or "")}
                  for one in fuzzer.findings],
    }  # fmt: skip
    if keep:
        record.write(told, ask.environment)
        known = cases.load_all()
        for model in models:
            own = [case for case in known if case.model == model]
            if samples := list(kept.chosen(spec_of(model, row.version), own, place)):
                kept.write(sketched.file_of(row.tag, model), row.tag, ask.environment, samples, place)
    return told, record.lines(told, time.monotonic() - started)
