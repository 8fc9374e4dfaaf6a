"""Profiles: how a model is run. "reference" renders the trainer's bytes, the others the same picture but for rounding.

compiled compiles what a denoiser repeats and attends with cuDNN where that can. The first picture of a size waits for
the compiler; another prompt, seed, step count or LoRA of that size compiles nothing. Compiled kernels round otherwise
than those of the reference, and torch chooses some of them by a stopwatch: no byte is promised, no case vouches for it,
and what it costs is measured (docs/performance.md).

fast does that, and where matrix products are most of the time the large ones are in 8 bits (`fp8_linear.py`), which
rounds much more coarsely.

Left out, because they would take more than rounding: fused q, k and v, and caches that skip steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, get_args

from lora_drift.pipelines.errors import RequestError, Unsupported
from lora_drift.pipelines.lora import Lora, LowRank
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

Profile = Literal["reference", "compiled", "fast"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
REQUIRES, REQUIRES_ON_CPU = "torch>=2.6", "torch>=2.13"
"""The second for products in 8 bits."""
FLOAT8_SINCE = (8, 9)
"""The compute capability of the first GPUs that multiply in 8 bits."""
ROUNDING: dict[str, Any] = {"emulate_precision_casts": True}
"""Round after each operation, as uncompiled code does: a compiler keeps float32 within a kernel. In bfloat16 that is
nearer to the reference; Z-Image is on the CPU equal to the bit, instead of 9 levels off. Not where products are in 8
bits, whose rounding is 5 times as large: there it brought nothing nearer, and a step of FLUX.1 took 161 ms instead of
103 (an H200, torch 2.11)."""
VARIANTS = 64
"""Compilations that one function may have: torch's limit of 8, beyond which it runs uncompiled, is soon reached where a
process renders several sizes, or models of one class."""


@dataclass(frozen=True)
class Fast:
    """How the denoisers of a family are made fast."""

    blocks: tuple[str, ...] = ()
    """Classes of the modules that repeat, each of which is compiled once. Without, the whole denoiser is."""
    dynamic: bool = False
    """For any number of tokens at once: where prompts differ in it, one would compile after the other."""
    float8: bool = False
    """In the profile fast, large products of the blocks are in 8 bits."""


LUMINA2 = Fast(("Lumina2TransformerBlock",), dynamic=True)
FAST: Mapping[str, Fast] = {
    # All of it: half of the work is in convolutions, and no two of their blocks need be of one width.
    "sd": Fast(),
    "flux": Fast(("FluxTransformerBlock", "FluxSingleTransformerBlock"), float8=True),
    "chroma": Fast(("ChromaTransformerBlock", "ChromaSingleTransformerBlock"), float8=True),
    "flux2": Fast(("Flux2TransformerBlock", "Flux2SingleTransformerBlock"), float8=True),
    "qwen": Fast(("QwenImageTransformerBlock",), dynamic=True, float8=True),
    "zimage": Fast(("ZImageTransformerBlock",), dynamic=True, float8=True),
    "lumina2": LUMINA2,
    "omnigen2": LUMINA2,
    "wan": Fast(("WanTransformerBlock",), float8=True),
    "ltx2": Fast(("LTX2VideoTransformerBlock",), float8=True),
}
"""Family -> what pays. HiDream is not here: which of its experts computes is decided by the numbers themselves, and a
compiler stops there. Of Krea 2 nothing was measured yet."""


def choose(name: str, spec: ModelSpec, quantization: Quantization, device: str) -> Profile:
    """The profile of that name.

    Raises:
        RequestError: there is none, or not for this model, a quantised one, or this device.
    """
    profile = next((known for known in PROFILES if known == name), None)
    if profile is None:
        raise RequestError(f"profile {name!r}: use {', '.join(PROFILES[:-1])} or {PROFILES[-1]}")
    if profile == "reference":
        return profile
    if spec.family not in FAST:
        raise RequestError(f"profile {name}: {spec.id} cannot be compiled; leave the profile out")
    if quantization != Quantization():
        raise RequestError(f"profile {name}: it takes unquantised bases only; leave out the quantisation or the "
                           "profile")  # fmt: skip
    if _in_float8(profile, spec) and (lacking := _without_float8(device)):
        raise RequestError(f"profile fast: {spec.id} multiplies in 8 bits there, which {lacking}; use compiled")
    return profile


def _in_float8(profile: Profile, spec: ModelSpec) -> bool:
    return profile == "fast" and FAST[spec.family].float8


def _without_float8(device: str) -> str:
    """Why that device does not multiply in 8 bits; empty if it does."""
    if device == "cpu":
        return ""
    if not device.startswith("cuda"):
        return f"the device {device} does not; cuda and cpu do"
    import torch

    if not torch.cuda.is_available():
        return ""  # which has a message of its own
    capability = torch.cuda.get_device_capability(device)
    if capability >= FLOAT8_SINCE:
        return ""
    return (f"{torch.cuda.get_device_name(device)} does not (compute capability {'.'.join(map(str, capability))}, "
            f"and {'.'.join(map(str, FLOAT8_SINCE))} is needed)")  # fmt: skip


def requirement(profile: Profile, spec: ModelSpec, device: str) -> str:
    """The torch that a profile needs."""
    return REQUIRES_ON_CPU if _in_float8(profile, spec) and device == "cpu" else REQUIRES


def check_lora(lora: Lora, mode: str, profile: Profile) -> None:
    """Refuse what is computed beside the weights: compiled code does not look for it.

    Raises:
        RequestError: a LoRA that is live, or a DoRA, which always is.
    """
    if mode == "live":
        raise RequestError(f"profile {profile}: a LoRA is merged into the weights; leave out the mode live, or the "
                           "profile")  # fmt: skip
    if any(isinstance(delta.change, LowRank) and delta.change.magnitude is not None for delta in lora.deltas):
        raise RequestError(f"profile {profile}: a DoRA is never merged, and only merged LoRAs are compiled; leave the "
                           "profile out")  # fmt: skip


def weights_changed(denoisers: Iterable[nn.Module], profile: Profile) -> None:
    """To be told whenever a LoRA was merged or taken out, and before the first render."""
    if profile == "fast":
        from lora_drift.pipelines import fp8_linear

        fp8_linear.refresh(denoisers)


def compile_denoisers(pipe: Any, spec: ModelSpec, profile: Profile) -> None:
    """Prepare a loaded pipeline; the compiler runs when the first picture does."""
    import torch

    from lora_drift.pipelines import fp8_linear

    row = FAST[spec.family]
    for name in spec.denoisers.values():
        denoiser: nn.Module = getattr(pipe, name)
        repeated = [module for module in denoiser.modules() if type(module).__name__ in row.blocks]
        if {type(module).__name__ for module in repeated} != set(row.blocks):
            raise Unsupported(f"profile {profile}: {type(denoiser).__name__} of this Diffusers is not made of "
                              f"{' and '.join(row.blocks)}; leave the profile out")  # fmt: skip
        in_float8 = _in_float8(profile, spec)
        for module in repeated:
            if in_float8:
                fp8_linear.prepare(module)
            module.compile(dynamic=row.dynamic, options={} if in_float8 else ROUNDING)
        if not row.blocks:
            denoiser.to(memory_format=torch.channels_last)  # as convolutions want their weights
            # Not `denoiser.compile()`, which would take in the hooks of whoever watches.
            denoiser.forward = torch.compile(denoiser.forward, dynamic=row.dynamic, options=ROUNDING)
        denoiser.forward = attending_with_cudnn(denoiser.forward)


def attending_with_cudnn(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Run on cuDNN's attention where that can, which torch does only if told. Of the denoiser only: text encoders and
    autoencoders have shapes and masks that cuDNN is not made for."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]

    @wraps(forward)  # pipelines ask for the names of its arguments
    def attending(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(order, set_priority=True), torch._dynamo.config.patch(recompile_limit=VARIANTS):
            return forward(*args, **kwargs)

    return attending
