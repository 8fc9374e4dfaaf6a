"""LoRA files: read, matched to a model before its weights load, and applied with the trainer's arithmetic.

PEFT is not used: it computes in the adapter's dtype, while the trainer multiplies in float32 and rounds once, both
merged and live (toolkit/network_mixins.py, `merge_in` and `forward`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import LoraError
from pipelines.settings import LoraMode
from pipelines.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

PARTS = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "alpha": "alpha",
}


@dataclass(frozen=True)
class Delta:
    """The low-rank change of one module: `scale * up @ down`, float32.

    Shapes: Linear down [rank, in], up [out, rank]; Conv2d down [rank, in, kh, kw], up [out, rank, 1, 1].
    """

    module: str
    down: torch.Tensor
    up: torch.Tensor
    scale: float
    """alpha / rank; 1 for files without alpha (the trainer forces alpha = rank for transformers)."""

    def weight(self) -> torch.Tensor:
        """The change in the shape of the module's weight, without multiplier and scale."""
        import torch

        if self.down.dim() == 2:
            return self.up @ self.down
        return torch.nn.functional.conv2d(self.down.permute(1, 0, 2, 3), self.up).permute(1, 0, 2, 3)


@dataclass(frozen=True)
class Coverage:
    """How much of a file reached the model."""

    keys: int
    applied: int
    modules: int
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    unmatched: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "unmatched": list(self.unmatched[:20])}


@dataclass(frozen=True)
class Lora:
    """A LoRA file matched to one model."""

    path: Path
    sha256: str
    deltas: tuple[Delta, ...]
    coverage: Coverage


def read(path: Path, spec: ModelSpec, modules: Mapping[str, tuple[int, ...]], *, allow_partial: bool = False) -> Lora:
    """Read a LoRA file and match its keys to `modules` (path -> weight shape of every Linear and Conv2d).

    Raises:
        LoraError: missing, truncated or foreign file; keys that match nothing; wrong shapes.
    """
    tensors = _tensors(path)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    unmatched = []
    resolve = _resolver(spec, modules)
    for key, tensor in tensors.items():
        name, part = _split(key)
        module = resolve(name) if part else None
        if module is None:
            unmatched.append(key)
        else:
            groups.setdefault(module, {})[PARTS[part]] = tensor
    deltas = tuple(_delta(path, module, parts, modules[module]) for module, parts in sorted(groups.items()))
    coverage = Coverage(
        keys=len(tensors),
        applied=len(tensors) - len(unmatched),
        modules=len(deltas),
        ranks=tuple(sorted({d.down.shape[0] for d in deltas})),
        scales=tuple(sorted({d.scale for d in deltas})),
        unmatched=tuple(unmatched),
    )
    if not deltas or (unmatched and not allow_partial):
        raise LoraError(
            f"{path}: {coverage.applied} of {coverage.keys} keys belong to {spec.id} ({spec.title}); "
            f"unmatched, for example: {', '.join(unmatched[:3])}. Is it a LoRA for another model? "
            f"Keys for {spec.id} begin with {' or '.join(spec.lora_prefixes)}."
            + ("" if not deltas else " To apply the matching part only, pass allow_partial (--allow-partial).")
        )
    return Lora(path, sha256(path.read_bytes()).hexdigest(), deltas, coverage)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise LoraError(f"{path}: no such LoRA file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise LoraError(
            f"{path}: not a whole safetensors file ({error}). It may be truncated or a web page: fetch it again."
        ) from error
    if not tensors:
        raise LoraError(f"{path}: holds no tensors")
    return tensors


def _split(key: str) -> tuple[str, str]:
    """ "a.b.lora_A.weight" -> ("a.b", "lora_A.weight"); part "" for an unknown suffix."""
    for part in PARTS:
        if key.endswith("." + part):
            return key[: -len(part) - 1], part
    return key, ""


def _resolver(spec: ModelSpec, modules: Mapping[str, tuple[int, ...]]) -> Callable[[str], str | None]:
    """Function from a key's name (with prefix) to a module path of the denoiser."""
    underscored = {name.replace(".", "_"): name for name in modules}

    def resolve(name: str) -> str | None:
        prefix = next((p for p in spec.lora_prefixes if name.startswith(p)), None)
        if prefix is None:
            return None
        rest = name[len(prefix) :]
        if spec.lora_names == "kohya":
            return underscored.get(rest)
        if spec.lora_names == "wan":
            rest = wan_to_diffusers(rest)
        return rest if rest in modules else None

    return resolve


