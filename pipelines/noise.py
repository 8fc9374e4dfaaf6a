"""Random draws. Every draw of a render comes from `normal`, with all that its stream depends on spelled out.

The trainer seeds the *global* CPU generator and hands it to its pipelines (toolkit/models/base_model.py); a local CPU
generator with the same seed gives the same numbers, as long as every draw uses it, also those that the trainer's code
makes without naming a generator.

In half precision those numbers depend on the torch that drew them. Up to 2.11 it drew every uniform number with as many
bits as the dtype has (8 for bfloat16) and rounded after each operation; from 2.12 on it draws in float32 and rounds the
result. Both are written out here, so that any torch gives either, to the bit (aten/src/ATen/native/cpu/
DistributionTemplates.h; tests/noise_streams.json holds what the real ones drew).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

from lora_drift.pipelines.shared_patch import SharedPatch
from lora_drift.pipelines.spec import NoiseStream, Posterior, VaeNoise

BLOCK = 16
"""torch turns uniform numbers into normal ones 16 at a time: 8 radii, then 8 angles. Fewer are drawn one by one, in
float64, by every torch alike."""
BITS = {torch.bfloat16: 8, torch.float16: 11}


class Generator(torch.Generator):
    """A CPU generator that knows which stream its draws in half precision are to be of."""

    stream: NoiseStream
    vae_noise: VaeNoise
    on_device: torch.Generator | None = None
    """The device's own generator with the same seed, once something was drawn there."""

    def of(self, device: torch.device) -> torch.Generator:
        """Seeding seeds the generators of all devices; what names no generator draws from its own device's."""
        if self.on_device is None:
            self.on_device = torch.Generator(device).manual_seed(self.initial_seed())
        return self.on_device


def seeded(seed: int, stream: NoiseStream, vae_noise: VaeNoise = "device") -> Generator:
    """The generator of one render."""
    generator = Generator("cpu")
    generator.stream, generator.vae_noise = stream, vae_noise
    generator.manual_seed(seed)
    return generator


def normal(shape: tuple[int, ...], generator: Generator, dtype: torch.dtype) -> torch.Tensor:
    """Standard normal numbers on the CPU, drawn in `dtype` (the stream depends on it)."""
    count = math.prod(shape)
    if dtype not in BITS or count < BLOCK:
        return torch.randn(shape, generator=generator, dtype=dtype)
    blocks = _blocks_up_to_2_11 if generator.stream == "torch-2.11" else _blocks_from_2_13
    # A count that is no multiple of 16: the last 16 numbers are drawn once more, as a block.
    whole, rest = count // BLOCK * BLOCK, count % BLOCK
    numbers = torch.empty(count, dtype=dtype)
    numbers[:whole] = blocks(whole, rest, generator, dtype)
    if rest:
        numbers[-BLOCK:] = blocks(BLOCK, 0, generator, dtype)
    return numbers.view(shape)


def _blocks_up_to_2_11(count: int, rest: int, generator: Generator, dtype: torch.dtype) -> torch.Tensor:
    uniform = torch.empty(count + rest, dtype=torch.int64).random_(0, 2 ** BITS[dtype], generator=generator)
    radius, cos, sin = _tables(dtype)
    first, second = uniform[:count].view(-1, 2, BLOCK // 2).unbind(1)
    pairs = torch.stack([radius[first] * cos[second], radius[first] * sin[second]], dim=1)
    return (pairs + 0).flatten()  # torch adds the mean, which turns -0 into 0


@cache
def _tables(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Radius, cosine and sine for each uniform number there is. Box-Muller, rounded to `dtype` after each operation;
    from float64, because float32's functions differ between processors in a last bit, which decides some roundings."""

    def rounded(values: torch.Tensor) -> torch.Tensor:
        return values.float().to(dtype).double()

    uniform = torch.arange(2 ** BITS[dtype], dtype=torch.float64) / 2 ** BITS[dtype]
    radius = torch.sqrt(rounded(-2 * rounded(torch.log(1 - uniform))))
    angle = rounded(2 * math.pi * uniform)
    return radius.to(dtype), torch.cos(angle).float().to(dtype), torch.sin(angle).float().to(dtype)


def _blocks_from_2_13(count: int, _rest: int, generator: Generator, dtype: torch.dtype) -> torch.Tensor:
    """2.12 alone differs: by one unit in the last place in about one number of ten thousand."""
    return torch.randn(count, generator=generator, dtype=torch.float32).to(dtype)


def draw(shape: tuple[int, ...], generator: Generator, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """Standard normal numbers, drawn on the CPU and then moved to `device`."""
    return normal(shape, generator, dtype).to(device)


def posterior(distribution: Any, taken: Posterior, generator: Generator) -> torch.Tensor:
    """What a row takes of a VAE's posterior (`encode(x).latent_dist`)."""
    return distribution.mode() if taken == "mode" else posterior_sample(distribution, generator)


def posterior_sample(distribution: Any, generator: Generator) -> torch.Tensor:
    """A sample of a VAE's posterior (`encode(x).latent_dist`), drawn from the render's own generator.

    The trainer calls `.sample()` without a generator: on the CPU that continues the same stream, on a GPU it begins
    that GPU's (unless the CPU's were asked for: `spec.VaeNoise`).
    """
    shape, dtype, device = tuple(distribution.mean.shape), distribution.parameters.dtype, distribution.mean.device
    if device.type == "cpu" or generator.vae_noise == "cpu":
        noise = draw(shape, generator, dtype, device)
    else:
        noise = torch.randn(shape, generator=generator.of(device), dtype=dtype, device=device)
    return distribution.mean + distribution.std * noise


def _torch_that_draws_ours(original: Any) -> Any:
    """A stand-in for torch whose `randn` draws for our generators; for any other it is torch's own."""

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        @staticmethod
        def randn(shape: Any, **options: Any) -> torch.Tensor:
            generator = options.get("generator")
            if not isinstance(generator, Generator):
                return original.randn(shape, **options)
            return draw(tuple(shape), generator, options["dtype"] or torch.get_default_dtype(), options["device"])

    return Torch()


_PATCH = SharedPatch("torch", _torch_that_draws_ours)


def diffusers_draws_ours() -> AbstractContextManager[None]:
    """While the block runs, what Diffusers draws from a `Generator` (initial noise, the noise of a scheduler's steps,
    posteriors) comes from `normal`. It draws all of that in one place, `randn_tensor`, whose torch is replaced; what
    draws from another generator, in this thread or another, does not notice."""
    from diffusers.utils import torch_utils

    return _PATCH.on(torch_utils)
