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
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.registry import MODELS, ROWS
from lora_drift.pipelines.settings import Request, Settings, resolve
from lora_drift.pipelines.spec import DEFAULTS, INFORMS, ModelSpec

VERIFIED = Path(__file__).parent / "verified.json"


def covering_case(pipeline: Any, settings: Settings) -> dict[str, Any]:
    """What vouches for a render of this pipeline with these settings, as receipts say it: a case and its verdict, or
    `case: None` and why nothing does."""
    base, lora = pipeline.base, pipeline.lora
    if base.repo != base.spec.base:
        return nothing(f"another base model than {base.spec.base}")
    if base.profile != "reference":
        return nothing(f"the profile {base.profile}")
    if base.as_intended:
        return nothing("a render without the trainer's mistakes")
    if lora is not None and len(lora.coverage.kinds) > 1:
        return nothing(f"a file that mixes {' and '.join(lora.coverage.kinds)}")
    encoders = base.spec.encoder_prefixes.values()
    asked: dict[str, Any] = {
        "quantized": in_words(base.quantization),
        "network": network_in_words(lora.coverage.kinds[0], encoder=any(d.component in encoders for d in lora.deltas))
        if lora
        else "",
        "controls": len(settings.control),
        "snapped": snapped(settings),
    }
    mode = pipeline.mode if lora else None
    tag = vouching(base.spec, quantized=bool(asked["quantized"]))
    if tag is None:
        return nothing(f"{base.spec.id} as trainer {base.spec.toolkit} samples it")
    return covering(base.spec.id, mode, tag, **asked) or nothing(_words(base.spec.id, mode, **asked))


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
    quantized: str = "",
    network: str | None = None,
    controls: int | None = None,
    snapped: bool | None = None,
) -> dict[str, Any] | None:
    """The case with the same model and LoRA mode (None: no LoRA), and its verdict in the last committed summary; None
    if nothing vouches for that.

    Args:
        quantized: what is quantised, and how (`in_words`).
        network: `network_in_words`; None: any.
        controls: number of control images; None: any.
        snapped: does the model's rule change the size (`snapped`)? None: either.

    A mini case vouches for the wiring, not for the weights: it ran the same code on a miniature of the model.
    """
    asked = {"network": network, "controls": controls, "snapped": snapped}
    for row in _rows():
        same = (row["model"], row["lora"], row["quantized"]) == (model, lora_mode, quantized)
        if same and all(value in (None, row[name]) for name, value in asked.items()):
            return {"case": row["case"], "tag": tag, "tier": "mini",
                    "verdict": row["verdicts"].get(tag, "not checked"),
                    "device": "cpu", "dtype": "float32"}  # fmt: skip
    return None


def nothing(what: str) -> dict[str, Any]:
    """As receipts say it, for what no case vouches for."""
    return {"case": None, "why": f"nothing vouches for {what}"}


def snapped(settings: Settings) -> bool:
    """Does the model's own rule change the size that is asked for?"""
    return (settings.width, settings.height) != (settings.asked_width, settings.asked_height)


def network_in_words(kind: str, *, encoder: bool) -> str:
    """ "dora", or "lora, text encoder" where it changes that, too."""
    return f"{kind}, text encoder" if encoder else kind


def in_words(quantization: Quantization) -> str:
    """What a `Quantization` does to the base: "uint3, encoders, recovery"; empty where it does nothing."""
    q = quantization
    said = (q.type if q.quantize else "", "encoders" if q.encoders else "", "recovery" if q.adapter else "")
    return ", ".join(filter(None, said))


def _words(model: str, mode: str | None, *, quantized: str, network: str, controls: int, snapped: bool) -> str:
    parts = (
        model,
        f"with a {network}, {mode}" if network else "without a LoRA",
        f"on a quantised base ({quantized})" if quantized else "",
        f"with {controls} control image{'s' * (controls > 1)}" if controls else "",
        "at a size that the model's rule changes" if snapped else "",
    )
    return " ".join(filter(None, parts))


@cache
def _rows() -> list[dict[str, Any]]:
    return json.loads(VERIFIED.read_text(encoding="utf-8"))


def wanted() -> str:
    """What verified.json should hold: of every model the first checked mini case of each kind (`covering`), and its
    verdict at each tag; a line a case."""
    from lora_drift.harness.check import cases

    verdicts = {row.tag: _verdicts(ROOT / "reports" / row.tag / "summary.json") for row in tags.rows()}
    found: dict[str, dict[str, Any]] = {}
    plainest = ("base", "lora")
    for case in sorted(cases.load_all(), key=lambda case: case.id.partition("/")[2] not in plainest):
        if case.model not in MODELS or (case.base and not case.quantization):
            continue  # nothing checked it yet, or it vouches for another base model
        sample = case.sample
        named = {name: getattr(sample, name) for name in ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")}
        settings = resolve(MODELS[case.model], Request(sample.prompt, width=sample.width, height=sample.height,
                                                        num_frames=sample.num_frames, located=sample.located,
                                                        **named))  # fmt: skip
        kind = {
            "model": case.model,
            "lora": case.lora.mode if case.lora else None,
            "quantized": in_words(
                Quantization(**case.quantization.model_dump()) if case.quantization else Quantization()
            ),
            "network": network_in_words(case.lora.network.type, encoder=case.lora.text_encoder) if case.lora else "",
            "controls": len(settings.control),
            "snapped": snapped(settings),
        }
        key, told = json.dumps(kind), {tag: of[case.id] for tag, of in verdicts.items() if case.id in of}
        if key not in found or (told and not found[key]["verdicts"]):  # rather one that was checked
            found[key] = {"case": case.id, **kind, "verdicts": told}
    return "[\n" + ",\n".join(json.dumps(row) for row in found.values()) + "\n]\n"


def _verdicts(summary: Path) -> dict[str, str]:
    """Case -> verdict; empty where nothing was committed."""
    if not summary.is_file():
        return {}
    return {case["case"]: case["verdict"] for case in json.loads(summary.read_text(encoding="utf-8"))["cases"]}
