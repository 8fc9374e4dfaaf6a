"""Is a render made of numbers? One that is not would be saved as a black picture that looks like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines.adapter import scaled
from lora_drift.pipelines.lora import Lora

if TYPE_CHECKING:
    import torch
    from torch import nn

ENCODERS = ("text_encoder", "mllm", "image_encoder")
DECODERS = ("vae", "audio_vae")
HUGE = 1e4
"""No training changes a weight by so much."""


class Stages:
    """What passed each stage of one render. The device is asked once, at the end."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, torch.Tensor]] = []
        self._calls: dict[str, int] = {}

    def note(self, stage: str, value: Any) -> None:
        for tensor in _tensors(value):
            if tensor.is_floating_point() and tensor.numel():
                least, most = tensor.detach().aminmax()  # both are NaN if one number is; needs no memory
                self._seen.append((stage, most.isfinite() & least.isfinite()))

    def call(self, stage: str, value: Any) -> None:
        """The same, with the number of the call."""
        self._calls[stage] = self._calls.get(stage, 0) + 1
        self.note(f"{stage} (call {self._calls[stage]})", value)

    @property
    def first(self) -> str:
        """The first stage that made something not finite; "" if what was decoded is finite.

        Text encoders may hold NaN where nothing reads it, so that the end decides.
        """
        broken = [stage for stage, finite in self._seen if not bool(finite)]
        return broken[0] if any(stage.startswith("decoding") for stage in broken) else ""


@contextmanager
def watched(components: Mapping[str, Any], denoisers: Mapping[str, nn.Module]) -> Iterator[Stages]:
    """While the block runs, the stages of a pipeline with these components are noted."""
    from torch import nn

    stages = Stages()
    with ExitStack() as stack:

        def hook(module: nn.Module, stage: str) -> None:
            def after(_module: Any, _args: Any, output: Any) -> None:
                stages.call(stage, output)

            stack.callback(module.register_forward_hook(after).remove)

        for role, component in components.items():
            if isinstance(component, nn.Module) and role.startswith(ENCODERS):
                hook(component, f"encoding the prompt: {role}")
            elif role in DECODERS and component is not None:
                stack.enter_context(_decoding(component, stages, f"decoding: {role}"))
        for name, denoiser in denoisers.items():
            hook(denoiser, f"denoising: {name}")
        yield stages


@contextmanager
def _decoding(vae: Any, stages: Stages, stage: str) -> Iterator[None]:
    decode: Callable[..., Any] = vae.decode
    had = "decode" in vars(vae)

    @wraps(decode)
    def noted(*args: Any, **kwargs: Any) -> Any:
        result = decode(*args, **kwargs)
        stages.call(stage, result)
        return result

    vae.decode = noted
    try:
        yield
    finally:
        if had:
            vae.decode = decode
        else:
            del vae.decode


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        # An encoder's last state: those before it follow, and its cache and masks are no numbers of the render.
        last = value.get("last_hidden_state")
        yield from _tensors(list(value.values()) if last is None else last)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def words(stage: str, parts: Mapping[str, nn.Module], lora: Lora | None, multiplier: float, dtype: str) -> str:
    """That the render holds no numbers, where that began, and what made it so. `parts`: those that a LoRA changes."""
    said = f"the render holds no numbers (NaN or infinity), so there is no picture; they began at {stage}. "
    weight = next((f"{part}.{name}" for part, module in parts.items() for name, values in _weights(module)
                   if not bool(values.isfinite().all())), None)  # fmt: skip
    if lora is None:
        if weight is not None:
            return said + f"The base model's {weight} is not finite: fetch the base model again."
        return said + f"The base model itself makes them in {dtype}: try float32, or another size or prompt."
    for delta in lora.deltas:
        change = scaled(delta.change, multiplier * lora.strengths.get(delta.component, 1.0))
        if not bool(change.isfinite().all()):
            return said + (f"The LoRA's change of {delta.module} is not finite: its scale (alpha / rank) is "
                           f"{delta.change.scale:g}, the multiplier {multiplier:g}. Give a smaller multiplier, or take "
                           "an earlier checkpoint.")  # fmt: skip
    largest = max(float(scaled(delta.change, multiplier).abs().max()) for delta in lora.deltas)
    said += f"The LoRA changes weights by up to {largest:.3g} at multiplier {multiplier:g}"
    if largest > HUGE:
        return said + ": that is no training's. Give a smaller multiplier, or take an earlier checkpoint."
    return said + f"; without it, or in float32 (this is {dtype}), it may render."


def _weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, values) for name, values in module.named_parameters() if values.is_floating_point())
