"""What earlier runs found: a small file beside the report, so that a page can say "since yesterday"."""

import json
from pathlib import Path
from typing import Any, TypeAlias

from lora_drift.harness.check.results import Result
from lora_drift.pipelines.files import whole

NAME = "history.json"
RUNS = 14
"""Runs that are kept, a fortnight of nights."""
CASES = 1000
"""Of larger runs nothing is kept: the file would grow beyond what a page can be made from."""

Point: TypeAlias = tuple[str, str, float | None]
"""When, verdict, relative error of the latents."""
Run: TypeAlias = dict[str, Any]
"""`checked`, and `cases` as summary.json has them, of metrics only the error of the latents."""


def remember(folder: Path, results: list[Result]) -> list[Run]:
    """The runs before this one, oldest first; this one is added to the file in `folder`.

    A run that says not when it was, or holds more than `CASES`, is not kept. The same results rendered again are the
    same run. A file that cannot be read is begun anew.
    """
    file = folder / NAME
    try:
        known: list[Run] = json.loads(file.read_text(encoding="utf-8"))["runs"]
    except (FileNotFoundError, ValueError, KeyError):  # none yet, cut short, or of another program
        known = []
    now = max(map(when, results), default="")
    before = [run for run in known if run["checked"] < now]
    if now and len(results) <= CASES:
        with whole(file) as part:
            kept = [*before, {"checked": now, "cases": [_case(r) for r in results]}][-RUNS:]
            part.write_text(json.dumps({"runs": kept}, separators=(",", ":")) + "\n", encoding="utf-8")
    return before[-RUNS + 1 :]


def by_case(runs: list[Run], results: list[Result]) -> dict[tuple[str, ...], list[Point]]:
    """Key of a case (`key`) -> its points in earlier runs and this one, oldest first."""
    now: list[Run] = [{"checked": when(result), "cases": [_case(result)]} for result in results]
    found: dict[tuple[str, ...], list[Point]] = {}
    for run in [*runs, *now]:
        for case in run["cases"]:
            error = case["metrics"].get("latents_rel_l2", {}).get("value")
            found.setdefault(_key(case), []).append((run["checked"], case["verdict"], error))
    return found


def when(result: Result) -> str:
    """ISO 8601, UTC; empty where the result does not say."""
    return result.made.at.isoformat() if result.made else ""


def key(result: Result) -> tuple[str, ...]:
    return result.case, result.tier, result.device, result.dtype


def _case(result: Result) -> dict[str, Any]:
    error = next((m.value for m in result.metrics if m.name == "latents_rel_l2"), None)
    return {
        "case": result.case, "model": result.model, "tier": result.tier, "device": result.device,
        "dtype": result.dtype, "verdict": result.verdict,
        "metrics": {} if error is None else {"latents_rel_l2": {"value": float(f"{error:.3g}")}},
    }  # fmt: skip


def _key(case: dict[str, Any]) -> tuple[str, ...]:
    return case["case"], case["tier"], case["device"], case["dtype"]
