"""The same results for git, for a pull-request comment and for CI: summary.json, summary.md, comment.md, junit.xml."""

import json
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from lora_drift.harness.check.results import PASSING, Metric, Result
from lora_drift.harness.report import heading
from lora_drift.harness.report.changes import Change, versions
from lora_drift.harness.report.root_cause import blame
from lora_drift.harness.report.scale import ORDER, as_text, rounded

SCHEMA = 2
KEPT = frozenset(
    ("pixel_max", "pixel_mean", "latents_rel_l2", "latents_cosine", "psnr", "ssim", "flip", "temporal"),
)
"""Metrics that every machine can measure (LPIPS is kept only where it is judged), so that files agree."""
COMMENT_ROWS = 30
"""Failing cases that a pull-request comment lists; the report has them all."""


def table(results: Iterable[Result]) -> pd.DataFrame:
    """One row a case, sorted by case: verdict, numbers, and where and why it began. Every output is made from it."""
    rows = []
    for result in results:
        values = {m.name: _number(m, m.value) for m in result.metrics}
        weakest = min(result.controls, key=lambda c: c.pixel_max, default=None)
        rows.append(
            {
                "case": result.case,
                "model": result.model,
                "tier": result.tier,
                "device": result.device,
                "dtype": result.dtype,
                "verdict": result.verdict,
                "pixel_max": values.get("pixel_max"),
                "latents_rel_l2": values.get("latents_rel_l2"),
                "ssim": values.get("ssim"),
                "flip": values.get("flip"),
                "caught": sum(c.caught for c in result.controls),
                "controls": len(result.controls),
                "weakest": weakest.pixel_max if weakest else None,
                "weakest_control": weakest.name if weakest else "",
                "boundary": result.first_divergence.boundary if result.first_divergence else "",
                "cause": blame(result).cause if result.verdict not in PASSING else "",
                "message": result.message,
                "seconds": result.seconds,
                "result": result,
            }
        )
    frame = pd.DataFrame(rows)
    if rows:
        frame["verdict"] = pd.Categorical(frame["verdict"], ORDER, ordered=True)
        frame = frame.sort_values(["case", "tier", "device", "dtype"], ignore_index=True)
    return frame


def summarise(frame: pd.DataFrame, tag: str) -> dict[str, Any]:
    """JSON-safe content of summary.json. Only `run` says when and where; all else is the same on a second run."""
    results: list[Result] = list(frame["result"]) if len(frame) else []
    return {
        "schema": SCHEMA,
        "tag": tag,
        "sentence": heading.sentence(results),
        "run": heading.run(results),
        "versions": versions(results),
        "verdicts": counts(frame),
        "cases": [_case(result) for result in results],
    }


def counts(frame: pd.DataFrame) -> dict[str, int]:
    """Verdict -> how many, worst first."""
    if not len(frame):
        return {}
    return {str(v): int(n) for v, n in frame["verdict"].value_counts(sort=False).items() if n}


def as_json(summary: dict[str, Any]) -> str:
    """One case a line, so that a difference in git names its case."""
    head = {key: value for key, value in summary.items() if key != "cases"}
    lines = ",\n  ".join(_line(case) for case in summary["cases"])
    return f'{_line(head)[:-1]}, "cases": [\n  {lines}\n]}}\n'


def as_markdown(summary: dict[str, Any]) -> str:
    """summary.md: the counts and one table row for each case."""
    head = ("case", "tier", "device", "verdict", "pixel max", "latents rel L2", "SSIM", "FLIP", "controls caught")
    rows = [_row(case) for case in summary["cases"]]
    tolerances = "Values are `value (tolerance)`; a value without parentheses has no tolerance."
    return f"# {_cell(summary['tag'])}\n\n{_sentence(summary['verdicts'])}\n\n{_table(head, rows)}\n\n{tolerances}\n"


def as_comment(frame: pd.DataFrame, tag: str, changes: list[Change]) -> str:
    """comment.md, for a pull request: what needs attention, what changed, and the models."""
    results: list[Result] = list(frame["result"]) if len(frame) else []
    parts = [f"### lora-drift {_cell(tag)}: {_cell(heading.sentence(results))}"]
    if facts := heading.run(results):
        parts.append("; ".join(f"{name} {_cell(said)}" for name, said in facts.items()))
    if len(frame):
        failing = frame[~frame["verdict"].isin(list(PASSING))].sort_values("verdict")
        rows = [
            (_cell(r["case"]), str(r["verdict"]), _cell(r["boundary"] or "–"), _cell(r["cause"][:300]))
            for r in failing.head(COMMENT_ROWS).to_dict("records")
        ]
        if rows:
            parts.append(_table(("case", "verdict", "began at", "cause"), rows))
        if len(failing) > COMMENT_ROWS:
            parts.append(f"... and {len(failing) - COMMENT_ROWS} more.")
    for change in changes:
        parts.append(f"Since {_cell(change.since)}: {_cell(change.sentence)}.")
    if len(frame):
        parts.append("<details><summary>Models</summary>\n\n" + _models(frame) + "\n\n</details>")
    return "\n\n".join(parts) + "\n"


