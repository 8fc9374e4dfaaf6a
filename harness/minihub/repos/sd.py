"""Stable Diffusion 1.5 and SDXL."""

from typing import Any

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Repo, Weights, in_folder, model_index, scheduler, to_json
from lora_drift.harness.minihub.repos.encoders import WIDTH, autoencoder_kl, clip_text

CLIP_FILES, CLIP_VOCAB = tokenizers.clip()
CLIP_2_FILES, _ = tokenizers.clip(pad_token="!")

UNET = {
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 8,
    "out_channels": 4,
}
UNET_RULES = ((r"attn2\.to_[qk]\.weight$", 2.5), (r"attn2\.to_(v|out\.0)\.weight$", 1.6))
"""Stronger cross-attention: with plain random weights the prompt would hardly show."""

XL_UNET_RULES = ((r"attn2\.to_[qk]\.weight$", 0.7), (r"attn2\.to_(v|out\.0)\.weight$", 1.3))
"""XL reads its encoders' last hidden layer but one, before the final norm, which is large already: a stronger product
would saturate the softmax and make the model amplify rounding."""

SD_VAE: dict[str, Any] = {"force_upcast": True, "latent_channels": 4}

SAFETY_CHECKER = {
    "model_type": "clip",
    "logit_scale_init_value": 2.6592,
    "projection_dim": WIDTH,
    "text_config": {"model_type": "clip_text_model"},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_act": "quick_gelu",
        "hidden_size": WIDTH,
        "image_size": 224,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "patch_size": 32,
        "projection_dim": WIDTH,
    },
}

CLIP_IMAGE_PROCESSOR = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
}

SD15 = Repo(
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    weights=(
        clip_text("text_encoder", CLIP_VOCAB),
        Weights(
            "unet",
            "diffusers.UNet2DConditionModel",
            {
                **UNET,
                "attention_head_dim": 4,
                "block_out_channels": [32, 64],
                "cross_attention_dim": WIDTH,
                "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
                "sample_size": 64,
                "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            },
            rules=UNET_RULES,
        ),
        autoencoder_kl("vae", sample_size=512, scaling_factor=0.18215, **SD_VAE),
        Weights(
            "safety_checker",
            "stable_diffusion.StableDiffusionSafetyChecker",
            SAFETY_CHECKER,
            rules=((r"concept_embeds_weights|special_care_embeds_weights", 100.0),),
        ),
    ),
    files={
        **model_index(
            "StableDiffusionPipeline",
            feature_extractor="transformers.CLIPImageProcessor",
            safety_checker="stable_diffusion.StableDiffusionSafetyChecker",
            scheduler="diffusers.PNDMScheduler",
            text_encoder="transformers.CLIPTextModel",
            tokenizer="transformers.CLIPTokenizer",
            unet="diffusers.UNet2DConditionModel",
            vae="diffusers.AutoencoderKL",
        ),
        **scheduler(
            "PNDMScheduler",
            beta_end=0.012,
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            clip_sample=False,
            num_train_timesteps=1000,
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
            trained_betas=None,
        ),
        **in_folder("tokenizer", CLIP_FILES),
        "feature_extractor/preprocessor_config.json": to_json(CLIP_IMAGE_PROCESSOR),
    },
)

SDXL = Repo(
    "stabilityai/stable-diffusion-xl-base-1.0",
    weights=(
        clip_text("text_encoder", CLIP_VOCAB),
        clip_text("text_encoder_2", CLIP_VOCAB, "CLIPTextModelWithProjection", act="gelu"),
        Weights(
            "unet",
            "diffusers.UNet2DConditionModel",
            {
                **UNET,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "attention_head_dim": [2, 4, 4],
                "block_out_channels": [32, 64, 64],
                "cross_attention_dim": 2 * WIDTH,
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
                "sample_size": 128,
                "transformer_layers_per_block": [1, 1, 2],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "use_linear_projection": True,
            },
            rules=XL_UNET_RULES,
        ),
        autoencoder_kl("vae", sample_size=1024, scaling_factor=0.13025, **SD_VAE),
    ),
    files={
        **model_index(
            "StableDiffusionXLPipeline",
            scheduler="diffusers.EulerDiscreteScheduler",
            text_encoder="transformers.CLIPTextModel",
            text_encoder_2="transformers.CLIPTextModelWithProjection",
            tokenizer="transformers.CLIPTokenizer",
            tokenizer_2="transformers.CLIPTokenizer",
            unet="diffusers.UNet2DConditionModel",
            vae="diffusers.AutoencoderKL",
        ),
        **scheduler(
            "EulerDiscreteScheduler",
            beta_end=0.012,
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            clip_sample=False,
            interpolation_type="linear",
            num_train_timesteps=1000,
            prediction_type="epsilon",
            sample_max_value=1.0,
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
            timestep_spacing="leading",
            trained_betas=None,
            use_karras_sigmas=False,
        ),
        **in_folder("tokenizer", CLIP_FILES),
        **in_folder("tokenizer_2", CLIP_2_FILES),
    },
)
