"""Z-Image."""

from pipelines.spec import ModelSpec, Scheduler

ZIMAGE_SCHEDULER = Scheduler(
    "FlowMatchEulerToZero", {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}
)

ROWS = (
    ModelSpec(
        id="zimage_turbo",
        title="Z-Image Turbo",
        kind="image",
        family="zimage",
        pipeline="ZImagePipeline",
        base="Tongyi-MAI/Z-Image-Turbo",
        denoisers={"": "transformer"},
        lora_prefixes=("diffusion_model.", "transformer."),
        scheduler=ZIMAGE_SCHEDULER,
        size_divisor=32,
        width=1024,
        height=1024,
        steps=8,
        guidance_scale=1.0,
        guidance="cfg_above_zero",
        max_sequence_length=512,
        quirks=(
            "Guidance g means pos + g (pos - neg), and runs for every g > 0: the default of 1 is a conventional 2.",
            "Sigmas run from 1 to 0 before the shift, so that the last step changes nothing: n steps are n - 1. "
            "Newer Diffusers releases lay out n real steps (see pipelines/schedulers.py).",
            "The size is floored to 32, although the model could do 16.",
            "The training adapter of the UI's default job is merged for training and subtracted again for sampling; "
            "what remains is one rounding of the weights (nothing in float32).",
        ),
        source=("extensions_built_in/diffusion_models/z_image/z_image.py",),
    ),
)
