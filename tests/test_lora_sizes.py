"""A LoRA file cannot ask for more memory than the weights that it changes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from lora_drift.pipelines import MODELS, LoraError
from lora_drift.pipelines.family import same_name
from lora_drift.pipelines.lora import read

SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {"transformer": {"proj": (16, 16)}}


class Largest(TorchDispatchMode):
    """The most bytes of one tensor that was made, but for those on `meta`."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.device.type != "meta":
            self.bytes = max(self.bytes, made.nbytes)
        return made


N = 6000
FACTORS = {
    "second factor": {"lokr_w1": (4, 4), "lokr_w2_a": (N, 1), "lokr_w2_b": (1, N)},
    "first factor": {"lokr_w1_a": (N, 1), "lokr_w1_b": (1, N), "lokr_w2": (4, 4)},
    "product": {"lokr_w1": (N, 1), "lokr_w2": (1, N)},
    "LoRA pair": {"lora_B.weight": (N, 1), "lora_A.weight": (1, N)},
}


@pytest.mark.parametrize("what", FACTORS)
def test_sizes_are_compared_before_factors_are_multiplied(tmp_path: Path, what: str) -> None:
    """Of 240 kB in a file, 14.4 GB were made before their size was looked at."""
    path = tmp_path / "small.safetensors"
    prefix = MODELS["lumina2"].lora_prefixes[0]
    save_file({f"{prefix}proj.{name}": torch.ones(size) for name, size in FACTORS[what].items()}, path)
    with Largest() as largest, pytest.raises(LoraError, match="another size"):
        read({"": path}, MODELS["lumina2"], SHAPES, same_name)
    assert largest.bytes <= path.stat().st_size


def test_factors_of_two_precisions_are_one_lora(tmp_path: Path) -> None:
    path = tmp_path / "mixed.safetensors"
    prefix = MODELS["lumina2"].lora_prefixes[0]
    factors = {"lokr_w1": torch.ones(4, 4).bfloat16(), "lokr_w2_a": torch.ones(4, 2).half(),
               "lokr_w2_b": torch.ones(2, 4)}  # fmt: skip
    save_file({f"{prefix}proj.{name}": value for name, value in factors.items()}, path)
    (delta,) = read({"": path}, MODELS["lumina2"], SHAPES, same_name).deltas
    assert torch.equal(delta.change.weight(), torch.full((16, 16), 2.0))
