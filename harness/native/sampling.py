"""What the trainer computes between a denoiser's predictions, as plain torch: for the nodes that do it inside ComfyUI.

There a model says what it makes of noise ("denoised"); the trainer's schedulers want the prediction itself, a velocity
or a noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Predict = Callable[[torch.Tensor, float], torch.Tensor]
"""(latents, timestep of 0 to 1000) -> velocity or noise, as the scheduler takes it."""


def sample(
    scheduler: Any, noise: torch.Tensor, predict: Predict, seed: int, on_step: Callable[[int, torch.Tensor], None]
) -> torch.Tensor:
    """The final latents.

    Args:
        scheduler: with its steps laid out (`schedule.scheduler`).
        noise: standard normal, drawn from `seed` on the CPU.
        predict: the guided prediction.
        seed: of the stream that `noise` began; a scheduler that draws (DDPM) goes on in it.
        on_step: called with the number of steps done and the latents.
    """
    options: dict[str, Any] = {}
    if type(scheduler).__name__ == "DDPMScheduler":
        generator = torch.Generator("cpu").manual_seed(seed)
        torch.randn(noise.shape, generator=generator)  # the noise itself
        options["generator"] = generator
    latents = noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise
    for i, timestep in enumerate(scheduler.timesteps):
        prediction = predict(latents, float(timestep))
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **options)[0]
        on_step(i + 1, latents)
    return latents


def posterior_sample(mean: torch.Tensor, log_variance: torch.Tensor, seed: int) -> torch.Tensor:
    """A sample of an autoencoder's posterior, drawn from the stream of `seed` right after noise of the same shape."""
    generator = torch.Generator("cpu").manual_seed(seed)
    torch.randn(mean.shape, generator=generator)
    drawn = torch.randn(mean.shape, generator=generator).to(mean)
    return mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * drawn


def guided(family: str, positive: torch.Tensor, negative: torch.Tensor, scale: float, rescale: float) -> torch.Tensor:
    """The prediction that guidance makes of two (of the same factor; latents [1, channels, (frames,) height, width]).

    Qwen-Image's gets the length of the positive one in each token of 2 x 2 pixels; Lumina's along each row of pixels,
    as its pipeline takes the last axis for the channels. `rescale`: by how much SDXL's gets the positive one's spread.
    """
    combined = negative + scale * (positive - negative)
    if family == "qwen":
        return combined * (_token_length(positive) / _token_length(combined))
    if family == "lumina2":
        lengths = (prediction.norm(dim=-1, keepdim=True) for prediction in (positive, combined))
        return combined * (next(lengths) / next(lengths))
    if rescale:
        every = tuple(range(1, combined.ndim))
        spread = positive.std(dim=every, keepdim=True) / combined.std(dim=every, keepdim=True)
        return rescale * (combined * spread) + (1 - rescale) * combined
    return combined


def _token_length(latents: torch.Tensor) -> torch.Tensor:
    """Of each token of 2 x 2 pixels over all channels, spread over its pixels."""
    *lead, height, width = latents.shape
    squares = latents.reshape(*lead, height // 2, 2, width // 2, 2).square()
    lengths = squares.sum(dim=(1, -3, -1), keepdim=True).sqrt()
    return lengths.expand(*lead[:1], 1, *lead[2:], height // 2, 2, width // 2, 2).reshape(
        *lead[:1], 1, *lead[2:], height, width
    )
