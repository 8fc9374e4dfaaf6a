"""`lora-drift report --index`: one page over all that is committed in reports/, a row a model.

First a column for each summary (a tag, or a release below it), then one for each release of each matrix.
"""

import json
from collections.abc import Mapping, Sequence
from math import log10
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lora_drift.harness import tags
from lora_drift.harness.check.results import PASSING
from lora_drift.harness.report import scale
from lora_drift.harness.report.render import environment, style

FLOOR, CEILING = 1e-8, 1.0
"""Ends of the trend's scale, as of the trace's: below the rounding of float32, and an error as large as the signal."""
WIDTH, HEIGHT = 14, 24
"""Of one column of a trend, in CSS pixels."""
SIGNS = {"green": ("match", "✓"), "lacks": ("lacks", "–"), "drift": ("drift", "≠"), "crash": ("error", "!")}
"""Status in a matrix -> class and sign of its cell."""
WORDS = {"lacks": "not available in that release", "crash": "failed", "drift": "drifted"}
"""Status in a matrix -> what the page says of it, where that is another word."""
TITLES = {
    "golden": "Releases: our pipelines beside the trainer",
    "plain": "Releases: stock Diffusers beside the one before",
}


class Column(NamedTuple):
    """A tag or a release."""

    name: str
    about: str = ""
    link: str = ""


class Cell(NamedTuple):
    """A model in a column."""

    verdict: str
    text: str
    about: str
    latents: float | None = None
    """Worst relative error of the latents."""


class Group(NamedTuple):
    """Columns that say the same of different versions."""

    title: str
    about: str
    columns: list[Column]
    cells: Sequence[Mapping[str, Cell]]
    """Of each column: model -> cell."""
    findings: Sequence[Mapping[str, Any]] = ()


class Line(NamedTuple):
    model: str
    cells: list[list[Cell | None]]
    """Of each group, of each column."""
    trend: str
    """Points of an SVG polyline through the worst latents, oldest to newest; empty with fewer than two."""
    said: str


