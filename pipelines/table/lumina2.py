"""Lumina Image 2.0."""

from lora_drift.pipelines.spec import LEGACY, ModelSpec, Quantizes, Scheduler

ROWS = (
    ModelSpec(
        id="lumina2",
        title="Lumina Image 2.0",
        kind="image",
        family="lumina2",
        pipeline="Lumina2Pipeline",
        base="Alpha-VLLM/Lumina-Image-2.0",
        denoisers={"": "transformer"},
        quantizes=Quantizes(reads="exclude", by_default=(False, True)),
        lora_prefixes=("transformer.",),
        scheduler=Scheduler(
            "FlowMatchEulerDiscreteScheduler",
            {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
        ),
        size_divisor=16,
        size_rule="refuse",
        width=1024,
        height=1024,
        steps=25,
        guidance_scale=4.0,
        guidance="cfg",
        max_sequence_length=256,
        quirks=(
            "The trainer asks for shift 6.0, but its scheduler class loses every argument on the way: the steps are "
            "not shifted at all.",
            "The system prompt is put before the negative prompt too, also before an empty one.",
            "Gemma 2 runs without the soft cap on its attention logits: transformers 4.57, which the trainer pins, "
            "gives it SDPA attention, which has none.",
            "A size that is not a multiple of 16 stops the trainer; here it is refused before anything loads.",
        ),
        source=LEGACY,
    ),
)
