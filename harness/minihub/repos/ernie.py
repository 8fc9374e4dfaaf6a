"""ERNIE-Image. Its prompt enhancer, which the trainer does not load, is left out."""

import json
from dataclasses import replace

from lora_drift.harness.minihub.repo import Repo, Weights, in_folder, model_index, scheduler, to_json
from lora_drift.harness.minihub.repos import flux2
from lora_drift.harness.minihub.repos.encoders import WIDTH, mistral3
from lora_drift.harness.minihub.weights import Rule

ID = "baidu/ERNIE-Image"
TRANSFORMER = {
    "eps": 1e-06,
    "ffn_hidden_size": 128,
    "hidden_size": 64,
    "in_channels": 128,
    "num_attention_heads": 4,
    "num_layers": 2,
    "out_channels": 128,
    "patch_size": 1,
    "qk_layernorm": True,
    "rope_axes_dim": [4, 6, 6],
    "rope_theta": 256,
    "text_in_dim": WIDTH,
}
RULES: tuple[Rule, ...] = ((r"norm_[qk]\.weight$", 1.6), (r"text_proj\.weight$", 2.0))
INDEX = {
    "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    "text_encoder": "transformers.Mistral3Model",
    "tokenizer": "transformers.TokenizersBackend",
    "transformer": "diffusers.ErnieImageTransformer2DModel",
    "vae": "diffusers.AutoencoderKLFlux2",
}
TOKENIZER = {
    "tokenizer.json": flux2.MISTRAL_FILES["tokenizer.json"],
    "tokenizer_config.json": to_json(
        {**json.loads(flux2.MISTRAL_FILES["tokenizer_config.json"]), "tokenizer_class": "TokenizersBackend"}
    ),
}
"""As Ministral's, which was saved with transformers 5: read as tokenizer.json says, whatever the class."""

ERNIE_IMAGE = Repo(
    ID,
    weights=(
        replace(mistral3("text_encoder", flux2.MISTRAL_VOCAB, layers=4), cls="transformers.Mistral3Model"),
        Weights("transformer", "diffusers.ErnieImageTransformer2DModel", TRANSFORMER, "bfloat16", rules=RULES),
        flux2.autoencoder_folder(ID),
    ),
    files={
        **model_index("ErnieImagePipeline", pe=[None, None], pe_tokenizer=[None, None], **INDEX),
        **scheduler("FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=4.0, use_dynamic_shifting=False),
        **in_folder("tokenizer", TOKENIZER),
    },
)
"""The scheduler's own shift is not looked at by the trainer."""
