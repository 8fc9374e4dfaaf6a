"""Quantised base models: what a job asks, and what the trainer then does to a loaded pipeline.

Follows toolkit/util/quantize.py; the arithmetic is in `quantized_layers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import lora
from lora_drift.pipelines.adapter import underneath
from lora_drift.pipelines.errors import LoraError, RequestError
from lora_drift.pipelines.lora import Lora, LowRank, Shapes, Targets
from lora_drift.pipelines.quantized_layers import QTYPES, Packed, quantize
from lora_drift.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn


UNRENDERED = {
    "convrot": "the trainer rotates weights and, depending on the GPU, multiplies in 8 or 4 bits or in the model's "
    "dtype, so that one job has other samples on another GPU",
    "nvfp4": "its scaled 4-bit numbers are not reproduced",
    "orbit": "its rotated numbers are not reproduced",
    "int8": "its 8-bit integers are not reproduced",
}
"""How a type of newer trainers (0.10.22 and later) begins -> why it is refused."""


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
            if why := next((why for start, why in UNRENDERED.items() if value.startswith(start)), ""):
                raise RequestError(f"{name} {value!r} is not rendered: {why}")
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
        """The model's own, or what the job says where the trainer reads that."""
        row = spec.quantizes
        return () if row is None else (*row.spared, *(self.exclude if row.reads == "exclude" else ()))


def recovery_adapter(quantization: Quantization, spec: ModelSpec, shapes: Shapes, targets: Targets) -> Lora | None:
    """The accuracy-recovery adapter, matched to the model.

    Raises:
        RequestError: it is neither a file nor on the hub, or belongs to another model.
    """
    given = quantization.adapter_of(spec)
    if given is None:
        return None
    try:
        adapter = lora.read({"": _file(given)}, spec, shapes, targets)
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
            quantize(denoiser, quantization.type, quantization.exclude_of(spec), layer_by_layer=row.layer_by_layer)
    if quantization.encoders:
        for name in row.encoders:
            qtype = quantization.qtype_te if row.encoder_qtype == "qtype_te" else quantization.type
            quantize(getattr(pipe, name), qtype)


def _with_adapter(denoisers: Mapping[str, nn.Module], qtype: str, adapter: Lora) -> None:
    """Quantise the layers that the adapter changes, and add it to what they give, in the model's dtype.

    The trainer asks for uint8 in all others, which its torchao cannot do: they stay as they are.
    """
    for delta in adapter.deltas:
        layer: Any = denoisers[delta.component].get_submodule(delta.module)
        dtype = layer.weight.dtype
        quantize(layer, qtype)
        assert isinstance(delta.change, LowRank)
        underneath(layer, delta.change, dtype)


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
