"""Text encoders (and CLIP Vision) of miniatures, with ComfyUI's numbers for special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lora_drift.harness.minihub import factory
from lora_drift.harness.studies.comfyui.weights import Home, Weights

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
