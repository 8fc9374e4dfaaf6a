"""Stable Diffusion 1.5 and XL. Follows toolkit/stable_diffusion_model.py and toolkit/train_tools.py."""

from __future__ import annotations

from typing import Any

from lora_drift.pipelines import loading, lora_formats
from lora_drift.pipelines.family import nothing_to_refuse, same_name
from lora_drift.pipelines.lora import Shapes
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import LEGACY, STEPS, TOKENIZERS, ModelSpec, Scheduler, clip_with_mask


def ddpm(steps_offset: int) -> Scheduler:
    return Scheduler(
        "diffusers.DDPMScheduler",
        {
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "steps_offset": steps_offset,
            "timestep_spacing": "leading",
        },
    )


ROWS: tuple[ModelSpec, ...] = (
    ModelSpec(
        id="sd15",
        title="Stable Diffusion 1.5",
        kind="image",
        family="sd",
        pipeline="StableDiffusionPipeline",
        base="stable-diffusion-v1-5/stable-diffusion-v1-5",
        denoisers={"": "unet"},
        lora_prefixes=("lora_unet_",),
        encoder_prefixes={"lora_te_": "text_encoder"},
        scheduler=ddpm(steps_offset=1),
        size_divisor=8,
        width=512,
        height=512,
        steps=30,
        most_steps=999,  # with the offset, the first of a thousand would be timestep 1000, which there is not
        guidance_scale=6.0,
        guidance="cfg",
        max_sequence_length=77,
        requires=("ftfy",),
        encoder_attention={"text_encoder": "sdpa"},
        quirks=(
            "The trainer asks for steps_offset 0, but hands its scheduler to the constructor of "
            "StableDiffusionPipeline, which rewrites it to 1: every timestep is one later.",
            "DDPM draws fresh noise in every step, from the same CPU generator; in the last too, whose timestep is 1.",
        ),
        source=LEGACY,
        earlier=(TOKENIZERS, clip_with_mask("text_encoder"), STEPS),
    ),
    ModelSpec(
        id="sdxl",
        title="Stable Diffusion XL",
        kind="image",
        family="sd",
        pipeline="StableDiffusionXLPipeline",
        base="stabilityai/stable-diffusion-xl-base-1.0",
        denoisers={"": "unet"},
        lora_prefixes=("lora_unet_",),
        encoder_prefixes={"lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"},
        scheduler=ddpm(steps_offset=0),
        size_divisor=8,
        width=1024,
        height=1024,
        steps=30,
        guidance_scale=6.0,
        guidance="cfg",
        max_sequence_length=77,
        requires=("ftfy",),
        encoder_attention={"text_encoder": "sdpa", "text_encoder_2": "sdpa"},
        quirks=(
            "An empty negative prompt is encoded like any other; stock Diffusers would zero its embeddings.",
            "A negative prompt given by the flag --n reaches the first text encoder only; the second keeps the one "
            "from the sample's `neg` field. --p2 and --n2 are parsed and then overwritten.",
            "No watermark, whatever is installed.",
        ),
        source=(*LEGACY, "toolkit/config_modules.py"),
        earlier=(TOKENIZERS, clip_with_mask("text_encoder", "text_encoder_2"), STEPS),
    ),
)


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    if spec.pipeline == "StableDiffusionPipeline":
        # The trainer samples without the safety checker, which would blacken pictures.
        parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = loading.pipeline(spec, base, dtype, **parts)
    else:
        pipe = loading.pipeline(spec, base, dtype, add_watermarker=False)
        pipe.tokenizer_2.model_max_length = spec.max_sequence_length
    pipe.tokenizer.model_max_length = spec.max_sequence_length  # where Diffusers looks
    return pipe


check = nothing_to_refuse


def render(pipe: Any, spec: ModelSpec, settings: Settings, **call: Any) -> Media:
    if spec.pipeline == "StableDiffusionXLPipeline":
        # As lists: an empty string for the second encoder would be replaced by the first encoder's prompt
        # (`negative_prompt_2 or negative_prompt`), and a missing negative prompt would be zeroed instead of encoded.
        call |= {
            "prompt_2": [settings.prompt],
            "negative_prompt_2": [settings.negative_prompt_2],
            "guidance_rescale": settings.guidance_rescale,
        }
    output = pipe(
        prompt=[settings.prompt],
        negative_prompt=[settings.negative_prompt],
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=spec.pipeline_scale(settings.guidance_scale),
        **call,
    )
    return Media(list(output.images))


def denoiser_shapes(spec: ModelSpec, base: str) -> Shapes:
    """With the text encoders', which LoRAs change, too. Of a single file: those of the usual base, if it fits them."""
    file = loading.single_file(base)
    home = spec.base if file else base
    shapes = {**loading.denoiser_shapes(spec, home), **loading.encoder_shapes(spec, home)}
    if file:
        names = lora_formats.ldm_names(shapes["unet"])
        original = {f"model.diffusion_model.{name}.weight": shapes["unet"][module] for name, (module,) in names}
        loading.check_single_file(spec, file, original)
    return shapes


lora_targets = same_name
