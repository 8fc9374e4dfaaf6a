"""Qwen-Image and its editing relatives."""

from typing import Any

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Repo, Weights, in_folder, model_index, scheduler, to_json
from lora_drift.harness.minihub.repos.encoders import WIDTH
from lora_drift.harness.minihub.weights import Rule

FILES, VOCAB = tokenizers.qwen_vl()
SPECIAL = [*tokenizers.QWEN_VL_SPECIAL, *tokenizers.QWEN_VL_PLAIN]


def token(name: str) -> int:
    """Id of a special token: they close the vocabulary, in this order."""
    return VOCAB - len(SPECIAL) + SPECIAL.index(name)


LANGUAGE = {
    "model_type": "qwen2_5_vl_text",
    "attention_dropout": 0.0,
    "bos_token_id": token("<|endoftext|>"),
    "eos_token_id": token("<|im_end|>"),
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}
VISION = {
    "model_type": "qwen2_5_vl",
    "depth": 2,
    "fullatt_block_indexes": [1],
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "in_channels": 3,
    "in_chans": 3,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
}
TEXT_ENCODER = Weights(
    "text_encoder",
    "transformers.Qwen2_5_VLForConditionalGeneration",
    {
        "model_type": "qwen2_5_vl",
        "image_token_id": token("<|image_pad|>"),
        "text_config": LANGUAGE,
        "tie_word_embeddings": False,
        "video_token_id": token("<|video_pad|>"),
        "vision_config": VISION,
        "vision_end_token_id": token("<|vision_end|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_token_id": token("<|vision_pad|>"),
    },
    "bfloat16",
    shards=4,
    rules=((r"visual\.merger\.mlp\.2\.weight$", 2.0),),
)

VAE_CONFIG = {
        "attn_scales": [],
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
}  # fmt: skip


def vae(width: int) -> Weights:
    rules = ((r"decoder\.conv_out\.weight$", 0.6),)
    return Weights(
        "vae", "diffusers.AutoencoderKLQwenImage", {**VAE_CONFIG, "base_dim": width}, "bfloat16", rules=rules
    )


SCHEDULER = scheduler(
    "FlowMatchEulerDiscreteScheduler",
    base_image_seq_len=256,
    base_shift=0.5,
    invert_sigmas=False,
    max_image_seq_len=8192,
    max_shift=0.9,
    num_train_timesteps=1000,
    shift=1.0,
    shift_terminal=0.02,
    stochastic_sampling=False,
    time_shift_type="exponential",
    use_beta_sigmas=False,
    use_dynamic_shifting=True,
    use_exponential_sigmas=False,
    use_karras_sigmas=False,
)

INDEX = {
    "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    "text_encoder": "transformers.Qwen2_5_VLForConditionalGeneration",
    "tokenizer": "transformers.Qwen2Tokenizer",
    "transformer": "diffusers.QwenImageTransformer2DModel",
    "vae": "diffusers.AutoencoderKLQwenImage",
}

MAX_PIXELS = 16 * 112 * 112
"""Real: 12845056. With it Qwen-Image-Edit's control image would be 1300 tokens, in which the prompt drowns."""
IMAGE_PROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": MAX_PIXELS,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2VLProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": MAX_PIXELS, "shortest_edge": 3136},
    "temporal_patch_size": 2,
}
PROCESSOR = {
    **FILES,
    "chat_template.jinja": tokenizers.QWEN_VL_CHAT,
    "preprocessor_config.json": to_json(IMAGE_PROCESSOR),
    "video_preprocessor_config.json": to_json({**IMAGE_PROCESSOR, "video_processor_type": "Qwen2VLVideoProcessor"}),
}

STRONG: tuple[Rule, ...] = (
    (r"add_v_proj\.weight$", 2.0),
    (r"attn\.to_out\.0\.weight$", 2.0),
    (r"/proj_out\.weight$", 2.0),
)
RULES: tuple[Rule, ...] = ((r"norm_added_k\.weight$", 3.0), *STRONG)
EDIT_RULES: tuple[Rule, ...] = ((r"norm_added_k\.weight$", 4.0), *STRONG)
"""Against thousands of tokens of control images the prompt would hardly show."""


def transformer(layers: int, rules: tuple[Rule, ...], **config: Any) -> Weights:
    base = {
        "attention_head_dim": 16,
        "axes_dims_rope": [4, 6, 6],
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": WIDTH,
        "num_attention_heads": 2,
        "num_layers": layers,
        "out_channels": 16,
        "patch_size": 2,
    }
    cls = "diffusers.QwenImageTransformer2DModel"
    return Weights("transformer", cls, {**base, **config}, "bfloat16", rules=rules)


def text_to_image(repo: str, layers: int) -> Repo:
    return Repo(
        repo,
        weights=(TEXT_ENCODER, transformer(layers, RULES), vae(8)),
        files={**model_index("QwenImagePipeline", **INDEX), **SCHEDULER, **in_folder("tokenizer", FILES)},
    )


def edit(repo: str, pipeline: str, layers: int, **config: Any) -> Repo:
    return Repo(
        repo,
        # Control images pass the VAE as a megapixel each: a narrow one saves most of the time.
        weights=(TEXT_ENCODER, transformer(layers, EDIT_RULES, **config), vae(4)),
        files={
            **model_index(pipeline, processor="transformers.Qwen2VLProcessor", **INDEX),
            **SCHEDULER,
            **in_folder("processor", PROCESSOR),
            **in_folder("tokenizer", FILES),
        },
    )


# The number of layers differs so that a LoRA of one is refused by the other.
QWEN_IMAGE = text_to_image("Qwen/Qwen-Image", layers=2)
QWEN_IMAGE_2512 = text_to_image("Qwen/Qwen-Image-2512", layers=3)
QWEN_IMAGE_EDIT = edit("Qwen/Qwen-Image-Edit", "QwenImageEditPipeline", layers=2)
QWEN_IMAGE_EDIT_2509 = edit("Qwen/Qwen-Image-Edit-2509", "QwenImageEditPlusPipeline", layers=3)
QWEN_IMAGE_EDIT_2511 = edit("Qwen/Qwen-Image-Edit-2511", "QwenImageEditPlusPipeline", layers=2, zero_cond_t=True)
