"""LTX-2 and LTX-2.3: video with sound."""

from typing import Any

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Repo, Weights, in_folder, model_index, scheduler
from lora_drift.harness.minihub.repos.encoders import WIDTH, gemma3
from lora_drift.harness.minihub.weights import Rule

GEMMA_FILES, GEMMA_VOCAB = tokenizers.gemma3()
GEMMA_LAYERS = 6
AUDIO_WIDTH = WIDTH // 2
MEL_BINS, AUDIO_CHANNELS = 16, 4
AUDIO_PACKED = AUDIO_CHANNELS * MEL_BINS // 4
"""Numbers of one packed sound latent. The real models' 8 * 64 / 4 = 128, which is also `base_channels`, because the
class takes that for the length of its statistics."""


def transformer(layers: int, rules: tuple[Rule, ...], **config: Any) -> Weights:
    base = {
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": WIDTH // 2,
        "attention_out_bias": True,
        "audio_attention_head_dim": AUDIO_WIDTH // 2,
        "audio_cross_attention_dim": AUDIO_WIDTH,
        "audio_hop_length": 160,
        "audio_in_channels": AUDIO_PACKED,
        "audio_num_attention_heads": 2,
        "audio_out_channels": AUDIO_PACKED,
        "audio_patch_size": 1,
        "audio_patch_size_t": 1,
        "audio_pos_embed_max_pos": 20,
        "audio_sampling_rate": 16000,
        "audio_scale_factor": 4,
        "base_height": 2048,
        "base_width": 2048,
        "caption_channels": WIDTH,
        "causal_offset": 1,
        "cross_attention_dim": WIDTH,
        "cross_attn_timestep_scale_multiplier": 1000,
        "in_channels": 16,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "num_attention_heads": 2,
        "num_layers": layers,
        "out_channels": 16,
        "patch_size": 1,
        "patch_size_t": 1,
        "pos_embed_max_pos": 20,
        "qk_norm": "rms_norm_across_heads",
        "rope_double_precision": True,
        "rope_theta": 10000.0,
        "rope_type": "split",
        "timestep_scale_multiplier": 1000,
        "vae_scale_factors": [8, 32, 32],
    }
    return Weights("transformer", "diffusers.LTX2VideoTransformer3DModel", {**base, **config}, "bfloat16", rules=rules)


CONNECTOR_RULES = ((r"learnable_registers$", 0.002), (r"attn1\.to_v\.bias$", 0.2))
"""Nearly all of the 1024 tokens are registers: with ordinary ones, the few tokens of the prompt would hardly show."""


def connectors(**config: Any) -> Weights:
    base = {
        "audio_connector_num_attention_heads": 2,
        "audio_connector_num_layers": 2,
        "audio_connector_num_learnable_registers": 128,
        "caption_channels": WIDTH,
        "causal_temporal_positioning": False,
        "connector_rope_base_seq_len": 4096,
        "rope_double_precision": True,
        "rope_theta": 10000.0,
        "rope_type": "split",
        "text_proj_in_factor": GEMMA_LAYERS + 1,
        "video_connector_attention_head_dim": WIDTH // 2,
        "video_connector_num_attention_heads": 2,
        "video_connector_num_layers": 2,
        "video_connector_num_learnable_registers": 128,
    }
    return Weights("connectors", "ltx2.LTX2TextConnectors", {**base, **config}, "bfloat16", rules=CONNECTOR_RULES)


def video_vae(**config: Any) -> Weights:
    base = {
        "decoder_causal": False,
        "down_block_types": ["LTX2VideoDownBlock3D"] * 4,
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        "encoder_causal": True,
        "encoder_spatial_padding_mode": "zeros",
        "in_channels": 3,
        "latent_channels": 16,
        "layers_per_block": [1, 1, 1, 1, 1],
        "out_channels": 3,
        "patch_size": 4,
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-06,
        "scaling_factor": 1.0,
        "spatial_compression_ratio": 32,
        "spatio_temporal_scaling": [True] * 4,
        "temporal_compression_ratio": 8,
        "timestep_conditioning": False,
    }
    rules = ((r"decoder\.conv_out\.conv\.weight$", 0.5),)
    return Weights("vae", "diffusers.AutoencoderKLLTX2Video", {**base, **config}, "bfloat16", rules=rules)


