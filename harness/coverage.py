"""Which golden case vouches for a render that a user makes."""

import json
from pathlib import Path
from typing import Any

from harness import cases
from harness.cases import ROOT
from harness.recorder import pins


def covering_case(pipeline: Any, reports: Path = ROOT / "reports") -> dict[str, Any] | None:
    """The case with the same model and LoRA mode, and its verdict in the last committed summary.

    A mini case vouches for the wiring, not for the weights: it ran the same code on a miniature of the model. None
    when nothing covers the render (another base model, or no such case).
    """
    if pipeline.base.repo != pipeline.spec.base:
        return None
    mode = pipeline.mode if pipeline.lora else None
    tag = next(row.tag for row in pins.rows() if row.version == pipeline.spec.toolkit)
    summary = reports / tag / "summary.json"
    verdicts = {c["case"]: c["verdict"] for c in json.loads(summary.read_text())["cases"]} if summary.is_file() else {}
    for case in cases.load_all():
        if case.model == pipeline.spec.id and (case.lora.mode if case.lora else None) == mode:
            return {"case": case.id, "tag": tag, "tier": case.tier, "verdict": verdicts.get(case.id, "not checked"),
                    "device": "cpu", "dtype": "float32"}  # fmt: skip
    return None
