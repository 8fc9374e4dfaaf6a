"""Puts LoRAs into denoisers and text encoders and takes them out again, with the trainer's arithmetic.

PEFT is not used: it computes in the adapter's dtype, while the trainer multiplies in float32 and rounds once, both
merged and live (toolkit/network_mixins.py `merge_in` and `forward`, toolkit/models/lokr.py, toolkit/models/DoRA.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines.lora import Delta, LoKr, Lora, LowRank, on_device
from lora_drift.pipelines.quantized_layers import Packed
from lora_drift.pipelines.settings import LoraMode

if TYPE_CHECKING:
    import torch
    from torch import nn

Modules = set[Any]
RENDERS_IN = 8 * 2**30
"""Bytes that are left free for renders where original weights stay on the device: a picture of 1024x1024 takes 2.6 GB
beside the weights, a video of 41 frames 6 GB (docs/performance.md). What takes more sends them away (`make_room`)."""


class Adapter:
    """The LoRA state of the parts of a model that LoRAs change: its denoisers, perhaps its text encoders.

    Merging keeps the original weights aside, so that taking out restores their exact bits (the trainer subtracts,
    which leaves rounding behind in its own base weights), and the next LoRA merges into those. They stay where they are
    if a render still fits beside them, for moving them takes longer than all the rest; else they lie in main memory.
    """

    def __init__(self, parts: Mapping[str, nn.Module], changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called before the first render, and whenever weights have become others."""
        self.parts, self._changed = parts, changed
        self._state: tuple[Any, ...] | None = ()  # that of no LoRA, nor of the base: the first call prepares it
        self._originals: dict[Any, torch.Tensor] = {}
        self._hooks: list[Any] = []

    def set(self, lora: Lora | None, multiplier: float = 1.0, mode: LoraMode = "merged") -> None:
        """Make `lora` the one that is applied; None restores the base model."""
        state: tuple[Any, ...] | None = None
        if lora is not None:
            experts = {delta.component for delta in lora.deltas}  # the same file may be given to one or to the other
            state = (lora.sha256, lora.strengths, experts, multiplier, mode)
        if state == self._state:
            return
        self._state = ()
        self._unhook()
        merged = Modules()
        try:
            if lora is not None:
                changed = {self._module(delta) for delta in lora.deltas} if mode == "merged" else Modules()
                stay = fit(module.weight for module in changed - self._originals.keys())
                for delta in lora.deltas:
                    self._apply(delta, multiplier * lora.strengths.get(delta.component, 1.0), mode, merged, stay)
            self._restore(self._originals.keys() - merged)
            self._changed()
        except BaseException:  # out of memory, an interrupt: the base must not stay half merged
            self._unhook()
            self._restore(Modules(self._originals))
            raise
        self._state = state

    def _apply(self, delta: Delta, multiplier: float, mode: LoraMode, merged: Modules, stay: bool) -> None:
        module = self._module(delta)
        packed = isinstance(module, Packed)
        change = on_device(delta.change, (module.packed_data if packed else module.weight).device)
        if isinstance(change, LowRank) and change.magnitude is not None:
            mode = "live"  # the trainer never merges a DoRA
        if mode == "merged":
            assert not packed, "a quantised weight takes no change"
            weight = module.weight.data
            if module not in self._originals:
                self._originals[module] = weight if stay else in_main_memory(weight)
            elif module not in merged:
                weight = self._originals[module].to(weight.device)
            merged.add(module)
            module.weight.data = where_it_was(weight, weight.float() + scaled(change, multiplier))
        elif multiplier != 0:
            self._hooks.append(module.register_forward_hook(live(change, module, multiplier)))

    def make_room(self) -> bool:
        """Send the originals that stayed on a device to main memory; False: there were none."""
        there = {module: weight for module, weight in self._originals.items() if weight.device.type != "cpu"}
        self._originals |= {module: in_main_memory(weight) for module, weight in there.items()}
        return bool(there)

    def _module(self, delta: Delta) -> Any:
        return self.parts[delta.component].get_submodule(delta.module)

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _restore(self, modules: Modules) -> None:
        for module in modules:
            module.weight.data = self._originals.pop(module).to(module.weight.device)


