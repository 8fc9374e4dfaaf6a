"""HiDream-I1 and HiDream-E1, and the Llama that both take from elsewhere.

The real repositories hold no fourth text encoder. Weights are bfloat16, as there: the trainer loads them in that dtype
whatever its job says.
"""

import json
from dataclasses import replace
from typing import Any

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Repo, Weights, in_folder, model_index, scheduler, to_json
from lora_drift.harness.minihub.repos.encoders import FLUX_VAE, WIDTH, autoencoder_kl, clip_text, llama, t5_encoder
from lora_drift.harness.minihub.repos.wan import unipc

_, CLIP_VOCAB = tokenizers.clip()
T5_FILES, T5_VOCAB = tokenizers.t5()
LLAMA_FILES, LLAMA_VOCAB = tokenizers.llama3()

POSITIONS = 248
"""LongCLIP: 248 positions instead of 77."""

HIDREAM_TRANSFORMER: dict[str, Any] = {
    "attention_head_dim": 16,
    "axes_dims_rope": [8, 4, 4],
    "caption_channels": [WIDTH, WIDTH],
    "in_channels": 16,
    "llama_layers": [0, 1, 2, 2],
    "max_resolution": [128, 128],
    "num_activated_experts": 2,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_routed_experts": 4,
    "num_single_layers": 2,
    "out_channels": 16,
    "patch_size": 2,
    "text_emb_dim": 2 * WIDTH,
}
"""As in the real config, `llama_layers` has an entry for each block and repeats the last layer."""
HIDREAM_INDEX = {
    "text_encoder": "transformers.CLIPTextModelWithProjection",
    "text_encoder_2": "transformers.CLIPTextModelWithProjection",
    "text_encoder_3": "transformers.T5EncoderModel",
    "tokenizer": "transformers.CLIPTokenizer",
    "tokenizer_2": "transformers.CLIPTokenizer",
    "tokenizer_3": "transformers.T5Tokenizer",
    "transformer": "diffusers.HiDreamImageTransformer2DModel",
    "vae": "diffusers.AutoencoderKL",
}


def long_clip(folder: str, act: str) -> Weights:
    clip = clip_text(folder, CLIP_VOCAB, "CLIPTextModelWithProjection", act=act, dtype="bfloat16")
    return replace(clip, config={**clip.config, "max_position_embeddings": POSITIONS})


def transformer(**config: Any) -> Weights:
    return Weights(
        "transformer", "diffusers.HiDreamImageTransformer2DModel", {**HIDREAM_TRANSFORMER, **config}, "bfloat16"
    )


def long_clip_tokenizer(folder: str, pad_token: str) -> dict[str, str]:
    files, _ = tokenizers.clip(pad_token)
    config = json.loads(files["tokenizer_config.json"]) | {"model_max_length": POSITIONS}
    return in_folder(folder, {**files, "tokenizer_config.json": to_json(config)})


TOKENIZERS = {
    **long_clip_tokenizer("tokenizer", tokenizers.CLIP_END),
    **long_clip_tokenizer("tokenizer_2", "!"),
    **in_folder("tokenizer_3", T5_FILES),
}
SPIECE = {"tokenizer_3/spiece.model": tokenizers.spiece(T5_FILES["tokenizer.json"])}
"""transformers 4 reads T5's slow tokenizer from it; transformers 5 reads tokenizer.json."""

HIDREAM_I1 = Repo(
    "HiDream-ai/HiDream-I1-Full",
    weights=(
        long_clip("text_encoder", "quick_gelu"),
        long_clip("text_encoder_2", "gelu"),
        t5_encoder("text_encoder_3", T5_VOCAB),
        # The pipeline always renders 128 x 128 latent places (or another shape of that area), whatever size is asked.
        # Patches of 8 make 256 tokens of them, and a VAE of factor 2 makes pictures of 256 x 256.
        transformer(in_channels=4, out_channels=4, patch_size=8),
        autoencoder_kl(
            "vae",
            dtype="bfloat16",
            quant_conv=False,
            **{**FLUX_VAE, "latent_channels": 4},
            block_out_channels=[8, 16],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
        ),
    ),
    files={
        **model_index("HiDreamImagePipeline", scheduler="diffusers.UniPCMultistepScheduler", **HIDREAM_INDEX),
        **unipc(flow_shift=3.0),
        **TOKENIZERS,
    },
    binaries=SPIECE,
)

HIDREAM_E1 = Repo(
    "HiDream-ai/HiDream-E1-1",
    weights=(
        long_clip("text_encoder", "quick_gelu"),
        long_clip("text_encoder_2", "gelu"),
        t5_encoder("text_encoder_3", T5_VOCAB),
        # Noise and control image lie side by side: 128 tokens are 128 x 128 pixels of each.
        transformer(attention_head_dim=24, axes_dims_rope=[8, 8, 8], max_resolution=[16, 32]),
        autoencoder_kl("vae", dtype="bfloat16", quant_conv=False, **FLUX_VAE),
    ),
    files={
        **model_index(
            "HiDreamImageEditingPipeline", scheduler="diffusers.FlowMatchEulerDiscreteScheduler", **HIDREAM_INDEX
        ),
        **scheduler("FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=False),
        **TOKENIZERS,
    },
    binaries=SPIECE,
)

LLAMA = Repo(
    "unsloth/Meta-Llama-3.1-8B-Instruct",
    weights=(llama("", LLAMA_VOCAB),),
    files=LLAMA_FILES,
)
