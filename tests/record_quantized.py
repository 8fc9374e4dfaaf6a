"""What optimum-quanto 0.2.4 and torchao 0.10.0 make of weights: prints quantized.json.

Run it in the trainer's environment: `PYTHONPATH=<ai-toolkit> python tests/record_quantized.py`. Only `matrix` and
`digest` are read by the tests, which have neither library.
"""

import json
from hashlib import sha256
from typing import Any

import numpy as np
import torch

QTYPES = ("qfloat8", "float8", "uint2", "uint3", "uint4", "uint5", "uint6", "uint7", "uint8")
DTYPES = ("float32", "bfloat16", "float16")
SHAPES = ((5, 64), (48, 192), (64, 1024), (1, 128), (7, 96), (16, 8, 3, 3))


def matrix(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """Weights of very different rows; the second of one sign, the third nearly nothing, the fourth with an outlier."""
    raw = np.random.Philox(key=sum(shape)).random_raw(int(np.prod(shape))) >> np.uint64(40)
    values = torch.from_numpy(raw.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)).view(shape)
    values = values**3 * torch.tensor([2.0 ** -(row % 9) for row in range(shape[0])]).view(-1, *[1] * (len(shape) - 1))
    if shape[0] > 3:
        values[1], values[2] = values[1].abs() + 0.1, values[2] * 2.0**-20
        values[3].view(-1)[5] = -30
    return values.to(getattr(torch, dtype))


def digest(weight: torch.Tensor) -> str:
    return sha256(weight.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def layer(weight: torch.Tensor) -> Any:
    """A module that holds a layer with this weight, as a model does."""
    if weight.dim() == 4:
        made: Any = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    else:
        made = torch.nn.Linear(weight.shape[1], weight.shape[0])
    bias = torch.linspace(-1, 1, weight.shape[0]).to(weight.dtype)
    made.weight.data, made.bias.data = weight, bias
    return torch.nn.ModuleDict({"layer": made.requires_grad_(False)})


if __name__ == "__main__":
    from optimum.quanto import freeze
    from toolkit.util.quantize import get_qtype, quantize

    table: dict[str, dict[str, str]] = {}
    for qtype in QTYPES:
        for dtype in DTYPES:
            for shape in SHAPES:
                model = layer(matrix(shape, dtype))
                quantize(model, weights=get_qtype(qtype))
                freeze(model)
                weight = model["layer"].weight
                packed = type(weight.data) is not torch.Tensor or type(weight) is not torch.nn.Parameter
                table.setdefault(f"{qtype} {dtype}", {})["x".join(map(str, shape))] = (
                    digest(weight.dequantize().data) if packed else "not quantised"
                )
    print(json.dumps(table, indent=1))
