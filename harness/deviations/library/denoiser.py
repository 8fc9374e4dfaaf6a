"""What the denoiser computes: other features in its blocks, answers that are not computed at all."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

from lora_drift.harness.check.divergence import DENOISER
from lora_drift.harness.deviations.library.base import Subject, answering, families, patched, variation


@variation(
    "denoiser",
    shows=DENOISER,
    source="FreeU: ComfyUI's FreeU node, A1111's extension, Diffusers' enable_freeu, with its authors' numbers",
    applies=families("sd"),
)
def freeu(s: Subject) -> Iterator[Subject]:
    """FreeU: the U-Net's decoder makes more of its own features and less of what it is handed from the encoder."""
    factors = {"s1": 0.9, "s2": 0.2, **({"b1": 1.3, "b2": 1.4} if s.spec.id == "sdxl" else {"b1": 1.5, "b2": 1.6})}
    with ExitStack() as stack:
        for block in s.denoisers[0].up_blocks:
            for name, factor in factors.items():
                stack.enter_context(patched(block, name, factor))
        yield s


@variation(
    "denoiser",
    shows=DENOISER,
    source="TeaCache, EasyCache and MagCache (ComfyUI, WanVideoWrapper, Diffusers hooks), which skip whole steps",
    applies=lambda s: s.settings.steps > 2,
)
def second_step_from_a_cache(s: Subject) -> Iterator[Subject]:
    """The denoiser answers in the second step what it answered in the first."""
    now, kept = SimpleNamespace(step=0, call=0), list[Any]()

    def act(step: int) -> None:
        now.step, now.call = step, 0

    def change(output: Any) -> Any:
        now.call += 1
        if now.step == 0:
            kept.append(copy.deepcopy(output))
        # Pipelines work on answers in place.
        return copy.deepcopy(kept[now.call - 1]) if now.step == 1 else None

    with ExitStack() as stack:
        for denoiser in s.denoisers:
            stack.enter_context(answering(denoiser, change))
        yield s.before_each_step(act)
