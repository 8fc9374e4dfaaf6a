"""Text encoders and autoencoders that several repositories share in kind (never in weights)."""

from typing import Any

from lora_drift.harness.minihub.repo import Weights
from lora_drift.harness.minihub.weights import Rule

WIDTH = 32
"""Width of every miniature text encoder."""


def clip_text(
    folder: str, vocab: int, cls: str = "CLIPTextModel", *, act: str = "quick_gelu", dtype: str = "float32"
) -> Weights:
    config = {
        "model_type": "clip_text_model",
        "attention_dropout": 0.0,
        "bos_token_id": vocab - 2,
        "dropout": 0.0,
        "eos_token_id": vocab - 1,
        "hidden_act": act,
        "hidden_size": WIDTH,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "pad_token_id": 1,
        "projection_dim": WIDTH,
        "vocab_size": vocab,
    }
    return Weights(folder, f"transformers.{cls}", config, dtype)


def clip_vision(folder: str, *, dtype: str = "float32") -> Weights:
    """A CLIP image tower with the real 224 pixels and patches of 14, hence the real 257 tokens."""
    config = {
        "model_type": "clip_vision_model",
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": WIDTH,
        "image_size": 224,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "layer_norm_eps": 1e-05,
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": 14,
        "projection_dim": WIDTH,
    }
    return Weights(folder, "transformers.CLIPVisionModel", config, dtype)


def t5_encoder(folder: str, vocab: int, *, umt5: bool = False, shards: int = 2, dtype: str = "bfloat16") -> Weights:
    config = {
        "model_type": "umt5" if umt5 else "t5",
        "d_ff": 2 * WIDTH,
        "d_kv": 8,
        "d_model": WIDTH,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "num_layers": 2,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": vocab,
    }
    return Weights(folder, f"transformers.{'UMT5' if umt5 else 'T5'}EncoderModel", config, dtype, shards)


def qwen3(folder: str, vocab: int, *, layers: int = 4, shards: int = 3, dtype: str = "bfloat16") -> Weights:
    config = {
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": vocab - 5,
        "eos_token_id": vocab - 3,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab,
    }
    return Weights(folder, "transformers.Qwen3ForCausalLM", config, dtype, shards)


def mistral3(folder: str, vocab: int, *, layers: int, shards: int = 2, dtype: str = "bfloat16") -> Weights:
    """Mistral Small 3.1: a text model with a vision tower that FLUX.2 never shows a picture."""
    text = {
        "model_type": "mistral",
        "attention_dropout": 0.0,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 131072,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "use_cache": True,
        "vocab_size": vocab,
    }
    vision = {
        "model_type": "pixtral",
        "attention_dropout": 0.0,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 16,
        "image_size": 1540,
        "initializer_range": 0.02,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 1,
        "patch_size": 14,
        "rope_theta": 10000.0,
    }
    config = {
        "model_type": "mistral3",
        "image_token_index": 10,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "text_config": text,
        "tie_word_embeddings": False,
        "vision_config": vision,
        "vision_feature_layer": -1,
    }
    return Weights(folder, "transformers.Mistral3ForConditionalGeneration", config, dtype, shards)


DECODER_RULES: tuple[Rule, ...] = ((r"decoder\.conv_out\.weight$", 0.6),)
"""Keeps decoded pictures away from black and white, where differences would be clipped."""


def autoencoder_kl(folder: str, *, dtype: str = "float32", quant_conv: bool = True, **config: Any) -> Weights:
    base = {
        "act_fn": "silu",
        "block_out_channels": [8, 16, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "out_channels": 3,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    if not quant_conv:
        base |= {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": True}
    return Weights(folder, "diffusers.AutoencoderKL", {**base, **config}, dtype, rules=DECODER_RULES)


FLUX_VAE = {
    "force_upcast": True,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}


def llama(folder: str, vocab: int, *, layers: int = 3, shards: int = 4, dtype: str = "bfloat16") -> Weights:
    """Llama 3.1 with its stretched rotary embedding. The special tokens are the last seven of the vocabulary."""
    config = {
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": vocab - 7,
        "eos_token_id": [vocab - 6, vocab - 2, vocab - 1],
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "pad_token_id": vocab - 5,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": vocab,
    }
    return Weights(folder, "transformers.LlamaForCausalLM", config, dtype, shards)


GEMMA3_RULES: tuple[Rule, ...] = ((r"[qk]_norm\.weight$", 0.1), (r"norm\.weight$", 0.3))
"""Gemma multiplies by 1 + weight: without these, queries and keys would be so large that softmax saturates."""


def gemma3(folder: str, vocab: int, *, layers: int = 6, shards: int = 2, dtype: str = "bfloat16") -> Weights:
    """Gemma 3 with its vision tower; of six layers the last one attends globally, as every sixth of the real one."""
    config = {
        "model_type": "gemma3",
        "boi_token_index": vocab - 3,
        "bos_token_id": 2,
        "eoi_token_index": vocab - 2,
        "eos_token_id": [1, 6],
        "image_token_index": vocab - 1,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 4,
        "pad_token_id": 0,
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "head_dim": 8,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": WIDTH,
            "initializer_range": 0.02,
            "intermediate_size": 2 * WIDTH,
            "max_position_embeddings": 131072,
            "model_type": "gemma3_text",
            "num_attention_heads": 4,
            "num_hidden_layers": layers,
            "num_key_value_heads": 2,
            "query_pre_attn_scalar": 8,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rope_theta": 1000000.0,
            "sliding_window": 1024,
            "sliding_window_pattern": 6,
            "use_cache": True,
            "vocab_size": vocab,
        },
        "vision_config": {
            "attention_dropout": 0.0,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 16,
            "image_size": 56,
            "intermediate_size": 32,
            "layer_norm_eps": 1e-06,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 2,
            "num_channels": 3,
            "num_hidden_layers": 1,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }
    cls = "transformers.Gemma3ForConditionalGeneration"
    return Weights(folder, cls, config, dtype, shards, GEMMA3_RULES)
