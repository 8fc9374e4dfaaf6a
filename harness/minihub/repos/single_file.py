"""A fine-tune of Stable Diffusion 1.5 in one file, in the original layout, as checkpoints are passed around."""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lora_drift.harness.minihub import layout, weights
from lora_drift.harness.minihub.repo import Repo, Tensors, to_json
from lora_drift.harness.minihub.repos import sd
from lora_drift.pipelines.lora_formats import ldm_names

SD15_FILE_ID = "lora-drift/sd15-fine-tune"
VAE = (
    (r"^(en|de)coder\.mid_block\.attentions\.0\.", r"\1coder.mid.attn_1."),
    (r"^(en|de)coder\.mid_block\.resnets\.0\.", r"\1coder.mid.block_1."),
    (r"^(en|de)coder\.mid_block\.resnets\.1\.", r"\1coder.mid.block_2."),
    (r"^encoder\.down_blocks\.(\d)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d)\.resnets\.", lambda m: f"decoder.up.{3 - int(m[1])}.block."),
    (r"^decoder\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"decoder.up.{3 - int(m[1])}.upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.attn_1\.to_([qkv])\.", r".attn_1.\1."),
    (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
)
"""Diffusers' names in an autoencoder with four sizes -> the original's."""


def _values() -> dict[str, np.ndarray]:
    return dict(_named())


def _named() -> Iterator[tuple[str, np.ndarray]]:
    """(name in the file, value) of text encoder, U-Net and autoencoder."""
    encoder, unet, vae = sd.SD15.weights[:3]
    drawn = {
        part.folder: {
            name: weights.tensor(SD15_FILE_ID, part.folder, name, shape, part.rules)
            for name, shape in layout.load(part).items()
        }
        for part in (encoder, unet, vae)
    }
    for name, value in drawn["text_encoder"].items():
        yield f"cond_stage_model.transformer.{name}", value
    modules = {name.rpartition(".")[0]: () for name in drawn["unet"]}
    theirs = {module: name for name, (module,) in ldm_names(modules)}
    for name, value in drawn["unet"].items():
        module, _, kind = name.rpartition(".")
        yield f"model.diffusion_model.{theirs[module]}.{kind}", value
    for name, value in drawn["vae"].items():
        for pattern, new in VAE:
            name = re.sub(pattern, new, name)
        is_attention = ".attn_1." in name and name.endswith("weight") and value.ndim == 2
        yield f"first_stage_model.{name}", value[:, :, None, None] if is_attention else value  # 1x1 convolutions there


SAFETY_CHECKER = Repo(
    "CompVis/stable-diffusion-safety-checker",
    weights=(replace(sd.SD15.weights[3], folder=""),),
    files={"preprocessor_config.json": to_json(sd.CLIP_IMAGE_PROCESSOR)},
)
"""Diffusers loads it with a single file, though the trainer asks for none; nothing of ours does."""
SD15_FILE = Repo(SD15_FILE_ID, tensors=(Tensors("sd15-fine-tune.safetensors", values=_values),))
