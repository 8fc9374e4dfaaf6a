"""Miniatures as the files that ComfyUI loads: its names for tensors, its numbers for special tokens.

Each file says in its metadata (`miniature`) how large it is, which `fixture.py` follows inside ComfyUI. Where ComfyUI
has a table of its own from Diffusers' names to its own, the file keeps Diffusers' and names the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lora_drift.harness.native import records
from lora_drift.harness.studies.comfyui.encoders import clip, clip_vision, gemma2, mistral, qwen3, qwen_3b, qwen_vl, t5
from lora_drift.harness.studies.comfyui.weights import Home, Make, Tensors, Weights
from lora_drift.pipelines import MODELS

# ------------------------------------------------------------------------------------------------------- autoencoders


def kl(home: Home, component: str = "vae") -> Weights:
    config = home.config(component)
    widths = config["block_out_channels"]
    size = {"ch": widths[0], "ch_mult": [w // widths[0] for w in widths], "num_res_blocks": config["layers_per_block"]}
    return Weights(home.tensors(component), {"vae": {"config": size, "groups": config["norm_num_groups"]}})


WAN_LAYERS = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
              "conv_shortcut": "shortcut"}  # fmt: skip
WAN_ENDS = {"conv_in": "conv1", "conv_out": "head.2", "norm_out": "head.0"}


def wan_vae(home: Home) -> Weights:
    """Of Wan and Qwen-Image. An original checkpoint numbers layers in a row (2.1) or within levels (2.2), Diffusers'
    names them by block."""
    config = home.config("vae")
    blocks, nested = config["num_res_blocks"], config.get("is_residual", False)

    def place(module: str) -> str:
        half, _, rest = module.partition(".")
        if half not in ("encoder", "decoder"):
            return {"quant_conv": "conv1", "post_quant_conv": "conv2"}[module]
        if rest in WAN_ENDS:
            return f"{half}.{WAN_ENDS[rest]}"
        if found := re.fullmatch(r"mid_block\.resnets\.(\d)\.(\w+)", rest):
            return f"{half}.middle.{2 * int(found[1])}.{WAN_LAYERS[found[2]]}"
        if found := re.fullmatch(r"mid_block\.attentions\.0\.(\w+)", rest):
            return f"{half}.middle.1.{found[1]}"
        if not nested and (found := re.fullmatch(r"down_blocks\.(\d+)\.(.*)", rest)):
            return f"{half}.downsamples.{found[1]}.{WAN_LAYERS.get(found[2], found[2])}"
        found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|\w+samplers?)\.?(\d+)?\.(.*)", rest)
        assert found is not None, module
        side, level, kind, number, layer = found.groups()
        side = f"{side}samples"
        within = int(number) if kind == "resnets" else blocks + (side == "upsamples")
        layer = WAN_LAYERS.get(layer, layer)
        if nested:
            return f"{half}.{side}.{level}.{side}.{within}.{layer}"
        return f"{half}.{side}.{int(level) * (blocks + 2) + within}.{layer}"

    renamed = {}
    for name, tensor in home.tensors("vae").items():
        module, _, kind = name.rpartition(".")
        renamed[f"{place(module)}.{kind}"] = tensor
    size = {"num_res_blocks": blocks}
    if nested:
        size |= {"dim": config["base_dim"], "dec_dim": config["decoder_base_dim"]}
    return Weights(renamed, {"vae": {"config": size}})


# ---------------------------------------------------------------------------------------------------------- denoisers


def flux(home: Home) -> Weights:
    config = home.config("transformer")
    size = {"axes_dim": config["axes_dims_rope"], "num_heads": config["num_attention_heads"]}
    return Weights(home.tensors("transformer"), {"denoiser": {"class": "Flux", "config": size, "table": "flux"}})


def zimage(home: Home) -> Weights:
    config = home.config("transformer")
    same = ("dim", "n_layers", "n_refiner_layers", "n_heads", "n_kv_heads", "axes_dims", "axes_lens", "cap_feat_dim",
            "rope_theta", "qk_norm", "in_channels")  # fmt: skip
    size = {**{k: config[k] for k in same}, "ffn_dim_multiplier": 8 / 3, "multiple_of": 1, "time_scale": 1000.0,
            "z_image_modulation": True, "pad_tokens_multiple": 32, "image_model": "lumina2"}  # fmt: skip
    tensors = home.tensors("transformer")
    time = [len(tensors["t_embedder.mlp.0.weight"]), len(tensors["t_embedder.mlp.2.weight"])]
    denoiser = {"class": "ZImage", "config": size, "table": "z_image", "time_embedder": time}
    return Weights(tensors, {"denoiser": denoiser})


def qwen_image(home: Home) -> Weights:
    config = home.config("transformer")
    same = ("attention_head_dim", "axes_dims_rope", "joint_attention_dim", "num_attention_heads")
    size = {k: config[k] for k in same}
    return Weights(home.tensors("transformer"), {"denoiser": {"class": "QwenImage", "config": size}})


KLEIN = {f"flux2_klein_{size}": f"flux-2-klein-base-{size}.safetensors" for size in ("4b", "9b")}


def flux2(home: Home) -> Weights:
    tensors = home.file("flux2-dev.safetensors" if home.spec.guidance == "embedded" else KLEIN[home.spec.id])
    (head,) = tensors["double_blocks.0.img_attn.norm.query_norm.scale"].shape
    size = {"axes_dim": [head // 4] * 4, "num_heads": len(tensors["img_in.weight"]) // head}
    return Weights(tensors, {"denoiser": {"class": "Flux2", "config": size}})


def flux2_vae(home: Home) -> Weights:
    tensors = home.file("ae.safetensors")
    widths = [len(tensors[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(4)]
    size = {"ch": widths[0], "ch_mult": [w // widths[0] for w in widths], "num_res_blocks": 1}
    return Weights(tensors, {"vae": {"config": size}})


def chroma(home: Home) -> Weights:
    from lora_drift.pipelines.families import chroma as family

    tensors = home.file("Chroma1-Base.safetensors")
    sizes = family.sizes({name: list(tensor.shape) for name, tensor in tensors.items()})
    heads, head = sizes["num_attention_heads"], sizes["attention_head_dim"]
    size = {"axes_dim": list(sizes["axes_dims_rope"]), "num_heads": heads, "out_dim": heads * head,
            "hidden_dim": sizes["approximator_hidden_dim"], "n_layers": sizes["approximator_layers"]}  # fmt: skip
    modulations = 3 * sizes["num_single_layers"] + 12 * sizes["num_layers"] + 2
    return Weights(tensors, {"denoiser": {"class": "Chroma", "config": size, "modulations": modulations}})


def unet(home: Home) -> Weights:
    """Of Stable Diffusion."""
    config, tensors = home.config("unet"), home.tensors("unet")
    widths, blocks = config["block_out_channels"], config["layers_per_block"]
    depths = config.get("transformer_layers_per_block", [1] * len(widths))
    depths = [d if "CrossAttn" in kind else 0 for d, kind in zip(depths, config["down_block_types"], strict=True)]
    heads = config["attention_head_dim"]
    size: dict[str, Any] = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": widths[0],
        "num_res_blocks": [blocks] * len(widths),
        "channel_mult": [w // widths[0] for w in widths], "context_dim": config["cross_attention_dim"],
        "transformer_depth": [d for d in depths for _ in range(blocks)],
        "transformer_depth_output": [d for d in depths for _ in range(blocks + 1)],
        "transformer_depth_middle": config.get("transformer_layers_per_block", [1])[-1],
        "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None,
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "use_temporal_attention": False, "use_temporal_resblock": False,
        "num_heads": heads if isinstance(heads, int) else -1, "num_head_channels": -1,
    }  # fmt: skip
    denoiser: dict[str, Any] = {"class": "SD15", "config": size, "table": "unet", "groups": config["norm_num_groups"]}
    if "addition_embed_type" in config:
        size |= {"num_classes": "sequential", "adm_in_channels": config["projection_class_embeddings_input_dim"],
                 "num_head_channels": widths[-1] // heads[-1]}  # fmt: skip
        denoiser |= {"class": "SDXL", "size_embedding": config["addition_time_embed_dim"]}
    return Weights(tensors, {"denoiser": denoiser})


WAN_NAMES = (
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"scale_shift_table", "modulation"),
    (r"attn1\.", "self_attn."),
    (r"attn2\.", "cross_attn."),
    (r"attn\.to_([qkv])\.", r"attn.\1."),
    (r"attn\.to_out\.0", "attn.o"),
    (r"ffn\.net\.0\.proj", "ffn.0"),
    (r"ffn\.net\.2", "ffn.2"),
    (r"\.norm2\.", ".norm3."),
    (r"attn\.add_([kv])_proj", r"attn.\1_img"),
    (r"attn\.norm_added_k", "attn.norm_k_img"),
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm3", "img_emb.proj.4"),
)
"""Diffusers' names of Wan's tensors -> the original ones, one after the other."""


def wan(component: str) -> Make:
    def made(home: Home) -> Weights:
        config, tensors = home.config(component), home.tensors(component)
        renamed = {}
        for name, tensor in tensors.items():
            for pattern, replacement in WAN_NAMES:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
        size = {
            "num_heads": config["num_attention_heads"],
            "freq_dim": config["freq_dim"],
            "text_dim": config["text_dim"],
        }
        cls = "WAN22_T2V" if config["out_channels"] == 48 else "WAN21_I2V" if config["image_dim"] else "WAN21_T2V"
        return Weights(renamed, {"denoiser": {"class": cls, "config": size, "seen": config["image_dim"]}})

    return made


LUMINA_NAMES = (
    (r"^time_caption_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_caption_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_caption_embed\.caption_embedder", "cap_embedder"),
    (r"^norm_out\.linear_1", "final_layer.adaLN_modulation.1"),
    (r"^norm_out\.linear_2", "final_layer.linear"),
    (r"attn\.to_out\.0", "attention.out"),
    (r"attn\.norm_([qk])", r"attention.\1_norm"),
    (r"norm1\.linear", "adaLN_modulation.1"),
    (r"norm1\.norm", "attention_norm1"),
    (r"\.norm([12])\.", r".attention_norm\1."),
    (r"feed_forward\.linear_", "feed_forward.w"),
)
"""Diffusers' names of Lumina 2's tensors -> the original ones."""


def lumina2(home: Home) -> Weights:
    config, tensors = home.config("transformer"), home.tensors("transformer")
    renamed: Tensors = {}
    for name in list(tensors):
        if re.search(r"attn\.to_[kv]\.", name):
            continue
        parts = [tensors[name]]
        if "attn.to_q." in name:
            parts += [tensors[name.replace("to_q", other)] for other in ("to_k", "to_v")]
            name = name.replace("attn.to_q", "attention.qkv")
        for pattern, replacement in LUMINA_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = torch.cat(parts)
    size = {"dim": config["hidden_size"], "n_heads": config["num_attention_heads"],
            "n_kv_heads": config["num_kv_heads"], "n_layers": config["num_layers"],
            "n_refiner_layers": config["num_refiner_layers"], "axes_dims": config["axes_dim_rope"],
            "axes_lens": config["axes_lens"], "rope_theta": 10000.0, "qk_norm": True,
            "multiple_of": config["multiple_of"], "ffn_dim_multiplier": 4.0,
            "cap_feat_dim": config["cap_feat_dim"], "image_model": "lumina2"}  # fmt: skip
    return Weights(renamed, {"denoiser": {"class": "Lumina2", "config": size}})


def omnigen2(home: Home) -> Weights:
    config = home.config("transformer")
    size = {name: value for name, value in config.items() if not name.startswith("_")}
    # The trainer reads them in bfloat16, whatever the job's dtype is.
    tensors = {name: tensor.bfloat16() for name, tensor in home.tensors("transformer").items()}
    return Weights(tensors, {"denoiser": {"class": "Omnigen2", "config": size}})


@dataclass(frozen=True)
class Miniature:
    """What makes a model's files: part -> from the mini hub."""

    denoisers: Mapping[str, Make]
    encoders: Mapping[str, Make]
    vae: Make
    vision: Mapping[str, Make] = field(default_factory=dict)


