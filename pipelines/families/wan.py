"""Wan 2.1 and 2.2, from text or from a first frame. Follows toolkit/models/wan21/*.py and, for 2.2, wan22/*.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    Posterior,
    Quantizes,
    Scheduler,
)


@dataclass(frozen=True, kw_only=True)
class Wan(ModelSpec):
    norms_in_float32: bool = True
    """Do the norms of the autoencoder go through float32 in half precision?"""
    boundary_ratio: float | None = None
    """At which part of the timesteps the second expert takes over; None: there is one."""
    expand_timesteps: bool = False
    """Has each latent pixel a timestep of its own? Then a first frame is held at 0."""


@dataclass(frozen=True, kw_only=True)
class WanFirstFrame(Wan):
    control_filter: Filter
    """By which the control image is stretched to the size of the video, before the pipeline, and so CLIP, sees it."""
    control_posterior: Posterior
    """mode: as Diffusers' pipeline prepares it."""
    clip_resize: Literal["torchvision", "pillow", ""] = ""
    """Which of transformers' image processors resizes the control image for CLIP, where a CLIP sees it."""


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


def steps_of(shift: float, unipc_shift: float, most_steps: int, most_before: int) -> dict[str, Any]:
    """The fields of a row that say how steps are laid out: Euler's with `shift`; and how they were, UniPC's with
    `unipc_shift`, at most `most_steps`, and `most_before` 0.7.25."""
    euler = {"num_train_timesteps": 1000, "shift": shift, "use_dynamic_shifting": False}
    unipc = {**UNIPC_CONFIG, "flow_shift": unipc_shift}
    return {
        "scheduler": Scheduler("diffusers.FlowMatchEulerDiscreteScheduler", euler),
        "earlier": (
            LAYER_BY_LAYER,
            Earlier(
                before="0.9.3",
                why=f"Sampled with UniPC, its steps shifted by {unipc_shift}. With too many of them it no longer tells "
                "the first two timesteps apart, and the trainer stopped.",
                fields={"scheduler": Scheduler("ours.UniPCWithSigmasOnCPU", unipc), "most_steps": most_steps},
            ),
            TOKENIZERS,
            loading.NORMS,
            STEPS,
            Earlier(
                before="0.7.25",
                why="UniPC's steps went from 0.999 to 0 before the shift, not from 1 to 0.001: so the Diffusers of "
                "those versions laid them out (UniPCMultistepScheduler, Diffusers #12109).",
                fields={"scheduler": Scheduler("ours.FlowUniPCFromBelowOne", unipc), "most_steps": most_before},
            ),
        ),
    }


