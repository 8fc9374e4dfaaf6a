"""Anima: a modular repository, which says of each component where it lies."""

from dataclasses import replace

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Repo, Weights, in_folder, scheduler, to_json
from lora_drift.harness.minihub.repos import qwen
from lora_drift.harness.minihub.repos.encoders import WIDTH, qwen3
from lora_drift.harness.minihub.weights import Rule

ID = "circlestone-labs/Anima-Base-v1.0-Diffusers"
QWEN_FILES, QWEN_VOCAB = tokenizers.qwen()
T5_FILES, T5_VOCAB = tokenizers.t5()
TRANSFORMER = {
    "adaln_lora_dim": 16,
    "attention_head_dim": 16,
    "concat_padding_mask": True,
    "extra_pos_embed_type": None,
    "in_channels": 16,
    "max_size": [128, 240, 240],
    "mlp_ratio": 4.0,
    "num_attention_heads": 4,
    "num_layers": 2,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "rope_scale": [1.0, 4.0, 4.0],
    "text_embed_dim": WIDTH,
}
RULES: tuple[Rule, ...] = ((r"attn2\.(norm_k|to_out\.0)\.weight$", 2.0),)
CONDITIONER = {
    "min_sequence_length": 512,
    "mlp_ratio": 4.0,
    "model_dim": WIDTH,
    "num_attention_heads": 4,
    "num_layers": 2,
    "source_dim": WIDTH,
    "target_dim": WIDTH,
    "target_vocab_size": T5_VOCAB,
    "use_layer_norm": False,
    "use_self_attention": True,
}
CONDITIONER_RULES: tuple[Rule, ...] = ((r"/embed\.weight$", 5.0),)
COMPONENTS = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "t5_tokenizer": ("transformers", "T5TokenizerFast"),
    "text_conditioner": ("diffusers", "AnimaTextConditioner"),
    "text_encoder": ("transformers", "Qwen3Model"),
    "tokenizer": ("transformers", "Qwen2Tokenizer"),
    "transformer": ("diffusers", "CosmosTransformer3DModel"),
    "vae": ("diffusers", "AutoencoderKLQwenImage"),
}


def modular_index() -> dict[str, str]:
    """modular_model_index.json"""
    entries = {
        name: [*cls, {"pretrained_model_name_or_path": ID, "revision": None, "subfolder": name, "type_hint": cls,
                      "variant": None}]
        for name, cls in COMPONENTS.items()
    }  # fmt: skip
    head = {
        "_blocks_class_name": "AnimaAutoBlocks",
        "_class_name": "AnimaModularPipeline",
        "_diffusers_version": "0.39.0.dev0",
    }
    return {"modular_model_index.json": to_json({**head, **entries})}


ANIMA = Repo(
    ID,
    weights=(
        replace(qwen3("text_encoder", QWEN_VOCAB), cls="transformers.Qwen3Model"),
        Weights("text_conditioner", "diffusers.AnimaTextConditioner", CONDITIONER, "bfloat16", rules=CONDITIONER_RULES),
        Weights("transformer", "diffusers.CosmosTransformer3DModel", TRANSFORMER, "bfloat16", rules=RULES),
        qwen.vae(8),
    ),
    files={
        **modular_index(),
        **scheduler("FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=5.0, use_dynamic_shifting=False),
        **in_folder("tokenizer", QWEN_FILES),
        **in_folder("t5_tokenizer", T5_FILES),
    },
)
"""The scheduler's own shift is not looked at by the trainer."""
