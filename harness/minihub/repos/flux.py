"""FLUX.1 and its relatives: Kontext, Flex.1, Flex.2, Chroma."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Repo, Tensors, Weights, in_folder, model_index, scheduler
from lora_drift.harness.minihub.repos.encoders import FLUX_VAE, WIDTH, autoencoder_kl, clip_text, t5_encoder
from lora_drift.harness.minihub.weights import Rule

CLIP_FILES, CLIP_VOCAB = tokenizers.clip()
T5_FILES, T5_VOCAB = tokenizers.t5()

FLUX_TRANSFORMER = {
    "attention_head_dim": 16,
    "axes_dims_rope": [4, 6, 6],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": WIDTH,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
    "patch_size": 1,
    "pooled_projection_dim": WIDTH,
}
FLUX_RULES = ((r"norm_(added_)?[qk]\.weight$", 2.0), (r"guidance_embedder\.linear_2\.weight$", 3.0))
FLUX_INDEX = {
    "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    "text_encoder": "transformers.CLIPTextModel",
    "text_encoder_2": "transformers.T5EncoderModel",
    "tokenizer": "transformers.CLIPTokenizer",
    "tokenizer_2": "transformers.T5TokenizerFast",
    "transformer": "diffusers.FluxTransformer2DModel",
    "vae": "diffusers.AutoencoderKL",
}

FLUX_DEV = Repo(
    "black-forest-labs/FLUX.1-dev",
    weights=(
        clip_text("text_encoder", CLIP_VOCAB, dtype="bfloat16"),
        t5_encoder("text_encoder_2", T5_VOCAB),
        Weights("transformer", "diffusers.FluxTransformer2DModel", FLUX_TRANSFORMER, "bfloat16", rules=FLUX_RULES),
        autoencoder_kl("vae", dtype="bfloat16", quant_conv=False, **FLUX_VAE),
    ),
    files={
        **model_index("FluxPipeline", **FLUX_INDEX),
        **scheduler(
            "FlowMatchEulerDiscreteScheduler",
            base_image_seq_len=256,
            base_shift=0.5,
            max_image_seq_len=4096,
            max_shift=1.15,
            num_train_timesteps=1000,
            shift=3.0,
            use_dynamic_shifting=True,
        ),
        **in_folder("tokenizer", CLIP_FILES),
        **in_folder("tokenizer_2", T5_FILES),
    },
)


def relative(
    repo_id: str, pipeline: str, rules: Sequence[Rule] = FLUX_RULES, *, control: float = 0.0, **config: Any
) -> Repo:
    """A repository in FLUX.1-dev's layout with another denoiser.

    `control` is the gain of the VAE encoder's last layer, for models that see a control image: with plain random
    weights it would hardly show.
    """
    vae = autoencoder_kl("vae", dtype="bfloat16", quant_conv=False, **FLUX_VAE)
    if control:
        vae = replace(vae, rules=(*vae.rules, (r"encoder\.conv_out\.weight$", control)))
    transformer = {**FLUX_TRANSFORMER, **config}
    return replace(
        FLUX_DEV,
        id=repo_id,
        weights=(
            *FLUX_DEV.weights[:2],
            Weights("transformer", "diffusers.FluxTransformer2DModel", transformer, "bfloat16", rules=rules),
            vae,
        ),
        files={**FLUX_DEV.files, **model_index(pipeline, **FLUX_INDEX)},
    )


FLEX1 = relative("ostris/Flex.1-alpha", "FluxPipeline", num_layers=1, num_single_layers=3)
KONTEXT = relative("black-forest-labs/FLUX.1-Kontext-dev", "FluxKontextPipeline", control=3.0, num_attention_heads=3)
FLEX2 = relative(
    "ostris/Flex.2-preview",
    "Flex2Pipeline",
    control=1.5,
    in_channels=196,
    out_channels=64,
    num_layers=1,
    num_single_layers=2,
)
"""Input channels: 64 of packed latents, 64 + 4 of inpainting latents and their mask, 64 of control latents."""

CHROMA: dict[str, Any] = {
    "axes_dim": [4, 14, 14],
    "approximator_hidden_size": 64,
    "context_in_dim": WIDTH,
    "hidden_size": 64,
    "num_heads": 2,
}
"""Fields of the trainer's `chroma_params`. The rotary axes keep the real proportions (1/8, 7/16, 7/16 of a head)."""


def chroma_shapes(
    sizes: Mapping[str, Any] = CHROMA, double: int = 2, single: int = 2, approximator_layers: int = 5
) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the original single file (the trainer's module `Chroma`)."""
    dim, head, guide = sizes["hidden_size"], sizes["hidden_size"] // sizes["num_heads"], "distilled_guidance_layer"
    between = sizes["approximator_hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def qk_norm(name: str) -> None:
        shapes[f"{name}.query_norm.scale"] = shapes[f"{name}.key_norm.scale"] = (head,)

    linear("img_in", 64, dim)
    linear("txt_in", sizes["context_in_dim"], dim)
    linear(f"{guide}.in_proj", 64, between)
    for i in range(approximator_layers):
        linear(f"{guide}.layers.{i}.in_layer", between, between)
        linear(f"{guide}.layers.{i}.out_layer", between, between)
        shapes[f"{guide}.norms.{i}.scale"] = (between,)
    linear(f"{guide}.out_proj", between, dim)
    for i in range(double):
        for stream in (f"double_blocks.{i}.img", f"double_blocks.{i}.txt"):
            linear(f"{stream}_attn.qkv", dim, 3 * dim)
            linear(f"{stream}_attn.proj", dim, dim)
            qk_norm(f"{stream}_attn.norm")
            linear(f"{stream}_mlp.0", dim, 4 * dim)
            linear(f"{stream}_mlp.2", 4 * dim, dim)
    for i in range(single):
        linear(f"single_blocks.{i}.linear1", dim, 7 * dim)
        linear(f"single_blocks.{i}.linear2", 5 * dim, dim)
        qk_norm(f"single_blocks.{i}.norm")
    linear("final_layer.linear", dim, 64)
    return shapes


CHROMA_BASE = Repo(
    "lodestones/Chroma1-Base",
    tensors=(
        Tensors(
            "Chroma1-Base.safetensors",
            chroma_shapes(),
            "bfloat16",
            # Norm scales of this file do not end in "weight", so the factory takes them for small vectors (+-0.05).
            rules=((r"(query|key)_norm\.scale$", 50.0), (r"norms\.\d+\.scale$", 20.0)),
        ),
    ),
)
"""The file that the trainer loads; it takes the rest from `ostris/Flex.1-alpha`."""
