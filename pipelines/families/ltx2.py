"""LTX-2 and LTX-2.3. Follows extensions_built_in/diffusion_models/ltx2/ltx2.py."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_drift.pipelines import images, loading
from lora_drift.pipelines.family import nothing_to_refuse
from lora_drift.pipelines.lora import Target
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import (
    LAYER_BY_LAYER,
    STEPS,
    TOKENIZERS,
    Earlier,
    Filter,
    ModelSpec,
    Quantizes,
    Scheduler,
)


@dataclass(frozen=True, kw_only=True)
class LTX2(ModelSpec):
    padding_side: Literal["left", "right"]
    """The connectors look at it."""
    prompt_reversed: bool
    """Do the connectors hand the prompt's tokens to the denoiser from last to first?"""
    control_filter: Filter
    """By which the control image is stretched to the size of the video."""
    control_crf: int
    """How strongly the control image is compressed as a frame of H.264 before it is encoded; 0: not at all."""
    frame_rate: float
    """That the model renders for, whatever the fps of the file."""
    stg_scale: float
    modality_scale: float
    guidance_rescale: float
    audio_guidance_scale: float | None
    audio_stg_scale: float | None
    audio_modality_scale: float | None
    audio_guidance_rescale: float | None
    spatio_temporal_guidance_blocks: tuple[int, ...] | None
    use_cross_timestep: bool
    """From stg_scale: arguments of LTX2Pipeline. None: the sound takes the video's value."""


GUIDANCE_OPTIONS = (
    "stg_scale",
    "modality_scale",
    "guidance_rescale",
    "audio_guidance_scale",
    "audio_stg_scale",
    "audio_modality_scale",
    "audio_guidance_rescale",
    "spatio_temporal_guidance_blocks",
    "use_cross_timestep",
)
LTX2_SCHEDULER = Scheduler(
    "diffusers.FlowMatchEulerDiscreteScheduler",
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
    "spatio_temporal_guidance_blocks": (28,),
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
    "steps": 30,
    "fewest_steps": 2,
    "guidance_scale": 4.0,
    "max_sequence_length": 1024,
    "padding_side": "left",
    "prompt_reversed": True,
    "as_intended": {"prompt_reversed": False},
    "controls": (0, 1),
    "control_filter": "lanczos",
    "control_crf": 0,
    "frame_rate": 24.0,
    "num_frames": 121,
    "fps": 24,
    "frame_step": 8,
    "frames_floored": True,
    "source": (
        "extensions_built_in/diffusion_models/ltx2/ltx2.py",
        "extensions_built_in/diffusion_models/ltx2/convert_ltx2_to_diffusers.py",
    ),
}
EARLIER = (
    Earlier(
        before="0.10.24",
        why="The denoiser read the prompt from first to last (Diffusers before #13564, and again since #13931).",
        fields={"prompt_reversed": False},
    ),
    LAYER_BY_LAYER,
    TOKENIZERS,
    STEPS,
)
QUIRKS = (
    "The denoiser reads the prompt from last to first, in training too, since 0.10.24: the Diffusers that the trainer "
    "pins turns round what its text connectors give (#13564). Released versions do not (#13931), and the miniature's "
    "videos are up to 63 of 255 away with them, 5.7 on average. `--as-intended` renders so; no sample looks like that.",
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
    LTX2(
        id="ltx2",
        title="LTX-2",
        base="Lightricks/LTX-2",
        guidance="cfg",
        **LTX2_GUIDANCE,
        earlier=(
            *EARLIER,
            Earlier(
                before="0.7.25",
                why="The schedule was shifted by the number of latent tokens (LTX2Pipeline before Diffusers #12934): a "
                "small video was shifted less.",
                fields={
                    "scheduler": Scheduler(LTX2_SCHEDULER.cls, {**LTX2_SCHEDULER.config, "base_shift": 0.95}),
                },
            ),
        ),
        quirks=(
            *QUIRKS,
            "Up to 0.7.30 the trainer looks for Gemma in folders that google's repository lacks, so its jobs need "
            "`te_name_or_path: Lightricks/LTX-2`, where the text encoder is taken from here too.",
        ),
        **COMMON,
    ),
    LTX2(
        id="ltx2.3",
        title="LTX-2.3",
        since="0.7.25",
        base="diffusers/LTX-2.3-Diffusers",
        components={
            "text_encoder": "google/gemma-3-12b-it-qat-q4_0-unquantized",
            "tokenizer": "google/gemma-3-12b-it-qat-q4_0-unquantized",
        },
        guidance="cfg_always",  # the sound has a scale of its own
        **LTX23_GUIDANCE,
        requires=("diffusers>=0.38",),
        earlier=EARLIER,
        quirks=(
            *QUIRKS,
            "The sound has a guidance scale of its own (7), so the negative prompt counts at any guidance scale.",
            "The base is the same model in Diffusers' layout; the trainer's UI names Lightricks' single file, which it "
            "converts to that layout while loading.",
        ),
        **COMMON,
    ),
)


