"""FLUX.2: klein, and dev in its two file layouts."""

from typing import Any

from lora_drift.pipelines.spec import ModelSpec, Quantizes, Scheduler

FLUX2_SCHEDULER = Scheduler(
    # The sigmas come from `families.flux2.schedule` and are final.
    "FlowMatchEulerInOwnDtype",
    {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
)
COMMON: dict[str, Any] = {
    "kind": "image",
    "family": "flux2",
    "denoisers": {"": "transformer"},
    "quantizes": Quantizes(),
    "lora_prefixes": ("diffusion_model.", "transformer."),
    "scheduler": FLUX2_SCHEDULER,
    "size_divisor": 16,
    "width": 1024,
    "height": 1024,
    "steps": 25,
    "guidance_scale": 4.0,
    "max_sequence_length": 512,
    "controls": (0, 3),
}
QUIRKS = (
    "Sigmas are shifted by a mu that is linear in the number of latent tokens, reference pictures not counted; stock "
    "Diffusers uses one fitted to the number of steps as well.",
    "Reference pictures are used at their own size (at most 1024 x 1024 pixels), centre-cropped to multiples of 16.",
    "Their latents are rounded to bfloat16 in every dtype.",
    "The autoencoder's activation is x * sigmoid(x), rounded twice.",
)
SOURCE = tuple(
    f"extensions_built_in/diffusion_models/flux2/{name}"
    for name in ("flux2_model.py", "src/pipeline.py", "src/sampling.py", "src/model.py", "src/autoencoder.py")
)


def klein(size: str, encoder: str) -> ModelSpec:
    """FLUX.2 klein base, 4B or 9B: the autoencoder and the text encoder come from elsewhere."""
    return ModelSpec(
        id=f"flux2_klein_{size.lower()}",
        title=f"FLUX.2 klein base {size}",
        since="0.7.20",
        pipeline="Flux2KleinPipeline",
        base=f"black-forest-labs/FLUX.2-klein-base-{size}",
        components={"text_encoder": encoder, "vae": "ai-toolkit/flux2_vae"},
        slow_tokenizers=("tokenizer",),
        guidance="cfg",
        extra={
            "layout": "files",
            "transformer": f"flux-2-klein-base-{size.lower()}.safetensors",
            "vae": "ae.safetensors",
            "text_encoder": "Qwen3ForCausalLM",
        },
        quirks=QUIRKS,
        source=(*SOURCE, "extensions_built_in/diffusion_models/flux2/flux2_klein_model.py"),
        **COMMON,
    )


def dev(id: str, layout: str, *quirks: str) -> ModelSpec:
    """FLUX.2 dev; the text encoder comes from elsewhere."""
    return ModelSpec(
        id=id,
        title="FLUX.2 dev",
        pipeline="Flux2Pipeline",
        base="black-forest-labs/FLUX.2-dev",
        components={"text_encoder": "mistralai/Mistral-Small-3.1-24B-Instruct-2503"},
        guidance="embedded",
        extra={
            "layout": layout,
            "transformer": "flux2-dev.safetensors",
            "vae": "ae.safetensors",
            "text_encoder": "Mistral3ForConditionalGeneration",
        },
        quirks=(
            "The negative prompt is encoded and then ignored.",
            "The text encoder is Mistral Small 3.1, not the one in the folder text_encoder (3.2).",
            *QUIRKS,
            *quirks,
        ),
        source=SOURCE,
        **COMMON,
    )


ROWS = (
    klein("4B", "Qwen/Qwen3-4B"),
    klein("9B", "Qwen/Qwen3-8B"),
    dev("flux2", "files"),
    dev(
        "flux2_diffusers",
        "folders",
        "The trainer has no such model: these are flux2's Diffusers folders, held to flux2's samples.",
    ),
)
