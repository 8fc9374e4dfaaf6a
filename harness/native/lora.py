"""LoRA files in all the trainer's formats, as changes of the weights that ComfyUI has of a model.

ComfyUI's own loader finds no key of a Lumina LoRA, and reads a DoRA without its magnitudes; either way it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lora_drift.pipelines import adapter, lora
from lora_drift.pipelines.lora import Coverage, LowRank
from lora_drift.pipelines.registry import FAMILIES
from lora_drift.pipelines.spec import ModelSpec

Place = str | tuple[Any, ...]
"""Name of a weight, or (name, (axis, first row, rows)), or that and what else is done with a change: what ComfyUI calls
a key of a patch."""
NAMED = "transformer."
PREFIX = "diffusion_model."
LUMINA = {
    "attn.to_out.0": "attention.out",
    "norm1.linear": "adaLN_modulation.1",
    "feed_forward.linear_1": "feed_forward.w1",
    "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3",
}
"""Ends of Diffusers' names in Lumina 2 -> ComfyUI's."""


def patches(
    spec: ModelSpec, path: Path, names: Mapping[str, Place], weights: Mapping[str, torch.Tensor], strength: float
) -> tuple[dict[Place, torch.Tensor], Coverage]:
    """What is added to each weight.

    Args:
        names: ComfyUI's own table of keys, in which Diffusers' names stand behind "transformer.".
        weights: of the model, by ComfyUI's names.

    Raises:
        LoraError: the file is damaged or does not wholly belong to this model.
    """
    found = _lumina(weights) if spec.family == "lumina2" else _named(names, weights)
    (component,) = spec.denoisers.values()
    shapes = {component: {module: tuple(_rows(weights, place).shape) for module, place in found.items()}}
    read = lora.read({"": path}, spec, shapes, FAMILIES[spec.family].lora_targets)
    changes = {}
    for delta in read.deltas:
        place = found[delta.module]
        change = adapter.scaled(delta.change, strength)
        if isinstance(delta.change, LowRank) and delta.change.magnitude is not None:
            # The trainer stretches rows beside the layer; merged, it is the same (DoRA.py).
            moved = _rows(weights, place).float().cpu() + delta.change.weight() * strength
            change = change + (delta.change.magnitude / moved.norm(dim=1) - 1)[:, None] * moved
        changes[place] = change
    return changes, read.coverage


def _named(names: Mapping[str, Place], weights: Mapping[str, torch.Tensor]) -> dict[str, Place]:
    """Those of the table that this model has."""
    found = {name.removeprefix(NAMED): place for name, place in names.items() if name.startswith(NAMED)}
    return {name: place for name, place in found.items() if (place if isinstance(place, str) else place[0]) in weights}


def _rows(weights: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:
    if isinstance(place, str):
        return weights[place]
    name, part = place[:2]
    return weights[name] if part is None else weights[name].narrow(*part)


def _lumina(weights: Mapping[str, torch.Tensor]) -> dict[str, Place]:
    """Diffusers' name of each module of the blocks -> its place. Queries have more heads than keys and values."""
    found: dict[str, Place] = {}
    for name, weight in weights.items():
        block, fused, _ = name.removeprefix(PREFIX).partition(".attention.qkv.weight")
        if not fused:
            continue
        inner = weights[f"{PREFIX}{block}.attention.out.weight"].shape[1]
        others = (len(weight) - inner) // 2
        for part, first, rows in (("q", 0, inner), ("k", inner, others), ("v", inner + others, others)):
            found[f"{block}.attn.to_{part}"] = (name, (0, first, rows))
        ends = {ours: f"{PREFIX}{block}.{theirs}.weight" for ours, theirs in LUMINA.items()}
        found |= {f"{block}.{ours}": theirs for ours, theirs in ends.items() if theirs in weights}
    return found