def load(spec: LTX2, base: str, dtype: Any) -> Any:
    from transformers import Gemma3ForConditionalGeneration

    options: dict[str, Any] = {}
    if "text_encoder" in spec.components and not (Path(base) / "text_encoder").is_dir():
        # From the root of Gemma's own repository (`ltx_te_path`).
        repo = spec.components["text_encoder"]
        options["text_encoder"] = Gemma3ForConditionalGeneration.from_pretrained(repo, dtype=dtype)
        options["tokenizer"] = loading.tokenizer(spec, "tokenizer", "GemmaTokenizerFast", spec.components["tokenizer"])
    pipe = loading.pipeline(spec, base, dtype, **options)
    pipe.text_encoder.model.vision_tower = None
    pipe.tokenizer.padding_side = spec.padding_side
    for connector in (pipe.connectors.video_connector, pipe.connectors.audio_connector):
        if connector.learnable_registers is not None:
            _mix_registers(connector)
            connector.backwards = spec.prompt_reversed
    return pipe


def _mix_registers(connector: Any) -> None:
    """Let learned registers take the place of padding here: releases of Diffusers differ in the order that comes of it.

    The prompt comes with its padding on the left. Its tokens go to the front, and each register stays at its place; or,
    where `connector.backwards` is set, all of it is turned round.
    """
    import torch

    connector.register_parameter("registers", connector.learnable_registers)  # moves and is cast as before
    connector.learnable_registers = None

    def mix(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, mask, *rest = args  # [batch, tokens, width]; 0 at each token, a low number at padding
        real = (mask >= -9000.0).reshape(hidden.shape[:2])
        registers = connector.registers.repeat(hidden.shape[1] // connector.num_learnable_registers, 1).to(hidden.dtype)
        if connector.backwards:
            mixed = torch.where(real[..., None], hidden, registers).flip(1)
        else:
            front = (~real).int().argsort(dim=1, stable=True)[..., None].expand_as(hidden)
            mixed = torch.where(real.flip(1)[..., None], hidden.gather(1, front), registers)
        return mixed, torch.zeros_like(mask), *rest

    connector.register_forward_pre_hook(mix)


check = nothing_to_refuse


def render(pipe: Any, spec: LTX2, settings: Settings, **call: Any) -> Media:
    _shift_by_tokens(pipe.scheduler, settings)
    embeds, mask = _embeddings(pipe, spec, settings.prompt)
    negative_embeds, negative_mask = _embeddings(pipe, spec, settings.negative_prompt)
    runner = pipe
    if settings.control:
        runner, conditioning = _image_to_video(pipe, spec, settings)
        call |= conditioning
    # Diffusers 0.37 has none of these options: it does what LTX-2's values (and not LTX-2.3's) mean.
    known = inspect.signature(runner.__call__).parameters
    options = {name: getattr(spec, name) for name in GUIDANCE_OPTIONS if name in known}
    call = {"frame_rate": spec.frame_rate, **options, **call}
    frames, sound = runner(
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative_embeds,
        negative_prompt_attention_mask=negative_mask,
        width=settings.width,
        height=settings.height,
        num_frames=settings.num_frames,
        num_inference_steps=settings.steps,
        guidance_scale=spec.pipeline_scale(settings.guidance_scale),
        output_type="pil",
        return_dict=False,
        **call,
    )
    if not settings.moving:
        return Media(list(frames[0]))
    return Media(list(frames[0]), sound[0].float().cpu().numpy(), pipe.vocoder.config.output_sampling_rate)


def _shift_by_tokens(scheduler: Any, settings: Settings) -> None:
    """Settle how far the schedule is shifted: linear in the number of latent tokens, between the row's two shifts.

    Diffusers releases differ in whether they count tokens; with both shifts equal they agree.
    """
    config = scheduler.config
    tokens = ((settings.num_frames - 1) // 8 + 1) * (settings.height // 32) * (settings.width // 32)
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    shift = tokens * slope + (config.base_shift - slope * config.base_image_seq_len)
    scheduler.register_to_config(base_shift=shift, max_shift=shift)


def _embeddings(pipe: Any, spec: LTX2, prompt: str) -> tuple[Any, Any]:
    """Embeddings [1, tokens, width * layers] and mask [1, tokens]: every layer's hidden states of the prompt's tokens.

    Diffusers pads the tokens before Gemma sees them, the trainer pads what comes out, with zeros on the left
    (`get_prompt_embeds`, `pad_embeds`). It also casts the mask to the model's dtype.
    """
    import torch
    from torch.nn.functional import pad

    tokens = pipe.tokenizer([prompt.strip()], max_length=spec.max_sequence_length, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask.to(pipe._execution_device)
    output = pipe.text_encoder(
        input_ids=tokens.input_ids.to(mask.device), attention_mask=mask, output_hidden_states=True
    )
    layers = torch.stack(output.hidden_states, dim=-1)
    if hasattr(pipe, "_pack_text_embeds"):  # Diffusers 0.37; later its connectors do this
        embeds = pipe._pack_text_embeds(layers, mask.sum(dim=-1), device=layers.device).to(pipe.transformer.dtype)
    else:
        embeds = layers.flatten(2, 3).to(pipe.transformer.dtype)
    assert spec.max_sequence_length is not None
    missing = spec.max_sequence_length - embeds.shape[1]
    return pad(embeds, (0, 0, missing, 0)), pad(mask.to(embeds.dtype), (missing, 0))


def _image_to_video(pipe: Any, spec: LTX2, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """The image-to-video pipeline over the same components, and its further arguments."""
    from diffusers import LTX2ImageToVideoPipeline

    runner = LTX2ImageToVideoPipeline(**pipe.components)
    runner.set_progress_bar_config(disable=True)
    size = (settings.width, settings.height)
    arguments: dict[str, Any] = {"image": images.resized(images.rgb(settings.control[0]), size, spec.control_filter)}
    if "image_crf" in inspect.signature(runner.__call__).parameters:
        arguments["image_crf"] = spec.control_crf  # by default newer Diffusers compresses the picture
    return runner, arguments


# ----------------------------------------------------------------------------------------------------------------- LoRA

denoiser_shapes = loading.denoiser_shapes

ORIGINAL_NAMES = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "audio_prompt_adaln_single_single": "audio_prompt_adaln",  # as the trainer saves it: it renames the end of it twice
}
"""LTX's names of what lies outside the blocks -> Diffusers' (convert_ltx2_to_diffusers.py), which the trainer's LoRAs
change with `transformer_only: false`. The matrices inside the blocks have one name in both."""


def lora_targets(name: str) -> list[Target]:
    head, dot, rest = name.partition(".")
    return [Target(ORIGINAL_NAMES.get(head, head) + dot + rest)]
