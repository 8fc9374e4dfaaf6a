"""Quantised base models: the trainer's qfloat8 (optimum-quanto 0.2.4), its uint2 to uint7 and its float8 (torchao
0.10.0).

Follows toolkit/util/quantize.py. Both libraries keep a weight in few bits, and turn it back into numbers of the model's
dtype whenever its layer runs; so does `Packed` here, with the same arithmetic in the same order. Neither library is
needed: torchao has dropped the uint types since, and the trainer's release of it does not go with current ones.
tests/quantized.json holds what the real ones made of random matrices; they are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines.errors import LoraError, RequestError
from lora_drift.pipelines.lora import LowRank

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_drift.pipelines.lora import Lora, Shapes
    from lora_drift.pipelines.spec import ModelSpec

GROUP = 64
"""Numbers of a row that share a scale, in the uint types."""
BITS = {"uint2": 2, "uint3": 3, "uint4": 4, "uint5": 5, "uint6": 6, "uint7": 7, "uint8": 8}
QTYPES = ("qfloat8", "float8", *BITS)


@dataclass(frozen=True)
class Quantization:
    """What the trainer's `model:` section says about it, in the trainer's names and with its defaults."""

    quantize: bool = False
    """The denoiser."""
    quantize_te: bool | None = None
    """The text encoder(s); None: as `quantize`."""
    qtype: str = "qfloat8"
    """A member of `QTYPES`; `TYPE|ADAPTER` names the accuracy-recovery adapter too, as the trainer's UI writes it."""
    qtype_te: str = "qfloat8"
    """Read by some models only; the others take `qtype` (`ModelSpec.quantizes`)."""
    accuracy_recovery_adapter: str | None = None
    """A file, or ORG/NAME/FILE of the hub: a LoRA that stays live. Only the layers that it changes are quantised."""
    exclude: tuple[str, ...] = ()
    """The trainer's `quantize_kwargs.exclude`: patterns of module names."""

    @property
    def encoders(self) -> bool:
        return self.quantize if self.quantize_te is None else self.quantize_te

    @property
    def type(self) -> str:
        return self.qtype.partition("|")[0]

    @property
    def adapter(self) -> str | None:
        return self.qtype.partition("|")[2] or self.accuracy_recovery_adapter

    def check(self, spec: ModelSpec) -> None:
        """Refuse what the trainer refuses or breaks on, and what is not reproduced (before weights load).

        Raises:
            RequestError: names the field.
        """
        for name, value in (("qtype", self.type), ("qtype_te", self.qtype_te)):
            if value not in QTYPES:
                raise RequestError(f"{name} {value!r}: use {', '.join(QTYPES)}")
        if self.adapter and not self.quantize:
            raise RequestError(f"accuracy_recovery_adapter {self.adapter}: it is read with quantize only; add that")
        if self.adapter_of(spec) and self.type == "qfloat8":
            raise RequestError(
                f"accuracy_recovery_adapter {self.adapter} with qtype qfloat8: the trainer breaks on it; name the "
                "qtype that the adapter was made for (uint3, uint4, ...)"
            )

    def adapter_of(self, spec: ModelSpec) -> str | None:
        """The adapter, where the trainer reads it for this model."""
        return self.adapter if spec.quantizes and spec.quantizes.reads == "adapter" else None

    def exclude_of(self, spec: ModelSpec) -> tuple[str, ...]:
        return self.exclude if spec.quantizes and spec.quantizes.reads == "exclude" else ()


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


def quantize(model: nn.Module, qtype: str, exclude: Iterable[str] = ()) -> None:
    """Quantise the layers of `model` that the trainer's `quantize` would."""
    from torch import nn

    exclude = tuple(exclude)
    for name, module in list(model.named_modules()):
        if any(fnmatch(name, pattern) for pattern in exclude):
            continue
        if qtype != "qfloat8":
            _with_torchao(module, qtype)
        elif not isinstance(module, Packed):
            kind = "linear" if isinstance(module, nn.Linear) else "conv" if isinstance(module, nn.Conv2d) else None
            if kind:
                packed = pack(module.weight.data, qtype)
                assert packed is not None
                _replace_weight(module, packed, _classes()[kind])


