"""Z-Image, Z-Image Turbo, the trainer's de-distillation adapter for it, and the de-distilled Turbo."""

from collections.abc import Sequence
from typing import Any

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Repo, Tensors, Weights, in_folder, model_index, scheduler
from lora_drift.harness.minihub.repos.encoders import FLUX_VAE, WIDTH, autoencoder_kl, qwen3
from lora_drift.harness.minihub.weights import Rule

QWEN_FILES, QWEN_VOCAB = tokenizers.qwen()
DIM, LAYERS, ADAPTER_RANK = 64, 2, 4

ZIMAGE_TRANSFORMER = {
    "all_f_patch_size": [1],
    "all_patch_size": [2],
    "axes_dims": [4, 6, 6],
    "axes_lens": [1024, 512, 512],
    "cap_feat_dim": WIDTH,
    "dim": DIM,
    "in_channels": 16,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": LAYERS,
    "n_refiner_layers": 1,
    "norm_eps": 1e-05,
    "qk_norm": True,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
}
ZIMAGE_RULES = ((r"norm_[qk]\.weight$", 2.0), (r"cap_embedder\.1\.weight$", 2.0))
CALM_RULES = ((r"norm_[qk]\.weight$", 1.4), (r"cap_embedder\.1\.weight$", 2.0))
"""With the larger guidance of the undistilled models, attention as sharp as Turbo's would amplify rounding."""

ZIMAGE_INDEX = {
    "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    "text_encoder": "transformers.Qwen3Model",
    "tokenizer": "transformers.Qwen2Tokenizer",
    "transformer": "diffusers.ZImageTransformer2DModel",
    "vae": "diffusers.AutoencoderKL",
}


def adapter_shapes() -> dict[str, tuple[int, int]]:
    """LoRA pairs on every Linear of the main blocks, as the trainer's adapter has them."""
    hidden = int(DIM / 3 * 8)
    linears = {f"attention.{name}": (DIM, DIM) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    linears |= {"feed_forward.w1": (hidden, DIM), "feed_forward.w2": (DIM, hidden), "feed_forward.w3": (hidden, DIM)}
    linears |= {"adaLN_modulation.0": (4 * DIM, min(DIM, 256))}
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(LAYERS):
        for name, (out_features, in_features) in linears.items():
            key = f"diffusion_model.layers.{layer}.{name}"
            shapes[f"{key}.lora_A.weight"] = (ADAPTER_RANK, in_features)
            shapes[f"{key}.lora_B.weight"] = (out_features, ADAPTER_RANK)
    return shapes


def zimage_transformer(rules: Sequence[Rule] = CALM_RULES, **changes: Any) -> Weights:
    config = {**ZIMAGE_TRANSFORMER, **changes}
    return Weights("transformer", "diffusers.ZImageTransformer2DModel", config, "bfloat16", rules=rules)


def zimage_repo(repo: str, shift: float, transformer: Weights) -> Repo:
    """A whole repository. `shift` is the saved one, which the trainer does not read."""
    return Repo(
        repo,
        weights=(
            qwen3("text_encoder", QWEN_VOCAB),
            transformer,
            autoencoder_kl("vae", dtype="bfloat16", quant_conv=False, **FLUX_VAE),
        ),
        files={
            **model_index("ZImagePipeline", **ZIMAGE_INDEX),
            **scheduler(
                "FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=shift, use_dynamic_shifting=False
            ),
            **in_folder("tokenizer", QWEN_FILES),
        },
    )


ZIMAGE = zimage_repo("Tongyi-MAI/Z-Image", shift=6.0, transformer=zimage_transformer(n_refiner_layers=2))
ZIMAGE_TURBO = zimage_repo("Tongyi-MAI/Z-Image-Turbo", shift=3.0, transformer=zimage_transformer(ZIMAGE_RULES))
ZIMAGE_DETURBO = Repo("ostris/Z-Image-De-Turbo", weights=(zimage_transformer(n_layers=LAYERS + 1),))
"""A transformer and nothing else; the rest comes from Z-Image Turbo. (Layer counts differ so that a mix-up shows.)"""

TURBO_ADAPTER = Repo(
    "ostris/zimage_turbo_training_adapter",
    tensors=tuple(
        Tensors(f"zimage_turbo_training_adapter_{version}.safetensors", adapter_shapes(), "bfloat16", ((r"", 0.3),))
        for version in ("v1", "v2")
    ),
)
