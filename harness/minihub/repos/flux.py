"""FLUX.1."""

from harness.minihub import tokenizers
from harness.minihub.repo import Repo, Weights, in_folder, model_index, scheduler
from harness.minihub.repos.encoders import FLUX_VAE, WIDTH, autoencoder_kl, clip_text, t5_encoder

CLIP_FILES, CLIP_VOCAB = tokenizers.clip()
T5_FILES, T5_VOCAB = tokenizers.t5()

FLUX_TRANSFORMER = {
    "attention_head_dim": 16,
    "axes_dims_rope": [4, 6, 6],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": WIDTH,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
    "patch_size": 1,
    "pooled_projection_dim": WIDTH,
}
FLUX_RULES = ((r"norm_(added_)?[qk]\.weight$", 2.0), (r"guidance_embedder\.linear_2\.weight$", 3.0))
FLUX_INDEX = {
    "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    "text_encoder": "transformers.CLIPTextModel",
    "text_encoder_2": "transformers.T5EncoderModel",
    "tokenizer": "transformers.CLIPTokenizer",
    "tokenizer_2": "transformers.T5TokenizerFast",
    "transformer": "diffusers.FluxTransformer2DModel",
    "vae": "diffusers.AutoencoderKL",
}

FLUX_DEV = Repo(
    "black-forest-labs/FLUX.1-dev",
    weights=(
        clip_text("text_encoder", CLIP_VOCAB, dtype="bfloat16"),
        t5_encoder("text_encoder_2", T5_VOCAB),
        Weights("transformer", "diffusers.FluxTransformer2DModel", FLUX_TRANSFORMER, "bfloat16", rules=FLUX_RULES),
        autoencoder_kl("vae", dtype="bfloat16", quant_conv=False, **FLUX_VAE),
    ),
    files={
        **model_index("FluxPipeline", **FLUX_INDEX),
        **scheduler(
            "FlowMatchEulerDiscreteScheduler",
            base_image_seq_len=256,
            base_shift=0.5,
            max_image_seq_len=4096,
            max_shift=1.15,
            num_train_timesteps=1000,
            shift=3.0,
            use_dynamic_shifting=True,
        ),
        **in_folder("tokenizer", CLIP_FILES),
        **in_folder("tokenizer_2", T5_FILES),
    },
)
