"""Miniatures as the files that ComfyUI loads: its names for tensors, its numbers for special tokens.

Each file says in its metadata (`miniature`) how large it is, which `fixture.py` follows inside ComfyUI. Where ComfyUI
has a table of its own from Diffusers' names to its own, the file keeps Diffusers' and names the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lora_drift.harness.minihub import factory
from lora_drift.harness.minihub.repos import MODELS as REPOSITORIES
from lora_drift.harness.native import records
from lora_drift.pipelines import MODELS, ModelSpec

Tensors = dict[str, torch.Tensor]


@dataclass
class Weights:
    """A file in one of ComfyUI's model folders."""

    tensors: Tensors
    size: dict[str, Any] = field(default_factory=dict)
    """What the fixture is told: "denoiser", "text" or "vae"."""

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.float().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, path, {"miniature": json.dumps(self.size)})


class Home:
    """The mini hub's repositories of a model."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.root = factory.build()
        self.repos = [factory.snapshot(self.root, repo.id) for repo in REPOSITORIES[spec.id]]

    def folder(self, component: str) -> Path:
        """Where the trainer takes a component from."""
        folder = factory.snapshot(self.root, self.spec.components.get(component, self.spec.base))
        # Chroma's T5 is the second encoder of Flex.1.
        named = f"{component}_2" if self.spec.id == "chroma" and component != "vae" else component
        return folder / named if (folder / named).is_dir() else folder

    def config(self, component: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder(component) / "config.json").read_text())
        return found

    def tensors(self, component: str) -> Tensors:
        return {
            name: t
            for file in sorted(self.folder(component).glob("*.safetensors"))
            for name, t in load_file(file).items()
        }

    def file(self, name: str) -> Tensors:
        """A single file of one of the repositories."""
        (path,) = (repo / name for repo in self.repos if (repo / name).is_file())
        return load_file(path)


Make = Callable[[Home], Weights]

# ------------------------------------------------------------------------------------------------------ text encoders

CLIP_TOKENS = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
QWEN_NAMES = (
    *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end"),
    *("quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
)
QWEN_TOKENS = {f"<|{name}|>": 151643 + i for i, name in enumerate(QWEN_NAMES)}
"""Numbers of special tokens that stand in ComfyUI's code."""


def _tokenizer(folder: Path, cls: str, special: Mapping[str, int]) -> dict[str, Any]:
    import transformers

    tokenizer = getattr(transformers, cls).from_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    numbers = {vocabulary[name]: real for name, real in special.items() if name in vocabulary}
    return {"folder": str(folder), "cls": cls, "numbers": numbers}


def _spread(words: torch.Tensor, numbers: Mapping[int, int], rows: int) -> torch.Tensor:
    """A table of words in which special tokens stand where the real vocabulary has them."""
    spread = torch.zeros(rows, words.shape[1])
    spread[: len(words)] = words.float()
    for ours, real in numbers.items():
        spread[real] = words[ours].float()
    return spread


def clip(home: Home, number: str = "") -> Weights:
    """CLIP L, or with `number` "_2" CLIP G of SDXL."""
    config, tensors = home.config(f"text_encoder{number}"), home.tensors(f"text_encoder{number}")
    name = "clip_g" if number else "clip_l"
    tokens = _tokenizer(home.folder(f"tokenizer{number}"), "CLIPTokenizer", CLIP_TOKENS)
    words = "text_model.embeddings.token_embedding.weight"
    tensors[words] = _spread(tensors[words], tokens["numbers"], 49408)
    tensors.pop("text_model.embeddings.position_ids", None)
    if number:  # by this layer ComfyUI knows CLIP G
        tensors["text_model.encoder.layers.30.mlp.fc1.weight"] = torch.zeros(1)
    sizes = {k: config[k] for k in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
                                    "hidden_act", "max_position_embeddings")}  # fmt: skip
    return Weights(
        tensors, {"text": {"configs": {name: {**sizes, "eos_token_id": 49407}}, "tokenizers": {name: tokens}}}
    )


def t5(home: Home, component: str, tokenizer: str, name: str = "t5xxl", model: str = "T5_XXL") -> Weights:
    config, tensors = home.config(component), home.tensors(component)
    sizes = {k: config[k] for k in ("d_ff", "d_kv", "d_model", "num_heads", "num_layers", "vocab_size")}
    tokens = _tokenizer(home.folder(tokenizer), "T5TokenizerFast", {})
    marker = {"encoder.block.0.layer.0.SelfAttention.k.weight": model}
    return Weights(tensors, {"text": {"configs": {name: sizes}, "tokenizers": {name: tokens}, "model": marker}})


