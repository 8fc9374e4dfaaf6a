"""Layers whose weights are kept in few bits: the trainer's qfloat8 (optimum-quanto 0.2.4), its uint2 to uint7 and its
float8 (torchao 0.10.0).

Follows toolkit/util/quantize.py. Both libraries keep a weight in few bits, and turn it back into numbers of the model's
dtype whenever its layer runs; so does `Packed` here, with the same arithmetic in the same order. Neither library is
needed: torchao has dropped the uint types since, and the trainer's release of it does not go with current ones.
tests/quantized.json holds what the real ones made of random matrices; they are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

GROUP = 64
"""Numbers of a row that share a scale, in the uint types."""
BITS = {"uint2": 2, "uint3": 3, "uint4": 4, "uint5": 5, "uint6": 6, "uint7": 7, "uint8": 8}
QTYPES = ("qfloat8", "float8", *BITS)


# --------------------------------------------------------------------------------------------------------- one layer


def pack(weight: torch.Tensor, qtype: str) -> dict[str, torch.Tensor] | None:
    """Tensors that stand for a weight: `data` (bytes), `scale`, and for the uints `zero`; all [rows, groups, ...].

    None where the trainer's library fails, upon which the trainer leaves the layer as it is.
    """
    import torch

    rows = weight.shape[0]
    if qtype == "qfloat8":
        grouped = weight.reshape(1 if rows == 1 else rows, 1, -1)
        scale = grouped.abs().amax(-1, keepdim=True) / 448.0
        return {"data": (grouped / scale).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8), "scale": scale}
    epsilon = torch.finfo(torch.float32).eps
    if qtype == "float8":
        grouped = weight.reshape(rows, 1, -1)
        scale = (grouped.abs().amax(-1, keepdim=True) / 448.0).clamp(min=epsilon)
        data = (grouped * scale.reciprocal()).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {"data": data.view(torch.uint8), "scale": scale}
    if qtype == "uint8" or weight.shape[1] % GROUP:
        return None  # torchao 0.10.0 has no layout for uint8, and none for a rest of a group
    most = 2 ** BITS[qtype] - 1
    grouped = weight.reshape(rows, -1, GROUP)
    low, high = grouped.amin(-1, keepdim=True).clamp(max=0), grouped.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / float(most)).clamp(min=epsilon)
    zero = (0 - torch.round(low / scale)).clamp(0, most).to(torch.int32)
    data = (torch.round(grouped * (1.0 / scale)) + zero).clamp(0, most).to(torch.uint8)
    return {"data": data, "scale": scale, "zero": zero}


class Packed:
    """Goes before a layer's own class: `weight` is computed from the bytes that are kept."""

    packed_data: torch.Tensor
    packed_scale: torch.Tensor
    packed_zero: torch.Tensor | None
    packed_shape: tuple[int, ...]

    @property
    def weight(self) -> torch.Tensor:
        import torch

        data, scale, zero = self.packed_data, self.packed_scale, self.packed_zero
        numbers = data.view(torch.float8_e4m3fn) if zero is None else data.int() - zero
        return (numbers.to(scale.dtype) * scale).view(self.packed_shape)


@cache
def _classes() -> dict[str, type]:
    """Classes of quantised layers that are of one class whatever they were before, as quanto makes them."""
    from torch import nn

    class QLinear(Packed, nn.Linear):  # type: ignore[override]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output = nn.functional.linear(x.to(self.packed_scale.dtype), self.weight)
            return output if self.bias is None else output + self.bias

    class QConv2d(Packed, nn.Conv2d):  # type: ignore[override]
        pass

    return {"linear": QLinear, "conv": QConv2d}


@cache
def _packed(cls: Any) -> type:
    return type(f"Packed{cls.__name__}", (Packed, cls), {})


def _replace_weight(module: Any, packed: dict[str, torch.Tensor], cls: type) -> None:
    shape = tuple(module.weight.shape)
    del module.weight
    for name in ("data", "scale", "zero"):
        module.register_buffer(f"packed_{name}", packed.get(name))
    module.packed_shape = shape
    module.__class__ = cls


# ------------------------------------------------------------------------------------------------------- whole models


def quantize(model: nn.Module, qtype: str, exclude: Iterable[str] = (), *, layer_by_layer: bool = True) -> None:
    """Quantise the layers of `model` that the trainer's `quantize` would (`layer_by_layer`: see `Quantizes`)."""
    from torch import nn

    exclude = tuple(exclude)
    for name, module in list(model.named_modules()):
        if any(fnmatch(name, pattern) for pattern in exclude):
            continue
        if layer_by_layer and qtype != "qfloat8" and not isinstance(module, nn.Linear):
            continue
        if qtype != "qfloat8":
            _quantize_below(module, qtype)
        elif not isinstance(module, Packed):
            kind = "linear" if isinstance(module, nn.Linear) else "conv" if isinstance(module, nn.Conv2d) else None
            if kind:
                packed = pack(module.weight.data, qtype)
                assert packed is not None
                _replace_weight(module, packed, _classes()[kind])


def _quantize_below(module: nn.Module, qtype: str) -> None:
    """What is handed to torchao, which walks through all below it, up to the first that fails: what
    is excluded by name is quantised all the same, as part of what holds it."""
    for layer in _linears(module):
        packed = pack(layer.weight.data, qtype)
        if packed is None:
            return
        _replace_weight(layer, packed, _packed(layer.__class__))


def _linears(module: nn.Module) -> Iterator[Any]:
    from torch import nn
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

    for layer in module.modules():
        if isinstance(layer, nn.Linear) and not isinstance(layer, Packed | NonDynamicallyQuantizableLinear):
            yield layer
