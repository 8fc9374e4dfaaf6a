"""Results that can be believed: of the code, the tolerances and the goldens that are here, with verdicts that their
numbers make.

A results file is plain JSON, which anybody can edit, and which outlives the code that it is about. So each result says
what made it (`Made`), and whoever makes a report or an entry of known.yaml from a file asks `check` first.
"""

import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path

from lora_drift.harness.check import goldens, known, tolerances
from lora_drift.harness.check.results import JUDGED, Made, Metric, Result
from lora_drift.harness.paths import ROOT

PARTS = ("pipelines", "harness/check")
"""Folders whose files decide what a result says; not what only tells of earlier results."""
TOLD = {"verified.json"}


class Doubtful(ValueError):
    """A results file that no report is made from; the message says why, and what to do."""


@cache
def code() -> str:
    """Hash of all files that decide a picture, its distances and its verdict."""
    package, digest = Path(__file__).parents[2], sha256()
    for part in PARTS:
        for path in sorted((package / part).rglob("*")):
            if path.suffix in (".py", ".json") and path.name not in TOLD:
                digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def commit() -> str:
    """The checkout's commit; empty outside one."""
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


def made() -> Made:
    """What makes results here and now."""
    return Made(code=code(), commit=commit(), at=datetime.now(UTC).replace(microsecond=0), machine=platform.node())


def check(results: list[Result], *, root: Path = goldens.GOLDENS, excuses: Path = known.KNOWN) -> None:
    """`root`: folder of goldens; `excuses`: file of known drifts.

    Raises:
        Doubtful: of another code, tolerance or golden, or a verdict that its own numbers do not make.
    """
    for result in results:
        for doubt in doubts(result, root, excuses):
            raise Doubtful(f"{result.case} at {result.tag}: {doubt}. Check it again: "
                           f"lora-drift check --case {result.case} --tag {result.tag} --json FILE")  # fmt: skip


def doubts(result: Result, root: Path, excuses: Path) -> Iterator[str]:
    """Why `result` is not to be believed; the first reason says enough."""
    if result.made is None:
        yield "it does not say which code made it"
    elif result.made.code != code():
        of = f"commit {result.made.commit[:9]}" if result.made.commit else f"code {result.made.code}"
        yield f"it is of another state of the code ({of}, {result.made.at:%Y-%m-%d %H:%M}, on {result.made.machine})"
    if not result.metrics:
        if result.verdict in ("match", "known"):
            yield f"its verdict is {result.verdict}, and nothing was measured"
        return
    yield from _golden(result, root)
    try:
        limits = tolerances.load(result.tier, result.environment, result.golden_environment, result.model)
    except (tolerances.ToleranceError, KeyError) as error:
        yield f"nothing says how far it may be from its golden ({error})"
        return
    measured = {metric.name: metric for metric in result.metrics}
    for name in JUDGED:
        if name not in measured:
            yield f"its {name} is missing"
    for metric in result.metrics:
        limit = limits[metric.name].limit if metric.name in limits else None
        if metric.gate != limit:
            yield f"the tolerance of its {metric.name} was {metric.gate}, and is {limit}"
    for control in result.controls:
        if control.caught and control.pixel_mean is not None and not _outside(control.distances, limits):
            yield f"its control {control.name!r} counts as caught, and is within every tolerance"
    wanted = verdict(result, excuses)
    if result.verdict != wanted:
        yield f"its verdict is {result.verdict}, and its numbers make it {wanted}"


def verdict(result: Result, excuses: Path = known.KNOWN) -> str:
    """What the measured numbers of a result say."""
    if result.disagreements or any(not metric.within for metric in result.metrics):
        drift = result.model_copy(update={"verdict": "drift"})
        day = result.made.at.date() if result.made else None
        return known.judge(drift, day, excuses).verdict
    caught = [control.caught for control in result.controls]
    enough = tolerances.sensitive(caught, result.environment, result.golden_environment)
    return "match" if enough else "error"


def _golden(result: Result, root: Path) -> Iterator[str]:
    """Is it of the golden that is there?"""
    said = goldens.content(
        result.tag, result.case, root, variant=goldens.variant(result.golden_environment or {"dtype": "float32"})
    )
    if said is not None and said.get("seal") != result.provenance.get("seal"):
        yield "its golden was recorded anew since"


def _outside(distances: Mapping[str, float], limits: Mapping[str, tolerances.Tolerance]) -> bool:
    measured = [Metric(name=name, value=value) for name, value in distances.items()]
    return any(not metric.within for metric in tolerances.apply(measured, dict(limits)))
