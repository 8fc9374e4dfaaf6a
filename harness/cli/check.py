"""Cases against goldens: `check`, `report`, `known`, and `tolerances`, which measures their limits."""

import json
import re
import webbrowser
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lora_drift.harness import extras
from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import fail, progress, user_errors

Device = Annotated[str, typer.Option(help="cpu or cuda")]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None, typer.Option(help="default: float32 on the CPU, bfloat16 on a GPU")
]

app = typer.Typer()
known_app = typer.Typer(no_args_is_help=True, help="Known drifts: explained and measured, until they expire.")
app.add_typer(known_app, name="known")


@app.command()
def check(
    model: options.Models = None,
    tag: options.Tag = None,
    case: options.Cases = None,
    cases: Annotated[
        Path | None,
        typer.Option(help="folder of case files, MODEL/NAME.yaml (default: the checkout's, else ./cases)"),
    ] = None,
    goldens: Annotated[
        Path | None, typer.Option(help="folder of their goldens (default: goldens beside the cases)")
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    workers: Annotated[
        str,
        typer.Option("--jobs", "-j", metavar="N", help="worker processes, or auto: one a GPU (without: one a core)"),
    ] = "1",
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="check on this Ray cluster; goes on with what --json FILE lacks"),
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--json", help="write a line of JSON for each case to this file")
    ] = None,
    report: Annotated[bool, typer.Option(help="write reports/<tag>/index.html")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show pytest's own output")] = False,
) -> None:
    """Render every case and compare it with what the trainer rendered. This is the same run as `pytest cases/`.

    Exits with 0 only when every verdict is `match`, or `known` and not expired.
    """
    if workers != "auto" and not re.fullmatch(r"[1-9]\d*", workers):
        fail(f"--jobs {workers}: a number from 1, or auto")
    with user_errors(needs="check"):
        from lora_drift.harness.cli import session
        from lora_drift.harness.paths import ROOT

        if ray is not None and (lacking := extras.lacking("ray")):
            fail(f"--ray {lacking}")
        raise typer.Exit(
            session.run(
                model or [],
                case or [],
                tag=tag,
                device=device,
                dtype=dtype,
                workers=workers,
                json_file=results,
                report=report,
                verbose=verbose,
                cases_folder=cases or ROOT / "cases",
                goldens_folder=goldens,
                ray=ray,
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
    index: Annotated[bool, typer.Option("--index", help="write the overview of all tags and releases instead")] = False,
    show: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
) -> None:
    """Write the report from result files, without rendering anything. Files from several machines are merged.

    Writes index.html, summary.json, summary.md, comment.md (for a pull request) and junit.xml. With --index, writes
    the overview of every summary and matrix under reports/, with a row for each model.
    """
    with user_errors(needs="check"):
        from lora_drift.harness.check import results as read_results
        from lora_drift.harness.check import trusted
        from lora_drift.harness.cli import session

        try:
            if index:
                from lora_drift.harness.report import overview

                pages = [overview.render(session.REPORTS, out or session.REPORTS)]
            elif not results:
                fail("report: name one or more result files, or give --index")
            else:
                trusted.check(read_results.merge(results))
                pages = session.write_reports(results, out, since)
        except (OSError, ValueError) as error:
            fail(error)
    for page in pages:
        typer.echo(page)
        if show and not webbrowser.open(page.resolve().as_uri()):
            fail("--open: found no browser here; open the page above yourself")


@known_app.command("add")
def known_add(
    case: Annotated[str, typer.Argument(help="case id, e.g. flux/lora", autocompletion=options.case_ids)],
    cause: Annotated[str, typer.Option(help="why it drifts; the report shows it")],
    expires: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="after this day it counts as drift again")],
    results: Annotated[
        list[Path] | None, typer.Option(help="take its size from these files instead of rendering the case")
    ] = None,
    tag: options.Tag = None,
    device: Device = "cpu",
) -> None:
    """Add a drift to cases/known.yaml, with its measured size, its cause and the day on which it expires."""
    with user_errors(needs="check"):
        from lora_drift.harness.check import known
        from lora_drift.harness.cli import session

        try:
            entry = known.add(session.measured(case, results, tag, device), case, cause, expires.date())
        except (OSError, ValueError) as error:
            fail(error)
    typer.echo(f"{case} is a known drift of up to {entry.pixel_max:g}/255 until {entry.expires}: {known.KNOWN}")


