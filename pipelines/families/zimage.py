"""Z-Image. Follows extensions_built_in/diffusion_models/z_image/z_image.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.family import nothing_to_refuse, same_name
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import Earlier, ModelSpec, Quantizes, Scheduler

ZIMAGE_SCHEDULER = Scheduler(
    "ours.FlowMatchEulerToZero", {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}
)

TURBO = "Tongyi-MAI/Z-Image-Turbo"
SIGMAS = (
    "Sigmas run from 1 to 0 before the shift, so that the last step changes nothing: n steps are n - 1. "
    "Newer Diffusers releases lay out n real steps (see pipelines/schedulers.py)."
)
SIZE = "The size is floored to 32, although the model could do 16."

BASE = ModelSpec(
    id="zimage",
    title="Z-Image",
    kind="image",
    family="zimage",
    pipeline="ZImagePipeline",
    base="Tongyi-MAI/Z-Image",
    denoisers={"": "transformer"},
    quantizes=Quantizes(encoder_qtype="qtype_te"),
    lora_prefixes=("diffusion_model.", "transformer."),
    scheduler=ZIMAGE_SCHEDULER,
    size_divisor=32,
    width=1024,
    height=1024,
    steps=30,
    guidance_scale=4.0,
    guidance="cfg_above_zero",
    max_sequence_length=512,
    quirks=(
        "The shift is 3.0, whatever the repository's own scheduler says.",
        "Guidance g means pos + g (pos - neg), and runs for every g > 0: the default of 4 is a conventional 5.",
        SIGMAS,
        SIZE,
    ),
    source=("extensions_built_in/diffusion_models/z_image/z_image.py",),
    earlier=(
        Earlier(
            before="0.7.29",
            why="Guidance ran for g > 1 only: the Diffusers of those versions had the threshold at 1 "
            "(ZImagePipeline, Diffusers #13183). At Turbo's default of 1 the negative prompt was not read.",
            fields={"guidance": "cfg_above_one"},
        ),
    ),
)

ROWS: tuple[ModelSpec, ...] = (
    BASE,
    replace(
        BASE,
        id="zimage_turbo",
        title="Z-Image Turbo",
        base=TURBO,
        steps=8,
        guidance_scale=1.0,
        quirks=(
            "Guidance g means pos + g (pos - neg), and runs for every g > 0: the default of 1 is a conventional 2.",
            SIGMAS,
            SIZE,
            "The training adapter of the UI's default job is merged for training and subtracted again for sampling; "
            "what remains is one rounding of the weights (nothing in float32).",
        ),
    ),
    replace(
        BASE,
        id="zimage_deturbo",
        title="Z-Image De-Turbo",
        base="ostris/Z-Image-De-Turbo",
        components={"text_encoder": TURBO, "tokenizer": TURBO, "vae": TURBO},
        steps=25,
        guidance_scale=3.0,
        quirks=(
            "The repository holds a transformer only; everything else is Z-Image Turbo's, unless `base` is a folder "
            "that has a text encoder.",
            "Guidance g means pos + g (pos - neg), and runs for every g > 0: the default of 3 is a conventional 4.",
            SIGMAS,
            SIZE,
        ),
    ),
)


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    home = spec.components.get("text_encoder", base)
    if home == base or (Path(base) / "text_encoder").is_dir():
        return loading.pipeline(spec, base, dtype)
    # De-Turbo: `base` holds a transformer and nothing else, not even the list of a pipeline's parts.
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel.from_pretrained(base, subfolder="transformer", torch_dtype=dtype)
    elsewhere = {name: repo for name, repo in spec.components.items() if repo != home}
    return loading.pipeline(replace(spec, components=elsewhere), home, dtype, transformer=transformer)


check = nothing_to_refuse


def render(pipe: Any, spec: ModelSpec, settings: Settings, **call: Any) -> Media:
    output = pipe(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=spec.pipeline_scale(settings.guidance_scale),
        max_sequence_length=spec.max_sequence_length,
        **call,
    )
    return Media(list(output.images))


denoiser_shapes = loading.denoiser_shapes
lora_targets = same_name
