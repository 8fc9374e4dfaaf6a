"""Random draws: where they are made, in which dtype, in which order."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from lora_drift.harness.check.divergence import CONTROL, NOISE, STEP
from lora_drift.harness.deviations.library.base import (
    POSTERIOR_FIRST,
    Subject,
    everywhere,
    patched,
    posterior_first,
    variation,
)
from lora_drift.pipelines import noise
from lora_drift.pipelines.spec import NoiseStream

Shape = tuple[int, ...]
Change = Callable[[Shape, noise.Generator, torch.dtype], torch.Tensor]
normal = noise.normal


def _drawing(change: Change) -> AbstractContextManager[None]:
    """`change(shape, generator, dtype)` in place of `noise.normal`, from which every draw of a render comes."""
    return patched(noise, "normal", change)


def _spatial(s: Subject) -> bool:
    return s.spec.id != "flex2" and s.spec.family != "ltx2"  # these draw what is packed already


@variation(
    "noise",
    shows=lambda s: CONTROL if posterior_first(s) else NOISE,
    source="ostris/ai-toolkit issue 589, musubi-tuner issue 198, SimpleTuner issue 409: noise of a CUDA generator",
    applies=everywhere,
)
def noise_of_another_generator(s: Subject) -> Iterator[Subject]:
    """The seed goes to a CUDA generator (Philox), whose numbers are others than the CPU's."""
    streams: dict[int, np.random.Generator] = {}

    def change(shape: Shape, _generator: noise.Generator, dtype: torch.dtype) -> torch.Tensor:
        stream = streams.setdefault(0, np.random.Generator(np.random.Philox(s.settings.seed)))
        return torch.from_numpy(stream.standard_normal(shape)).to(dtype)

    with _drawing(change):
        yield s


def _in_bfloat16(stream: NoiseStream) -> AbstractContextManager[None]:
    def change(shape: Shape, generator: noise.Generator, dtype: torch.dtype) -> torch.Tensor:
        before, generator.stream = generator.stream, stream
        numbers = normal(shape, generator, torch.bfloat16).to(dtype)
        generator.stream = before
        return numbers

    return _drawing(change)


def _draws_otherwise(stream: NoiseStream) -> Callable[[Subject], bool]:
    return lambda s: s.pipeline.base.dtype == "float32" or s.pipeline.base.noise_stream != stream


@variation(
    "noise",
    shows=lambda s: CONTROL if posterior_first(s) else NOISE,
    source="torch's bfloat16 normal stream changed in 2.12; ComfyUI and half-precision pipelines draw so",
    applies=_draws_otherwise("torch-2.13"),
)
def noise_drawn_in_bfloat16(s: Subject) -> Iterator[Subject]:
    """Noise is drawn in bfloat16, by torch 2.13 or later."""
    with _in_bfloat16("torch-2.13"):
        yield s


@variation(
    "noise",
    shows=lambda s: CONTROL if posterior_first(s) else NOISE,
    source="torch's bfloat16 normal stream changed in 2.12; the trainer's README installs 2.7.0",
    applies=_draws_otherwise("torch-2.11"),
)
def noise_drawn_in_bfloat16_by_an_older_torch(s: Subject) -> Iterator[Subject]:
    """Noise is drawn in bfloat16, by torch up to 2.11."""
    with _in_bfloat16("torch-2.11"):
        yield s


@variation(
    "noise",
    shows=lambda s: CONTROL if posterior_first(s) else NOISE,
    source="a float32 draw cast to a half-precision pipeline's dtype (Diffusers pitfalls.md: noise dtype)",
    applies=everywhere,
)
def noise_rounded_to_float16(s: Subject) -> Iterator[Subject]:
    """Noise is drawn in float32 and rounded to float16."""
    with _drawing(lambda shape, generator, dtype: normal(shape, generator, torch.float32).half().to(dtype)):
        yield s


@variation(
    "noise",
    shows=NOISE,
    source="JAX and MLX ports (mflux, DiffusionKit) draw noise with the channels last",
    applies=lambda s: _spatial(s) and not posterior_first(s),
)
def noise_drawn_with_channels_last(s: Subject) -> Iterator[Subject]:
    """The same numbers fill the latents in another order."""

    def change(shape: Shape, generator: noise.Generator, dtype: torch.dtype) -> torch.Tensor:
        if len(shape) < 4:
            return normal(shape, generator, dtype)
        channels = 2 if shape[1] == 1 else 1  # Qwen-Image's latents have a dimension for frames before them
        others = [n for dim, n in enumerate(shape) if dim != channels]
        return normal((*others, shape[channels]), generator, dtype).movedim(-1, channels).contiguous()

    with _drawing(change):
        yield s


