"""Which golden case vouches for a render that a user makes."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from lora_drift.harness import tags
from lora_drift.harness.check import cases
from lora_drift.harness.paths import ROOT


def covering_case(pipeline: Any, reports: Path = ROOT / "reports") -> dict[str, Any] | None:
    """What vouches for a render of this pipeline. None when nothing does: another base model, another
    profile, or no such case."""
    if pipeline.base.repo != pipeline.spec.base or pipeline.base.profile != "reference":
        return None
    tag = next(row.tag for row in tags.rows() if row.version == pipeline.spec.toolkit)
    quantized = pipeline.base.quantization.quantize or pipeline.base.quantization.encoders
    kinds = pipeline.lora.coverage.kinds if pipeline.lora else ()
    if len(kinds) > 1:
        return None
    return covering(pipeline.spec.id, pipeline.mode if pipeline.lora else None, tag, reports, quantized=quantized,
                    kind=kinds[0] if kinds else None)  # fmt: skip


def covering(
    model: str,
    lora_mode: str | None,
    tag: str,
    reports: Path = ROOT / "reports",
    *,
    quantized: bool = False,
    kind: str | None = None,
) -> dict[str, Any] | None:
    """The case with the same model and LoRA mode (None: no LoRA), and its verdict in the last committed summary. A
    quantised base is vouched for by a case with one, of whatever type; a network of `kind` (lora, dora, lokr) by one of
    that kind.

    A mini case vouches for the wiring, not for the weights: it ran the same code on a miniature of the model.
    """
    for case in _cases():
        same = case.model == model and (case.lora.mode if case.lora else None) == lora_mode
        same = same and (kind is None or (case.lora is not None and case.lora.network.type == kind))
        if same and (case.quantization is not None) == quantized:
            return {"case": case.id, "tag": tag, "tier": case.tier,
                    "verdict": _verdicts(reports / tag / "summary.json").get(case.id, "not checked"),
                    "device": "cpu", "dtype": "float32"}  # fmt: skip
    return None


@cache
def _cases() -> list[cases.Case]:
    return cases.load_all()


@cache
def _verdicts(summary: Path) -> dict[str, str]:
    return {c["case"]: c["verdict"] for c in json.loads(summary.read_text())["cases"]} if summary.is_file() else {}