def _with_torchao(module: nn.Module, qtype: str) -> None:
    """Each module of a model is handed to torchao, which walks through all below it, up to the first that fails: what
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


# --------------------------------------------------------------------------------------------------- a loaded pipeline


def recovery_adapter(quantization: Quantization, spec: ModelSpec, shapes: Shapes) -> Lora | None:
    """The accuracy-recovery adapter, matched to the model.

    Raises:
        RequestError: it is neither a file nor on the hub, or belongs to another model.
    """
    from lora_drift.pipelines import lora

    given = quantization.adapter_of(spec)
    if given is None:
        return None
    try:
        adapter = lora.read({"": _file(given)}, spec, shapes)
    except LoraError as error:
        raise RequestError(f"accuracy_recovery_adapter {given}: {error}") from error
    if any(not isinstance(delta.change, LowRank) for delta in adapter.deltas):
        raise RequestError(f"accuracy_recovery_adapter {given}: only plain LoRAs are reproduced; this is another kind")
    return adapter


def _file(given: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    if Path(given).exists():
        return Path(given)
    organisation, _, rest = given.partition("/")
    name, _, file = rest.partition("/")
    if not file or "/" in file:
        raise RequestError(f"accuracy_recovery_adapter {given}: no such file; give one, or ORG/NAME/FILE of the hub")
    try:
        return Path(hf_hub_download(f"{organisation}/{name}", file))
    except (OSError, HFValidationError) as error:
        raise RequestError(f"accuracy_recovery_adapter {given}: neither here nor on the hub ({error})") from error


def apply(pipe: Any, spec: ModelSpec, quantization: Quantization, adapter: Lora | None) -> None:
    """Quantise a loaded pipeline, in the trainer's order: denoisers (with the adapter, if there is one), encoders."""
    row = spec.quantizes
    if row is None:
        return
    denoisers = {name: getattr(pipe, name) for name in spec.denoisers.values()}
    if quantization.quantize and adapter is not None:
        _with_adapter(denoisers, quantization.type, adapter)
    elif quantization.quantize:
        for denoiser in denoisers.values():
            quantize(denoiser, quantization.type, quantization.exclude_of(spec))
    if quantization.encoders:
        for name in row.encoders:
            qtype = quantization.qtype_te if row.encoder_qtype == "qtype_te" else quantization.type
            quantize(getattr(pipe, name), qtype)


def _with_adapter(denoisers: Mapping[str, nn.Module], qtype: str, adapter: Lora) -> None:
    """Quantise the layers that the adapter changes, and add it to what they give, in the model's dtype.

    The trainer asks for uint8 in all others, which its torchao cannot do: they stay as they are.
    """
    from lora_drift.pipelines.adapter import live

    for delta in adapter.deltas:
        layer: Any = denoisers[delta.component].get_submodule(delta.module)
        dtype = layer.weight.dtype
        quantize(layer, qtype)
        assert isinstance(delta.change, LowRank)
        change = replace(delta.change, down=delta.change.down.to(dtype), up=delta.change.up.to(dtype))
        layer.register_forward_hook(live(change, layer, 1.0))


def report(pipe: Any, spec: ModelSpec, quantization: Quantization, adapter: Lora | None) -> dict[str, Any]:
    """For the receipt: what was asked, and how many linear layers of each part are quantised, of how many."""
    from torch import nn

    row, found = spec.quantizes, {}
    for name in (*spec.denoisers.values(), *row.encoders) if row else ():
        linear = [m for m in getattr(pipe, name).modules() if isinstance(m, nn.Linear)]
        if packed := sum(isinstance(m, Packed) for m in linear):
            found[name] = f"{packed} of {len(linear)} linear layers"
    files = dict(zip((p.name for p in adapter.paths), adapter.sha256, strict=True)) if adapter else {}
    return {**asdict(quantization), "quantized": found, "adapter": files}
