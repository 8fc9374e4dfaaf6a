"""What the installed torch draws in half precision: `python tests/record_noise.py` prints a row of noise_streams.json.

Imports nothing of the project, so that it runs beside any torch.
"""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch

DTYPES = ("bfloat16", "float16")
SIZES = (*range(1, 82), 127, 255, 1000, 1023, 1024, 4096, 4103, 16 * 32 * 32, 65551)
DRAWS = 3


def digest(draw: Callable[[int, Any, torch.dtype], torch.Tensor], generator: Any, size: int, dtype: str) -> str:
    """Of a few draws in a row from a generator, and of where they leave it."""
    numbers = [draw(size, generator, getattr(torch, dtype)).view(torch.int16) for _ in range(DRAWS)]
    after = torch.rand(4, generator=generator).view(torch.int32)
    return sha256(b"".join(t.numpy().tobytes() for t in (*numbers, after))).hexdigest()[:8]


def randn(size: int, generator: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size, generator=generator, dtype=dtype)


if __name__ == "__main__":
    table = {
        dtype: {size: digest(randn, torch.Generator("cpu").manual_seed(size), size, dtype) for size in SIZES}
        for dtype in DTYPES
    }
    print(json.dumps({torch.__version__: table}))
