"""FLUX.2 in its makers' single-file layout, and the same weights in the Diffusers layout.

The real repositories hold both, and so do the miniatures: the trainer loads the single files, stock Diffusers the
folders. The renaming follows Diffusers' scripts/convert_flux2_to_diffusers.py.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lora_drift.harness.minihub import weights
from lora_drift.harness.minihub.weights import Rule

Shapes = dict[str, tuple[int, ...]]
Arrays = dict[str, np.ndarray]
LATENT = 128
"""Channels of a latent token: 32 of the autoencoder, 2 x 2 unshuffled (hard-coded in the trainer's pipeline)."""


@dataclass(frozen=True)
class Transformer:
    """Size of one denoiser."""

    hidden: int
    heads: int
    depth: int
    single: int
    context: int
    """Width of a text token: three layers of the text encoder side by side."""
    guidance: bool
    mlp_ratio: float = 3.0
    theta: int = 2000

    @property
    def axes(self) -> list[int]:
        return [self.hidden // self.heads // 4] * 4

    def shapes(self) -> Shapes:
        """Name -> shape of the single file."""
        h, mlp = self.hidden, int(self.hidden * self.mlp_ratio)
        head = h // self.heads
        found: Shapes = {
            "img_in": (h, LATENT),
            "txt_in": (h, self.context),
            "double_stream_modulation_img.lin": (6 * h, h),
            "double_stream_modulation_txt.lin": (6 * h, h),
            "single_stream_modulation.lin": (3 * h, h),
            "final_layer.linear": (LATENT, h),
            "final_layer.adaLN_modulation.1": (2 * h, h),
        }
        for name in ("time_in", "guidance_in")[: 1 + self.guidance]:
            found |= {f"{name}.in_layer": (h, 256), f"{name}.out_layer": (h, h)}
        for i in range(self.depth):
            for side in (f"double_blocks.{i}.img", f"double_blocks.{i}.txt"):
                found |= {f"{side}_attn.qkv": (3 * h, h), f"{side}_attn.proj": (h, h)}
                found |= {f"{side}_mlp.0": (2 * mlp, h), f"{side}_mlp.2": (h, mlp)}
                found |= {f"{side}_attn.norm.{n}_norm.scale": (head,) for n in ("query", "key")}
        for i in range(self.single):
            block = f"single_blocks.{i}"
            found |= {f"{block}.linear1": (3 * h + 2 * mlp, h), f"{block}.linear2": (h, h + mlp)}
            found |= {f"{block}.norm.{n}_norm.scale": (head,) for n in ("query", "key")}
        return {name if name.endswith("scale") else f"{name}.weight": shape for name, shape in found.items()}

    def arrays(self, repo: str, file: str, rules: tuple[Rule, ...]) -> Arrays:
        # ".weight" tells `weights.tensor` that a scale is a norm's weight and not a bias.
        named = {name: name.replace(".scale", ".scale.weight") for name in self.shapes()}
        return {n: weights.tensor(repo, file, named[n], shape, rules) for n, shape in self.shapes().items()}


@dataclass(frozen=True)
class Autoencoder:
    """Size of the autoencoder; its norms have 32 groups (hard-coded in the trainer), hence at least 32 channels."""

    channels: int = 32
    multipliers: tuple[int, ...] = (1, 1, 1, 1)
    """Of `channels`, a level each."""
    blocks: int = 1
    latent: int = LATENT // 4

    @property
    def levels(self) -> int:
        return len(self.multipliers)

    def shapes(self) -> Shapes:
        """Name -> shape of the single file (the real one also counts batches in `bn`, which nothing reads)."""
        widths, z = [self.channels * m for m in self.multipliers], self.latent
        first, last = widths[0], widths[-1]
        convs: dict[str, tuple[int, int, int]] = {
            "encoder.conv_in": (first, 3, 3),
            "encoder.conv_out": (2 * z, last, 3),
            "encoder.quant_conv": (2 * z, 2 * z, 1),
            "decoder.post_quant_conv": (z, z, 1),
            "decoder.conv_in": (last, z, 3),
            "decoder.conv_out": (3, first, 3),
        }
        norms = {"encoder.norm_out": last, "decoder.norm_out": first}
        for block, (inputs, outputs) in self._resnets(widths):
            convs |= {f"{block}.conv1": (outputs, inputs, 3), f"{block}.conv2": (outputs, outputs, 3)}
            if inputs != outputs:
                convs[f"{block}.nin_shortcut"] = (outputs, inputs, 1)
            norms |= {f"{block}.norm1": inputs, f"{block}.norm2": outputs}
        for half in ("encoder", "decoder"):
            convs |= {f"{half}.mid.attn_1.{n}": (last, last, 1) for n in ("q", "k", "v", "proj_out")}
            norms[f"{half}.mid.attn_1.norm"] = last
        for i in range(self.levels - 1):
            convs[f"encoder.down.{i}.downsample.conv"] = (widths[i], widths[i], 3)
            convs[f"decoder.up.{i + 1}.upsample.conv"] = (widths[i + 1], widths[i + 1], 3)
        found: Shapes = {f"{name}.weight": (o, i, k, k) for name, (o, i, k) in convs.items()}
        found |= {f"{name}.bias": (o,) for name, (o, _, _) in convs.items()}
        found |= {f"{name}.{part}": (c,) for name, c in norms.items() for part in ("weight", "bias")}
        return found | {f"bn.running_{part}": (4 * z,) for part in ("mean", "var")}

    def _resnets(self, widths: list[int]) -> Iterator[tuple[str, tuple[int, int]]]:
        """(block, (channels in, channels out))"""
        for half in ("encoder", "decoder"):
            yield from ((f"{half}.mid.block_{j}", (widths[-1], widths[-1])) for j in (1, 2))
        for i, width in enumerate(widths):
            above, below = widths[max(i - 1, 0)], widths[min(i + 1, self.levels - 1)]
            for j in range(self.blocks):
                yield f"encoder.down.{i}.block.{j}", (width if j else above, width)
            for j in range(self.blocks + 1):
                yield f"decoder.up.{i}.block.{j}", (width if j else below, width)

    def arrays(self, repo: str, file: str, rules: tuple[Rule, ...]) -> Arrays:
        # A variance is positive: about 1, like a norm's weight.
        named = {name: name.replace("running_var", "running_var.weight") for name in self.shapes()}
        return {n: weights.tensor(repo, file, named[n], shape, rules) for n, shape in self.shapes().items()}


_TRANSFORMER_NAMES = (
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2"),
    ("guidance_in.in_layer", "time_guidance_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_guidance_embed.guidance_embedder.linear_2"),
    ("modulation_img.lin.", "modulation_img.linear."),
    ("modulation_txt.lin.", "modulation_txt.linear."),
    ("single_stream_modulation.lin.", "single_stream_modulation.linear."),
    ("final_layer.linear", "proj_out"),
    ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    ("single_blocks.", "single_transformer_blocks."),
    (".linear1.", ".attn.to_qkv_mlp_proj."),
    (".linear2.", ".attn.to_out."),
    ("double_blocks.", "transformer_blocks."),
    (".img_attn.proj.", ".attn.to_out.0."),
    (".txt_attn.proj.", ".attn.to_add_out."),
    (".img_mlp.0.", ".ff.linear_in."),
    (".img_mlp.2.", ".ff.linear_out."),
    (".txt_mlp.0.", ".ff_context.linear_in."),
    (".txt_mlp.2.", ".ff_context.linear_out."),
    (".img_attn.norm.query_norm.scale", ".attn.norm_q.weight"),
    (".img_attn.norm.key_norm.scale", ".attn.norm_k.weight"),
    (".txt_attn.norm.query_norm.scale", ".attn.norm_added_q.weight"),
    (".txt_attn.norm.key_norm.scale", ".attn.norm_added_k.weight"),
    (".norm.query_norm.scale", ".attn.norm_q.weight"),
    (".norm.key_norm.scale", ".attn.norm_k.weight"),
)
_FUSED = {".img_attn.qkv.": ("to_q", "to_k", "to_v"), ".txt_attn.qkv.": ("add_q_proj", "add_k_proj", "add_v_proj")}


def transformer_to_diffusers(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The single file's tensors under Diffusers' names: q, k and v apart, shift and scale of the last norm swapped."""
    found: Arrays = {}
    for name, array in arrays.items():
        new = name
        for ours, theirs in _TRANSFORMER_NAMES:
            new = new.replace(ours, theirs)
        fused = next((part for part in _FUSED if part in name), None)
        if fused is not None:
            for part, third in zip(_FUSED[fused], np.split(array, 3), strict=True):
                found[new.replace(fused, f".attn.{part}.")] = third
        elif "adaLN" in name:
            found[new] = np.concatenate(np.split(array, 2)[::-1])
        else:
            found[new] = array
    return found


def autoencoder_to_diffusers(arrays: Mapping[str, np.ndarray], levels: int) -> Arrays:
    """The single file's tensors under Diffusers' names: attention as matrices, decoder levels counted from the top."""
    found: Arrays = {"bn.num_batches_tracked": np.zeros((), np.float32)}
    for name, array in arrays.items():
        new = name.replace("encoder.quant_conv", "quant_conv").replace("decoder.post_quant_conv", "post_quant_conv")
        new = new.replace(".norm_out.", ".conv_norm_out.")
        new = re.sub(r"down\.(\d)\.block", r"down_blocks.\1.resnets", new)
        new = re.sub(r"down\.(\d)\.downsample\.", r"down_blocks.\1.downsamplers.0.", new)
        new = re.sub(r"up\.(\d)\.block", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.resnets", new)
        new = re.sub(r"up\.(\d)\.upsample\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.", new)
        new = new.replace("mid.block_1", "mid_block.resnets.0").replace("mid.block_2", "mid_block.resnets.1")
        if "mid.attn_1" in new:
            head, part = new.split("mid.attn_1.")
            part = part.replace("norm.", "group_norm.").replace("proj_out", "to_out.0")
            part = re.sub(r"^([qkv])\.", r"to_\1.", part)
            new, array = f"{head}mid_block.attentions.0.{part}", array[:, :, 0, 0] if array.ndim == 4 else array
        found[new] = array
    return found
