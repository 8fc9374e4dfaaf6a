"""What rendered fuzzing came to, in one compact file: reports/fuzz.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_drift.harness.paths import ROOT

FILE = ROOT / "reports" / "fuzz.json"
NOTED = ("torch", "diffusers", "transformers", "pillow", "cpu")
"""Of the trainer's environment."""


def write(told: Mapping[str, Any], environment: Mapping[str, Any], file: Path = FILE) -> None:
    """Store the figures of a run, those of each seed by themselves: a line a model. Those of other models and seeds,
    and the table of what was found and mended (`mended`, written by hand), stay."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    seeds = before["seeds"] if before.get("tag") == told["tag"] else {}
    here = seeds.setdefault(str(told["seed"]), {"found": [], "models": {}})
    here["found"] = [one for one in here["found"] if not {*one["models"]} & told["models"].keys()] + [
        {key: one[key] for key in ("kind", "models", "told")} for one in told["found"]
    ]
    here["models"] = dict(sorted({**here["models"], **told["models"]}.items()))
    head = {"tag": told["tag"], "trainer": {name: environment[name] for name in NOTED}}
    parts = [f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in head.items()]
    parts.append(f'"mended": {_rows(before.get("mended", []))}')
    drawn = []
    for seed, one in sorted(seeds.items()):
        lines = ",".join(f'\n "{model}": {json.dumps(figures)}' for model, figures in one["models"].items())
        drawn.append(f'"{seed}": {{"found": {_rows(one["found"])},\n"models": {{{lines}}}}}')
    parts.append('"seeds": {\n' + ",\n".join(drawn) + "}")
    file.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def _rows(rows: Sequence[Any]) -> str:
    return "[" + ",".join(f"\n {json.dumps(row, ensure_ascii=False)}" for row in rows) + "]"


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
