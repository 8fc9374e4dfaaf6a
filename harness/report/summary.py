"""The part of a report that git keeps: verdicts and key metrics, without anything that a second run would change."""

import json
from collections import Counter
from collections.abc import Iterable
from math import isfinite
from typing import Any

from harness.report.scale import ORDER, as_text, rounded
from harness.results import Metric, Result

SCHEMA = 1
KEPT = frozenset(
    ("pixel_max", "pixel_mean", "latents_rel_l2", "latents_cosine", "psnr", "ssim", "flip", "temporal"),
)
"""Metrics that every machine can measure (LPIPS is kept only where it is gated), so that files agree."""


def summarise(results: Iterable[Result], tag: str) -> dict[str, Any]:
    """JSON-safe content of summary.json, sorted by case; no times, messages or machine names."""
    cases = sorted(results, key=lambda r: (r.case, r.tier, r.device, r.dtype))
    counts = Counter(result.verdict for result in cases)
    return {
        "schema": SCHEMA,
        "tag": tag,
        "verdicts": {verdict: counts[verdict] for verdict in ORDER if counts[verdict]},
        "cases": [_case(result) for result in cases],
    }


def as_json(summary: dict[str, Any]) -> str:
    return json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_markdown(summary: dict[str, Any]) -> str:
    """summary.md: the counts and one table row for each case."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in summary["verdicts"].items()) or "nothing was checked"
    head = ("case", "tier", "device", "verdict", "pixel max", "latents rel L2", "SSIM", "FLIP", "controls caught")
    rows = [head, ("---",) * len(head), *(_row(case) for case in summary["cases"])]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    gates = "Values are `value (gate)`; a value without parentheses has no gate."
    return f"# {_cell(summary['tag'])}\n\n{counts}\n\n{table}\n\n{gates}\n"


def _case(result: Result) -> dict[str, Any]:
    case: dict[str, Any] = {
        "case": result.case,
        "model": result.model,
        "tier": result.tier,
        "device": result.device,
        "dtype": result.dtype,
        "verdict": result.verdict,
        "metrics": {m.name: _metric(m) for m in result.metrics if m.name in KEPT or m.gate is not None},
        "controls": len(result.controls),
        "controls_caught": sum(control.caught for control in result.controls),
    }
    if result.first_divergence:
        case["first_divergence"] = result.first_divergence.boundary
    return case


def _metric(metric: Metric) -> dict[str, Any]:
    content: dict[str, Any] = {"value": _number(metric, metric.value), "gate": _number(metric, metric.gate)}
    return {**content, "note": metric.note} if content["value"] is None else content


def _number(metric: Metric, number: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return None if number is None or not isfinite(number) else float(rounded(metric, number))


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    metrics = [_pair(case["metrics"].get(name)) for name in ("pixel_max", "latents_rel_l2", "ssim", "flip")]
    controls = f"{case['controls_caught']}/{case['controls']}" if case["controls"] else "–"
    names = (_cell(case["case"]), _cell(case["tier"]), _cell(f"{case['device']} {case['dtype']}"))
    return (*names, case["verdict"], *metrics, controls)


def _pair(metric: dict[str, Any] | None) -> str:
    """`value (gate)`, both rounded already."""
    if metric is None or metric["value"] is None:
        return "–"
    value = as_text(metric["value"])
    return value if metric["gate"] is None else f"{value} ({as_text(metric['gate'])})"


def _cell(text: str) -> str:
    """Text that can neither end its table cell nor start markup."""
    return "".join("\\" + c if c in r"\`*|<>[]" else " " if c in "\r\n" else c for c in text)
