"""Wan 2.2: two experts (14B, text and image to video), and the 5B model with its own autoencoder."""

from lora_drift.harness.minihub.repo import Repo, Weights, in_folder, model_index
from lora_drift.harness.minihub.repos.encoders import t5_encoder
from lora_drift.harness.minihub.repos.wan import UMT5_FILES, UMT5_VOCAB, WAN21_VAE, WAN_INDEX, denoiser, unipc

WAN22_INDEX = {**WAN_INDEX, "transformer_2": "diffusers.WanTransformer3DModel"}
ABSENT = [None, None]
CALM = 2.0
"""Text gain at which the untrained expert does not amplify rounding after a LoRA has moved the other one."""

WAN22_14B_T2V = Repo(
    "ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16",
    weights=(
        t5_encoder("text_encoder", UMT5_VOCAB, umt5=True),
        denoiser("transformer", ffn_dim=104, text_gain=CALM),
        denoiser("transformer_2", ffn_dim=104, text_gain=CALM),
        WAN21_VAE,
    ),
    files={
        **model_index("WanPipeline", **WAN22_INDEX, boundary_ratio=0.875, expand_timesteps=False),
        **unipc(flow_shift=3.0),
        **in_folder("tokenizer", UMT5_FILES),
    },
)

WAN22_14B_I2V = Repo(
    "ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16",
    weights=(
        t5_encoder("text_encoder", UMT5_VOCAB, umt5=True),
        denoiser("transformer", ffn_dim=120, in_channels=36),
        denoiser("transformer_2", ffn_dim=120, in_channels=36),
        WAN21_VAE,
    ),
    files={
        **model_index(
            "WanImageToVideoPipeline",
            **WAN22_INDEX,
            boundary_ratio=0.9,
            expand_timesteps=False,
            image_encoder=ABSENT,
            image_processor=ABSENT,
        ),
        **unipc(flow_shift=3.0),
        **in_folder("tokenizer", UMT5_FILES),
    },
)

WAN21_VAE_ALONE = Repo(
    "ai-toolkit/wan2.1-vae",
    weights=(Weights("", WAN21_VAE.cls, WAN21_VAE.config, rules=WAN21_VAE.rules),),
)
"""Where the trainer takes the autoencoder of both 14B models from; its files lie at the top of the repository."""

WAN22_VAE = Weights(
    "vae",
    "diffusers.AutoencoderKLWan",
    {
        "attn_scales": [],
        "base_dim": 8,
        "decoder_base_dim": 8,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "in_channels": 12,
        "is_residual": True,
        "latents_mean": [
            -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
            -0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825,
            -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
            -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123,
            -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748,
            0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
        ],
        "latents_std": [
            0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013,
            0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
            0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
            0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
            0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
            0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
        ],
        "num_res_blocks": 1,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "scale_factor_temporal": 4,
        "temperal_downsample": [False, True, True],
        "z_dim": 48,
    },
    rules=((r"decoder\.conv_out\.weight$", 0.6),),
)  # fmt: skip

WAN22_5B = Repo(
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    weights=(
        t5_encoder("text_encoder", UMT5_VOCAB, umt5=True),
        denoiser(ffn_dim=96, in_channels=48, out_channels=48, text_gain=CALM),
        WAN22_VAE,
    ),
    files={
        **model_index("WanPipeline", **WAN_INDEX, boundary_ratio=None, expand_timesteps=True, transformer_2=ABSENT),
        **unipc(flow_shift=5.0),
        **in_folder("tokenizer", UMT5_FILES),
    },
)
