"""What rendered fuzzing came to, in one compact file: reports/fuzz.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_drift.harness.paths import ROOT

FILE = ROOT / "reports" / "fuzz.json"
NOTED = ("torch", "diffusers", "transformers", "pillow", "cpu")
"""Of the trainer's environment."""


def write(told: Mapping[str, Any], environment: Mapping[str, Any], file: Path = FILE) -> None:
    """Store the figures of a run: a line a model; those of other models, and the table of what was found and mended
    (`mended`, written by hand), stay."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    models = {**(before.get("models", {}) if before.get("tag") == told["tag"] else {}), **told["models"]}
    found = [{key: one[key] for key in ("kind", "models", "told")} for one in told["found"]]
    head = {"tag": told["tag"], "seed": told["seed"], "trainer": {name: environment[name] for name in NOTED}}
    parts = [f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in head.items()]
    for key, rows in (("found", found), ("mended", before.get("mended", []))):
        parts.append(f'"{key}": [' + ",".join(f"\n {json.dumps(row, ensure_ascii=False)}" for row in rows) + "]")
    lines = ",".join(f'\n "{model}": {json.dumps(figures)}' for model, figures in sorted(models.items()))
    parts.append(f'"models": {{{lines}}}')
    file.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def lines(told: Mapping[str, Any], seconds: float) -> list[str]:
    """For a person."""
    found = [f"{one['kind']} ({', '.join(one['models'])}): {one['told']}\n  {one['case']}" for one in told["found"]]
    table = [
        f"{model:26} {one['compared']:4} compared, {one['refused by both']} refused by both, {one['differs']} differ, "
        f"largest {one['pixel_max']:g} of 255, latents {one['latents_rel_l2']:.2g}, "
        f"pairs {one['pairs'][0]} -> {one['pairs'][1]} of {one['pairs'][2]}"
        for model, one in told["models"].items()
    ]
    compared = sum(one["compared"] for one in told["models"].values())
    return [*found, *table, f"{compared} samples, {len(found)} differences, {seconds:.0f} s"]