def as_junit(frame: pd.DataFrame, tag: str) -> str:
    """junit.xml: a suite a model, a test case a case; everything but `match` and `known` is a failure or an error."""
    root = ElementTree.Element("testsuites", name=f"lora-drift {tag}")
    for model, cases in frame.groupby("model", sort=True) if len(frame) else ():
        failures, errors = ~cases["verdict"].isin([*PASSING, "error"]), cases["verdict"] == "error"
        suite = ElementTree.SubElement(
            root, "testsuite", name=str(model), tests=str(len(cases)), failures=str(failures.sum()),
            errors=str(errors.sum()), skipped="0", time=f"{cases['seconds'].sum():.3f}",
        )  # fmt: skip
        for row in cases.to_dict("records"):
            name = f"{row['case']}[{row['device']} {row['dtype']}]"
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"{tag}.{model}", name=_xml(name), time=f"{row['seconds']:.3f}"
            )
            if row["verdict"] not in PASSING:
                kind = "error" if row["verdict"] == "error" else "failure"
                failure = ElementTree.SubElement(case, kind, type=str(row["verdict"]), message=_xml(row["message"]))
                failure.text = _xml(
                    f"{row['message']}\nbegan at: {row['boundary'] or '-'}\ncause: {row['cause'] or '-'}"
                    f"\n{row['result'].traceback}".rstrip()
                )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _xml(text: str) -> str:
    """Text without the characters that XML cannot hold at all."""
    return "".join(c if c in "\t\n" or (c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff") else "�"
                   for c in text)  # fmt: skip


def _sentence(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "nothing was checked"


def _models(frame: pd.DataFrame) -> str:
    """One row a model: cases, worst verdict and numbers, and the control that moved its picture least."""
    rows = []
    for model, cases in frame.groupby("model", sort=True):
        weakest = cases.sort_values("weakest", kind="stable").iloc[0] if cases["weakest"].notna().any() else None
        rows.append((
            _cell(str(model)), str(len(cases)), str(cases["verdict"].min()),
            _worst(cases["pixel_max"]), _worst(cases["latents_rel_l2"]),
            "–" if weakest is None else f"{_cell(weakest['weakest_control'])}: {weakest['weakest']:g}/255",
        ))  # fmt: skip
    return _table(("model", "cases", "verdict", "pixel max", "latents rel L2", "weakest control"), rows)


def _worst(values: "pd.Series[float]") -> str:
    return as_text(float(values.max())) if values.notna().any() else "–"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _case(result: Result) -> dict[str, Any]:
    case: dict[str, Any] = {
        "case": result.case,
        "model": result.model,
        "tier": result.tier,
        "device": result.device,
        "dtype": result.dtype,
        "verdict": result.verdict,
        "metrics": {m.name: _metric(m) for m in result.metrics if m.name in KEPT or m.gate is not None},
        "controls": {c.name: {"pixel_max": _short(c.pixel_max), "caught": c.caught} for c in result.controls},
    }
    if result.first_divergence:
        case["first_divergence"] = result.first_divergence.boundary
    return case


def _metric(metric: Metric) -> dict[str, Any]:
    content = {"value": _number(metric, metric.value), "gate": _number(metric, metric.gate)}
    if content["gate"] is None and content["value"] is not None:
        del content["gate"]
    return {**content, "note": metric.note} if content["value"] is None else content


def _number(metric: Metric, number: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return None if number is None or not isfinite(number) else _short(float(rounded(metric, number)))


def _short(number: float) -> float:
    """3 for 3.0: a character less, a thousand times."""
    return int(number) if number == int(number) else number


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    metrics = [_pair(case["metrics"].get(name)) for name in ("pixel_max", "latents_rel_l2", "ssim", "flip")]
    caught = sum(control["caught"] for control in case["controls"].values())
    controls = f"{caught}/{len(case['controls'])}" if case["controls"] else "–"
    names = (_cell(case["case"]), _cell(case["tier"]), _cell(f"{case['device']} {case['dtype']}"))
    return (*names, case["verdict"], *metrics, controls)


def _pair(metric: dict[str, Any] | None) -> str:
    """`value (tolerance)`, both rounded already."""
    if metric is None or metric["value"] is None:
        return "–"
    value = as_text(metric["value"])
    return value if metric.get("gate") is None else f"{value} ({as_text(metric['gate'])})"


def _cell(text: str) -> str:
    """Text that can neither end its table cell nor start markup."""
    return "".join("\\" + c if c in r"\`*|<>[]" else " " if c in "\r\n" else c for c in text)
