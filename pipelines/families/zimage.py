"""Z-Image. Follows extensions_built_in/diffusion_models/z_image/z_image.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.family import nothing_to_refuse, same_name
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import LAYER_BY_LAYER, TOKENIZERS, Earlier, ModelSpec, Quantizes, Scheduler


@dataclass(frozen=True, kw_only=True)
class ZImage(ModelSpec):
    guidance_offset: float
    """What is taken off the guidance scale (down to 0) before the pipeline, whose guidance is pos + g (pos - neg), gets
    it."""


EULER = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}

TURBO = "Tongyi-MAI/Z-Image-Turbo"
GUIDANCE = Earlier(
    before="0.10.21",
    why="Guidance g meant pos + g (pos - neg), and ran for every g > 0: 4 was a conventional 5, and Turbo's default of "
    "1 a conventional 2, with the negative prompt read.",
    fields={"guidance": "cfg_above_zero", "guidance_offset": 0.0},
)
EARLIER = (
    Earlier(
        before="0.10.24",
        why="Sigmas ran from 1 to 0 before the shift, so that the last step changed nothing: n steps were n - 1 "
        "(ZImagePipeline of the Diffusers of those versions).",
        fields={"scheduler": Scheduler("ours.FlowMatchEulerToZero", EULER)},
    ),
    Earlier(
        before="0.10.24",
        why="Embedders and the last layer were quantised like all others.",
        fields={"quantizes.spared": ()},
    ),
    LAYER_BY_LAYER,
    GUIDANCE,
    Earlier(before="0.9.14", why="The size was floored to 32.", fields={"size_divisor": 32}),
    TOKENIZERS,
    Earlier(
        before="0.7.25",
        why="Guidance ran for g > 1 only: the Diffusers of those versions had the threshold at 1 "
        "(ZImagePipeline, Diffusers #13183). At Turbo's default of 1 the negative prompt was not read.",
        fields={"guidance": "cfg_above_one"},
    ),
)

CONVENTIONAL = (
    "Guidance g is the conventional one: the trainer takes 1 off, as ZImagePipeline adds g times the difference to the "
    "positive."
)

BASE = ZImage(
    id="zimage",
    title="Z-Image",
    kind="image",
    family="zimage",
    pipeline="ZImagePipeline",
    base="Tongyi-MAI/Z-Image",
    denoisers={"": "transformer"},
    quantizes=Quantizes(
        encoder_qtype="qtype_te",
        spared=("t_embedder*", "cap_embedder*", "all_x_embedder*", "all_final_layer*", "siglip_embedder*"),
    ),
    lora_prefixes=("diffusion_model.", "transformer."),
    scheduler=Scheduler("diffusers.FlowMatchEulerDiscreteScheduler", EULER),
    size_divisor=16,
    width=1024,
    height=1024,
    steps=30,
    guidance_scale=4.0,
    guidance="cfg",
    guidance_offset=1.0,
    max_sequence_length=512,
    quirks=(
        "The shift is 3.0, whatever the repository's own scheduler says.",
        CONVENTIONAL,
    ),
    source=("extensions_built_in/diffusion_models/z_image/z_image.py",),
    earlier=EARLIER,
)

ROWS: tuple[ZImage, ...] = (
    BASE,
    replace(
        BASE,
        id="zimage_turbo",
        title="Z-Image Turbo",
        base=TURBO,
        steps=9,
        guidance_scale=1.0,
        quirks=(
            CONVENTIONAL,
            "The training adapter of the UI's default job is merged for training and subtracted again for sampling; "
            "what remains is one rounding of the weights (nothing in float32).",
        ),
        earlier=(
            *EARLIER,
            Earlier(before="0.10.21", why="The trainer's UI offered 8 steps.", fields={"steps": 8}),
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
            CONVENTIONAL,
        ),
    ),
)


def load(spec: ZImage, base: str, dtype: Any) -> Any:
    home = spec.components.get("text_encoder", base)
    if home == base or (Path(base) / "text_encoder").is_dir():
        return loading.pipeline(spec, base, dtype)
    # De-Turbo: `base` holds a transformer and nothing else, not even the list of a pipeline's parts.
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel.from_pretrained(base, subfolder="transformer", torch_dtype=dtype)
    elsewhere = {name: repo for name, repo in spec.components.items() if repo != home}
    return loading.pipeline(replace(spec, components=elsewhere), home, dtype, transformer=transformer)


check = nothing_to_refuse


def render(pipe: Any, spec: ZImage, settings: Settings, **call: Any) -> Media:
    import numpy as np

    output = pipe(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        sigmas=np.linspace(1.0, 1 / settings.steps, settings.steps).tolist(),  # older Diffusers would end at 0
        guidance_scale=max(0.0, spec.pipeline_scale(settings.guidance_scale) - spec.guidance_offset),
        max_sequence_length=spec.max_sequence_length,
        **call,
    )
    return Media(list(output.images))


denoiser_shapes = loading.denoiser_shapes
lora_targets = same_name
