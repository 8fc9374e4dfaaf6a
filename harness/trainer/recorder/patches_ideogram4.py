"""Ideogram 4: the trainer writes the sizes of its networks into its code instead of reading them from configs."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lora_drift.harness.minihub.repos.flux2 import AUTOENCODER
from lora_drift.harness.minihub.repos.ideogram4 import TRANSFORMER

ARGUMENTS: dict[str, dict[str, str]] = {
    "ideogram4": {"x": "hidden_states", "t": "timestep", "llm_features": "encoder_hidden_states"}
}
"""Model -> inputs of the trainer's network class, as Diffusers' class calls them."""


def shrink(_device: str) -> list[str]:
    """Make the trainer build the networks of the miniature, with its own classes."""
    from extensions_built_in.diffusion_models.ideogram4 import ideogram4

    sizes: dict[str, dict[str, Any]] = {
        "Ideogram4Config": TRANSFORMER.config(),
        "AutoEncoderParams": {
            "ch": AUTOENCODER.channels,
            "ch_mult": list(AUTOENCODER.multipliers),
            "num_res_blocks": AUTOENCODER.blocks,
        },
    }
    lines = []
    for name, size in sizes.items():
        setattr(ideogram4, name, partial(getattr(ideogram4, name), **size))
        numbers = ", ".join(f"{key} {value}" for key, value in size.items())
        lines.append(f"ideogram4.{name}: the miniature's size ({numbers})")
    return lines


APPLY: dict[str, Callable[[str], list[str]]] = {"ideogram4": shrink}
