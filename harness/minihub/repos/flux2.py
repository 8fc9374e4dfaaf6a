"""FLUX.2 dev and klein: single files, the Diffusers folders beside them, and the text encoders that the trainer takes.

The trainer loads the single file of the transformer, `ae.safetensors` and a text encoder from a repository of its own.
Only flux2_diffusers loads Diffusers folders.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lora_drift.harness.minihub import layout, tokenizers, weights
from lora_drift.harness.minihub.repo import Repo, Tensors, Weights, in_folder, model_index, scheduler
from lora_drift.harness.minihub.repos.encoders import DECODER_RULES, WIDTH, mistral3, qwen3
from lora_drift.harness.minihub.repos.flux2_files import (
    Autoencoder,
    Transformer,
    autoencoder_to_diffusers,
    transformer_to_diffusers,
)
from lora_drift.harness.minihub.weights import Rule

QWEN_FILES, QWEN_VOCAB = tokenizers.qwen()
MISTRAL_FILES, MISTRAL_VOCAB = tokenizers.mistral3()
WIDE = 40
"""Width of Qwen3 8B, so that it cannot stand in for Qwen3 4B."""

TRANSFORMERS = {
    "flux2": Transformer(hidden=64, heads=4, depth=1, single=2, context=3 * WIDTH, guidance=True),
    "flux2_klein_4b": Transformer(hidden=64, heads=4, depth=2, single=1, context=3 * WIDTH, guidance=False),
    "flux2_klein_9b": Transformer(hidden=96, heads=6, depth=1, single=2, context=3 * WIDE, guidance=False),
}
AUTOENCODER = Autoencoder()
TRANSFORMER_RULES: tuple[Rule, ...] = ((r"norm\.(query|key)_norm\.scale", 2.0), (r"guidance_in\.out_layer", 3.0))
AUTOENCODER_RULES: tuple[Rule, ...] = (*DECODER_RULES,)

# Enough layers that the deepest one that is read (27 and 30) is not the last, as in the real ones.
QWEN3_4B = Repo("Qwen/Qwen3-4B", weights=(qwen3("", QWEN_VOCAB, layers=28),), files=QWEN_FILES)
_QWEN = qwen3("", QWEN_VOCAB, layers=28, shards=5)
QWEN3_8B = Repo(
    "Qwen/Qwen3-8B",
    weights=(replace(_QWEN, config={**_QWEN.config, "hidden_size": WIDE, "tie_word_embeddings": False}),),
    files=QWEN_FILES,
)
MISTRAL_ID = "mistralai/Mistral-Small-3.1-24B-Instruct-2503"


def mistral_file() -> Mapping[str, np.ndarray]:
    """Under the names of the real repository, which is older than today's (`model.language_model.` ...)."""
    renames = (("lm_head.", "language_model.lm_head."), ("model.language_model.", "language_model.model."))
    found = {}
    for name, shape in layout.load(mistral3("", MISTRAL_VOCAB, layers=31)).items():
        old = next((name.replace(new, then) for new, then in renames if name.startswith(new)), name)
        found[old.removeprefix("model.")] = weights.tensor(MISTRAL_ID, "", name, shape)
    return found


MISTRAL = Repo(
    MISTRAL_ID,
    weights=(replace(mistral3("", MISTRAL_VOCAB, layers=31), values=mistral_file),),
    files=MISTRAL_FILES,
)


def autoencoder_file(repo: str) -> Mapping[str, np.ndarray]:
    return AUTOENCODER.arrays(repo, "ae.safetensors", AUTOENCODER_RULES)


def autoencoder_folder(repo: str) -> Weights:
    """The Diffusers folder with the weights of the `ae.safetensors` in `repo`."""
    config = {
        "act_fn": "silu",
        "batch_norm_eps": 0.0001,
        "batch_norm_momentum": 0.1,
        "block_out_channels": [AUTOENCODER.channels * m for m in AUTOENCODER.multipliers],
        "down_block_types": ["DownEncoderBlock2D"] * AUTOENCODER.levels,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": AUTOENCODER.latent,
        "layers_per_block": AUTOENCODER.blocks,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "out_channels": 3,
        "patch_size": [2, 2],
        "sample_size": 1024,
        "up_block_types": ["UpDecoderBlock2D"] * AUTOENCODER.levels,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }
    return Weights(
        "vae",
        "diffusers.AutoencoderKLFlux2",
        config,
        values=lambda: autoencoder_to_diffusers(autoencoder_file(repo), AUTOENCODER.levels),
    )


