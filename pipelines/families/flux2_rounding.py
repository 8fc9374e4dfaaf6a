"""Where Diffusers' FLUX.2 rounds otherwise than the trainer's own network class (flux2/src/model.py, autoencoder.py).

In float32 that is 1e-6 of the latents; in bfloat16 it is another picture (38 of 255 levels on a miniature klein).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def round_like_the_trainers_network(pipe: Any, reference_dtype: str) -> None:
    """Change a freshly loaded FLUX.2 pipeline in place. Latents of reference pictures are rounded to that dtype."""
    _replace(pipe.transformer, nn.RMSNorm, _norm)
    pipe.transformer.pos_embed.forward = _rotations(pipe.transformer.pos_embed)
    pipe.transformer.register_forward_pre_hook(_time(pipe), with_kwargs=True)
    round_like_the_trainers_autoencoder(pipe.vae)
    pipe._encode_vae_image = _reference(pipe, getattr(torch, reference_dtype))
    finish = pipe.image_processor.postprocess
    pipe.image_processor.postprocess = lambda image, **options: finish(image.float(), **options)


def round_like_the_trainers_autoencoder(vae: Any) -> None:
    """Change FLUX.2's autoencoder in place, which Ideogram 4 has, too."""
    _replace(vae, nn.SiLU, lambda _: Swish())
    for half in (vae.encoder, vae.decoder):
        half.mid_block.attentions[0].set_processor(OverPixels())


def _replace(model: nn.Module, kind: type[nn.Module], make: Any) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is kind:
                setattr(module, name, make(child))


class Swish(nn.Module):
    """x * sigmoid(x) in two operations: torch's silu rounds once, and otherwise. The difference, 1e-6, would decide
    which way some reference latents are rounded to bfloat16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


class OverPixels:
    """The autoencoder's attention with 1x1 convolutions, where Diffusers has linear layers over pixels."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """`hidden_states`: [batch, channels, height, width]"""
        normed = attn.group_norm(hidden_states)
        q, k, v = (_pixelwise(layer, normed) for layer in (attn.to_q, attn.to_k, attn.to_v))
        q, k, v = (x.flatten(2).transpose(1, 2)[:, None].contiguous() for x in (q, k, v))
        attended = functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        attended = attended.unflatten(1, hidden_states.shape[2:]).permute(0, 3, 1, 2)
        return hidden_states + _pixelwise(attn.to_out[0], attended)


def _pixelwise(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(x, layer.weight[:, :, None, None], layer.bias)


class RMSNorm(nn.RMSNorm):
    """Rounds before it multiplies with its weight; torch's does so after."""

    eps: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(torch.mean(wide**2, dim=-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


def _norm(norm: nn.RMSNorm) -> RMSNorm:
    norm.__class__ = RMSNorm
    return norm  # type: ignore[return-value]


def _rotations(embed: Any) -> Any:
    """Frequencies in float32 (Diffusers has float64 ones, rounded at the end)."""

    def forward(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`ids`: [tokens, axes]. Returns cosines and sines, each [tokens, dimensions of a head]."""
        angles = []
        for axis, dim in enumerate(embed.axes_dim):
            scale = torch.arange(0, dim, 2, device=ids.device) / dim
            angles.append(ids[:, axis, None] * (1.0 / (embed.theta**scale)))
        turned = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
        return torch.cos(turned).float(), torch.sin(turned).float()

    return forward


def _reference(pipe: Any, dtype: torch.dtype) -> Any:
    """Latents of a reference picture, normalised in one operation and rounded to `dtype`, bfloat16 in the trainer
    (src/sampling.py `encode_image_refs`). Contiguous pixels: on channels-last ones, as Diffusers hands them over,
    PyTorch's group norm rounds otherwise (2e-5 of the latents)."""

    def encode(image: torch.Tensor, **_: Any) -> torch.Tensor:
        latents = pipe._patchify_latents(pipe.vae.encode(image.contiguous()).latent_dist.mode())
        normal: torch.Tensor = pipe.vae.bn(latents)
        return normal.to(dtype).to(latents.dtype)

    return encode


def _time(pipe: Any) -> Any:
    """The step's sigma, rounded once. Diffusers rounds its thousandfold and then the thousandth part of that."""

    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given, exact = kwargs["timestep"], pipe.scheduler.timesteps[pipe.scheduler.step_index or 0]
        own = given == exact.to(given.dtype) / 1000  # what somebody put there instead stays
        return args, kwargs | {"timestep": torch.where(own, (exact / 1000).to(given.dtype), given)}

    return before