def wan_to_diffusers(name: str) -> str:
    """Original Wan module names -> Diffusers' (toolkit/models/wan21/wan_lora_convert.py, the other way round)."""
    name = name.replace("self_attn", "attn1").replace("cross_attn", "attn2")
    name = re.sub(r"(attn[12])\.([qkv])$", r"\1.to_\2", name)
    name = re.sub(r"(attn[12])\.o$", r"\1.to_out.0", name)
    name = re.sub(r"(attn2)\.([kv])_img$", r"\1.add_\2_proj", name)
    return re.sub(r"ffn\.0$", "ffn.net.0.proj", re.sub(r"ffn\.2$", "ffn.net.2", name))


def _delta(path: Path, module: str, parts: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> Delta:
    if "down" not in parts or "up" not in parts:
        raise LoraError(f"{path}: {module} has only {' and '.join(parts)}; the other half of the pair is missing")
    down, up = parts["down"].float(), parts["up"].float()
    rank = down.shape[0]
    wanted = (rank, *shape[1:]), (shape[0], rank, *(1,) * (len(shape) - 2))
    if (tuple(down.shape), tuple(up.shape)) != wanted:
        raise LoraError(f"{path}: {module} has shapes {tuple(down.shape)} and {tuple(up.shape)}, but the weight is "
                        f"{shape}: a LoRA for a model of another size")  # fmt: skip
    alpha = float(parts["alpha"]) if "alpha" in parts else float(rank)
    return Delta(module, down, up, alpha / rank)


class Adapter:
    """Puts LoRAs into one denoiser and takes them out again without a trace.

    Merging keeps the original weights aside, so that taking out restores their exact bits (the trainer subtracts,
    which leaves rounding behind in its own base weights).
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self._state: tuple[str, float, LoraMode] | None = None
        self._originals: dict[str, torch.Tensor] = {}
        self._hooks: list[Any] = []

    def set(self, lora: Lora | None, multiplier: float = 1.0, mode: LoraMode = "merged") -> None:
        """Make `lora` the one that is applied; None restores the base model."""
        state = None if lora is None else (lora.sha256, multiplier, mode)
        if state == self._state:
            return
        self._restore()
        if lora is not None:
            for delta in lora.deltas:
                module = self.denoiser.get_submodule(delta.module)
                if mode == "merged":
                    self._merge(delta, module, multiplier)
                else:
                    self._hook(delta, module, multiplier)
        self._state = state

    def _merge(self, delta: Delta, module: Any, multiplier: float) -> None:
        weight = module.weight.data
        self._originals[delta.module] = weight.to("cpu", copy=True)
        # The order of operations is merge_in's: weight + multiplier * (up @ down) * scale, in float32 on the device.
        moved = Delta(delta.module, delta.down.to(weight.device), delta.up.to(weight.device), delta.scale)
        module.weight.data = (weight.float() + multiplier * moved.weight() * delta.scale).to(weight.dtype)

    def _hook(self, delta: Delta, module: Any, multiplier: float) -> None:
        from torch.nn import functional

        if multiplier == 0:
            return
        device = module.weight.device
        down, up, scale = delta.down.to(device), delta.up.to(device), delta.scale

        def linear(x: torch.Tensor) -> torch.Tensor:
            return functional.linear(functional.linear(x, down), up)

        def conv(x: torch.Tensor) -> torch.Tensor:
            return functional.conv2d(functional.conv2d(x, down, stride=module.stride, padding=module.padding), up)

        low_rank = linear if down.dim() == 2 else conv

        def add(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + (low_rank(args[0].float()) * scale * multiplier).to(output.dtype)

        self._hooks.append(module.register_forward_hook(add))

    def _restore(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for name, original in self._originals.items():
            module: Any = self.denoiser.get_submodule(name)
            module.weight.data = original.to(module.weight.device)
        self._originals.clear()
        self._state = None


def module_shapes(denoiser: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(path, weight shape) of every module that a LoRA can change."""
    from torch import nn

    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, tuple(module.weight.shape)
