"""Writes a tag's report: `index.html` for people, `summary.json` and `summary.md` for git."""

import json
import re
import shlex
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.cases import ROOT
from harness.report import scale, summary
from harness.report.pictures import Comparison, compare
from harness.results import PASSING, Metric, Result, Verdict

HERE = Path(__file__).parent


class Row(NamedTuple):
    """One line of a side-by-side table."""

    key: str
    golden: str
    ours: str
    differs: bool


class Stage(NamedTuple):
    """Consecutive boundaries of the trace that belong together: boundary -> relative error."""

    name: str
    errors: dict[str, float | None]


@dataclass(frozen=True)
class CaseView:
    """One result as the template shows it."""

    result: Result
    anchor: str
    base: Path

    @property
    def passing(self) -> bool:
        return self.result.verdict in PASSING

    def metric(self, name: str) -> Metric | None:
        return next((metric for metric in self.result.metrics if metric.name == name), None)

    def pictures(self) -> Comparison:
        """Reads and encodes the files on every call; the template calls it once and lets go of the arrays."""
        golden, output = self.result.golden_picture, self.result.output_picture
        return compare(ROOT / golden if golden else None, self.base / output if output else None, self.result.frames)

    @property
    def caught(self) -> int:
        return sum(control.caught for control in self.result.controls)

    @property
    def stages(self) -> list[Stage]:
        """The trace cut where the first part of the boundary's name changes: lora, encode, step0, step1, ..."""
        groups = groupby(self.result.trace.items(), key=lambda item: item[0].split("/")[0])
        return [Stage(name, dict(items)) for name, items in groups]

    @property
    def settings(self) -> list[Row]:
        return side_by_side(self.result.golden_settings, self.result.settings)

    @property
    def environment(self) -> list[Row]:
        return side_by_side(self.result.golden_environment, self.result.environment)

    @property
    def provenance(self) -> dict[str, str]:
        return {key: text(value) for key, value in flatten(self.result.provenance).items()}

    @property
    def commands(self) -> dict[str, str]:
        """What it does -> the command, safe to paste into a shell."""
        case, model, tag = (shlex.quote(text) for text in (self.result.case, self.result.model, self.result.tag))
        path = shlex.quote(f"cases/{self.result.case}.yaml")
        return {
            "Check this case": f"pytest {path} --drift-tag {tag}",
            "Check the model": f"lora-drift check --model {model} --tag {tag}",
            "Record it again": f"python -m harness.recorder --trainer DIR --tag {tag} --case {case}",
        }


class ModelView(NamedTuple):
    """One model of the overview and its cases, by name."""

    name: str
    worst: Verdict
    cases: list[CaseView]


def render(results: list[Result], tag: str, out_dir: Path, base: Path) -> Path:
    """Write `index.html`, `summary.json` and `summary.md` to `out_dir` and return the page's path.

    `base` is the folder of the results file, to which `output_picture` is relative.

    Raises:
        ValueError: a result is of another tag.
    """
    if strangers := sorted({result.tag for result in results} - {tag}):
        raise ValueError(f"results of {', '.join(strangers)} in the report of {tag}: render each tag by itself")
    out_dir.mkdir(parents=True, exist_ok=True)
    content = summary.summarise(results, tag)
    (out_dir / "summary.json").write_text(summary.as_json(content), encoding="utf-8")
    (out_dir / "summary.md").write_text(summary.as_markdown(content), encoding="utf-8")
    page = out_dir / "index.html"
    page.write_text(_page(results, tag, base), encoding="utf-8")
    return page


def side_by_side(golden: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Row]:
    """Union of both sides' keys, what differs first. A key that only one side has is shown, but is no difference."""
    left, right = flatten(golden), flatten(ours)
    differing = {key for key in left.keys() & right.keys() if left[key] != right[key]}
    keys = sorted(left | right, key=lambda key: (key not in differing, key))
    return [Row(key, text(left.get(key)), text(right.get(key)), key in differing) for key in keys]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; everything that is not a mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def text(value: Any) -> str:
    """Strings as they are, None as a dash, anything else as JSON."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def code_spans(text: str) -> Markup:
    """Escaped `text` in which `backticks` become <code>."""
    parts = [Markup("<code>{}</code>" if i % 2 else "{}").format(part) for i, part in enumerate(text.split("`"))]
    return Markup("").join(parts)


def _page(results: list[Result], tag: str, base: Path) -> str:
    cases = _views(scale.worst_first(results), base)
    counts = Counter(result.verdict for result in results)
    script = (HERE / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    numbers = {"shown": scale.shown, "label": scale.label, "on_bar": scale.on_bar, "on_trace": scale.on_trace}
    environment.filters |= {**numbers, "code_spans": code_spans}
    environment.tests |= {"perfect": scale.perfect}
    return environment.get_template("report.html.j2").render(
        tag=tag,
        cases=cases,
        models=_models(cases),
        counts={verdict: counts[verdict] for verdict in scale.ORDER if counts[verdict]},
        firsts=_first_of_each(cases),
        failing=sum(not case.passing for case in cases),
        environment=_common([result.environment for result in results]),
        standing=scale.standing,
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
    )


def _views(results: list[Result], base: Path) -> list[CaseView]:
    """Anchors are `case-<model>-<case>`; a case that ran twice (on two devices, say) gets `.2`."""
    seen: Counter[str] = Counter()
    views = []
    for result in results:
        anchor = "case-" + re.sub(r"[^\w.-]+", "-", result.case)
        seen[anchor] += 1
        views.append(CaseView(result, anchor if seen[anchor] == 1 else f"{anchor}.{seen[anchor]}", base))
    return views


def _models(cases: list[CaseView]) -> list[ModelView]:
    """By each model's worst verdict, then by name, so that a quiet morning looks like the last one."""
    grouped: dict[str, list[CaseView]] = {}
    for case in cases:
        grouped.setdefault(case.result.model, []).append(case)
    models = [ModelView(name, group[0].result.verdict, sorted(group, key=_anchor)) for name, group in grouped.items()]
    return sorted(models, key=lambda model: (scale.ORDER.index(model.worst), model.name))


def _anchor(case: CaseView) -> str:
    return case.anchor


def _first_of_each(cases: list[CaseView]) -> dict[Verdict, str]:
    """Verdict -> anchor of its worst case."""
    return {case.result.verdict: case.anchor for case in reversed(cases)}


def _common(environments: list[dict[str, Any]]) -> dict[str, str]:
    """The runs' environment: a key on which they disagree shows every value."""
    values: dict[str, set[str]] = {}
    for environment in environments:
        for key, value in flatten(environment).items():
            values.setdefault(key, set()).add(text(value))
    return {key: " / ".join(sorted(found)) for key, found in sorted(values.items())}
