"""OmniGen2 under NumPy 2, which the trainer's own requirements rule out (its SciPy, 1.12.0, needs 1.x)."""

from collections.abc import Callable
from typing import Any

import numpy as np


class OldNumpy:
    """NumPy 2, but `sqrt` gives a Python float: with that and a float32 array it computes in float32, as NumPy 1 does
    with its own float64 numbers too; NumPy 2 goes through float64 with those."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def sqrt(value: float) -> float:
        return float(np.sqrt(value))


def schedule(_device: str) -> list[str]:
    if np.__version__.startswith("1."):
        return []
    from extensions_built_in.diffusion_models.omnigen2.src.schedulers import scheduling_flow_match_euler_discrete

    module: Any = scheduling_flow_match_euler_discrete
    module.np = OldNumpy()
    return ["omnigen2/src/schedulers: sqrt gives a Python float, so that NumPy 2 shifts the timesteps as NumPy 1 does"]


APPLY: dict[str, Callable[[str], list[str]]] = {"omnigen2": schedule}
