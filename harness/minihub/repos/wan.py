"""Wan 2.1: text to video and image to video."""

from typing import Any

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Config, Repo, Weights, in_folder, model_index, scheduler, to_json
from lora_drift.harness.minihub.repos.encoders import WIDTH, clip_vision, t5_encoder
from lora_drift.harness.minihub.weights import Rule

UMT5_FILES, UMT5_VOCAB = tokenizers.t5(extra_ids=300)

WAN_TRANSFORMER: Config = {
    "added_kv_proj_dim": None,
    "attention_head_dim": 24,
    "cross_attn_norm": True,
    "eps": 1e-06,
    "ffn_dim": 96,
    "freq_dim": 32,
    "image_dim": None,
    "in_channels": 16,
    "num_attention_heads": 2,
    "num_layers": 2,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
    "text_dim": WIDTH,
}
WAN_RULES = ((r"attn2\.norm_[qk]\.weight$", 2.5), (r"scale_shift_table$", 2.0))

WAN21_VAE = Weights(
    "vae",
    "diffusers.AutoencoderKLWan",
    {
        "attn_scales": [],
        "base_dim": 8,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "latents_mean": [
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
        ],
        "latents_std": [
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
        ],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    },
    rules=((r"decoder\.conv_out\.weight$", 0.6),),
)  # fmt: skip
WAN_INDEX = {
    "scheduler": "diffusers.UniPCMultistepScheduler",
    "text_encoder": "transformers.UMT5EncoderModel",
    "tokenizer": "transformers.T5TokenizerFast",
    "transformer": "diffusers.WanTransformer3DModel",
    "vae": "diffusers.AutoencoderKLWan",
}


def unipc(flow_shift: float) -> dict[str, str]:
    return scheduler(
        "UniPCMultistepScheduler",
        beta_end=0.02,
        beta_schedule="linear",
        beta_start=0.0001,
        disable_corrector=[],
        dynamic_thresholding_ratio=0.995,
        final_sigmas_type="zero",
        flow_shift=flow_shift,
        lower_order_final=True,
        num_train_timesteps=1000,
        predict_x0=True,
        prediction_type="flow_prediction",
        rescale_betas_zero_snr=False,
        sample_max_value=1.0,
        solver_order=2,
        solver_p=None,
        solver_type="bh2",
        steps_offset=0,
        thresholding=False,
        timestep_spacing="linspace",
        trained_betas=None,
        use_beta_sigmas=False,
        use_exponential_sigmas=False,
        use_flow_sigmas=True,
        use_karras_sigmas=False,
    )


WAN21_1B = Repo(
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    weights=(
        t5_encoder("text_encoder", UMT5_VOCAB, umt5=True),
        Weights("transformer", "diffusers.WanTransformer3DModel", WAN_TRANSFORMER, rules=WAN_RULES),
        WAN21_VAE,
    ),
    files={
        **model_index("WanPipeline", **WAN_INDEX),
        **unipc(flow_shift=3.0),
        **in_folder("tokenizer", UMT5_FILES),
    },
)

UMT5_XXL = Repo(
    "ai-toolkit/umt5_xxl_encoder",
    weights=(t5_encoder("text_encoder", UMT5_VOCAB, umt5=True),),
    files=in_folder("tokenizer", UMT5_FILES),
)
"""Where the trainer takes Wan's text encoder from when the model is a hub id."""


def denoiser(folder: str = "transformer", *, text_gain: float = 2.5, **changes: Any) -> Weights:
    """`text_gain` is the gain of the text's query and key norms: how peaked attention to the prompt is."""
    rules: tuple[Rule, ...] = ((r"attn2\.norm_[qk]\.weight$", text_gain), *WAN_RULES)
    if changes.get("in_channels") == 36:
        rules = (*IMAGE_RULES, *rules)
    return Weights(folder, "diffusers.WanTransformer3DModel", {**WAN_TRANSFORMER, **changes}, rules=rules)


IMAGE_RULES = ((r"norm_added_k\.weight$", 2.0), (r"patch_embedding\.weight$", 1.5))
"""Give the control image some weight: it fills 20 of the 36 input channels, and the second cross attention."""

IMAGE_INDEX = {
    "image_encoder": "transformers.CLIPVisionModel",
    "image_processor": "transformers.CLIPImageProcessor",
}
CLIP_PROCESSOR = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}

WAN21_14B = Repo(
    "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    weights=(t5_encoder("text_encoder", UMT5_VOCAB, umt5=True), denoiser(ffn_dim=80, num_layers=3), WAN21_VAE),
    files={
        **model_index("WanPipeline", **WAN_INDEX),
        **unipc(flow_shift=5.0),
        **in_folder("tokenizer", UMT5_FILES),
    },
)


def image_to_video(repo: str, *, flow_shift: float, ffn_dim: int) -> Repo:
    """Wan 2.1 I2V: the picture reaches the denoiser through the VAE (20 more channels) and through CLIP."""
    width = WAN_TRANSFORMER["num_attention_heads"] * WAN_TRANSFORMER["attention_head_dim"]
    return Repo(
        repo,
        weights=(
            t5_encoder("text_encoder", UMT5_VOCAB, umt5=True),
            clip_vision("image_encoder"),
            denoiser(ffn_dim=ffn_dim, in_channels=36, image_dim=WIDTH, added_kv_proj_dim=width),
            WAN21_VAE,
        ),
        files={
            **model_index("WanImageToVideoPipeline", **WAN_INDEX, **IMAGE_INDEX),
            **unipc(flow_shift=flow_shift),
            **in_folder("tokenizer", UMT5_FILES),
            "image_processor/preprocessor_config.json": to_json(CLIP_PROCESSOR),
        },
    )


WAN21_I2V_480P = image_to_video("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", flow_shift=3.0, ffn_dim=88)
WAN21_I2V_720P = image_to_video("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", flow_shift=5.0, ffn_dim=112)
