"""Wan 2.1 and 2.2."""

from pipelines.spec import ModelSpec, Scheduler

WAN_SCHEDULER = Scheduler(
    "UniPCMultistepScheduler",
    {
        "flow_shift": 3.0,
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "predict_x0": True,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "timestep_spacing": "linspace",
        "use_flow_sigmas": True,
    },
)

ROWS = (
    ModelSpec(
        id="wan21_1b",
        title="Wan 2.1 T2V 1.3B",
        kind="video",
        family="wan",
        pipeline="WanPipeline",
        base="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        components={"text_encoder": "ai-toolkit/umt5_xxl_encoder", "tokenizer": "ai-toolkit/umt5_xxl_encoder"},
        denoisers={"": "transformer"},
        lora_prefixes=("diffusion_model.", "transformer."),
        scheduler=WAN_SCHEDULER,
        size_divisor=16,
        size_rule="refuse",
        width=1024,
        height=1024,
        steps=25,
        guidance_scale=4.0,
        guidance="cfg",
        max_sequence_length=512,
        num_frames=41,
        fps=16,
        frame_step=4,
        quirks=(
            "Trainer versions before 0.11 sample Wan with UniPC; the saved flow_shift of other Wan repositories "
            "(5.0) is not used.",
            "A size that is not a multiple of 16 stops the trainer; here it is refused before anything loads.",
            "The frames are saved as a lossy animated WebP by the trainer; the golden holds them losslessly.",
        ),
        source=("toolkit/models/wan21/wan21.py", "toolkit/models/wan21/wan_lora_convert.py"),
    ),
)
