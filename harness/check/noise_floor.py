"""The noise floor of a case: how far apart renders are that are legally the same. Tolerances are derived from it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lora_drift.harness.check import metrics
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.trace import Rendered, errors

DETERMINISTIC = "deterministic kernels against default ones"
"""Part of a noise floor, but no tolerance is derived from it: in half precision other kernels make another picture."""

Render = Callable[[str | None], Rendered]
"""Renders the case once more, with its LoRA in this mode; None: in that of the case."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    import torch

    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def distances(a: Rendered, b: Rendered) -> dict[str, float]:
    """The judged distances between two renders of one case."""
    levels = {m.name: m.value or 0.0 for m in metrics.pixel_levels(a.frames, b.frames)}
    sound = (
        {"audio_rel_l2": metrics.relative_l2(a.audio, b.audio)} if a.audio is not None and b.audio is not None else {}
    )
    return {
        **sound,
        "latents_rel_l2": metrics.relative_l2(a.latents, b.latents),
        "pixel_max": levels["pixel_max"],
        "pixel_mean": levels["pixel_mean"],
        "trace": max(errors(a.trace, b.trace).values()),
    }


def repeats(
    render: Render, case: Case, *, device: str, dtype: str, on_cpu: Render | None = None
) -> Iterator[tuple[str, Rendered, Rendered]]:
    """(comparison, one render, the other) within this environment. `on_cpu`: the same on the CPU beside a GPU."""
    first = render(None)
    yield "same code again", first, render(None)
    if device != "cpu":
        with deterministic_kernels():
            yield DETERMINISTIC, render(None), first
    if on_cpu is not None:
        yield "this GPU against the CPU", first, on_cpu(None)
    if dtype != "float32":  # in half precision the order of operations makes another picture, in the trainer too
        return
    if case.lora is not None and not (case.quantization and case.quantization.quantize):
        yield "merged against live LoRA", render("merged"), render("live")
    if device == "cpu":
        with threads(2):
            yield "one thread against two", first, render(None)


def measure(
    render: Render, case: Case, *, device: str, dtype: str, on_cpu: Render | None = None
) -> dict[str, dict[str, float]]:
    """Comparison -> metric name -> distance: the noise floor of one case on this device."""
    pairs = repeats(render, case, device=device, dtype=dtype, on_cpu=on_cpu)
    return {name: distances(a, b) for name, a, b in pairs}
