"""Matrix products in 8 bits, for the profile "fast": float8_e4m3fn with a scale a row.

What comes in is rounded each time. The weights stay as they are, since LoRAs are merged into them: a layer keeps a copy
in 8 bits besides, which is made again in place whenever they change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn

LEAST = 1024
"""Features in and out, below which rounding costs more than the product saves."""
MULTIPLE = 16
"""Of both, which the kernels want."""
SINGLE_ROW = re.compile(r"norm|mod", re.IGNORECASE)
"""In the names of layers that modulate: they see a row a picture, so reading the weight is all of their time."""
LARGEST = 448
SMALLEST = 1e-12
"""What a row of zeros is divided by, instead of zero."""


class Float8Linear(nn.Linear):
    """A layer that multiplies in 8 bits, by its weight as it was at the last `refresh`."""

    weight8: torch.Tensor
    scale8: torch.Tensor

    def refresh(self) -> None:
        numbers, scale = rounded(self.weight.detach())
        if hasattr(self, "weight8"):
            self.weight8.copy_(numbers)
            self.scale8.copy_(scale.t())
        else:
            self.register_buffer("weight8", numbers, persistent=False)
            self.register_buffer("scale8", scale.t().contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        numbers, scale = rounded(x.flatten(0, -2).contiguous())
        product = torch._scaled_mm(
            numbers,
            self.weight8.t(),
            scale_a=scale,
            scale_b=self.scale8,
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,  # the only one that GPUs have with a scale a row
            use_fast_accum=True,
        )
        return product.to(x.dtype).view(*x.shape[:-1], self.out_features)


def rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(numbers in 8 bits, what each row is to be multiplied by); the largest of a row becomes the largest there is."""
    wide = rows.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST) / LARGEST
    return (wide / scale).to(torch.float8_e4m3fn), scale


def prepare(block: nn.Module) -> None:
    """Make the large layers of a block multiply in 8 bits, once `refresh` was called."""
    for name, module in block.named_modules():
        if type(module) is nn.Linear and not SINGLE_ROW.search(name):
            sizes = (module.in_features, module.out_features)
            if min(sizes) >= LEAST and not any(size % MULTIPLE for size in sizes):
                module.__class__ = Float8Linear


def refresh(denoisers: Iterable[nn.Module]) -> None:
    """Take over the weights as they are now."""
    for denoiser in denoisers:
        for module in denoiser.modules():
            if isinstance(module, Float8Linear):
                module.refresh()