def _flux_texts() -> dict[str, Make]:
    return {"clip_l": clip, "t5xxl": lambda home: t5(home, "text_encoder_2", "tokenizer_2")}


def _wan(**denoisers: str) -> Miniature:
    texts = {"umt5xxl": lambda home: t5(home, "text_encoder", "tokenizer", "umt5xxl")}
    return Miniature({part: wan(component) for part, component in denoisers.items()}, texts, wan_vae)


def _qwen3(name: str, model: str) -> dict[str, Make]:
    return {"qwen": lambda home: qwen3(home, name, model)}


MINIATURES: dict[str, Miniature] = {
    **dict.fromkeys(("flux", "flex1", "flux_kontext", "flex2"), Miniature({"denoiser": flux}, _flux_texts(), kl)),
    "chroma": Miniature({"denoiser": chroma}, {"t5xxl": lambda home: t5(home, "text_encoder", "tokenizer")}, kl),
    **dict.fromkeys(("flux2", "flux2_diffusers"), Miniature({"denoiser": flux2}, {"mistral": mistral}, flux2_vae)),
    "flux2_klein_4b": Miniature({"denoiser": flux2}, _qwen3("qwen3_4b", "QWEN3_4B"), flux2_vae),
    "flux2_klein_9b": Miniature({"denoiser": flux2}, _qwen3("qwen3_8b", "QWEN3_8B"), flux2_vae),
    **dict.fromkeys(
        ("zimage", "zimage_turbo", "zimage_deturbo"),
        Miniature({"denoiser": zimage}, _qwen3("qwen3_4b", "QWEN3_4B"), kl),
    ),
    **dict.fromkeys(("qwen_image", "qwen_image_2512"), Miniature({"denoiser": qwen_image}, {"qwen": qwen_vl}, wan_vae)),
    "lumina2": Miniature({"denoiser": lumina2}, {"gemma": gemma2}, kl),
    "omnigen2": Miniature({"denoiser": omnigen2}, {"qwen": qwen_3b}, kl),
    "sd15": Miniature({"denoiser": unet}, {"clip_l": clip}, kl),
    "sdxl": Miniature({"denoiser": unet}, {"clip_l": clip, "clip_g": lambda home: clip(home, "_2")}, kl),
    **dict.fromkeys(("wan21_1b", "wan21_14b"), _wan(denoiser="transformer")),
    **dict.fromkeys(
        ("wan21_i2v_14b480p", "wan21_i2v_14b"),
        replace(_wan(denoiser="transformer"), vision={"clip_vision": clip_vision}),
    ),
    **dict.fromkeys(("wan22_14b_t2v", "wan22_14b_i2v"), _wan(high="transformer", low="transformer_2")),
    "wan22_5b": _wan(denoiser="transformer"),
}


def write(model: str, folder: Path) -> None:
    """The files of a model, into ComfyUI's models folder."""
    home, mini, names = Home(MODELS[model]), MINIATURES[model], records.file_names(model)
    kinds = {
        "diffusion_models": mini.denoisers,
        "text_encoders": mini.encoders,
        "clip_vision": mini.vision,
        "vae": {"vae": mini.vae},
    }
    for kind, parts in kinds.items():
        for part, make in parts.items():
            make(home).save(folder / kind / names[part])
