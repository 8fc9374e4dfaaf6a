"""FLUX.1 and its relatives: dev, Flex.1, Kontext and Flex.2.

Follows toolkit/stable_diffusion_model.py (is_flux), `encode_prompts_flux` in toolkit/train_tools.py, and for Kontext
and Flex.2 extensions_built_in/diffusion_models/flux_kontext and extensions_built_in/flex2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import images, loading
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.family import same_name
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import (
    LAYER_BY_LAYER,
    LEGACY,
    STEPS,
    TOKENIZERS,
    Attention,
    Filter,
    ModelSpec,
    Posterior,
    Quantizes,
    Scheduler,
    clip_with_mask,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Kontext(ModelSpec):
    """Reads one control image beside the picture."""

    control_filter: Filter
    """By which the control image is brought to the size that was asked for, before the pipeline sees it."""
    preferred_sizes: bool
    """Does the pipeline bring it to one of the resolutions that Kontext was trained on?"""


@dataclass(frozen=True, kw_only=True)
class Flex2(ModelSpec):
    """Has further input channels: each token is [latents 64 | inpainting latents 64, mask 4 | control latents 64]."""

    control_filter: Filter
    """By which the control image is brought to the size of the picture."""
    mask_filter: Filter
    """By which its alpha channel is brought to the size of the latents."""
    control_posterior: Posterior


SCHEDULER = Scheduler(
    "diffusers.FlowMatchEulerDiscreteScheduler",
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
ATTENTION: dict[str, Attention] = {"text_encoder": "sdpa", "text_encoder_2": "eager"}
COMMON: dict[str, Any] = {
    "family": "flux",
    "denoisers": {"": "transformer"},
    "quantizes": Quantizes(("text_encoder_2",), reads="exclude"),
    "lora_prefixes": ("transformer.",),
    "scheduler": SCHEDULER,
    "size_divisor": 16,
    "width": 1024,
    "height": 1024,
    "steps": 30,
    "guidance_scale": 4.0,
    "guidance": "embedded",
    "max_sequence_length": 512,
    "encoder_attention": ATTENTION,
    "requires": ("ftfy",),
    "earlier": (LAYER_BY_LAYER, TOKENIZERS, clip_with_mask("text_encoder"), STEPS),
}
NO_NEGATIVE = "The negative prompt is encoded and then ignored."

ROWS: tuple[ModelSpec, ...] = (
    ModelSpec(
        id="flux",
        title="FLUX.1 dev",
        kind="image",
        pipeline="FluxPipeline",
        base="black-forest-labs/FLUX.1-dev",
        quirks=(NO_NEGATIVE,),
        source=LEGACY,
        **COMMON,
    ),
    ModelSpec(
        id="flex1",
        title="Flex.1 alpha",
        kind="image",
        pipeline="FluxPipeline",
        base="ostris/Flex.1-alpha",
        quirks=(NO_NEGATIVE, "Training bypasses the guidance embedder; sampling does not."),
        source=LEGACY,
        **COMMON,
    ),
    Kontext(
        id="flux_kontext",
        title="FLUX.1 Kontext dev",
        kind="edit",
        pipeline="FluxKontextPipeline",
        base="black-forest-labs/FLUX.1-Kontext-dev",
        controls=(1, 1),
        control_filter="bilinear",
        preferred_sizes=False,
        quirks=(
            "The control image is resized (bilinear) to the size that was asked, floored to 8; the picture's size is "
            "then floored to 16, and the pipeline resizes the control image again.",
            "The control image keeps neither its aspect ratio nor one of the resolutions that Kontext was trained on.",
            NO_NEGATIVE,
        ),
        source=("extensions_built_in/diffusion_models/flux_kontext/flux_kontext.py",),
        **COMMON,
    ),
    Flex2(
        id="flex2",
        title="Flex.2 preview",
        kind="edit",
        pipeline="FluxPipeline",
        base="ostris/Flex.2-preview",
        controls=(0, 1),
        control_filter="lanczos",
        mask_filter="bilinear",
        control_posterior="sample",
        quirks=(
            "With a control image its latents are sampled before the noise, from the same generator: the noise differs "
            "from that of the same seed without one.",
            "Only a file with `.inpaint.` in its name keeps its alpha channel, which must then be there.",
            "ctrl_idx 0 (the default) is the inpainting slot, which fits an image with alpha only; any other "
            "needs ctrl_idx 1.",
            NO_NEGATIVE,
        ),
        source=("extensions_built_in/flex2/flex2.py", "extensions_built_in/flex2/pipeline.py"),
        **COMMON,
    ),
)

load = loading.pipeline


def check(spec: ModelSpec, _base: str, settings: Settings) -> None:
    """Refuse a control image that does not fit its slot of Flex.2."""
    for path in settings.control if isinstance(spec, Flex2) else ():
        if settings.ctrl_idx != (CONTROL if inpaint_alpha(path) is None else INPAINT):
            raise RequestError(
                f"control image {path}: ctrl_idx {settings.ctrl_idx} does not fit it. Inpainting (0) takes a picture "
                "with an alpha channel and `.inpaint.` in its file name, control (1) any other"
            )


def render(pipe: Any, spec: ModelSpec, settings: Settings, **call: Any) -> Media:
    call |= {
        "prompt": settings.prompt,
        "width": settings.width,
        "height": settings.height,
        "num_inference_steps": settings.steps,
        "guidance_scale": spec.pipeline_scale(settings.guidance_scale),
        "max_sequence_length": spec.max_sequence_length,
    }
    if isinstance(spec, Flex2):
        return _with_control_channels(pipe, spec, settings, call)
    if isinstance(spec, Kontext):
        asked = (settings.asked_width, settings.asked_height)
        call |= {
            "image": images.resized(images.rgb(settings.control[0]), asked, spec.control_filter),
            "max_area": settings.width * settings.height,
            "_auto_resize": spec.preferred_sizes,
        }
    return Media(list(pipe(**call).images))


# ------------------------------------------------------------------------------------------------------------- Flex.2

INPAINT, CONTROL = 0, 1
"""Values of ctrl_idx."""


def _with_control_channels(pipe: Any, spec: Flex2, settings: Settings, call: dict[str, Any]) -> Media:
    """The stock FluxPipeline, given the noise, while a hook on the denoiser adds the further channels."""
    import torch

    from lora_drift.pipelines import noise

    generator, device, dtype = call["generator"], pipe._execution_device, pipe.transformer.dtype
    # The control image's latents are drawn first: with one, the noise is another than without.
    given = control_latents(pipe, spec, settings, generator) if settings.control else None
    shape = (1, pipe.vae.config.latent_channels, settings.height // 8, settings.width // 8)
    latents = pack(noise.draw(shape, generator, dtype, device))
    slots = {
        INPAINT: torch.cat([torch.zeros_like(latents), torch.ones_like(latents[:, :, :4])], dim=2),
        CONTROL: torch.zeros_like(latents),
    }
    if given is not None:
        slots[settings.ctrl_idx] = given

    def add_channels(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        whole = torch.cat([kwargs["hidden_states"], slots[INPAINT], slots[CONTROL]], dim=2)
        return args, {**kwargs, "hidden_states": whole}

    hook = pipe.transformer.register_forward_pre_hook(add_channels, prepend=True, with_kwargs=True)
    try:
        return Media(list(pipe(latents=latents, **call).images))
    finally:
        hook.remove()


def control_latents(pipe: Any, spec: Flex2, settings: Settings, generator: Any) -> torch.Tensor:
    """Packed latents of the control image [1, tokens, 64], with an alpha channel followed by its mask (4 more)."""
    import torch
    from torch.nn import functional

    path = settings.control[0]
    alpha = inpaint_alpha(path)
    vae = pipe.vae
    picture = images.resized(images.rgb(path), (settings.width, settings.height), spec.control_filter)
    pixels = pipe.image_processor.preprocess(picture)
    # Contiguous, as FluxControlPipeline.prepare_image leaves it: torch normalises the other layout less precisely.
    posterior = vae.encode(pixels.to(pipe._execution_device, vae.dtype).contiguous()).latent_dist
    latents = posterior.mode() if spec.control_posterior == "mode" else posterior.sample(generator=generator)
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    if alpha is None:
        return pack(latents)
    keep = torch.from_numpy(alpha)[None, None].to(latents.device, latents.dtype)
    keep = functional.interpolate(keep, size=latents.shape[2:], mode=spec.mask_filter, align_corners=False)
    return pack(torch.cat([latents * keep, 1 - keep], dim=1))


def inpaint_alpha(path: str) -> Any:
    """Alpha channel of an inpainting image, float64 [height, width] from 0 (paint here) to 1 (keep); else None."""
    import numpy as np
    from PIL import Image

    if ".inpaint." not in path:
        return None
    with Image.open(path) as image:
        if image.mode != "RGBA":
            raise RequestError(f"control image {path}: inpainting needs an alpha channel, and it is {image.mode}")
        return np.asarray(image)[:, :, 3] / 255.0


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[1, channels, height, width] -> [1, height/2 * width/2, 4 * channels], as FLUX packs its latents."""
    from torch.nn import functional

    return functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


# --------------------------------------------------------------------------------------------------------------- LoRA

denoiser_shapes = loading.denoiser_shapes
lora_targets = same_name
