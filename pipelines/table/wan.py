"""Wan 2.1 and 2.2."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lora_drift.pipelines.spec import Earlier, ModelSpec, Quantizes, Scheduler

UNIPC_CONFIG: Mapping[str, Any] = {
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "bh2",
    "timestep_spacing": "linspace",
    "use_flow_sigmas": True,
}


def unipc(flow_shift: float, most_steps: int, most_before: int) -> dict[str, Any]:
    """The fields of a row that say how UniPC lays out its steps; `most_before` 0.7.29."""
    config = {**UNIPC_CONFIG, "flow_shift": flow_shift}
    return {
        "scheduler": Scheduler("UniPCMultistepScheduler", config),
        "most_steps": most_steps,
        "earlier": (
            Earlier(
                before="0.7.29",
                why="UniPC's steps went from 0.999 to 0 before the shift, not from 1 to 0.001: so the Diffusers of "
                "those versions laid them out (UniPCMultistepScheduler, Diffusers #12109).",
                fields={"scheduler": Scheduler("FlowUniPCFromBelowOne", config), "most_steps": most_before},
            ),
        ),
    }


UNIPC = (
    "Trainer versions before 0.11 sample Wan with UniPC; the saved flow_shift of other Wan repositories "
    "(5.0) is not used."
)
LOSSY = "The frames are saved as a lossy animated WebP by the trainer; the golden holds them losslessly."
LANCZOS = (
    "The control image is stretched to the video's size (LANCZOS, aspect not kept) before anything else sees it, "
    "the CLIP image encoder of Wan 2.1 included."
)
POSTERIOR = (
    "The control image's latents are a sample of the VAE's posterior, drawn right after the noise; stock Diffusers "
    "takes the posterior's mode. The trainer names no generator for it: on the CPU the draw continues the noise's."
)
FLOORED = "The frame count is rounded down before the pipeline could round it (8 -> 5, where the others make 9)."

WAN21_1B = ModelSpec(
    id="wan21_1b",
    title="Wan 2.1 T2V 1.3B",
    kind="video",
    family="wan",
    pipeline="WanPipeline",
    base="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    components={"text_encoder": "ai-toolkit/umt5_xxl_encoder", "tokenizer": "ai-toolkit/umt5_xxl_encoder"},
    denoisers={"": "transformer"},
    quantizes=Quantizes(by_default=(False, True)),
    lora_prefixes=("diffusion_model.", "transformer."),
    **unipc(flow_shift=3.0, most_steps=333, most_before=500),
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
        UNIPC,
        "A size that is not a multiple of 16 stops the trainer; here it is refused before anything loads.",
        LOSSY,
    ),
    source=("toolkit/models/wan21/wan21.py", "toolkit/models/wan21/wan_lora_convert.py"),
)

WAN21_14B = replace(
    WAN21_1B,
    id="wan21_14b",
    title="Wan 2.1 T2V 14B",
    base="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    quantizes=Quantizes(),
)

WAN21_I2V_14B = replace(
    WAN21_1B,
    id="wan21_i2v_14b",
    title="Wan 2.1 I2V 14B 720P",
    pipeline="WanImageToVideoPipeline",
    base="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
    quantizes=Quantizes(),
    controls=(1, 1),
    size_rule="floor",
    quirks=(
        "The scheduler is that of the text-to-video models (flow_shift 3.0) for 480P and 720P alike.",
        LANCZOS,
        "Newer Transformers releases resize for CLIP by another routine; the one of the trainer's release is used.",
        LOSSY,
    ),
    source=("toolkit/models/wan21/wan21_i2v.py", *WAN21_1B.source),
)

WAN21_I2V_14B480P = replace(
    WAN21_I2V_14B,
    id="wan21_i2v_14b480p",
    title="Wan 2.1 I2V 14B 480P",
    base="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
)

WAN22_14B_T2V = replace(
    WAN21_1B,
    id="wan22_14b_t2v",
    title="Wan 2.2 T2V A14B",
    base="ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16",
    components={**WAN21_1B.components, "vae": "ai-toolkit/wan2.1-vae"},
    denoisers={"high": "transformer", "low": "transformer_2"},
    quantizes=Quantizes(),
    size_rule="floor",
    extra={"pipeline": {"boundary_ratio": 0.875}},
    quirks=(
        UNIPC,
        "A LoRA is saved as two files, *_high_noise and *_low_noise; with `split_multistage_loras: false` as one, "
        "whose keys name the expert; and with one expert trained as that expert's file alone.",
        LOSSY,
    ),
    source=(
        "extensions_built_in/diffusion_models/wan22/wan22_14b_model.py",
        "extensions_built_in/diffusion_models/wan22/wan22_pipeline.py",
        *WAN21_1B.source,
    ),
)

WAN22_14B_I2V = replace(
    WAN22_14B_T2V,
    id="wan22_14b_i2v",
    title="Wan 2.2 I2V A14B",
    pipeline="WanImageToVideoPipeline",
    base="ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16",
    controls=(1, 1),
    frames_floored=True,
    quirks=(
        "The experts change over at 0.875, as for text to video, although the released model says 0.9.",
        LANCZOS,
        POSTERIOR,
        FLOORED,
        *WAN22_14B_T2V.quirks,
    ),
    source=(
        "extensions_built_in/diffusion_models/wan22/wan22_14b_i2v_model.py",
        "toolkit/models/wan21/wan_utils.py",
        *WAN22_14B_T2V.source,
    ),
)

WAN22_5B = replace(
    WAN21_1B,
    id="wan22_5b",
    title="Wan 2.2 TI2V 5B",
    base="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    quantizes=Quantizes(),
    **unipc(flow_shift=5.0, most_steps=200, most_before=250),
    size_divisor=32,
    size_rule="floor",
    width=768,
    height=768,
    controls=(0, 1),
    num_frames=121,
    fps=24,
    frames_floored=True,
    extra={"pipeline": {"expand_timesteps": True}},
    quirks=(
        LANCZOS,
        POSTERIOR,
        "With a control image the first latent frame is put back after every step, from the first step's input.",
        FLOORED,
        LOSSY,
    ),
    source=(
        "extensions_built_in/diffusion_models/wan22/wan22_5b_model.py",
        "extensions_built_in/diffusion_models/wan22/wan22_pipeline.py",
        "toolkit/models/wan21/wan_utils.py",
        *WAN21_1B.source,
    ),
)

ROWS = (
    WAN21_1B,
    WAN21_14B,
    WAN21_I2V_14B480P,
    WAN21_I2V_14B,
    WAN22_14B_T2V,
    WAN22_14B_I2V,
    WAN22_5B,
)
