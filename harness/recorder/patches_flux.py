"""What the trainer hard-codes for relatives of FLUX.1, redirected at run time. Called by the worker."""

from collections.abc import Callable
from typing import Any


def chroma() -> None:
    """Sizes of the miniature, and no CUDA."""
    from extensions_built_in.diffusion_models.chroma.chroma_model import FakeCLIP
    from extensions_built_in.diffusion_models.chroma.src.model import chroma_params

    from harness.minihub.repos.flux import CHROMA

    for name, value in CHROMA.items():
        assert hasattr(chroma_params, name), name
        setattr(chroma_params, name, value)

    fake: Any = FakeCLIP
    original = fake.__init__

    def init(self: Any) -> None:
        original(self)
        self.device = "cpu"

    fake.__init__ = init


APPLY: dict[str, Callable[[], None]] = {"chroma": chroma}
"""Model -> what is done once in a process before its first case."""
LINES: dict[str, list[str]] = {
    "chroma": [
        "chroma/src/model.py chroma_params: the sizes of the denoiser, otherwise fixed, are those of the miniature",
        "chroma/chroma_model.py FakeCLIP.device: 'cpu' instead of 'cuda'",
    ]
}
"""Model -> one line for each thing redirected; they land in the golden."""
