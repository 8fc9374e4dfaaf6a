"""Random draws. Every draw of a family goes through here, with all that its stream depends on spelled out.

The trainer seeds the *global* CPU generator and hands it to its pipelines (toolkit/models/base_model.py); a local CPU
generator with the same seed gives the same numbers, as long as every draw uses it, also those that the trainer's code
makes without naming a generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def seeded(seed: int) -> torch.Generator:
    """The CPU generator of one render."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def draw(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """Standard normal numbers: drawn on the CPU in `dtype` (the stream depends on it), then moved to `device`."""
    import torch

    return torch.randn(shape, generator=generator, dtype=dtype, device="cpu").to(device)


def posterior_sample(distribution: Any, generator: torch.Generator) -> torch.Tensor:
    """A sample of a VAE's posterior (`encode(x).latent_dist`), drawn from the render's own generator.

    Where the trainer calls `.sample()` without a generator on the CPU, it continues the same stream.
    """
    noise = draw(tuple(distribution.mean.shape), generator, distribution.parameters.dtype, distribution.mean.device)
    return distribution.mean + distribution.std * noise
