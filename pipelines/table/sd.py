"""Stable Diffusion 1.5 and XL."""

from lora_drift.pipelines.spec import LEGACY, ModelSpec, Scheduler


def ddpm(steps_offset: int) -> Scheduler:
    return Scheduler(
        "DDPMScheduler",
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


ROWS = (
    ModelSpec(
        id="sd15",
        title="Stable Diffusion 1.5",
        kind="image",
        family="sd",
        pipeline="StableDiffusionPipeline",
        base="stable-diffusion-v1-5/stable-diffusion-v1-5",
        denoisers={"": "unet"},
        lora_prefixes=("lora_unet_",),
        scheduler=ddpm(steps_offset=1),
        size_divisor=8,
        width=512,
        height=512,
        steps=25,
        most_steps=999,  # with the offset, the first of a thousand would be timestep 1000, which there is not
        guidance_scale=6.0,
        guidance="cfg",
        max_sequence_length=77,
        quirks=(
            "The trainer asks for steps_offset 0, but hands its scheduler to the constructor of "
            "StableDiffusionPipeline, which rewrites it to 1: every timestep is one later.",
            "DDPM draws fresh noise in every step, from the same CPU generator; in the last too, whose timestep is 1.",
        ),
        source=LEGACY,
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
        scheduler=ddpm(steps_offset=0),
        size_divisor=8,
        width=1024,
        height=1024,
        steps=25,
        guidance_scale=6.0,
        guidance="cfg",
        max_sequence_length=77,
        quirks=(
            "An empty negative prompt is encoded like any other; stock Diffusers would zero its embeddings.",
            "A negative prompt given by the flag --n reaches the first text encoder only; the second keeps the one "
            "from the sample's `neg` field. --p2 and --n2 are parsed and then overwritten.",
            "No watermark, whatever is installed.",
        ),
        source=(*LEGACY, "toolkit/config_modules.py"),
    ),
)