LLAMA = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def qwen3(home: Home, name: str, model: str) -> Weights:
    config, tensors = home.config("text_encoder"), home.tensors("text_encoder")
    tensors.pop("lm_head.weight", None)
    folder = home.folder("text_encoder")
    tokens = _tokenizer(
        folder if (folder / "tokenizer.json").is_file() else home.folder("tokenizer"), "Qwen2Tokenizer", QWEN_TOKENS
    )
    words = "model.embed_tokens.weight"
    tensors[words] = _spread(tensors[words], tokens["numbers"], 151936)
    cls = {"QWEN3_4B": "Qwen3_4BConfig", "QWEN3_8B": "Qwen3_8BConfig"}[model]
    text = {
        "configs": {name: {k: config[k] for k in LLAMA}},
        "attributes": {cls: {"head_dim": config["head_dim"]}},
        "tokenizers": {name: tokens},
        "model": {"model.layers.0.self_attn.q_norm.weight": model},
    }
    return Weights(tensors, {"text": text})


def qwen_vl(home: Home) -> Weights:
    whole, tensors = home.config("text_encoder"), home.tensors("text_encoder")
    tensors.pop("lm_head.weight", None)
    config, vision = whole["text_config"], whole["vision_config"]
    tokens = _tokenizer(home.folder("tokenizer"), "Qwen2Tokenizer", QWEN_TOKENS)
    words = "model.embed_tokens.weight"
    tensors[words] = _spread(tensors[words], tokens["numbers"], 152064)
    head = config["hidden_size"] // config["num_attention_heads"]
    seen = {"hidden_size": vision["hidden_size"], "intermediate_size": vision["intermediate_size"],
            "num_heads": vision["num_heads"], "num_layers": vision["depth"]}  # fmt: skip
    text = {
        "configs": {"qwen25_7b": {k: config[k] for k in LLAMA}},
        "attributes": {"Qwen25_7BVLI_Config": {"head_dim": head, "rope_dims": config["rope_scaling"]["mrope_section"]}},
        "tokenizers": {"qwen25_7b": tokens},
        "model": {"model.layers.0.self_attn.k_proj.bias": "QWEN25_7B"},
        "vision": {**seen, "fullatt_block_indexes": vision["fullatt_block_indexes"]},
    }
    return Weights(tensors, {"text": text})


def qwen_3b(home: Home) -> Weights:
    """OmniGen2's: no picture reaches it."""
    tensors = {name: t for name, t in home.tensors("mllm").items() if name.startswith("model.")}
    config = home.config("mllm")["text_config"]
    tokens = _tokenizer(home.folder("processor"), "Qwen2Tokenizer", QWEN_TOKENS)
    words = "model.embed_tokens.weight"
    tensors[words] = _spread(tensors[words], tokens["numbers"], 151936)
    text = {
        "configs": {"qwen25_3b": {k: config[k] for k in LLAMA}},
        "attributes": {"Qwen25_3BConfig": {"head_dim": config["hidden_size"] // config["num_attention_heads"]}},
        "tokenizers": {"qwen25_3b": tokens},
        "model": {"model.layers.0.self_attn.k_proj.bias": "QWEN25_3B"},
    }
    return Weights(tensors, {"text": text})


def gemma2(home: Home) -> Weights:
    config = home.config("text_encoder")
    tensors = {f"model.{name}": tensor for name, tensor in home.tensors("text_encoder").items()}
    tokens = _tokenizer(home.folder("tokenizer"), "GemmaTokenizerFast", {})
    text = {
        "configs": {"gemma2_2b": {k: config[k] for k in (*LLAMA, "vocab_size")}},
        "attributes": {"Gemma2_2B_Config": {"head_dim": config["head_dim"]}},
        "tokenizers": {"gemma2_2b": tokens},
        "model": {"model.layers.0.post_feedforward_layernorm.weight": "GEMMA_2_2B"},
    }
    return Weights(tensors, {"text": text})


def mistral(home: Home) -> Weights:
    """FLUX.2 dev's. Its special tokens have the real numbers."""
    repo = factory.snapshot(home.root, "mistralai/Mistral-Small-3.1-24B-Instruct-2503")
    config = json.loads((repo / "config.json").read_text())["text_config"]
    start = "language_model.model."
    tensors = {
        f"model.{name.removeprefix(start)}": tensor
        for file in sorted(repo.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
        if name.startswith(start)
    }
    text = {
        "configs": {"mistral3_24b": {k: config[k] for k in (*LLAMA, "vocab_size")}},
        "attributes": {"Mistral3Small24BConfig": {"head_dim": config["head_dim"]}},
        "tokenizers": {"mistral3_24b": _tokenizer(repo, "AutoTokenizer", {})},
        "model": {"model.layers.0.post_attention_layernorm.weight": "MISTRAL3_24B"},
    }
    return Weights(tensors, {"text": text})


def clip_vision(home: Home) -> Weights:
    config, tensors = home.config("image_encoder"), home.tensors("image_encoder")
    tensors["vision_model.encoder.layers.30.layer_norm1.weight"] = torch.zeros(1)  # by this, ComfyUI knows CLIP H
    return Weights(tensors, {"vision": config})


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
