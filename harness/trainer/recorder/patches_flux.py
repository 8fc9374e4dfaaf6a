"""What the trainer hard-codes for relatives of FLUX.1, redirected at run time. Called by the worker."""

from collections.abc import Callable
from typing import Any

from lora_drift.harness.minihub.repos.flux import CHROMA

SIZES = "chroma/src/model.py chroma_params: the sizes of the denoiser, otherwise fixed, are those of the miniature"
CPU = "chroma/chroma_model.py FakeCLIP.device: 'cpu' instead of 'cuda'"


def chroma(device: str) -> list[str]:
    """Sizes of the miniature, and no CUDA on a CPU."""
    from extensions_built_in.diffusion_models.chroma.chroma_model import FakeCLIP
    from extensions_built_in.diffusion_models.chroma.src.model import chroma_params

    for name, value in CHROMA.items():
        assert hasattr(chroma_params, name), name
        setattr(chroma_params, name, value)
    if device != "cpu":
        return [SIZES]

    fake: Any = FakeCLIP
    original = fake.__init__

    def init(self: Any) -> None:
        original(self)
        self.device = "cpu"

    fake.__init__ = init
    return [SIZES, CPU]


APPLY: dict[str, Callable[[str], list[str]]] = {"chroma": chroma}
"""Model -> what is done once in a process before its first case: device -> a line for each thing redirected; they land
in the golden."""
