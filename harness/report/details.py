"""What the page's script is told about a case: a line of the list, and the details that it opens.

Everything is plain JSON; numbers that are shown come as text, rounded here, so that page and summaries agree.
"""

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lora_drift.harness.check.results import PASSING, Metric, Result
from lora_drift.harness.report import scale
from lora_drift.harness.report.root_cause import Blame, blame, golden_settings, step, verdict
from lora_drift.pipelines.registry import ROWS

DATA = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
TEXT = json.JSONEncoder(ensure_ascii=False, default=str).encode


class Row(NamedTuple):
    """One line of a side-by-side table."""

    key: str
    golden: str
    ours: str
    differs: bool


@dataclass(frozen=True)
class View:
    """One result as the page shows it."""

    result: Result
    anchor: str
    changed: str
    """"broken", "mended", "new", "further off" since an earlier run, or empty."""

    @property
    def passing(self) -> bool:
        return self.result.verdict in PASSING

    @cached_property
    def blame(self) -> Blame:
        return blame(self.result)

    @property
    def message(self) -> str:
        return verdict(self.result)

    def metric(self, name: str) -> Metric | None:
        return next((metric for metric in self.result.metrics if metric.name == name), None)


def views(results: list[Result], changed: Mapping[str, str]) -> list[View]:
    """Anchors are `case-<model>-<case>`; a case that ran twice (on two devices, say) gets `.2`."""
    seen: Counter[str] = Counter()
    found = []
    for result in results:
        anchor = "case-" + re.sub(r"[^\w.-]+", "-", result.case)
        seen[anchor] += 1
        name = anchor if seen[anchor] == 1 else f"{anchor}.{seen[anchor]}"
        found.append(View(result, name, changed.get(result.case, "")))
    return found


def index_line(view: View, file: str, golden: str) -> list[Any]:
    """The list's fields, in the order in which main.js reads them. `file`: where the details are, "" for the page;
    `golden`: key of its picture."""
    result, why = view.result, view.blame
    metrics = {m.name: m for m in result.metrics}
    listed = [metrics.get(name) for name in ("pixel_max", "latents_rel_l2", "ssim", "flip")]
    values = [m.value if m is not None and m.value is not None and math.isfinite(m.value) else None for m in listed]
    return [
        view.anchor,
        result.case,
        result.model,
        result.verdict,
        ROWS[result.model].kind if result.model in ROWS else "",
        " ".join(filter(None, (result.lora, result.settings.get("lora_mode")))) or "none",
        *_where(view),
        why.part,
        "" if result.verdict == "match" else why.cause,
        result.about,
        view.changed,
        result.tier,
        result.device,
        result.dtype,
        step(result),
        *values,
        sum(control.caught for control in result.controls),
        len(result.controls),
        result.seconds,
        result.frames,
        [None if m is None or v is None else scale.shown(v, m) for m, v in zip(listed, values, strict=True)],
        " ".join(
            short for short, m in zip(("max", "l2"), listed, strict=False) if m and scale.standing(m) == "outside"
        ),
        file,
        golden,
    ]


def details(view: View, pictures: dict[str, Any]) -> dict[str, Any]:
    """What case.js shows; `pictures` says where the pictures are (see render.py)."""
    result, why = view.result, view.blame
    first = result.first_divergence
    return {
        "case": result.case,
        "tier": result.tier,
        "device": result.device,
        "dtype": result.dtype,
        "verdict": result.verdict,
        "about": result.about,
        "message": view.message,
        "traceback": result.traceback,
        "cause": why.cause,
        "seconds": result.seconds,
        "began": first and {"boundary": first.boundary, "words": why.began, "error": first.error, "gate": first.gate},
        "diagnosis": result.diagnosis and [[s.name, s.about, s.distance] for s in result.diagnosis.ranking],
        "excuse": result.excuse and result.excuse.model_dump(mode="json"),
        "pictures": pictures,
        "metrics": [_metric(m) for m in result.metrics],
        "controls": [[c.name, c.pixel_max, c.latents_rel_l2, c.caught] for c in result.controls],
        "trace": result.trace,
        "traceGate": first.gate if first else None,
        "schedule": _schedule(result),
        "settings": side_by_side(golden_settings(result), result.settings),
        "environment": side_by_side(result.golden_environment, result.environment),
        "provenance": {key: text(value) for key, value in flatten(result.provenance).items()},
        "commands": list(commands(result).items()),
    }


