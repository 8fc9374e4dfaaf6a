"""`lora-drift check`: the pytest run, the table in the terminal, and the report."""

import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from lora_drift.harness import tags
from lora_drift.harness.check import cases, results, trusted
from lora_drift.harness.check.cases import CaseError
from lora_drift.harness.check.plugin import INTERRUPTED
from lora_drift.harness.check.results import PASSING, Result
from lora_drift.harness.paths import ROOT, elsewhere

REPORTS = ROOT / "reports"
COLOURS = {"match": "green", "known": "yellow", "drift": "red", "missing": "magenta", "stale": "magenta",
           "corrupt": "magenta", "error": "red"}  # fmt: skip
TOLD = 2.0
"""Seconds in which a run that heard of Ctrl-C itself has noticed it; it is told after them, and ignores it twice."""


def run(
    only_models: list[str],
    only_cases: list[str],
    *,
    tag: str | None,
    device: str,
    dtype: str | None = None,
    workers: str,
    json_file: Path | None,
    report: bool,
    verbose: bool,
    cases_folder: Path = cases.CASES,
    goldens_folder: Path | None = None,
    ray: str | None = None,
) -> int:
    """Run the chosen cases through pytest; returns the exit code.

    `goldens_folder`: None is the folder `goldens` beside that of the cases. `ray`: address of a cluster whose hosts
    check them.

    Raises:
        CaseError, TagError: an unknown case, model or tag, a broken case file, or no cases or goldens here.
        NoCluster: nobody answers at `ray`.
    """
    tag = tags.row(tag).tag if tag else tags.newest_of(only_models)
    cases_folder = cases_folder.resolve()
    goldens_folder = (goldens_folder or cases_folder.parent / "goldens").resolve()
    paths = _paths(only_models, only_cases, tag, device, cases_folder)
    if not goldens_folder.is_dir():
        raise CaseError(elsewhere("goldens", goldens_folder, "--goldens DIR"))
    with tempfile.TemporaryDirectory() as scratch:
        file = json_file or Path(scratch) / "results.jsonl"
        options = ["--drift-cases", str(cases_folder), "--drift-goldens", str(goldens_folder), "--drift-tag", tag,
                   "--drift-device", device, "-p", "no:cacheprovider", "--no-header"]  # fmt: skip
        options += ["--drift-dtype", dtype] if dtype else []
        options += [] if verbose else ["-q", "--no-summary", "--disable-warnings"]
        if ray is not None:
            from lora_drift.harness.cli import ray_check

            code = ray_check.run(ray, paths, options, file.resolve(), tag=tag, device=device, dtype=dtype)
        else:
            options += ["-n", workers] if workers != "1" else []
            command = [sys.executable, "-m", "pytest", *map(str, paths), *options, "--drift-json", str(file.resolve())]
            code = _outlived(subprocess.Popen(command, cwd=ROOT))
        checked_cases = results.read(file) if file.is_file() else []
        show(checked_cases)
        if report and checked_cases:
            # A run of a part, or of somebody's own cases, must not replace the committed summary of the whole.
            whole = not only_models and not only_cases and cases_folder == cases.CASES and code != INTERRUPTED
            part = None if whole else ROOT / "build" / "report"
            print(f"report: {write_reports([file], part, cases_folder=cases_folder)[0]}")
        if code == INTERRUPTED:
            kept = f"their results are in {json_file}" if json_file else "--json FILE would have kept their results"
            print(f"interrupted: {len(checked_cases)} of {len(paths)} cases were checked; {kept}")
    if code not in (0, 1):
        return code
    complete = len(checked_cases) == len(paths) and all(r.verdict in PASSING for r in checked_cases)
    return 0 if complete and code == 0 else 1


def _outlived(process: "subprocess.Popen[bytes]") -> int:
    """The exit code of a run of pytest. Ctrl-C reaches it too, and it is given time to say what it knows; a second one
    ends it, and what it wrote so far is shown all the same."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            process.wait(timeout=TOLD)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # only this process was told
            process.wait()
        except KeyboardInterrupt:
            process.kill()
            process.wait()
    return INTERRUPTED


def _paths(only_models: list[str], only_cases: list[str], tag: str, device: str, root: Path) -> list[Path]:
    """Files of the chosen cases, of the full tier those named. Every case file is read first, so that a typo shows
    before anything runs."""
    chosen = cases.choose(cases.of_both_tiers(root), only_models, only_cases, tag=tag)
    if device == "cpu" and any(case.tier == "full" for case in chosen):
        raise CaseError(
            f"--case {' '.join(only_cases)}: cases/full are for the real weights on a GPU; add --device cuda"
        )
    return [root / f"{case.id}.yaml" for case in chosen]


def show(checked_cases: list[Result]) -> None:
    """The table in the terminal: one line a case, worst verdicts last where they are seen."""
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "verdict", "pixel max", "pixel mean", "latents rel. L2", "controls", "seconds", box=None)
    order = list(COLOURS)
    for r in sorted(checked_cases, key=lambda r: (order.index(r.verdict), r.case)):
        values = {m.name: m.value for m in r.metrics}
        numbers = [f"{values[n]:.3g}" if values.get(n) is not None else "-"
                   for n in ("pixel_max", "pixel_mean", "latents_rel_l2")]  # fmt: skip
        caught = f"{sum(c.caught for c in r.controls)}/{len(r.controls)} caught"
        table.add_row(r.case, f"[{COLOURS[r.verdict]}]{r.verdict}[/]", *numbers, caught, f"{r.seconds:.1f}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for r in checked_cases:
        if r.message:
            console.print(f"{r.case}: {r.message}", markup=False, soft_wrap=True)
    counts: Counter[str] = Counter(r.verdict for r in checked_cases)
    console.print(", ".join(f"{counts[v]} {v}" for v in COLOURS if counts[v]) or "nothing ran")


def measured(case: str, files: list[Path] | None, tag: str | None, device: str) -> list[Result]:
    """Results of `files`; without any, of a check of this one case, here and now."""
    if files:
        found = [r for r in results.merge(files) if tag in (None, r.tag) and r.case == case]
        trusted.check(found)
        return found
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "results.jsonl"
        run([], [case], tag=tag, device=device, workers="1", json_file=file, report=False, verbose=False)
        return results.read(file) if file.is_file() else []


def write_reports(
    files: list[Path], out: Path | None, since: Path | None = None, *, cases_folder: Path = cases.CASES
) -> list[Path]:
    """Render the report of each tag in these result files; returns the paths of their index.html.

    One tag's goes to `out` (default: reports/<tag>), several tags' to folders of `out`. `cases_folder`: where the cases
    are, to tell one that is gone from one that was not run.
    """
    from lora_drift.harness.report.render import render

    checked_cases = results.merge(files)
    if not checked_cases:
        raise ValueError(f"{', '.join(map(str, files))}: holds no results")
    checked = sorted({r.tag for r in checked_cases})
    folders = {tag: out if out and len(checked) == 1 else (out or REPORTS) / tag for tag in checked}
    return [
        render([r for r in checked_cases if r.tag == tag], tag, folders[tag], ROOT, since=since, cases=cases_folder)
        for tag in checked
    ]
