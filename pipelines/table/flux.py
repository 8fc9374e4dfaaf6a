"""FLUX.1 and its relatives."""

from pipelines.spec import LEGACY, ModelSpec, Scheduler

FLUX_SCHEDULER = Scheduler(
    "FlowMatchEulerDiscreteScheduler",
    {
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
    },
)

ROWS = (
    ModelSpec(
        id="flux",
        title="FLUX.1 dev",
        kind="image",
        family="flux",
        pipeline="FluxPipeline",
        base="black-forest-labs/FLUX.1-dev",
        denoisers={"": "transformer"},
        lora_prefixes=("transformer.",),
        scheduler=FLUX_SCHEDULER,
        size_divisor=16,
        width=1024,
        height=1024,
        steps=25,
        guidance_scale=4.0,
        guidance="embedded",
        max_sequence_length=512,
        quirks=("The negative prompt is encoded and then ignored.",),
        source=LEGACY,
    ),
)
