"""Which golden case vouches for a render that a user makes: verified.json, which an installed wheel has, too.

`lora-drift models --write docs/models` makes it from the case files and the committed summaries; a test fails while it
is stale.
"""

import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from lora_drift.harness import tags
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines.registry import ROWS
from lora_drift.pipelines.spec import DEFAULTS, INFORMS, ModelSpec

VERIFIED = Path(__file__).parent / "verified.json"


def covering_case(pipeline: Any, controls: int) -> dict[str, Any] | None:
    """What vouches for a render of this pipeline with so many control images. None when nothing does: another base
    model, another profile, the trainer's mistakes mended, no such case, or a trainer version whose rules no tag has."""
    if pipeline.base.repo != pipeline.spec.base or pipeline.base.profile != "reference" or pipeline.base.as_intended:
        return None
    quantization = _in_words(pipeline.base.quantization)
    tag = vouching(pipeline.spec, quantized=bool(quantization))
    if tag is None:
        return None
    kinds = pipeline.lora.coverage.kinds if pipeline.lora else ("",)
    if len(kinds) > 1:
        return None
    mode = pipeline.mode if pipeline.lora else None
    return covering(pipeline.spec.id, mode, tag, quantized=quantization, network=kinds[0], controls=controls)


def vouching(spec: ModelSpec, *, quantized: bool = False) -> str | None:
    """The newest tag whose recordings show what this row, of whatever trainer version, does: it has the same rules, as
    far as they matter (those of quantisation with a quantised base only). None: no tag has."""
    ignored = {*INFORMS, *DEFAULTS, *(() if quantized else ("quantizes",))}

    def rules(row: ModelSpec) -> dict[str, Any]:
        return {f.name: getattr(row, f.name) for f in fields(row) if f.name not in ignored}

    for tag in reversed(tags.rows()):
        if spec.id not in tag.lacks and rules(ROWS[spec.id].at(tag.version)) == rules(spec):
            return tag.tag
    return None


def covering(
    model: str,
    lora_mode: str | None,
    tag: str,
    *,
    quantized: bool | str = False,
    network: str | None = None,
    controls: int | None = None,
) -> dict[str, Any] | None:
    """The case with the same model and LoRA mode (None: no LoRA), and its verdict in the last committed summary. A
    quantised base is vouched for by a case with one: of the kind that `quantized` says (`_in_words`), or with True of
    any. A `network` (lora, dora, lokr; None: any) by one of that kind; `controls` (None: any) by one with as many
    control images.

    A mini case vouches for the wiring, not for the weights: it ran the same code on a miniature of the model.
    """
    for row in _rows():
        base = row["quantized"] if isinstance(quantized, str) else bool(row["quantized"])
        same = (row["model"], row["lora"], base) == (model, lora_mode, quantized)
        if same and network in (None, row["network"]) and controls in (None, row["controls"]):
            return {"case": row["case"], "tag": tag, "tier": "mini",
                    "verdict": row["verdicts"].get(tag, "not checked"),
                    "device": "cpu", "dtype": "float32"}  # fmt: skip
    return None


def _in_words(quantization: Any) -> str:
    """What a `Quantization` does to the base: "uint3, encoders, recovery"; empty where it does nothing."""
    q = quantization
    said = (q.type if q.quantize else "", "encoders" if q.encoders else "", "recovery" if q.adapter else "")
    return ", ".join(filter(None, said))


@cache
def _rows() -> list[dict[str, Any]]:
    return json.loads(VERIFIED.read_text(encoding="utf-8"))


def wanted() -> str:
    """What verified.json should hold: of every model the first mini case that was checked with each LoRA mode and
    kind of network, kind of quantisation and number of control images, and its verdict at each tag; a line a case."""
    from lora_drift.harness.check import cases
    from lora_drift.pipelines.quantize import Quantization
    from lora_drift.pipelines.registry import spec_of
    from lora_drift.pipelines.settings import Request, resolve

    verdicts = {row.tag: _verdicts(ROOT / "reports" / row.tag / "summary.json") for row in tags.rows()}
    found: dict[tuple[str, str | None, str, str, int], dict[str, Any]] = {}
    for case in sorted(
        cases.load_all(), key=lambda case: case.id.split("/")[1] not in ("base", "lora")
    ):  # the plainest first
        network = case.lora.network.type if case.lora else ""
        base = _in_words(Quantization(**case.quantization.model_dump()) if case.quantization else Quantization())
        named = {name: getattr(case.sample, name) for name in ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")}
        request = Request(case.sample.prompt, located=case.sample.located, **named)
        controls = len(resolve(spec_of(case.model), request).control)
        key = (case.model, case.lora.mode if case.lora else None, base, network, controls)
        told = {tag: of[case.id] for tag, of in verdicts.items() if case.id in of}
        row = {"case": case.id, "model": key[0], "lora": key[1], "quantized": key[2], "network": network,
               "controls": controls, "verdicts": told}  # fmt: skip
        if key not in found or (told and not found[key]["verdicts"]):  # rather one that was checked
            found[key] = row
    return "[\n" + ",\n".join(json.dumps(row) for row in found.values()) + "\n]\n"


def _verdicts(summary: Path) -> dict[str, str]:
    """Case -> verdict; empty where nothing was committed."""
    if not summary.is_file():
        return {}
    return {case["case"]: case["verdict"] for case in json.loads(summary.read_text(encoding="utf-8"))["cases"]}