AUDIO_VAE = Weights(
    "audio_vae",
    "diffusers.AutoencoderKLLTX2Audio",
    {
        "attn_resolutions": None,
        "base_channels": AUDIO_PACKED,
        "causality_axis": "height",
        "ch_mult": [1, 2, 4],
        "double_z": True,
        "dropout": 0.0,
        "in_channels": 2,
        "is_causal": True,
        "latent_channels": AUDIO_CHANNELS,
        "mel_bins": MEL_BINS,
        "mel_hop_length": 160,
        "mid_block_add_attention": False,
        "norm_type": "pixel",
        "num_res_blocks": 1,
        "output_channels": 2,
        "resolution": 256,
        "sample_rate": 16000,
    },
    "bfloat16",
)
RESNETS = {"resnet_dilations": [[1, 3, 5]] * 3, "resnet_kernel_sizes": [3, 7, 11]}

LTX2_TRANSFORMER = transformer(
    2,
    ((r"attn2\.norm_k\.weight$", 2.5), (r"attn2\.to_(v|out\.0)\.weight$", 2.2)),
    audio_cross_attn_mod=False,
    audio_gated_attn=False,
    cross_attn_mod=False,
    gated_attn=False,
    perturbed_attn=False,
    use_prompt_embeddings=True,
)
LTX2_CONNECTORS = connectors(
    audio_connector_attention_head_dim=WIDTH // 2,
    audio_gated_attn=False,
    per_modality_projections=False,
    proj_bias=False,
    video_gated_attn=False,
)
LTX2_VAE = video_vae(
    block_out_channels=[8, 16, 32, 64],
    decoder_block_out_channels=[8, 16, 32],
    decoder_inject_noise=[False] * 4,
    decoder_layers_per_block=[1] * 4,
    decoder_spatial_padding_mode="reflect",
    decoder_spatio_temporal_scaling=[True] * 3,
    upsample_factor=[2, 2, 2],
    upsample_residual=[True] * 3,
    upsample_type=["spatiotemporal"] * 3,
)
LTX2_VOCODER = Weights(
    "vocoder",
    "ltx2.LTX2Vocoder",
    {
        "act_fn": "leaky_relu",
        "antialias": False,
        "final_act_fn": "tanh",
        "final_bias": True,
        "hidden_channels": 64,
        "in_channels": 2 * MEL_BINS,
        "leaky_relu_negative_slope": 0.1,
        "out_channels": 2,
        "output_sampling_rate": 24000,
        **RESNETS,
        "upsample_factors": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    },
    "bfloat16",
)

