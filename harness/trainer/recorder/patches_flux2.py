"""FLUX.2: the trainer writes the sizes of its networks into its code instead of reading them from a config."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import import_module
from typing import Any

from lora_drift.harness.minihub.repos.flux2 import AUTOENCODER, TRANSFORMERS
from lora_drift.harness.minihub.repos.flux2_files import Transformer

MODELS = {
    "flux2": ("Flux2Model", TRANSFORMERS["flux2"]),
    "flux2_diffusers": ("Flux2Model", TRANSFORMERS["flux2"]),
    "flux2_klein_4b": ("Flux2Klein4BModel", TRANSFORMERS["flux2_klein_4b"]),
    "flux2_klein_9b": ("Flux2Klein9BModel", TRANSFORMERS["flux2_klein_9b"]),
}
"""Model -> the trainer's class, and the size of its miniature."""

_NAMES = {
    "x": "hidden_states",
    "x_ids": "img_ids",
    "timesteps": "timestep",
    "ctx": "encoder_hidden_states",
    "ctx_ids": "txt_ids",
}
ARGUMENTS: dict[str, dict[str, str]] = {
    # klein's network is handed a guidance scale that it has no embedding for.
    model: {**_NAMES, "guidance": ""} if "klein" in model else _NAMES
    for model in MODELS
}
"""Model -> inputs of the trainer's network class, as Diffusers' class calls them."""


def shrink(model: str, _device: str) -> list[str]:
    """Make the trainer build the networks of the miniature, with its own classes."""
    from extensions_built_in.diffusion_models.flux2 import flux2_model
    from extensions_built_in.diffusion_models.flux2.src.autoencoder import AutoEncoderParams
    from extensions_built_in.diffusion_models.flux2.src.model import Flux2Params

    name, size = MODELS[model]
    module = "flux2_klein_model" if "Klein" in name else "flux2_model"  # 0.7.19 has no klein
    cls = getattr(import_module(f"extensions_built_in.diffusion_models.flux2.{module}"), name)
    asked = hasattr(cls, "get_flux2_params")
    if asked:
        cls.get_flux2_params = lambda _self: _params(Flux2Params, size)
    else:  # 0.7.19
        flux2_model.Flux2Params = lambda: _params(Flux2Params, size)
    flux2_model.AutoEncoderParams = lambda: AutoEncoderParams(
        ch=AUTOENCODER.channels,
        ch_mult=list(AUTOENCODER.multipliers),
        num_res_blocks=AUTOENCODER.blocks,
        z_channels=AUTOENCODER.latent,
    )
    return _lines(f"{name}.get_flux2_params" if asked else "flux2_model.Flux2Params", size)


def _params(cls: Any, size: Transformer) -> object:
    # 0.7.19 has no choice there: its only FLUX.2, dev, embeds the guidance.
    guidance = {"use_guidance_embed": size.guidance} if "use_guidance_embed" in cls.__dataclass_fields__ else {}
    return cls(
        hidden_size=size.hidden,
        num_heads=size.heads,
        depth=size.depth,
        depth_single_blocks=size.single,
        context_in_dim=size.context,
        axes_dim=size.axes,
        theta=size.theta,
        mlp_ratio=size.mlp_ratio,
        **guidance,
    )


def _lines(place: str, size: Transformer) -> list[str]:
    numbers = ", ".join(f"{key} {value}" for key, value in asdict(size).items())
    return [
        f"{place}: the miniature's size ({numbers})",
        f"flux2_model.AutoEncoderParams: the miniature's size ({AUTOENCODER.channels} channels on "
        f"{AUTOENCODER.levels} levels, {AUTOENCODER.blocks} block each)",
    ]


APPLY: dict[str, Callable[[str], list[str]]] = {model: partial(shrink, model) for model in MODELS}
