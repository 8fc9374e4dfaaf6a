"""Krea 2's network with reference pictures, which Diffusers' class does not take. Follows src/mmdit.py and
src/pipeline.py of the trainer's krea2; weights, blocks and LoRA targets are those of Diffusers' class."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers import Krea2Transformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch.nn import functional

Kept = list[tuple[torch.Tensor, torch.Tensor]]
"""Of each block the keys and values of reference pictures, [1, tokens, heads, width], rotated."""


class _Beside(NamedTuple):
    """What reaches the attention of one block, in the place of Diffusers' rotation."""

    rotary: tuple[torch.Tensor, torch.Tensor]
    references: int
    """So many tokens at the end are reference pictures."""
    keep: Kept | None
    """Where their keys and values go."""
    kept: tuple[torch.Tensor, torch.Tensor] | None
    """Keys and values of reference pictures that are not among the tokens."""


class _Processor:
    """Attention of a block, as Krea2AttnProcessor has it, beside keys and values that were kept."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, image_rotary_emb: _Beside
    ) -> torch.Tensor:
        beside, heads = image_rotary_emb, (-1, attn.head_dim)
        query, key = (
            apply_rotary_emb(norm(project(hidden_states).unflatten(-1, heads)), beside.rotary, sequence_dim=1)
            for norm, project in ((attn.norm_q, attn.to_q), (attn.norm_k, attn.to_k))
        )
        value = attn.to_v(hidden_states).unflatten(-1, heads)
        if beside.keep is not None:
            beside.keep.append((key[:, -beside.references :].clone(), value[:, -beside.references :].clone()))
        if beside.kept is not None:
            key, value = (torch.cat(pair, dim=1) for pair in zip((key, value), beside.kept, strict=True))
        groups = attn.num_heads // attn.num_kv_heads
        key, value = (tensor.repeat_interleave(groups, dim=2) for tensor in (key, value))
        attended: torch.Tensor = dispatch_attention_fn(
            query, key, value, attn_mask=attention_mask, backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )  # fmt: skip
        out: torch.Tensor = attn.to_out[0](attended.flatten(2, 3) * torch.sigmoid(attn.to_gate(hidden_states)))
        return out


class Krea2ReferenceTransformer(Krea2Transformer2DModel):
    """With reference pictures behind the picture, at time 0. Where they read each other only, what becomes of them is
    the same in every call, and is kept from the first for the others."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        for block in self.transformer_blocks:
            block.attn.set_processor(_Processor())

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        position_ids: torch.Tensor,
        references: int = 0,
        kept: Kept | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The prediction for the picture's tokens, [1, tokens, channels], in a tuple.

        Args:
            hidden_states: [1, tokens, channels], of which the last `references` are reference pictures.
            encoder_hidden_states: [1, tokens, layers, width]; all are read.
            timestep: [1], from 1 (noise) to 0.
            position_ids: [tokens of text and pictures, 3].
            kept: None, and references read everything. A list, and they read each other only: it is filled if it is
                empty; else the references in it are read, and none may be among the tokens.
        """
        text = self.txt_in(self.text_fusion(encoder_hidden_states))
        tokens = torch.cat([text, self.img_in(hidden_states)], dim=1)
        time, modulation = self._modulation(timestep, tokens)
        end = tokens.shape[1] - references
        mask = None
        if references:
            clean = self._modulation(torch.zeros_like(timestep), tokens)[1]
            modulation = torch.cat([modulation.expand(-1, end, -1), clean.expand(-1, references, -1)], dim=1)
            if kept is not None:
                of_reference = torch.arange(tokens.shape[1], device=tokens.device) >= end
                mask = (~of_reference[:, None] | of_reference[None, :])[None, None]
        rotary, filled = self.rotary_emb(position_ids), bool(kept)
        for index, block in enumerate(self.transformer_blocks):
            beside = _Beside(
                rotary,
                references,
                None if filled or not references else kept,
                kept[index] if kept is not None and filled else None,
            )
            tokens = block(tokens, modulation, beside, mask)
        return (self.final_layer(tokens[:, text.shape[1] : end], time),)

    def _modulation(self, timestep: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What a time is embedded as, [1, 1, width], and what the blocks make of it, [1, 1, 6 * width]."""
        time = self.time_embed(timestep, dtype=tokens.dtype)
        return time, self.time_mod_proj(functional.gelu(time, approximate="tanh"))