SPARED = ("condition_embedder*", "proj_out*")
ALL_QUANTIZED = Earlier(
    before="0.10.22",
    why="Embedders and the last layer were quantised like all others.",
    fields={"quantizes.spared": ()},
)
EULER = (
    "Sampled with FlowMatch Euler, as it is trained, not with the UniPC of the released model: the trainer gave that "
    "up when a Diffusers update broke it."
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


def from_first_frame(row: Wan, posterior: Posterior, **fields: Any) -> WanFirstFrame:
    """The same row but for `fields`, and what a first frame needs."""
    shared = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    return WanFirstFrame(**{**shared, "control_filter": "lanczos", "control_posterior": posterior, **fields})


WAN21_1B = Wan(
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
    **steps_of(shift=3.0, unipc_shift=3.0, most_steps=333, most_before=500),
    size_divisor=16,
    size_rule="refuse",
    width=1024,
    height=1024,
    steps=30,
    guidance_scale=4.0,
    guidance="cfg",
    max_sequence_length=512,
    encoder_attention={"text_encoder": "eager"},
    requires=("ftfy",),  # Diffusers cleans prompts with it
    num_frames=41,
    fps=16,
    frame_step=4,
    quirks=(
        EULER,
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

WAN21_I2V_14B = from_first_frame(
    WAN21_1B,
    "mode",
    id="wan21_i2v_14b",
    title="Wan 2.1 I2V 14B 720P",
    pipeline="WanImageToVideoPipeline",
    base="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
    quantizes=Quantizes(),
    controls=(1, 1),
    size_rule="floor",
    clip_resize="torchvision",
    earlier=(
        *WAN21_1B.earlier,
        Earlier(
            before="0.9.1",
            why="Pillow resized the control image for CLIP (CLIPImageProcessor of transformers 4.57), not torchvision.",
            fields={"clip_resize": "pillow"},
        ),
    ),
    quirks=(
        "The steps are those of the text-to-video models (shift 3.0) for 480P and 720P alike.",
        EULER,
        LANCZOS,
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

WAN22_STEPS = steps_of(shift=5.0, unipc_shift=3.0, most_steps=333, most_before=500)
WAN22_STEPS["earlier"] += (ALL_QUANTIZED,)
WAN22_14B_T2V = replace(
    WAN21_1B,
    id="wan22_14b_t2v",
    title="Wan 2.2 T2V A14B",
    base="ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16",
    components={**WAN21_1B.components, "vae": "ai-toolkit/wan2.1-vae"},
    denoisers={"high": "transformer", "low": "transformer_2"},
    quantizes=Quantizes(spared=SPARED),
    **WAN22_STEPS,
    size_rule="floor",
    boundary_ratio=0.875,
    quirks=(
        EULER,
        "The steps are shifted by 5.0, the value of the 5B model, whose settings the trainer imports.",
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

WAN22_14B_I2V = from_first_frame(
    WAN22_14B_T2V,
    "sample",
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

WAN22_5B_STEPS = steps_of(shift=5.0, unipc_shift=5.0, most_steps=200, most_before=250)
WAN22_5B_STEPS["earlier"] += (ALL_QUANTIZED,)
WAN22_5B = from_first_frame(
    WAN21_1B,
    "sample",
    id="wan22_5b",
    title="Wan 2.2 TI2V 5B",
    base="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    quantizes=Quantizes(spared=SPARED),
    **WAN22_5B_STEPS,
    size_divisor=32,
    size_rule="floor",
    width=768,
    height=768,
    controls=(0, 1),
    num_frames=121,
    fps=24,
    frames_floored=True,
    expand_timesteps=True,
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

ROWS: tuple[Wan, ...] = (
    WAN21_1B,
    WAN21_14B,
    WAN21_I2V_14B480P,
    WAN21_I2V_14B,
    WAN22_14B_T2V,
    WAN22_14B_I2V,
    WAN22_5B,
)


def load(spec: Wan, base: str, dtype: Any) -> Any:
    import diffusers
    import transformers

    options: dict[str, Any] = {"expand_timesteps": spec.expand_timesteps}
    if spec.boundary_ratio is not None:
        options["boundary_ratio"] = spec.boundary_ratio
    if "vae" in spec.components and not (Path(base) / "vae").is_dir():
        # This repository is the autoencoder and nothing else: no subfolder.
        options["vae"] = diffusers.AutoencoderKLWan.from_pretrained(spec.components["vae"])
    if isinstance(spec, WanFirstFrame) and spec.clip_resize:
        # Transformers 5 gave the old name, CLIPImageProcessor, to another resize.
        names = {"pillow": ("CLIPImageProcessorPil", "CLIPImageProcessor"),
                 "torchvision": ("CLIPImageProcessorFast", "CLIPImageProcessor")}[spec.clip_resize]  # fmt: skip
        processor = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
        options["image_processor"] = processor.from_pretrained(base, subfolder="image_processor")
    pipe = loading.pipeline(spec, base, dtype, **options)
    loading.normalize(pipe.vae, in_float32=spec.norms_in_float32)
    return pipe


check = nothing_to_refuse


def render(pipe: Any, spec: Wan, settings: Settings, **call: Any) -> Media:
    call |= {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "width": settings.width,
        "height": settings.height,
        "num_frames": settings.num_frames,
        "num_inference_steps": settings.steps,
        "guidance_scale": spec.pipeline_scale(settings.guidance_scale),
        "max_sequence_length": spec.max_sequence_length,
        "output_type": "pil",
    }
    if settings.control:
        assert isinstance(spec, WanFirstFrame)
        pipe, call = _with_first_frame(pipe, spec, settings, call)
    return Media(list(pipe(**call).frames[0]))


def _with_first_frame(
    pipe: Any, spec: WanFirstFrame, settings: Settings, call: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """(pipeline, arguments) that make the video begin with the control image."""
    size = (settings.width, settings.height)
    call = {**call, "image": images.resized(images.rgb(settings.control[0]), size, spec.control_filter)}
    if spec.expand_timesteps:
        return _held_first_frame(pipe, spec, call)
    if spec.control_posterior == "sample":
        return _sampled_condition(pipe, spec, call)
    return pipe, call


def _sampled_condition(pipe: Any, spec: WanFirstFrame, call: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Wan 2.2 14B: noise beside a mask and the encoded first frame, 16 + 4 + 16 channels.

    Follows `add_first_frame_conditioning` in toolkit/models/wan21/wan_utils.py.
    """
    import torch

    latents = _noise(pipe, call, channels=pipe.vae.config.z_dim)
    frame = _pixels(pipe, call).unsqueeze(2)
    black = frame.new_zeros(()).expand(1, 3, call["num_frames"] - 1, *frame.shape[3:])
    condition = _encode(pipe, spec, torch.cat([frame, black], dim=2), call["generator"])
    # Four mask channels, one for each of the frames that a latent frame holds; of the first only one is a frame.
    mask = torch.zeros(1, 4, *latents.shape[2:], dtype=latents.dtype, device=latents.device)
    mask[:, :, 0] = 1
    prepared = latents.float(), torch.cat([mask, condition], dim=1)
    # The pipeline has no argument for the condition: it would make its own, from the posterior's mode.
    pipe.prepare_latents = lambda *_args, **_options: prepared
    return pipe, call


def _held_first_frame(pipe: Any, spec: WanFirstFrame, call: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Wan 2.2 5B: the first latent frame is the encoded picture, at timestep 0 throughout.

    Follows `add_first_frame_conditioning_v22` in toolkit/models/wan21/wan_utils.py and the mask in wan22_pipeline.py.
    """
    import torch
    from diffusers import WanImageToVideoPipeline

    latents = _noise(pipe, call, channels=pipe.transformer.config.in_channels)
    condition = _encode(pipe, spec, _pixels(pipe, call).unsqueeze(2), call["generator"])
    latents[:, :, :1] = condition
    mask = torch.ones_like(latents[:, :1])
    mask[:, :, 0] = 0
    after_step = call["callback_on_step_end"]

    def hold(*args: Any) -> dict[str, Any]:
        result: dict[str, Any] = after_step(*args)
        result["latents"][:, :, :1] = condition
        return result

    parts = {name: part for name, part in pipe.components.items() if name != "transformer_2"}
    video: Any = WanImageToVideoPipeline(**parts, expand_timesteps=True)
    video.set_progress_bar_config(disable=True)
    video.prepare_latents = lambda *_args, **_options: (latents.float(), condition, mask)
    return video, {**call, "callback_on_step_end": hold}


def _noise(pipe: Any, call: dict[str, Any], channels: int) -> Any:
    """Initial noise [1, channels, latent frames, height, width]: drawn in float32, rounded to the model's dtype."""
    import torch

    from lora_drift.pipelines import noise

    frames = (call["num_frames"] - 1) // pipe.vae_scale_factor_temporal + 1
    height, width = (call[side] // pipe.vae_scale_factor_spatial for side in ("height", "width"))
    shape = (1, channels, frames, height, width)
    return noise.draw(shape, call["generator"], torch.float32, pipe._execution_device).to(pipe.transformer.dtype)


def _pixels(pipe: Any, call: dict[str, Any]) -> Any:
    """The control image [1, 3, height, width], -1 to 1, rounded to the model's dtype before it is scaled."""
    from torchvision.transforms.functional import to_tensor

    picture = to_tensor(call["image"]).unsqueeze(0)
    return picture.to(pipe._execution_device, pipe.transformer.dtype) * 2.0 - 1.0


def _encode(pipe: Any, spec: WanFirstFrame, video: Any, generator: Any) -> Any:
    """Normalised latents of `video` [1, 3, frames, height, width], in its dtype."""
    import torch

    from lora_drift.pipelines import noise

    latents = noise.posterior(pipe.vae.encode(video).latent_dist, spec.control_posterior, generator)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    return (latents - mean.to(latents)) * (1.0 / std.to(latents))


# ----------------------------------------------------------------------------------------------------------------- LoRA

denoiser_shapes = loading.denoiser_shapes


def lora_targets(name: str) -> list[Target]:
    """Original Wan module names -> Diffusers' (toolkit/models/wan21/wan_lora_convert.py, the other way round).

    Of a LoKr in the old format, whose names have underscores, the trainer renames the attention's alone.
    A file that holds both experts of Wan 2.2 says in each key which it is for (wan22_14b_model.py, save_lora).
    """
    expert, rest = name[: len("transformer_1")], name[len("transformer_1.") :]
    component = {"transformer_1": "transformer", "transformer_2": "transformer_2"}.get(expert)
    name = (rest if component else name).replace("self_attn", "attn1").replace("cross_attn", "attn2")
    name = re.sub(r"(attn[12])([._])([qkv])$", r"\1\2to_\3", name)
    name = re.sub(r"(attn[12])\.o$", r"\1.to_out.0", name)
    name = re.sub(r"(attn2)([._])([kv])_img$", r"\1\2add_\3_proj", name)
    name = re.sub(r"ffn\.0$", "ffn.net.0.proj", re.sub(r"ffn\.2$", "ffn.net.2", name))
    return [Target(name, component=component)]
