"""Which golden case vouches for a render that a user makes: verified.json, which an installed wheel has, too.

`lora-drift models --write docs/models` makes it from the case files and the committed summaries; a test fails while it
is stale.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from lora_drift.harness import tags
from lora_drift.harness.paths import ROOT

VERIFIED = Path(__file__).parent / "verified.json"


def covering_case(pipeline: Any) -> dict[str, Any] | None:
    """What vouches for a render of this pipeline. None when nothing does: another base model, another
    profile, or no such case."""
    if pipeline.base.repo != pipeline.spec.base or pipeline.base.profile != "reference":
        return None
    tag = next(row.tag for row in tags.rows() if row.version == pipeline.spec.toolkit)
    quantized = pipeline.base.quantization.quantize or pipeline.base.quantization.encoders
    kinds = pipeline.lora.coverage.kinds if pipeline.lora else ("",)
    if len(kinds) > 1:
        return None
    mode = pipeline.mode if pipeline.lora else None
    return covering(pipeline.spec.id, mode, tag, quantized=quantized, network=kinds[0])


def covering(
    model: str, lora_mode: str | None, tag: str, *, quantized: bool = False, network: str | None = None
) -> dict[str, Any] | None:
    """The case with the same model and LoRA mode (None: no LoRA), and its verdict in the last committed summary. A
    quantised base is vouched for by a case with one, of whatever type; a `network` (lora, dora, lokr; None: any) by
    one of that kind.

    A mini case vouches for the wiring, not for the weights: it ran the same code on a miniature of the model.
    """
    for row in _rows():
        same = (row["model"], row["lora"], row["quantized"]) == (model, lora_mode, bool(quantized))
        if same and network in (None, row["network"]):
            return {"case": row["case"], "tag": tag, "tier": "mini",
                    "verdict": row["verdicts"].get(tag, "not checked"),
                    "device": "cpu", "dtype": "float32"}  # fmt: skip
    return None


@cache
def _rows() -> list[dict[str, Any]]:
    return json.loads(VERIFIED.read_text(encoding="utf-8"))


def wanted() -> str:
    """What verified.json should hold: of every model the first mini case that was checked with each LoRA mode and
    kind of network, on a quantised base and without, and its verdict at each tag; a line a case."""
    from lora_drift.harness.check import cases

    verdicts = {row.tag: _verdicts(ROOT / "reports" / row.tag / "summary.json") for row in tags.rows()}
    found: dict[tuple[str, str | None, bool, str], dict[str, Any]] = {}
    for case in cases.load_all():
        network = case.lora.network.type if case.lora else ""
        key = (case.model, case.lora.mode if case.lora else None, case.quantization is not None, network)
        told = {tag: of[case.id] for tag, of in verdicts.items() if case.id in of}
        row = {"case": case.id, "model": key[0], "lora": key[1], "quantized": key[2], "network": network,
               "verdicts": told}  # fmt: skip
        if key not in found or (told and not found[key]["verdicts"]):  # rather one that was checked
            found[key] = row
    return "[\n" + ",\n".join(json.dumps(row) for row in found.values()) + "\n]\n"


def _verdicts(summary: Path) -> dict[str, str]:
    """Case -> verdict; empty where nothing was committed."""
    if not summary.is_file():
        return {}
    return {case["case"]: case["verdict"] for case in json.loads(summary.read_text(encoding="utf-8"))["cases"]}
