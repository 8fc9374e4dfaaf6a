"""OmniGen2."""

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Repo, Weights, in_folder, model_index, scheduler, to_json
from lora_drift.harness.minihub.repos.encoders import FLUX_VAE, WIDTH, autoencoder_kl
from lora_drift.harness.minihub.repos.qwen import VISION as QWEN_VISION

PROCESSOR_FILES, TOKENS = tokenizers.qwen()
VISION_TOKENS = ("vision_start", "vision_end", "vision", "image", "video")
"""Ids after those of the tokenizer: no picture ever reaches the text encoder."""

LANGUAGE = {
    "model_type": "qwen2_5_vl_text",
    "attention_dropout": 0.0,
    "bos_token_id": TOKENS - 5,
    "eos_token_id": TOKENS - 3,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": TOKENS + len(VISION_TOKENS),
}
VISION = {**QWEN_VISION, "depth": 1, "fullatt_block_indexes": [0]}
MLLM = {
    "model_type": "qwen2_5_vl",
    "text_config": LANGUAGE,
    "tie_word_embeddings": True,
    "vision_config": VISION,
    **{f"{name}_token_id": TOKENS + index for index, name in enumerate(VISION_TOKENS)},
}
IMAGE_PROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2_5_VLProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136},
    "temporal_patch_size": 2,
}

TRANSFORMER = {
    "axes_dim_rope": [4, 6, 6],
    "axes_lens": [1024, 1664, 1664],
    "ffn_dim_multiplier": None,
    "hidden_size": 64,
    "in_channels": 16,
    "multiple_of": 32,
    "norm_eps": 1e-05,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "out_channels": None,
    "patch_size": 2,
    "text_feat_dim": WIDTH,
    "timestep_scale": 1000.0,
}
TRANSFORMER_RULES = (
    (r"norm_[qk]\.weight$", 1.6),
    (r"caption_embedder\.1\.weight$", 2.5),
    (r"norm_out\.linear_2\.weight$", 2.4),
)
INDEX = {
    "mllm": "transformers.Qwen2_5_VLForConditionalGeneration",
    "processor": "transformers.Qwen2_5_VLProcessor",
    "scheduler": "scheduling_flow_match_euler_discrete_time_shifting.FlowMatchEulerDiscreteScheduler",
    "transformer": "transformer_omnigen2.OmniGen2Transformer2DModel",
    "vae": "diffusers.AutoencoderKL",
}

OMNIGEN2 = Repo(
    "OmniGen2/OmniGen2",
    weights=(
        Weights("mllm", "transformers.Qwen2_5_VLForConditionalGeneration", MLLM, "bfloat16", shards=2),
        # In float32, as on the hub: the trainer rounds them to bfloat16 while it loads.
        Weights("transformer", "diffusers.OmniGen2Transformer2DModel", TRANSFORMER, rules=TRANSFORMER_RULES),
        autoencoder_kl("vae", dtype="bfloat16", quant_conv=False, **FLUX_VAE),
    ),
    files={
        **model_index("OmniGen2Pipeline", **INDEX),
        **scheduler("FlowMatchEulerDiscreteScheduler", dynamic_time_shift=True, num_train_timesteps=1000),
        **in_folder("processor", PROCESSOR_FILES),
        "processor/preprocessor_config.json": to_json(IMAGE_PROCESSOR),
    },
)
