"""LTX-2 and LTX-2.3: video with sound."""

from collections.abc import Mapping
from typing import Any

from lora_drift.pipelines.spec import Earlier, ModelSpec, Quantizes, Scheduler

LTX2_SCHEDULER = Scheduler(
    "FlowMatchEulerDiscreteScheduler",
    {
        "base_image_seq_len": 1024,
        # The trainer says 0.95, but the Diffusers that it pins takes every video for one of `max_image_seq_len` tokens,
        # which means `max_shift` whatever the size.
        "base_shift": 2.05,
        "max_image_seq_len": 4096,
        "max_shift": 2.05,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": 0.1,
        "time_shift_type": "exponential",
        "use_dynamic_shifting": True,
    },
)

LTX2_GUIDANCE: Mapping[str, Any] = {
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": None,
    "audio_stg_scale": None,
    "audio_modality_scale": None,
    "audio_guidance_rescale": None,
    "spatio_temporal_guidance_blocks": None,
    "use_cross_timestep": False,
}
"""Defaults of the pinned Diffusers, which the trainer leaves alone; newer ones default to LTX-2.3's values. None: the
sound takes the video's value."""

LTX23_GUIDANCE: Mapping[str, Any] = {
    "stg_scale": 1.0,
    "modality_scale": 3.0,
    "guidance_rescale": 0.7,
    "audio_guidance_scale": 7.0,
    "audio_stg_scale": 1.0,
    "audio_modality_scale": 3.0,
    "audio_guidance_rescale": 0.7,
    "spatio_temporal_guidance_blocks": [28],
    "use_cross_timestep": True,
}

COMMON: dict[str, Any] = {
    "kind": "video",
    "family": "ltx2",
    "pipeline": "LTX2Pipeline",
    "denoisers": {"": "transformer"},
    "quantizes": Quantizes(encoder_qtype="qtype_te"),
    "lora_prefixes": ("diffusion_model.", "transformer."),
    "scheduler": LTX2_SCHEDULER,
    "size_divisor": 32,
    "width": 768,
    "height": 768,
    "steps": 25,
    "fewest_steps": 2,
    "guidance_scale": 4.0,
    "guidance": "cfg",
    "max_sequence_length": 1024,
    "controls": (0, 1),
    "num_frames": 121,
    "fps": 24,
    "frame_step": 8,
    "frames_floored": True,
    "source": (
        "extensions_built_in/diffusion_models/ltx2/ltx2.py",
        "extensions_built_in/diffusion_models/ltx2/convert_ltx2_to_diffusers.py",
    ),
}
QUIRKS = (
    "The model renders for 24 frames a second, whatever fps is asked for: fps only sets how fast the file plays, so at "
    "another fps sound and picture run apart.",
    "The schedule is shifted as for 4096 tokens, whatever the size (the pinned Diffusers counts no tokens).",
    "A frame count that is not 8n + 1 is floored to one (16 -> 9); newer Diffusers and other models round otherwise.",
    "The control image is squeezed to the video's size, and not put through H.264 first, as newer Diffusers does.",
    "One step stops the trainer (its schedule is 0 / 0); here it is refused.",
    "A single frame is saved without its sound.",
    "The trainer decodes in tiles when `low_vram` is on, the default of its UI; goldens and pictures here are whole.",
)

ROWS = (
    ModelSpec(
        id="ltx2",
        title="LTX-2",
        base="Lightricks/LTX-2",
        extra=LTX2_GUIDANCE,
        earlier=(
            Earlier(
                before="0.7.29",
                why="The schedule was shifted by the number of latent tokens (LTX2Pipeline before Diffusers #12934): a "
                "small video was shifted less.",
                fields={
                    "scheduler": Scheduler(LTX2_SCHEDULER.cls, {**LTX2_SCHEDULER.config, "base_shift": 0.95}),
                },
            ),
        ),
        quirks=(
            *QUIRKS,
            "By default the trainer looks for Gemma in folders that google's repository lacks, so its jobs need "
            "`te_name_or_path: Lightricks/LTX-2`, where the text encoder is taken from here too.",
        ),
        **COMMON,
    ),
    ModelSpec(
        id="ltx2.3",
        title="LTX-2.3",
        since="0.7.29",
        base="diffusers/LTX-2.3-Diffusers",
        components={
            "text_encoder": "google/gemma-3-12b-it-qat-q4_0-unquantized",
            "tokenizer": "google/gemma-3-12b-it-qat-q4_0-unquantized",
        },
        extra=LTX23_GUIDANCE,
        requires=("diffusers>=0.38",),
        quirks=(
            *QUIRKS,
            "The sound has a guidance scale of its own (7), so the negative prompt counts at any guidance scale.",
            "The base is the same model in Diffusers' layout; the trainer's UI names Lightricks' single file, which it "
            "converts to that layout while loading.",
        ),
        **COMMON,
    ),
)
