"""HiDream-I1 and HiDream-E1."""

from dataclasses import replace

from lora_drift.pipelines.spec import ModelSpec, Quantizes, Scheduler

LLAMA = "unsloth/Meta-Llama-3.1-8B-Instruct"


def unipc(flow_shift: float) -> Scheduler:
    """`flow_shift` is the second shift; the class has the first."""
    return Scheduler(
        "FlowUniPCBetweenShiftedEnds",
        {
            "final_sigmas_type": "zero",
            "flow_shift": flow_shift,
            "lower_order_final": True,
            "num_train_timesteps": 1000,
            "predict_x0": True,
            "prediction_type": "flow_prediction",
            "solver_order": 2,
            "solver_type": "bh2",
            "use_flow_sigmas": True,
        },
    )


FOLDER = "extensions_built_in/diffusion_models/hidream"
ENCODING = (
    "All four text encoders read the same prompt, 128 tokens at most.",
    "Llama runs with eager attention, because the trainer asks it for attentions that nothing reads. Padding in front "
    "of a prompt then comes out otherwise than with fused attention, and the model reads it.",
    "Weights are rounded to bfloat16 when they load, whatever the job's dtype.",
)

HIDREAM = ModelSpec(
    id="hidream",
    title="HiDream-I1 Full",
    kind="image",
    family="hidream",
    pipeline="HiDreamImagePipeline",
    base="HiDream-ai/HiDream-I1-Full",
    components={"text_encoder_4": LLAMA, "tokenizer_4": LLAMA},
    slow_tokenizers=("tokenizer_3",),
    denoisers={"": "transformer"},
    quantizes=Quantizes(("text_encoder_4", "text_encoder_3"), "qtype_te", reads="neither"),
    lora_prefixes=("diffusion_model.", "transformer."),
    # e^1.15, what the second shift is with the 4096 tokens of the real model; `render` takes it from the model.
    scheduler=unipc(flow_shift=3.158193),
    most_steps=354,
    size_divisor=8,
    width=1024,
    height=1024,
    steps=25,
    guidance_scale=4.0,
    guidance="cfg",
    max_sequence_length=128,
    quirks=(
        "The size only gives the shape: the picture is always scaled to the area of 1024 x 1024 and then floored to 16 "
        "(1024 x 576 becomes 1360 x 768).",
        "Sigmas are shifted twice: by 3, and between the shifted ends again by e^mu. mu belongs to the largest number "
        "of tokens that the model takes, not to the size of the picture.",
        *ENCODING,
    ),
    source=(
        f"{FOLDER}/hidream_model.py",
        f"{FOLDER}/src/pipelines/hidream_image/pipeline_hidream_image.py",
        f"{FOLDER}/src/schedulers/fm_solvers_unipc.py",
    ),
)

HIDREAM_E1 = replace(
    HIDREAM,
    id="hidream_e1",
    title="HiDream-E1.1",
    kind="edit",
    family="hidream_e1",
    pipeline="ours",
    base="HiDream-ai/HiDream-E1-1",
    scheduler=unipc(flow_shift=3.0),
    most_steps=375,
    size_divisor=16,
    controls=(1, 1),
    extra={"image_guidance_scale": 2.0},
    why_ours="Diffusers has the transformer but no editing pipeline. Loading, text encoding and decoding are those of "
    "its HiDreamImagePipeline; only the denoising loop is written out.",
    quirks=(
        "The control image is resized bilinearly to the size floored to 8, then (Lanczos) to that floored to 16, which "
        "is the size of the picture.",
        "Picture and control image lie side by side. Together they may have as many tokens as the transformer's config "
        "says (`max_resolution`): the trainer, unlike other programs, does not raise that limit, and stops beyond it.",
        "Image guidance is 2 whatever the job says: the trainer does not pass a scale on.",
        "The pass without the control image reads the prompt, not the negative prompt, which is read together with the "
        "control image.",
        "The text-guided prediction is never longer than the plain one, place by place (clip_cfg_norm).",
        "Sigmas are shifted twice by 3.",
        *ENCODING,
    ),
    source=(
        f"{FOLDER}/hidream_e1_model.py",
        f"{FOLDER}/hidream_model.py",
        f"{FOLDER}/src/pipelines/hidream_image/pipeline_hidream_image_editing.py",
        f"{FOLDER}/src/schedulers/fm_solvers_unipc.py",
    ),
)

ROWS = (HIDREAM, HIDREAM_E1)