LTX23_LAYERS = 30
"""The trainer perturbs block 28, so there must be one."""
LTX23_TRANSFORMER = transformer(
    LTX23_LAYERS,
    ((r"attn2\.norm_k\.weight$", 2.0), (r"attn2\.to_(v|out\.0)\.weight$", 1.5)),
    audio_cross_attn_mod=True,
    audio_gated_attn=True,
    cross_attn_mod=True,
    gated_attn=True,
    perturbed_attn=True,
    use_prompt_embeddings=False,
)
LTX23_CONNECTORS = connectors(
    audio_connector_attention_head_dim=AUDIO_WIDTH // 2,
    audio_gated_attn=True,
    audio_hidden_dim=AUDIO_WIDTH,
    per_modality_projections=True,
    proj_bias=True,
    video_gated_attn=True,
    video_hidden_dim=WIDTH,
)
LTX23_VAE = video_vae(
    block_out_channels=[8, 16, 32, 32],
    decoder_block_out_channels=[8, 16, 16, 32],
    decoder_inject_noise=[False] * 5,
    decoder_layers_per_block=[1] * 5,
    decoder_spatial_padding_mode="zeros",
    decoder_spatio_temporal_scaling=[True] * 4,
    upsample_factor=[2, 2, 1, 2],
    upsample_residual=[False] * 4,
    upsample_type=["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
)
LTX23_VOCODER = Weights(
    "vocoder",
    "ltx2.LTX2VocoderWithBWE",
    {
        "act_fn": "snakebeta",
        "antialias": True,
        "antialias_kernel_size": 12,
        "antialias_ratio": 2,
        "bwe_act_fn": "snakebeta",
        "bwe_antialias": True,
        "bwe_antialias_kernel_size": 12,
        "bwe_antialias_ratio": 2,
        "bwe_final_act_fn": None,
        "bwe_final_bias": False,
        "bwe_hidden_channels": 32,
        "bwe_in_channels": 2 * MEL_BINS,
        "bwe_leaky_relu_negative_slope": 0.1,
        "bwe_out_channels": 2,
        **{f"bwe_{name}": value for name, value in RESNETS.items()},
        "bwe_upsample_factors": [6, 5, 2, 2, 2],
        "bwe_upsample_kernel_sizes": [12, 11, 4, 4, 4],
        "filter_length": 128,
        "final_act_fn": None,
        "final_bias": False,
        "hidden_channels": 64,
        "hop_length": 80,
        "in_channels": 2 * MEL_BINS,
        "input_sampling_rate": 16000,
        "leaky_relu_negative_slope": 0.1,
        "num_mel_channels": MEL_BINS,
        "out_channels": 2,
        "output_sampling_rate": 48000,
        **RESNETS,
        "upsample_factors": [5, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
        "window_length": 128,
    },
    "bfloat16",
    rules=((r"resnets.*convs\d.*weight$", 0.2), (r"conv_out\.weight$", 0.1)),  # keeps the sound within -1 and 1
)


def index(vocoder: str) -> dict[str, str]:
    return model_index(
        "LTX2Pipeline",
        audio_vae="diffusers.AutoencoderKLLTX2Audio",
        connectors="ltx2.LTX2TextConnectors",
        scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
        text_encoder="transformers.Gemma3ForConditionalGeneration",
        tokenizer="transformers.GemmaTokenizerFast",
        transformer="diffusers.LTX2VideoTransformer3DModel",
        vae="diffusers.AutoencoderKLLTX2Video",
        vocoder=vocoder,
    )


SCHEDULER = scheduler(
    "FlowMatchEulerDiscreteScheduler",
    base_image_seq_len=1024,
    base_shift=0.95,
    invert_sigmas=False,
    max_image_seq_len=4096,
    max_shift=2.05,
    num_train_timesteps=1000,
    shift=1.0,
    shift_terminal=0.1,
    stochastic_sampling=False,
    time_shift_type="exponential",
    use_beta_sigmas=False,
    use_dynamic_shifting=True,
    use_exponential_sigmas=False,
    use_karras_sigmas=False,
)

LTX2 = Repo(
    "Lightricks/LTX-2",
    weights=(
        gemma3("text_encoder", GEMMA_VOCAB, layers=GEMMA_LAYERS),
        LTX2_CONNECTORS,
        LTX2_TRANSFORMER,
        LTX2_VAE,
        AUDIO_VAE,
        LTX2_VOCODER,
    ),
    files={**index("ltx2.LTX2Vocoder"), **SCHEDULER, **in_folder("tokenizer", GEMMA_FILES)},
)

LTX23 = Repo(
    "diffusers/LTX-2.3-Diffusers",
    weights=(
        gemma3("text_encoder", GEMMA_VOCAB, layers=GEMMA_LAYERS),
        LTX23_CONNECTORS,
        LTX23_TRANSFORMER,
        LTX23_VAE,
        AUDIO_VAE,
        LTX23_VOCODER,
    ),
    files={**index("ltx2.LTX2VocoderWithBWE"), **SCHEDULER, **in_folder("tokenizer", GEMMA_FILES)},
)

GEMMA3_12B = Repo(
    "google/gemma-3-12b-it-qat-q4_0-unquantized",
    weights=(gemma3("", GEMMA_VOCAB, layers=GEMMA_LAYERS),),
    files=GEMMA_FILES,
)
"""Where the trainer takes the text encoder of LTX-2.3 from: files at the root."""
