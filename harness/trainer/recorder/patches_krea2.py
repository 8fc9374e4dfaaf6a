"""Krea 2: the trainer writes the size of its network into its code instead of reading it from a config."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from lora_drift.harness.minihub.repos.krea2 import TRANSFORMERS

_NAMES = {
    "img": "hidden_states",
    "context": "encoder_hidden_states",
    "t": "timestep",
    "pos": "position_ids",
    "mask": "",
    "ref_kv_capture": "",
    "ref_kv_cache": "",
}
ARGUMENTS: dict[str, dict[str, str]] = dict.fromkeys(TRANSFORMERS, _NAMES)
"""Model -> inputs of the trainer's network class, as Diffusers' class calls them. Its mask covers words and
picture; what it keeps of reference pictures between calls shows in its prediction."""


def shrink(model: str, device: str) -> list[str]:
    """Make the trainer build the network of the miniature, with its own class."""
    from extensions_built_in.diffusion_models.krea2 import krea2
    from extensions_built_in.diffusion_models.krea2.src import mmdit

    size = TRANSFORMERS[model].config()
    krea2.KREA2_MMDIT_CONFIG.update(size)
    numbers = ", ".join(f"{key} {value}" for key, value in size.items())
    lines = [f"krea2.KREA2_MMDIT_CONFIG: the miniature's size ({numbers})"]
    if device == "cpu" and hasattr(mmdit, "sdpa_kernel"):  # up to 0.10.23
        mmdit.sdpa_kernel = lambda _backend: nullcontext()
        lines.append("mmdit.sdpa_kernel: attention by any kernel, not by cuDNN's, which a CPU lacks")
    return lines


APPLY: dict[str, Callable[[str], list[str]]] = {model: partial(shrink, model) for model in TRANSFORMERS}