def commands(result: Result) -> dict[str, str]:
    """What it does -> the command, safe to paste into a shell."""
    case, tag = shlex.quote(result.case), shlex.quote(result.tag)
    path = shlex.quote(f"cases/{result.case}.yaml")
    device, dtype = shlex.quote(result.device), shlex.quote(result.dtype)
    where = "" if (device, dtype) == ("cpu", "float32") else f" --device {device} --dtype {dtype}"
    on = "" if device == "cpu" else f" --device {device}"
    found = {"Reproduce": f"pytest {path} --drift-tag {tag}{where.replace('--', '--drift-')}"}
    if result.verdict in ("drift", "known") and result.output_picture:
        picture = shlex.quote(str(Path(result.root, result.output_picture)))  # to be pasted in another checkout
        found["Diagnose, where the case matches"] = (
            f"lora-drift diagnose --case {case} --tag {tag}{on} --image {picture}"
        )
    found["Check the model"] = f"lora-drift check --model {shlex.quote(result.model)} --tag {tag}{where}"
    found["Record the golden again"] = (
        f"python -m lora_drift.harness.trainer.recorder --trainer DIR --diffusers DIR --tag {tag} --case {case}{where}"
    )
    if result.verdict == "drift" and result.metrics:
        found["List as a known drift"] = f"lora-drift known add {case} --cause WHY --expires YYYY-MM-DD --tag {tag}{on}"
    return found


def side_by_side(golden: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Row]:
    """Union of both sides' keys, what differs first. A key that only one side has is shown, but is no difference."""
    left, right = flatten(golden), flatten(ours)
    differing = {key for key in left.keys() & right.keys() if left[key] != right[key]}
    keys = sorted(left | right, key=lambda key: (key not in differing, key))
    return [Row(key, text(left.get(key)), text(right.get(key)), key in differing) for key in keys]


def _schedule(result: Result) -> list[Row]:
    """Both lists of timesteps (and of sigmas) where they differ, one row a step."""
    rows = []
    for name, lists in result.schedule.items():
        for i, (golden, ours) in enumerate(zip_longest(*lists, fillvalue=math.nan)):
            rows.append(Row(f"{name} {i}", _number(golden), _number(ours), golden != ours))
    return rows


def _number(value: float | None) -> str:
    """Of a list of numbers of which a trace tells some; NaN where the list has ended."""
    if value is None:
        return "not told by the trace"
    return "–" if math.isnan(value) else f"{value:.6g}"


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
    if isinstance(value, str):
        return value
    return repr(value) if type(value) in (int, float) else TEXT(value)  # by far the most, and slow to encode


def as_script_data(value: Any) -> str:
    """JSON that can stand inside a <script> element: nothing in it can close the element or open a comment."""
    try:
        plain = DATA(value)
    except ValueError:  # JSON has no NaN and no infinity; only few results have one, and looking for it takes long
        plain = DATA(_finite(value))
    return plain.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _where(view: View) -> tuple[str, str]:
    """(all that `at:` finds, what the list shows)"""
    first = view.result.first_divergence
    return (f"{first.boundary} {first.place}", first.place) if first else ("", "")


def _metric(metric: Metric) -> dict[str, Any]:
    state = scale.standing(metric)
    unit = metric.unit if metric.unit.startswith("/") else f" {metric.unit}"
    has_bar = metric.gate is not None and state != "unknown"
    floor = metric.floor
    if metric.value is not None:
        value = scale.shown(metric.value, metric) + unit.rstrip()
    else:
        value = "–" if state == "unknown" else metric.note
    return {
        "label": scale.label(metric),
        "state": state,
        "value": value,
        "gate": "–"
        if metric.gate is None
        else f"{'≤' if metric.better == 'lower' else '≥'} {scale.shown(metric.gate, metric)}",
        "floor": "–" if floor is None else scale.shown(floor, metric),
        "bar": round(scale.on_bar(metric, metric.value) if metric.value is not None else 0, 1) if has_bar else None,
        "floorAt": round(scale.on_bar(metric, floor), 1) if has_bar and floor is not None else None,
        "note": metric.note or ("not evaluated" if state == "unknown" else ""),
    }
