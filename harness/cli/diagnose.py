"""`lora-drift diagnose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_drift.harness.cli import options
from lora_drift.harness.cli.sample import REMEDIES, check_device, lora_files
from lora_drift.harness.cli.shared import fail, progress, trainer_version, user_errors

if TYPE_CHECKING:
    from lora_drift.harness.check.cases import Case
    from lora_drift.harness.check.runner import Bench
    from lora_drift.harness.deviations.diagnosis.search import Diagnosis, Search
    from lora_drift.harness.deviations.library import Subject
    from lora_drift.pipelines.settings import Request

app = typer.Typer()

OF_A_CASE = ("case", "image", "trace", "tag", "device", "budget", "top", "as_json")
"""Options that mean something beside --case."""
OF_RESULTS = ("results", "device", "budget", "top")
"""And beside --results."""


@app.command()
def diagnose(
    ctx: typer.Context,
    image: Annotated[
        Path | None, typer.Option(help="the other program's picture (.png .jpg .webp .gif) or video (.mp4 .mkv)")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="the other program's trace, as trace.capture saved it")] = None,
    case: Annotated[
        str | None,
        typer.Option(
            help="the case that it should be, e.g. flux/lora (or use --model)", autocompletion=options.case_ids
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="model id", autocompletion=options.model_ids)
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="may hold \\[trigger] and flags")] = None,
    lora: options.LoraFiles = None,
    negative: options.Negative = "",
    width: options.Width = None,
    height: options.Height = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_rescale: options.GuidanceRescale = 0.0,
    seed: Annotated[int, typer.Option()] = 42,
    multiplier: options.Multiplier = 1.0,
    frames: options.Frames = None,
    fps: options.Fps = None,
    control: options.Controls = None,
    trigger: options.Trigger = None,
    name: options.JobName = None,
    lora_mode: options.LoraMode = None,
    allow_partial: options.AllowPartial = False,
    base: options.BaseModel = None,
    tag: options.Trainer = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    noise_stream: options.NoiseStream = None,
    resize_order: options.ResizeOrder = None,
    mini: options.Mini = False,
    budget: Annotated[float | None, typer.Option(help="stop after this many seconds")] = None,
    results: Annotated[Path | None, typer.Option(help="results of a check: explain every drift in them")] = None,
    top: Annotated[int, typer.Option(min=1, help="rows of the ranking to print")] = 10,
    as_json: options.Json = False,
) -> None:
    """Say why another program's picture differs from ours: which known mistake turns ours into theirs.

    Renders the reference, then every variation (mistake) that applies, then the promising pairs, and ranks them by how
    near they come. Ctrl-C prints what is known so far.

        lora-drift diagnose -m flux --lora my.safetensors -p "a photo of sks" --seed 7 --image theirs.png

    With --results FILE, explains every drift of a check and writes the answers into its file, where `lora-drift report`
    finds them. Run this where the cases match.

    Exits with 0 when the picture is explained, 1 when nothing explains it, 130 when interrupted.
    """
    from lora_drift.harness.check import runner
    from lora_drift.pipelines.settings import Request

    with user_errors(remedies=REMEDIES):
        if budget is not None and not budget > 0:
            fail(f"--budget {budget:g}: give a number of seconds above 0")
        check_device(device)
        if results is not None:
            _refuse(ctx, OF_RESULTS, "a check has its own settings; leave it out, or --results")
            asked = ctx.get_parameter_source("device").name == "COMMANDLINE"  # type: ignore[union-attr]
            raise typer.Exit(_explain_results(results, device if asked else None, budget, top))
        if image is None and trace is None:
            fail("--image: name the picture to explain (or a trace of its render with --trace)")
        if (case is None) == (model is None):
            fail(
                "say what the picture should be: --case ID, or --model with --prompt and the other settings of a render"
            )
        if case is not None:
            _refuse(ctx, OF_A_CASE, "a case has its own settings; leave it out, or use --model for --case")
            subject, tier = _subject_of_case(case, runner.Bench(device, tag=tag))
        else:
            if prompt is None:
                fail("--prompt: say what was rendered")
            request = Request(prompt, negative, width, height, steps, guidance, guidance_rescale, seed, multiplier,
                              frames, fps, trigger, name, [str(path) for path in control or ()])  # fmt: skip
            assert model is not None
            subject = _subject(model, request, lora or [], tag, mini, mode=lora_mode, allow_partial=allow_partial,
                               base=base, device=device, dtype=dtype, noise_stream=noise_stream,
                               resize_order=resize_order)  # fmt: skip
            tier = "mini" if mini else "full"
        search = _search(subject, image, trace, tier)
        found, interrupted = _run(search, budget, quiet=as_json)
    _show(found, top, as_json)
    raise typer.Exit(130 if interrupted else int(found.verdict == "unexplained"))


def _refuse(ctx: typer.Context, meaningful: tuple[str, ...], why: str) -> None:
    """Options that mean nothing beside the one that says all settings itself."""
    given = [p for p in ctx.params if p not in meaningful and ctx.get_parameter_source(p).name == "COMMANDLINE"]  # type: ignore[union-attr]
    if given:
        fail(f"--{given[0].replace('_', '-')}: {why}")


def _explain_results(file: Path, device: str | None, budget: float | None, top: int) -> int:
    """Explain each drift in a results file, on its own device if none is given, and write that into it.

    Returns the exit code.
    """
    from lora_drift.harness.check import results, runner
    from lora_drift.harness.deviations.diagnosis import words
    from lora_drift.harness.paths import ROOT

    try:
        found = results.read(file)
    except (OSError, ValueError) as error:
        fail(f"--results {file}: {error}")
    benches: dict[tuple[str, str, str], Bench] = {}
    code = 0
    drifts = [result for result in found if result.verdict in ("drift", "known") and result.output_picture is not None]
    theirs = [
        r.output_file(str(r.output_picture), *file.resolve().parents, *([] if r.root else [ROOT])) for r in drifts
    ]
    for result, picture in zip(drifts, theirs, strict=True):  # all, before the first weights load
        if not picture.is_file():
            fail(
                f"--results {file}: the picture of {result.case} is neither at {picture} nor beside the file; copy "
                f"{result.output_picture} of the checkout that ran the check into the folder of {file.name}"
            )
    for result, picture in zip(drifts, theirs, strict=True):
        where = device or result.device
        check_device(where)
        key = (where, result.dtype, result.tag)
        bench = benches.setdefault(key, runner.Bench(where, result.dtype, tag=result.tag))
        subject, tier = _subject_of_case(result.case, bench)
        said, interrupted = _run(_search(subject, picture, None, tier), budget, quiet=False)
        result.diagnosis = words.for_report(said, top)
        typer.echo(f"{result.case}: {result.diagnosis.headline}")
        results.write(file, found)
        if interrupted:
            return 130
        code |= said.verdict != "explained"
    return code


def _subject_of_case(case_id: str, bench: Bench) -> tuple[Subject, str]:
    from lora_drift.harness.check import cases, goldens, runner
    from lora_drift.harness.check.cases import CaseError
    from lora_drift.harness.hf_logging import quiet

    known = cases.of_both_tiers()
    chosen: Case | None = next((c for c in known if c.id == case_id), None)
    if chosen is None:
        raise CaseError(cases.no_such([case_id], known))
    if chosen.tier == "mini":
        runner.use_minihub()
    quiet()
    from lora_drift.harness.deviations.library import Subject

    try:
        golden = bench.golden(chosen)
    except goldens.GoldenError as error:
        raise CaseError(str(error)) from error
    return Subject.of(bench.pipeline(chosen, golden), bench.request(chosen)), chosen.tier


def _subject(model: str, request: Request, lora: list[str], tag: str | None, mini: bool, **options: Any) -> Subject:
    from lora_drift import pipelines
    from lora_drift.harness.check import runner
    from lora_drift.harness.hf_logging import quiet
    from lora_drift.pipelines.registry import spec_of
    from lora_drift.pipelines.settings import resolve

    files, mode = lora_files(lora), options.pop("mode")
    toolkit = trainer_version(tag, list(files.values()), model)
    if request.seed == -1:
        fail("--seed -1: the picture has a seed; say which")
    resolve(spec_of(model, toolkit), request)
    if mode not in (None, "merged", "live"):
        fail(f"--lora-mode {mode}: use merged or live")
    if mini:
        runner.use_minihub()
    quiet()
    from lora_drift.harness.deviations.library import Subject

    allow_partial = options.pop("allow_partial")
    pipeline = pipelines.load(model, toolkit=toolkit, **options)
    if files:
        pipeline = pipeline.with_lora(**files, mode=mode, allow_partial=allow_partial)  # type: ignore[arg-type]
    return Subject.of(pipeline, request)


def _search(subject: Subject, image: Path | None, trace: Path | None, tier: str) -> Search:
    from lora_drift.harness.check.trace import Trace
    from lora_drift.harness.deviations.diagnosis import pictures
    from lora_drift.harness.deviations.diagnosis.search import Search
    from lora_drift.pipelines.errors import RequestError

    theirs = pictures.read(image) if image is not None else None
    if theirs is not None and subject.spec.kind == "video":
        theirs = pictures.unstacked(theirs, subject.settings.height, subject.settings.width)
    if theirs is not None and subject.spec.kind != "video" and len(theirs.frames) > 1:
        raise RequestError(f"image {image}: holds {len(theirs.frames)} frames; {subject.spec.id} makes pictures")
    try:
        seen = Trace.load(trace) if trace is not None else None
    except Exception as error:  # safetensors raises classes of its own for what is not its file
        raise RequestError(f"trace {trace}: not a trace that `trace.capture` saved ({error})") from error
    return Search(subject, theirs, trace=seen, tier=tier)


def _run(search: Search, budget: float | None, *, quiet: bool) -> tuple[Diagnosis, bool]:
    """What was found, and whether Ctrl-C ended it."""
    from lora_drift.harness.deviations.diagnosis.words import number

    interrupted = False
    with progress("rendering the reference", 1, quiet=quiet) as advance:

        def note(done: int, total: int, best: Any) -> None:
            advance(done, f"nearest {best.name}: {number(best.distance)}" if best else "trying variations", total)

        try:
            search.run(budget, note)
        except KeyboardInterrupt:
            interrupted = True
    return search.diagnosis(), interrupted


def _show(found: Diagnosis, top: int, as_json: bool) -> None:
    from lora_drift.harness.deviations.diagnosis import words

    if as_json:
        typer.echo(json.dumps({"headline": words.headline(found), **found.model_dump()}, indent=2))
    else:
        typer.echo(words.text(found, top))