def fit(weights: Iterable[torch.Tensor]) -> bool:
    """Do these weights fit on their device once more, and a render beside them? Of the CPU's that is not asked."""
    import torch

    needed: dict[torch.device, int] = {}
    for weight in weights:
        needed[weight.device] = needed.get(weight.device, 0) + weight.nbytes
    for device, size in needed.items():
        if device.type not in ("cpu", "cuda"):
            return False
        if device.type == "cuda":
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            if torch.cuda.mem_get_info(device)[0] + unused < size + RENDERS_IN:
                return False
    return True


def in_main_memory(weight: torch.Tensor) -> torch.Tensor:
    """A copy; of a CUDA device's in pinned memory, which moves several times as fast."""
    import torch

    return torch.empty_like(weight, device="cpu", pin_memory=weight.device.type == "cuda").copy_(weight)


def where_it_was(weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`values` in the weight's dtype, in memory that begins as far from a multiple of 64 bytes as the weight's does.

    The trainer merges into the memory that it loaded (`load_state_dict`), which a checkpoint file seldom aligns, and
    the CPU sums a product of one row, as in a time embedding, in another order where memory is aligned otherwise.
    """
    if weight.device.type != "cpu":
        return values.to(weight.dtype)
    ahead = weight.data_ptr() % 64 // weight.element_size()
    room = weight.new_empty(ahead + weight.numel())  # begins at a multiple of 64
    return room[ahead:].as_strided(weight.shape, weight.stride()).copy_(values)


def scaled(change: LowRank | LoKr, multiplier: float) -> torch.Tensor:
    """What is added to the weight, float32, in the trainer's order of operations."""
    if isinstance(change, LoKr):
        return change.weight() * change.scale * multiplier
    return multiplier * change.weight() * change.scale


def live(change: LowRank | LoKr, module: Any, multiplier: float) -> Any:
    """A forward hook: (module, inputs, output) -> output with the change, computed in the change's dtype."""
    from torch import nn
    from torch.nn import functional

    def operate(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if isinstance(module, nn.Linear):
            return functional.linear(x, weight, bias)
        return functional.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)

    def here(x: torch.Tensor) -> Any:
        nonlocal change
        change = on_device(change, x.device)  # with offloading, weights are elsewhere when the hook is made
        return change

    def lokr(_module: nn.Module, args: tuple[torch.Tensor, ...], _output: torch.Tensor) -> torch.Tensor:
        # The trainer rounds the change to the weight's dtype first and then runs one operation (lokr.py _call_forward).
        weight, change = module.weight, here(args[0])
        delta = (change.weight() * change.scale).to(weight.dtype)
        return operate(args[0].to(weight.dtype), weight + delta * multiplier, module.bias).to(args[0].dtype)

    def low_rank(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        change = here(args[0])
        x = args[0].to(change.down.dtype)
        up = functional.linear if isinstance(module, nn.Linear) else functional.conv2d
        delta = up(operate(x, change.down), change.up)
        if change.rows is not None:
            delta = delta[..., change.rows]
        added = (delta * change.scale * multiplier).to(output.dtype)
        if change.magnitude is not None:
            mean = change.down.new_full(output.shape[:1], multiplier).mean()  # of one for each row, which may round
            weight = module.weight.float() + change.weight() * mean
            stretch = change.magnitude / weight.norm(dim=1) - 1
            added = added + (stretch.view(1, -1) * functional.linear(x, weight)).to(output.dtype)
        return output + added  # in the trainer's order (network_mixins.py), which rounds otherwise than one by one

    return lokr if isinstance(change, LoKr) else low_rank


def underneath(layer: Any, change: LowRank, dtype: torch.dtype) -> Any:
    """Add `change`, computed in `dtype`, to what a layer gives, and let a live LoRA add to that; returns the handle.

    A live LoKr computes the layer anew, and would drop it: it comes behind one.
    """
    change = replace(change, down=change.down.to(dtype), up=change.up.to(dtype))
    anew = any(getattr(hook, "__name__", "") == "lokr" for hook in layer._forward_hooks.values())
    return layer.register_forward_hook(live(change, layer, 1.0), prepend=not anew)
