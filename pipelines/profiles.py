"""Profiles: how a model is run. "reference" renders the trainer's bytes; "fast" the same picture, but for rounding.

fast compiles what a denoiser repeats and attends with cuDNN where that can. The first picture of a size waits for the
compiler; another prompt, seed, step count or LoRA of that size compiles nothing. Compiled kernels round otherwise than
those of the reference, and torch chooses some of them by a stopwatch: no byte is promised, no case vouches for it, and
what it costs is measured (docs/performance.md).

Left out, because they would take more than rounding: fused q, k and v (a copy of the weights, which LoRAs would miss),
caches that skip steps, and 8-bit weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipelines.errors import RequestError, Unsupported
from pipelines.lora import Lora, LowRank
from pipelines.quantize import Quantization
from pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

Profile = Literal["reference", "fast"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
REQUIRES = "torch>=2.6"
ROUNDING: dict[str, Any] = {"emulate_precision_casts": True}
"""Round after each operation, as uncompiled code does: a compiler keeps float32 within a kernel. In bfloat16 that is
nearer to the reference; Z-Image is on the CPU equal to the bit, instead of 9 levels off."""
VARIANTS = 64
"""Compilations that one function may have: torch's limit of 8, beyond which it runs uncompiled, is soon reached where a
process renders several sizes, or models of one class."""


@dataclass(frozen=True)
class Fast:
    """How the denoisers of a family are compiled."""

    blocks: tuple[str, ...] = ()
    """Classes of the modules that repeat, each of which is compiled once. Without, the whole denoiser is."""
    dynamic: bool = False
    """For any number of tokens at once: where prompts differ in it, one would compile after the other."""


FLUX = Fast(("FluxTransformerBlock", "FluxSingleTransformerBlock"))
LUMINA2 = Fast(("Lumina2TransformerBlock",), dynamic=True)
FAST: Mapping[str, Fast] = {
    # All of it: half of the work is in convolutions, and no two of their blocks need be of one width.
    "sd": Fast(),
    "flux": FLUX,
    "flux_kontext": FLUX,
    "flex2": FLUX,
    "chroma": Fast(("ChromaTransformerBlock", "ChromaSingleTransformerBlock")),
    "flux2": Fast(("Flux2TransformerBlock", "Flux2SingleTransformerBlock")),
    "qwen": Fast(("QwenImageTransformerBlock",), dynamic=True),
    "zimage": Fast(("ZImageTransformerBlock",), dynamic=True),
    "lumina2": LUMINA2,
    "omnigen2": LUMINA2,
    "wan": Fast(("WanTransformerBlock",)),
    "ltx2": Fast(("LTX2VideoTransformerBlock",)),
}
"""Family -> what pays. HiDream is not here: which of its experts computes is decided by the numbers themselves, and a
compiler stops there."""


def choose(name: str, spec: ModelSpec, quantization: Quantization) -> Profile:
    """The profile of that name.

    Raises:
        RequestError: there is none, or not for this model or a quantised one.
    """
    profile = next((known for known in PROFILES if known == name), None)
    if profile is None:
        raise RequestError(f"profile {name!r}: use {' or '.join(PROFILES)}")
    if profile == "reference":
        return profile
    if spec.family not in FAST:
        raise RequestError(f"profile fast: {spec.id} cannot be compiled (its experts are chosen while it computes); "
                           "leave the profile out")  # fmt: skip
    if quantization != Quantization():
        raise RequestError("profile fast: it takes unquantised bases only; leave out the quantisation or the profile")
    return profile


def check_lora(lora: Lora, mode: str) -> None:
    """Refuse what is computed beside the weights: compiled code does not look for it.

    Raises:
        RequestError: a LoRA that is live, or a DoRA, which always is.
    """
    if mode == "live":
        raise RequestError("profile fast: a LoRA is merged into the weights; leave out the mode live, or the profile")
    if any(isinstance(delta.change, LowRank) and delta.change.magnitude is not None for delta in lora.deltas):
        raise RequestError("profile fast: a DoRA is never merged, and only merged LoRAs are compiled; leave the "
                           "profile out")  # fmt: skip


def compile_denoisers(pipe: Any, spec: ModelSpec) -> None:
    """Prepare a loaded pipeline; the compiler runs when the first picture does."""
    import torch

    row = FAST[spec.family]
    for name in spec.denoisers.values():
        denoiser: nn.Module = getattr(pipe, name)
        repeated = [module for module in denoiser.modules() if type(module).__name__ in row.blocks]
        if {type(module).__name__ for module in repeated} != set(row.blocks):
            raise Unsupported(f"profile fast: {type(denoiser).__name__} of this Diffusers is not made of "
                              f"{' and '.join(row.blocks)}; leave the profile out")  # fmt: skip
        for module in repeated:
            module.compile(dynamic=row.dynamic, options=ROUNDING)
        if not row.blocks:
            denoiser.to(memory_format=torch.channels_last)  # as convolutions want their weights
            # Not `denoiser.compile()`, which would take in the hooks of whoever watches.
            denoiser.forward = torch.compile(denoiser.forward, dynamic=row.dynamic, options=ROUNDING)
        denoiser.forward = _attending(denoiser.forward)


def _attending(forward: Callable[..., Any]) -> Callable[..., Any]:
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