@app.command()
def tolerances(
    save: Annotated[Path | None, typer.Option(help="only save this environment's renders to this folder")] = None,
    against: Annotated[
        Path | None, typer.Option(help="compare with a folder that --save wrote in another environment")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="take the spread from a file of `pytest --drift-floor` instead; in float32 on another processor or a "
            "GPU, also that of each kind of stage"
        ),
    ] = None,
    recorded: Annotated[
        Path | None,
        typer.Option(help="compare with the goldens that the recorder wrote to this folder on another processor"),
    ] = None,
    architectures: Annotated[
        bool, typer.Option("--architectures", help="compare bfloat16 here with the goldens of other architectures")
    ] = False,
    tag: options.Tag = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    tier: Annotated[
        Literal["mini", "full"], typer.Option(help="full: the recorded cases, on the real weights")
    ] = "mini",
    write: Annotated[
        bool, typer.Option("--write", help="store the tolerances in harness/check/tolerances.json")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure how far equally correct renders are apart (the spread), and derive the tolerances from it.

    Compared are: two renders by the same code; on a GPU, deterministic and default kernels; in float32, merged and
    live LoRA, and one and two threads; with --against, another torch; with --recorded, the trainer on two processors.
    """
    with user_errors(needs="check"):
        from lora_drift.harness.check import cases, runner
        from lora_drift.harness.check import results as files
        from lora_drift.harness.check import tolerances as limits
        from lora_drift.harness.paths import IN_CHECKOUT
        from lora_drift.harness.studies import spread as measure
        from lora_drift.harness.tags import newest

        if write and not IN_CHECKOUT:
            fail("--write: works in a checkout of lora-drift only, whose file it changes; leave it out")

        if results is not None:
            read = files.read(results)
            spreads, stages = measure.of_results(read), measure.of_stages(read)
            if not spreads and not stages:
                fail(f"{results}: holds no noise floor, and no case whose golden is of another processor; write one "
                     "with `pytest cases --drift-floor --drift-json FILE`")  # fmt: skip
            if write:
                measure.write_stages(stages)
            _finish(spreads, write, as_json, stages)
            raise typer.Exit
        if architectures:
            with progress("measuring", len(cases.load_all()), quiet=as_json) as advance:
                spreads = measure.between_architectures(tag or newest(), advance)
            _finish(spreads, write, as_json)
            raise typer.Exit
        if recorded is not None:
            runner.use_minihub()
            spreads = measure.of_recordings(recorded.resolve(), tag or newest())
            if not spreads:
                fail(f"--recorded {recorded}: holds no golden of another processor than this checkout's")
            _finish(spreads, write, as_json)
            raise typer.Exit
        if save is not None and tier == "full":
            fail("tolerances: --save keeps renders of the mini cases only; leave --tier full out")
        total = len(cases.load_all(tier=tier))
        with progress("measuring", total, quiet=as_json) as advance:
            seen: list[str] = []

            def note(case_id: str) -> None:
                seen.append(case_id)
                advance(len(seen) - 1, case_id)

            if save is not None:
                measure.save(save, device, dtype, note)
                raise typer.Exit
            spread = measure.measure(device, dtype, against, note, tier)
        if not spread:
            fail(f"tolerances: no case of the tier {tier} has weights and a golden here; record one (docs/goldens.md)")
        _finish({limits.key(tier, runner.Bench(device, dtype).environment): spread}, write, as_json)


def _finish(
    spreads: dict[str, Any], write: bool, as_json: bool, stages: dict[str, dict[str, dict[str, float]]] | None = None
) -> None:
    from lora_drift.harness.studies import spread as measure

    for key, spread in spreads.items() if write else ():
        measure.write(spread, key)
    if as_json:
        typer.echo(json.dumps(spreads | ({"stages": stages} if stages else {}), indent=2))
        return
    for key, spread in spreads.items():
        typer.echo(key)
        for name, (value, where) in sorted(spread.items()):
            typer.echo(f"  {name:16} {value:.3g}  ({where})")
    for key, models in (stages or {}).items():
        typer.echo(f"{key}, by kind of stage: the largest of {len(models)} models")
        for kind in sorted({kind for found in models.values() for kind in found}):
            value, model = max((found.get(kind, 0.0), model) for model, found in models.items())
            typer.echo(f"  {kind:16} {value:.3g}  ({model})")
