"""Rounding that the trainer, the LoRA file or the kernels did: undone where it can be, else measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lora_drift.harness.check.metrics import Array, mean_difference
from lora_drift.pipelines.adapter import scaled
from lora_drift.pipelines.lora import LowRank, on_device

if TYPE_CHECKING:
    from lora_drift.harness.trainer.jobs.verify import Asked, Renderer
    from lora_drift.pipelines import Pipeline
    from lora_drift.pipelines.lora import Lora

ROUNDINGS = 3
"""LoRAs that a file may have been rounded from, of which the one that moves the picture most is believed."""
WORN = "the trainer merged earlier LoRAs into the base and took them out again, which left rounding behind"


@contextmanager
def worn(pipeline: Pipeline, loras: Iterable[Lora], multiplier: float) -> Iterator[None]:
    """`pipeline` with its base after `loras` were merged and taken out, one by one (the trainer's `merge_out`)."""
    adapter = pipeline.base.adapter
    adapter.set(None)
    originals: dict[Any, Any] = {}
    try:
        for lora in loras:
            for delta in lora.deltas:
                if isinstance(delta.change, LowRank) and delta.change.magnitude is not None:
                    continue  # a DoRA is never merged
                module: Any = adapter.parts[delta.component].get_submodule(delta.module)
                weight = module.weight.data
                originals.setdefault(module, weight.to("cpu", copy=True))
                change = scaled(on_device(delta.change, weight.device), multiplier)
                merged = (weight.float() + change).to(weight.dtype)
                module.weight.data = (merged.float() - change).to(weight.dtype)
        yield
    finally:
        adapter.set(None)
        for module, original in originals.items():
            module.weight.data = original.to(module.weight.device)


def effects(one: Asked, renderer: Renderer, ours: Array, encode: Callable[[Array], Array]) -> dict[str, float]:
    """Mean pixel differences, after encoding, of renders that are equally correct as ours.

    The trainer keeps a LoRA in float32 and rounds what it saves: any value that rounds to the file's may have been the
    one that made the sample. Merging an earlier LoRA and taking it out rounds the base. And in bfloat16, kernels that
    compute the same round to other pictures.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found = {}
    if one.checkpoint is not None:
        drawn = []
        for seed in range(ROUNDINGS):
            with TemporaryDirectory() as scratch:
                moved = {n: _unrounded(path, Path(scratch), seed) for n, path in one.checkpoint.files.items()}
                files = {name: path for name, path in moved.items() if path is not None}
                if not files:  # in float32 already
                    break
                other = renderer.frames(one, {**one.checkpoint.files, **files})
                drawn.append(mean_difference(ours, encode(other)))
        if drawn:
            found["the trainer sampled with float32 weights, which the LoRA file holds rounded"] = max(drawn)
    if one.earlier and one.checkpoint is not None:
        other = renderer.frames(one, after=[one.checkpoint])  # instead of those, which may not be there
        found[WORN] = mean_difference(ours, encode(other))
    if renderer.pipeline.base.dtype != "float32":
        with sdpa_kernel([SDPBackend.MATH]):
            found[f"another torch or device rounds {renderer.pipeline.base.dtype} otherwise"] = mean_difference(
                ours, encode(renderer.frames(one))
            )
    return found


def _unrounded(path: Path, folder: Path, seed: int) -> Path | None:
    """The LoRA with every weight moved at random within what rounds to it; None if it is in float32 already."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    if all(tensor.dtype == torch.float32 for tensor in tensors.values()):
        return None
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for key, tensor in tensors.items():
        value = tensor.float()
        if tensor.dtype != torch.float32 and not key.endswith("alpha"):
            _, exponent = torch.frexp(value)
            last_place = torch.ldexp(torch.full_like(value, torch.finfo(tensor.dtype).eps), exponent - 1)
            value = value + last_place * (torch.rand(value.shape, generator=generator) - 0.5)
        moved[key] = value
    save_file(moved, folder / path.name)
    return folder / path.name
