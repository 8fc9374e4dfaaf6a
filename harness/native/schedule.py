"""The steps of a sample, outside of a pipeline: for graphs that list them, and for the nodes that take them."""

from __future__ import annotations

import math
from typing import Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.spec import ModelSpec

EVEN = {"flux", "chroma", "qwen", "zimage", "lumina2"}
"""Families whose pipelines lay steps out evenly from 1 to 1/n, before the scheduler shifts them."""
PATCH = 16
"""Pixels a side of what a token of these families shows."""


LATENT = 8
"""Pixels a side of a latent."""


def scheduler(spec: ModelSpec, steps: int, width: int, height: int) -> Any:
    """The model's scheduler with its steps laid out as for a sample of this size (pixels)."""
    import numpy as np

    made = loading.scheduler(spec.scheduler)
    tokens = (width // PATCH) * (height // PATCH)
    even = np.linspace(1.0, 1 / steps, steps)
    if spec.family == "flux2":
        from lora_drift.pipelines.families import flux2

        assert isinstance(spec, flux2.Flux2)
        made.set_timesteps(sigmas=flux2.schedule(spec, steps, tokens))
    elif spec.family == "omnigen2":
        made.set_timesteps(steps, num_tokens=(width // LATENT) * (height // LATENT))
    elif spec.family not in EVEN:
        made.set_timesteps(steps)
    elif made.config.use_dynamic_shifting:
        made.set_timesteps(sigmas=even.tolist(), mu=shift(made.config, tokens))
    else:
        made.set_timesteps(sigmas=even.tolist())
    return made


def shift(config: Any, tokens: int) -> float:
    """mu: linear in the number of latent tokens."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return float(tokens * slope + (config.base_shift - slope * config.base_image_seq_len))


def sigmas(spec: ModelSpec, steps: int, width: int, height: int) -> list[float]:
    """What a graph lists, from the first step's sigma to 0. A last step that changes nothing (Z-Image's) is left out:
    ComfyUI would divide by its sigma."""
    found = [float(sigma) for sigma in scheduler(spec, steps, width, height).sigmas]
    if spec.family == "omnigen2":  # counts from noise to picture
        found = [1 - time for time in found]
    while len(found) > 1 and math.isclose(found[-2], 0.0, abs_tol=1e-12):
        found.pop()
    return found
