"""OmniGen2's denoiser: Lumina 2's blocks from Diffusers, plus reference pictures in the sequence.

Follows transformer_omnigen2.py and repo.py of extensions_built_in/diffusion_models/omnigen2/src in the trainer, and
loads the same tensor names. Written for one picture at a time, so that nothing is ever padded.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import Timesteps, get_1d_rotary_pos_embed
from diffusers.models.normalization import LuminaLayerNormContinuous, RMSNorm
from diffusers.models.transformers.transformer_lumina2 import (
    Lumina2CombinedTimestepCaptionEmbedding,
    Lumina2TransformerBlock,
)
from torch import Tensor, nn

ROPE_THETA = 10000
TRITON = find_spec("triton") is not None
MOST_REFERENCES = 5


class OmniGen2Transformer2DModel(ModelMixin, ConfigMixin):
    """The arguments are those of the hub's transformer/config.json."""

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 16,
        out_channels: int | None = None,
        hidden_size: int = 2304,
        num_layers: int = 26,
        num_refiner_layers: int = 2,
        num_attention_heads: int = 24,
        num_kv_heads: int = 8,
        multiple_of: int = 256,
        ffn_dim_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        axes_dim_rope: Sequence[int] = (32, 32, 32),
        axes_lens: Sequence[int] = (300, 512, 512),
        text_feat_dim: int = 1024,
        timestep_scale: float = 1.0,
    ) -> None:
        super().__init__()

        def blocks(count: int, modulation: bool = True) -> nn.ModuleList:
            sizes = (num_attention_heads, num_kv_heads, multiple_of, ffn_dim_multiplier, norm_eps)
            return nn.ModuleList(Lumina2TransformerBlock(hidden_size, *sizes, modulation) for _ in range(count))

        patch = patch_size**2
        self.x_embedder = nn.Linear(patch * in_channels, hidden_size)
        self.ref_image_patch_embedder = nn.Linear(patch * in_channels, hidden_size)
        self.image_index_embedding = nn.Parameter(torch.empty(MOST_REFERENCES, hidden_size))
        self.time_caption_embed = Lumina2CombinedTimestepCaptionEmbedding(hidden_size, text_feat_dim, norm_eps=norm_eps)
        self.time_caption_embed.time_proj = Timesteps(256, True, 0.0, scale=timestep_scale)
        self.noise_refiner = blocks(num_refiner_layers)
        self.ref_image_refiner = blocks(num_refiner_layers)
        self.context_refiner = blocks(num_refiner_layers, modulation=False)
        self.layers = blocks(num_layers)
        self.norm_out = LuminaLayerNormContinuous(
            hidden_size,
            min(hidden_size, 1024),
            elementwise_affine=False,
            eps=1e-6,
            bias=True,
            out_dim=patch * (out_channels or in_channels),
        )
        _round_once(self)

    def rotary_tables(self) -> list[Tensor]:
        """One table per axis (position in the sequence, row, column): complex [axes_lens, axes_dim_rope / 2]."""
        axes = zip(self.config.axes_dim_rope, self.config.axes_lens, strict=True)
        return [
            get_1d_rotary_pos_embed(dim, length, theta=ROPE_THETA, freqs_dtype=torch.float64) for dim, length in axes
        ]

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        text_hidden_states: Tensor,
        freqs_cis: Sequence[Tensor],
        text_attention_mask: Tensor,
        ref_image_hidden_states: Sequence[Tensor] = (),
    ) -> Tensor:
        """Predict the velocity, from noise towards the picture.

        Args:
            hidden_states: latents [1, channels, height, width].
            timestep: [1], 0 (noise) to 1 (picture).
            text_hidden_states: [1, tokens, width of the text encoder].
            freqs_cis: `rotary_tables()`, on the latents' device.
            text_attention_mask: [1, tokens], all ones.
            ref_image_hidden_states: latents of reference pictures, each [channels, height, width].
        """
        temb, text = self.time_caption_embed(hidden_states, timestep, text_hidden_states)
        pictures = [*(reference[None] for reference in ref_image_hidden_states), hidden_states]
        grids = [_grid(picture, self.config.patch_size) for picture in pictures]
        rotary = _rotary(_positions(text.shape[1], grids).to(text.device), freqs_cis)
        text_rotary, *picture_rotary = rotary.split([text.shape[1], *(rows * columns for rows, columns in grids)], 1)

        for block in self.context_refiner:
            text = block(text, text_attention_mask, text_rotary)
        sequence = [text]
        for index, (picture, own_rotary) in enumerate(zip(pictures, picture_rotary, strict=True)):
            is_reference = index < len(pictures) - 1
            tokens = _patches(picture, self.config.patch_size)
            if is_reference:
                tokens = self.ref_image_patch_embedder(tokens) + self.image_index_embedding[index]
            else:
                tokens = self.x_embedder(tokens)
            for block in self.ref_image_refiner if is_reference else self.noise_refiner:
                tokens = block(tokens, _all_of(tokens), own_rotary, temb)
            sequence.append(tokens)

        joint = torch.cat(sequence, dim=1)
        for block in self.layers:
            joint = block(joint, _all_of(joint), rotary, temb)
        rows, columns = grids[-1]
        return _picture(self.norm_out(joint, temb)[:, -rows * columns :], rows, columns, self.config.patch_size)


class RoundedOnce(nn.RMSNorm):
    """torch's norm, or on a GPU the trainer's own."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and TRITON and not torch.compiler.is_compiling():  # the fast profile leaves it to the compiler
            from lora_drift.pipelines.families.omnigen2_triton_norm import rms_norm

            return rms_norm(x, self.weight, self.eps)
        return super().forward(x)


def _round_once(model: nn.Module) -> None:
    """Use `RoundedOnce` where the trainer does not take Diffusers' RMSNorm, which rounds twice in bfloat16."""
    for parent in [module for module in model.modules() if not isinstance(module, Attention)]:
        for name, norm in parent.named_children():
            if isinstance(norm, RMSNorm):
                setattr(parent, name, RoundedOnce(tuple(norm.dim), eps=norm.eps))


def _all_of(tokens: Tensor) -> Tensor:
    """A mask that hides nothing, bool [1, tokens]. The trainer always passes one, and the kernel depends on it."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _grid(picture: Tensor, patch: int) -> tuple[int, int]:
    """(rows, columns) of patches."""
    return picture.shape[-2] // patch, picture.shape[-1] // patch


def _patches(picture: Tensor, patch: int) -> Tensor:
    """[1, channels, height, width] -> [1, rows * columns, patch * patch * channels]"""
    rows, columns = _grid(picture, patch)
    cells = picture.reshape(1, -1, rows, patch, columns, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(1, rows * columns, -1)


def _picture(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """The inverse of `_patches`."""
    cells = tokens.reshape(1, rows, columns, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(1, -1, rows * patch, columns * patch)


def _positions(text_tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
    """int64 [tokens, 3]: text counts up on all axes; a picture stays at one place of the first axis, after which the
    next begins as far away as the longer side of the picture."""
    parts = [torch.arange(text_tokens)[:, None].expand(-1, 3)]
    place = text_tokens
    for rows, columns in grids:
        where = torch.full((rows * columns,), place)
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts.append(torch.stack([where, row.flatten(), column.flatten()], dim=1))
        place += max(rows, columns)
    return torch.cat(parts)


def _rotary(positions: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """complex [1, tokens, head width / 2]"""
    return torch.cat([table[positions[:, axis]] for axis, table in enumerate(tables)], dim=-1)[None]