def transformer_folder(size: Transformer, repo: str, file: str) -> Weights:
    """The Diffusers folder with the weights of the single file `file` in `repo`."""
    config = {
        "attention_head_dim": size.hidden // size.heads,
        "axes_dims_rope": size.axes,
        "eps": 1e-06,
        "guidance_embeds": size.guidance,
        "in_channels": 128,
        "joint_attention_dim": size.context,
        "mlp_ratio": size.mlp_ratio,
        "num_attention_heads": size.heads,
        "num_layers": size.depth,
        "num_single_layers": size.single,
        "out_channels": None,
        "patch_size": 1,
        "rope_theta": size.theta,
        "timestep_guidance_channels": 256,
    }
    return Weights(
        "transformer",
        "diffusers.Flux2Transformer2DModel",
        config,
        "bfloat16",
        values=lambda: transformer_to_diffusers(size.arrays(repo, file, TRANSFORMER_RULES)),
    )


def text_folder(encoder: Repo) -> Weights:
    """The folder `text_encoder` with the weights of `encoder`'s repository."""
    (w,) = encoder.weights

    def values() -> Mapping[str, np.ndarray]:
        return {n: weights.tensor(encoder.id, w.folder, n, shape, w.rules) for n, shape in layout.load(w).items()}

    return replace(w, folder="text_encoder", values=values)


FLUX2_SCHEDULER = scheduler(
    "FlowMatchEulerDiscreteScheduler",
    base_image_seq_len=256,
    base_shift=0.5,
    max_image_seq_len=4096,
    max_shift=1.15,
    num_train_timesteps=1000,
    shift=3.0,
    use_dynamic_shifting=True,
)
INDEX = {
    "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    "transformer": "diffusers.Flux2Transformer2DModel",
    "vae": "diffusers.AutoencoderKLFlux2",
}
KLEIN_INDEX = {**INDEX, "text_encoder": "transformers.Qwen3ForCausalLM", "tokenizer": "transformers.Qwen2TokenizerFast"}
DEV_INDEX = {
    **INDEX,
    "text_encoder": "transformers.Mistral3ForConditionalGeneration",
    "tokenizer": "transformers.PixtralProcessor",
}

FLUX2_VAE = Repo(
    "ai-toolkit/flux2_vae",
    tensors=(Tensors("ae.safetensors", values=lambda: autoencoder_file("ai-toolkit/flux2_vae")),),
)


def klein(model: str, repo: str, file: str, encoder: Repo) -> Repo:
    size = TRANSFORMERS[model]
    return Repo(
        repo,
        weights=(
            transformer_folder(size, repo, file),
            autoencoder_folder(FLUX2_VAE.id),
            text_folder(encoder),
        ),
        tensors=(Tensors(file, dtype="bfloat16", values=lambda: size.arrays(repo, file, TRANSFORMER_RULES)),),
        files={
            **model_index("Flux2KleinPipeline", **KLEIN_INDEX),
            **FLUX2_SCHEDULER,
            **in_folder("tokenizer", QWEN_FILES),
        },
    )


KLEIN_4B = klein(
    "flux2_klein_4b", "black-forest-labs/FLUX.2-klein-base-4B", "flux-2-klein-base-4b.safetensors", QWEN3_4B
)
KLEIN_9B = klein(
    "flux2_klein_9b", "black-forest-labs/FLUX.2-klein-base-9B", "flux-2-klein-base-9b.safetensors", QWEN3_8B
)

DEV, DEV_FILE = "black-forest-labs/FLUX.2-dev", "flux2-dev.safetensors"
FLUX2_DEV = Repo(
    DEV,
    weights=(
        transformer_folder(TRANSFORMERS["flux2"], DEV, DEV_FILE),
        autoencoder_folder(DEV),
        # Not the trainer's text encoder: the real folder holds the next release of it (Mistral Small 3.2).
        mistral3("text_encoder", MISTRAL_VOCAB, layers=31),
    ),
    tensors=(
        Tensors(
            DEV_FILE,
            dtype="bfloat16",
            values=lambda: TRANSFORMERS["flux2"].arrays(DEV, DEV_FILE, TRANSFORMER_RULES),
        ),
        Tensors("ae.safetensors", values=lambda: autoencoder_file(DEV)),
    ),
    files={
        **model_index("Flux2Pipeline", **DEV_INDEX),
        **FLUX2_SCHEDULER,
        **in_folder("tokenizer", MISTRAL_FILES),
    },
)
