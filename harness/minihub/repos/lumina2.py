"""Lumina Image 2.0."""

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Repo, Weights, in_folder, model_index, scheduler
from lora_drift.harness.minihub.repos.encoders import FLUX_VAE, WIDTH, autoencoder_kl

SYSTEM_PROMPT_WORDS = [
    *("You", "are", "assistant", "designed", "to", "generate", "superior", "images", "degree", "image-text"),
    *("alignment", "based", "textual", "prompts", "or", "user", "<Prompt", "Start>"),
]
"""With a token for each, the system prompt leaves room for the user's within 256 tokens, as in the real vocabulary."""

GEMMA_FILES, GEMMA_VOCAB = tokenizers.gemma([*tokenizers.WORDS, *SYSTEM_PROMPT_WORDS])

GEMMA2 = {
    "model_type": "gemma2",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 8,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 8192,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "use_cache": True,
    "vocab_size": GEMMA_VOCAB,
}
GEMMA2_RULES = ((r"layernorm\.weight$", 0.2), (r"embed_tokens\.weight$", 0.3))
"""Gemma's norms multiply by 1 + weight, and its embeddings by the root of the width."""

LUMINA2_TRANSFORMER = {
    "axes_dim_rope": [4, 6, 6],
    "axes_lens": [300, 512, 512],
    "cap_feat_dim": WIDTH,
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
    "sample_size": 128,
    "scaling_factor": 1.0,
}
LUMINA2_RULES = (
    (r"norm_[qk]\.weight$", 1.6),
    (r"caption_embedder\.1\.weight$", 2.0),
    (r"timestep_embedder\.linear_2\.weight$", 2.0),
    (r"norm_out\.linear_2\.weight$", 1.7),
)
"""The last two make steps and guidance show: guidance alone is mostly undone by this pipeline's normalisation."""
LUMINA2_INDEX = {
    "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    "text_encoder": "transformers.Gemma2Model",
    "tokenizer": "transformers.GemmaTokenizerFast",
    "transformer": "diffusers.Lumina2Transformer2DModel",
    "vae": "diffusers.AutoencoderKL",
}

LUMINA2 = Repo(
    "Alpha-VLLM/Lumina-Image-2.0",
    weights=(
        Weights("text_encoder", "transformers.Gemma2Model", GEMMA2, "bfloat16", shards=2, rules=GEMMA2_RULES),
        Weights(
            "transformer", "diffusers.Lumina2Transformer2DModel", LUMINA2_TRANSFORMER, "bfloat16", rules=LUMINA2_RULES
        ),
        autoencoder_kl("vae", dtype="bfloat16", quant_conv=False, **FLUX_VAE),
    ),
    files={
        **model_index("Lumina2Pipeline", **LUMINA2_INDEX),
        **scheduler(
            "FlowMatchEulerDiscreteScheduler",
            base_image_seq_len=256,
            base_shift=0.5,
            invert_sigmas=False,
            max_image_seq_len=4096,
            max_shift=1.15,
            num_train_timesteps=1000,
            shift=6.0,
            shift_terminal=None,
            use_beta_sigmas=False,
            use_dynamic_shifting=False,
            use_exponential_sigmas=False,
            use_karras_sigmas=False,
        ),
        **in_folder("tokenizer", GEMMA_FILES),
    },
)