def render(reports: Path, out: Path) -> Path:
    """Write index.html to `out` from every summary.json and every matrix below `reports`; returns its path.

    Raises:
        ValueError: there is neither.
    """
    root = "" if out == reports else f"{reports.resolve().as_uri()}/"
    summaries, matrices = _tags(reports, root), _matrices(reports)
    groups = [group for group in (summaries, *matrices) if group.columns]
    if not groups:
        raise ValueError(f"{reports}: no summary.json in there; `lora-drift check` writes one")
    html = environment().get_template("overview.html.j2").render(
        groups=groups, lines=_lines(groups), width=WIDTH * len(summaries.columns), height=HEIGHT,
        style=style("base", "overview"),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    page.write_text(html, encoding="utf-8")
    return page


def _tags(reports: Path, root: str) -> Group:
    """Every summary, tags in the order of tags.yaml and releases after their tag."""
    rows = {row.tag: row for row in tags.all_rows()}
    found = []
    for file in reports.rglob("summary.json"):
        summary = json.loads(file.read_text(encoding="utf-8"))
        tag, folder = summary["tag"], file.parent.relative_to(reports).as_posix()
        versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
        link = f"{root}{folder}/index.html" if (file.parent / "index.html").is_file() else ""
        name = folder if folder.startswith(tag) else f"{tag} {folder}"
        absent = {model: Cell("lacks", "–", "the trainer does not have it yet") for model in _lacking(rows.get(tag))}
        cells = absent | _of_summary(summary["cases"])
        found.append((list(rows).index(tag) if tag in rows else len(rows), folder, Column(name, versions, link), cells))
    found.sort(key=lambda f: f[:2])
    newest = found[-1][3].values() if found else ()
    passing = sum(cell.verdict in PASSING for cell in newest)
    about = f"At the newest, {passing} of {sum(c.verdict != 'lacks' for c in newest)} models pass." if found else ""
    return Group("Trainer versions", about, [f[2] for f in found], [f[3] for f in found])


def _lacking(row: tags.Tag | None) -> list[str]:
    return list(row.lacks) if row else []


def _of_summary(cases: list[dict[str, Any]]) -> dict[str, Cell]:
    if not cases:
        return {}
    frame = pd.DataFrame([
        {"model": case["model"], "verdict": case["verdict"],
         **{name: case["metrics"].get(name, {}).get("value") for name in ("pixel_max", "latents_rel_l2")}}
        for case in cases
    ])  # fmt: skip
    return {str(model): _cell(of_model) for model, of_model in frame.groupby("model")}


def _cell(cases: pd.DataFrame) -> Cell:
    worst = min(cases["verdict"], key=lambda verdict: scale.ORDER.index(verdict))
    passing = int(cases["verdict"].isin(list(PASSING)).sum())
    about = f"{passing} of {len(cases)} pass" + (f", the worst is {worst}" if worst not in PASSING else "")
    pixels, latents = (pd.to_numeric(cases[name]).max() for name in ("pixel_max", "latents_rel_l2"))
    if not pd.isna(pixels):
        about += f"; largest pixel difference {pixels:g} of 255"
    if not pd.isna(latents):
        about += f"; latents differ by up to {scale.shown(latents)}"
    return Cell(worst, f"{passing}/{len(cases)}", about, None if pd.isna(latents) else float(latents))


def _matrices(reports: Path) -> list[Group]:
    """Every file of `lora-drift matrix`; what could not be installed is no column, but said."""
    groups = []
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(reports.rglob("matrix*.json"))]
    for content in sorted(found, key=lambda c: c["mode"]):  # golden, then plain
        installed = [c for c in content["combinations"] if "not_installable" not in c]
        installed.sort(key=lambda c: [int(n) if n.isdigit() else 0 for n in c["diffusers"].split(".")])
        refused = [scale.release_name(c) for c in content["combinations"] if "not_installable" in c]
        title = TITLES[content["mode"]]
        tried = "Diffusers × transformers"
        if any("torch" in c for c in installed):
            title, tried = f"{title}, by torch", f"{tried} × torch"
        counts = ", ".join(
            f"{n} {WORDS.get(status, status)}" for status, n in content["counts"].items() if status != "not installable"
        )
        about = f"{tried}, at {content['tag']}: {counts}."
        if refused:
            about += f" pip cannot install {', '.join(refused)}."
        cells = [{model: _of_matrix(cell) for model, cell in c["models"].items()} for c in installed]
        columns = [Column(scale.release_name(c)) for c in installed]
        groups.append(Group(title, about, columns, cells, content["findings"]))
    return groups


def _of_matrix(cell: dict[str, Any] | str) -> Cell:
    if isinstance(cell, str):
        return Cell(*SIGNS[cell], WORDS.get(cell, cell))
    verdict, sign = SIGNS[cell["status"]]
    pixels = cell.get("pixel_max")
    said = [
        WORDS.get(cell["status"], cell["status"]),
        cell.get("cases", ""),
        cell.get("boundary", ""),
        cell.get("message", ""),
    ]
    moved = f"largest pixel difference {pixels:g} of 255" if pixels is not None else ""
    return Cell(verdict, f"{pixels:.0f}" if pixels else sign, ", ".join(filter(None, [*said, moved])))


def _lines(groups: list[Group]) -> list[Line]:
    """Models by what is worst in the newest column of the first group, then by name."""
    models = sorted({model for group in groups for cells in group.cells for model in cells})
    lines = []
    for model in models:
        rows = [[cells.get(model) for cells in group.cells] for group in groups]
        lines.append(Line(model, rows, *_trend(rows[0])))
    return sorted(lines, key=_rank)


def _rank(line: Line) -> int:
    """Place of the newest verdict in the order of verdicts."""
    verdicts: list[Any] = [cell.verdict for cell in line.cells[0] if cell and cell.verdict in scale.ORDER]
    return scale.ORDER.index(verdicts[-1]) if verdicts else len(scale.ORDER)


def _trend(cells: list[Cell | None]) -> tuple[str, str]:
    known = [(i, cell.latents) for i, cell in enumerate(cells) if cell and cell.latents is not None]
    if len(known) < 2:
        return "", ""
    heights = [(i, (log10(max(min(error, CEILING), FLOOR)) / log10(FLOOR)) * (HEIGHT - 4) + 2) for i, error in known]
    points = " ".join(f"{(i + 0.5) * WIDTH:g},{y:.1f}" for i, y in heights)
    return points, f"worst latents error from {scale.shown(known[0][1])} to {scale.shown(known[-1][1])}"
