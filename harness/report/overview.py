"""`lora-drift report --index`: one page over every committed summary, a column a tag or release, a row a model."""

import json
from math import log10
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harness.recorder import pins
from harness.report import scale
from harness.report.render import environment, style
from harness.results import PASSING

FLOOR, CEILING = 1e-8, 1.0
"""Ends of the trend's scale, as of the trace's: below the rounding of float32, and an error as large as the signal."""
WIDTH, HEIGHT = 16, 24
"""Of one column of a trend, in CSS pixels."""


class Column(NamedTuple):
    """One summary: a tag, or a release below it."""

    name: str
    folder: str
    versions: str
    has_report: bool


class Cell(NamedTuple):
    """A model in a column."""

    verdict: str
    passing: int
    cases: int
    pixel_max: str
    latents: float | None
    """Worst relative error of the latents."""


class Line(NamedTuple):
    model: str
    cells: list[Cell | None]
    trend: str
    """Points of an SVG polyline through the worst latents, oldest to newest; empty with fewer than two."""
    said: str


def render(reports: Path, out: Path) -> Path:
    """Write index.html to `out` from every summary.json below `reports`; returns its path.

    Raises:
        ValueError: there is no summary.
    """
    columns, frame = _read(reports)
    if not columns:
        raise ValueError(f"{reports}: no summary.json in there; `lora-drift check` writes one")
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    html = (
        environment()
        .get_template("overview.html.j2")
        .render(
            columns=columns,
            lines=_lines(columns, frame),
            root="" if out == reports else f"{reports.resolve().as_uri()}/",
            width=WIDTH * len(columns),
            height=HEIGHT,
            style=style("base", "overview"),
        )
    )
    page.write_text(html, encoding="utf-8")
    return page


def _read(reports: Path) -> tuple[list[Column], pd.DataFrame]:
    """The columns, tags in the order of tags.yaml and releases after their tag; and all cases, one row each."""
    order = [row.tag for row in pins.rows()]
    columns, cases = [], []
    for file in reports.rglob("summary.json"):
        summary = json.loads(file.read_text(encoding="utf-8"))
        folder = file.parent.relative_to(reports).as_posix()
        versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
        name = folder if folder.startswith(summary["tag"]) else f"{summary['tag']} {folder}"
        columns.append((summary["tag"], Column(name, folder, versions, (file.parent / "index.html").is_file())))
        for case in summary["cases"]:
            values = {name: metric["value"] for name, metric in case["metrics"].items()}
            cases.append({"folder": folder, "model": case["model"], "verdict": case["verdict"],
                          "pixel_max": values.get("pixel_max"), "latents": values.get("latents_rel_l2")})  # fmt: skip
    columns.sort(key=lambda c: (order.index(c[0]) if c[0] in order else len(order), c[1].folder))
    return [column for _, column in columns], pd.DataFrame(cases)


def _lines(columns: list[Column], frame: pd.DataFrame) -> list[Line]:
    """Models by their worst newest verdict, then by name."""
    lines = []
    for model, cases in frame.groupby("model"):
        groups = dict(tuple(cases.groupby("folder")))
        cells = [_cell(groups.get(column.folder)) for column in columns]
        lines.append(Line(str(model), cells, *_trend(cells)))
    return sorted(lines, key=lambda line: (_rank(line), line.model))


def _rank(line: Line) -> int:
    """Place of the newest column's verdict in the order of verdicts."""
    newest: Any = next((cell.verdict for cell in reversed(line.cells) if cell), "match")
    return scale.ORDER.index(newest)


def _cell(cases: pd.DataFrame | None) -> Cell | None:
    if cases is None:
        return None
    worst = min(cases["verdict"], key=lambda verdict: scale.ORDER.index(verdict))
    latents, pixels = cases["latents"].max(), cases["pixel_max"].max()
    return Cell(
        worst, int(cases["verdict"].isin(list(PASSING)).sum()), len(cases),
        "–" if pd.isna(pixels) else f"{pixels:g}/255", None if pd.isna(latents) else float(latents),
    )  # fmt: skip


def _trend(cells: list[Cell | None]) -> tuple[str, str]:
    known = [(i, cell.latents) for i, cell in enumerate(cells) if cell and cell.latents is not None]
    if len(known) < 2:
        return "", ""
    heights = [(i, (log10(max(min(error, CEILING), FLOOR)) / log10(FLOOR)) * (HEIGHT - 4) + 2) for i, error in known]
    points = " ".join(f"{(i + 0.5) * WIDTH:g},{y:.1f}" for i, y in heights)
    return points, f"worst latents error from {known[0][1]:.2g} to {known[-1][1]:.2g}"