@variation(
    "noise",
    shows=NOISE,
    source="AnimateDiff-like nodes and first Wan ports draw one picture of noise after the other",
    applies=lambda s: s.spec.family == "wan" and s.settings.num_frames > s.spec.frame_step,
)
def noise_drawn_frame_by_frame(s: Subject) -> Iterator[Subject]:
    """Each latent frame is drawn by itself."""

    def change(shape: Shape, generator: noise.Generator, dtype: torch.dtype) -> torch.Tensor:
        if len(shape) != 5 or shape[2] == 1:
            return normal(shape, generator, dtype)
        return torch.cat([normal((*shape[:2], 1, *shape[3:]), generator, dtype) for _ in range(shape[2])], dim=2)

    with _drawing(change):
        yield s


@variation(
    "noise",
    shows=STEP,
    source="the DDPM step without a generator draws from torch's global state (trainer seeds that; others do not)",
    applies=lambda s: s.spec.scheduler.name == "DDPMScheduler" and s.settings.steps > 1,
)
def step_noise_of_another_generator(s: Subject) -> Iterator[Subject]:
    """The noise of the steps comes from a generator of its own, the first noise does not."""
    draws: list[int] = []

    def change(shape: Shape, generator: noise.Generator, dtype: torch.dtype) -> torch.Tensor:
        draws.append(1)
        own = noise.seeded(s.settings.seed + len(draws), generator.stream) if len(draws) > 1 else generator
        return normal(shape, own, dtype)

    with _drawing(change):
        yield s


def _samples_posterior(s: Subject) -> bool:
    return bool(s.settings.control) and s.spec.id in (*POSTERIOR_FIRST, "wan22_14b_i2v", "wan22_5b")


@variation(
    "noise",
    shows=CONTROL,
    source="stock Diffusers takes the mode of a control image's posterior (pipeline_wan_i2v.py, sample_mode argmax)",
    applies=_samples_posterior,
)
def control_image_as_the_posterior_mode(s: Subject) -> Iterator[Subject]:
    """The control image's latents are the mean; the number drawn for them is thrown away."""

    def mode(distribution: Any, generator: noise.Generator) -> torch.Tensor:
        shape, parameters = tuple(distribution.mean.shape), distribution.parameters
        noise.draw(shape, generator, parameters.dtype, parameters.device)
        return distribution.mode()

    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    def sample(distribution: Any, generator: Any = None) -> torch.Tensor:
        return mode(distribution, generator)

    with patched(noise, "posterior_sample", mode), patched(DiagonalGaussianDistribution, "sample", sample):
        yield s


@variation(
    "noise",
    shows=CONTROL,
    source="runcomfy ai-toolkit-inference: trainer code that names no generator draws from unseeded global state",
    applies=_samples_posterior,
)
def control_image_drawn_unseeded(s: Subject) -> Iterator[Subject]:
    """The control image's latents are sampled with other numbers; those of the seed are thrown away."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    sample = DiagonalGaussianDistribution.sample
    posterior_sample = noise.posterior_sample

    def another(generator: noise.Generator) -> noise.Generator:
        return noise.seeded(s.settings.seed + 1, generator.stream)

    def other(distribution: Any, generator: Any = None) -> torch.Tensor:
        sample(distribution, generator)
        return sample(distribution, another(generator))

    def ours(distribution: Any, generator: noise.Generator) -> torch.Tensor:
        posterior_sample(distribution, generator)
        return posterior_sample(distribution, another(generator))

    with patched(noise, "posterior_sample", ours), patched(DiagonalGaussianDistribution, "sample", other):
        yield s


@variation(
    "noise",
    shows=NOISE,
    source="SD.Next's and A1111's `initial noise multiplier`, 'eta noise seed delta'; ComfyUI's inject-noise nodes",
    applies=lambda s: not posterior_first(s),
)
def noise_multiplied(s: Subject) -> Iterator[Subject]:
    """The initial noise is multiplied by 1.03."""
    draws: list[int] = []

    def change(shape: Shape, generator: noise.Generator, dtype: torch.dtype) -> torch.Tensor:
        draws.append(1)
        return normal(shape, generator, dtype) * (1.03 if len(draws) == 1 else 1.0)

    with _drawing(change):
        yield s


@variation(
    "noise",
    shows=lambda s: CONTROL if posterior_first(s) else NOISE,
    source="ComfyUI's batch_size, Diffusers' num_images_per_prompt: one generator draws the noise of a whole batch",
    applies=everywhere,
)
def second_picture_of_a_batch(s: Subject) -> Iterator[Subject]:
    """The picture is the second of a batch, so that its numbers are those that the seed gives after the first's."""

    def change(shape: Shape, generator: noise.Generator, dtype: torch.dtype) -> torch.Tensor:
        return normal((2 * shape[0], *shape[1:]), generator, dtype)[shape[0] :]

    with _drawing(change):
        yield s
