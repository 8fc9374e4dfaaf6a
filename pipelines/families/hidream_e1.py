"""HiDream-E1. Follows hidream_e1_model.py and pipeline_hidream_image_editing.py beside the files that I1 follows.

The denoiser sees the noisy picture and the control image side by side, and predicts both; the right half is dropped.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_drift.pipelines import images
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.families import hidream
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec
from lora_drift.pipelines.table.hidream import HIDREAM_E1

if TYPE_CHECKING:
    import torch

IMAGE_GUIDANCE: float = HIDREAM_E1.extra["image_guidance_scale"]


class Embeds(NamedTuple):
    """What the denoiser reads of a batch of prompts."""

    t5: "torch.Tensor"
    """[batch, 128, width]"""
    llama: "torch.Tensor"
    """[layers, batch, 128, width]"""
    pooled: "torch.Tensor"
    """[batch, width of both CLIPs]"""


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    return hidream.load(replace(spec, pipeline="HiDreamImagePipeline"), base, dtype)


def check(spec: ModelSpec, base: str, settings: Settings) -> None:
    """Refuse a size at which the trainer stops too: more tokens than the padding has room for.

    The transformer pads whatever is not square to as many tokens as its config says; what is square it takes at any
    size.
    """
    from diffusers import HiDreamImageTransformer2DModel

    config = HiDreamImageTransformer2DModel.load_config(base, subfolder="transformer")
    most = math.prod(config["max_resolution"]) // config["patch_size"] ** 2
    width, height = 2 * settings.width // 16, settings.height // 16
    if width != height and width * height > most:
        raise RequestError(
            f"size {settings.width}x{settings.height}: picture and control image make {width * height} tokens and this "
            f"model takes {most}, in the trainer too; choose at most {most // 2 * 256} pixels"
        )


def render(pipe: Any, settings: Settings, *, generator: Any, callback_on_step_end: Any) -> Media:
    import torch

    guided = settings.guidance_scale > 1
    embeds = _encode(pipe, settings, guided)
    control = _control_latents(pipe, settings)
    # Passes in this order: without the control image, negative prompt, prompt.
    beside = torch.cat([torch.zeros_like(control), control, control]) if guided else control
    channels = pipe.transformer.config.in_channels
    latents = pipe.prepare_latents(
        1, channels, settings.height, settings.width, control.dtype, control.device, generator
    )

    pipe.scheduler.set_timesteps(settings.steps, device=control.device)
    for step, t in enumerate(pipe.scheduler.timesteps):
        inputs = latents.repeat(len(beside), 1, 1, 1)
        prediction = pipe.transformer(
            hidden_states=torch.cat([inputs, beside], dim=-1),
            timesteps=t.expand(len(beside)),
            encoder_hidden_states_t5=embeds.t5,
            encoder_hidden_states_llama3=embeds.llama,
            pooled_embeds=embeds.pooled,
            return_dict=False,
        )[0]
        prediction = -prediction[..., : latents.shape[-1]]
        if guided:
            prediction = _guide(prediction, settings.guidance_scale)
        latents = pipe.scheduler.step(prediction, t, latents, return_dict=False)[0]
        callback_on_step_end(pipe, step, t, {})

    scaled = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    decoded = pipe.vae.decode(scaled, return_dict=False)[0]
    return Media(list(pipe.image_processor.postprocess(decoded, output_type="pil")))


def _encode(pipe: Any, settings: Settings, guided: bool) -> Embeds:
    """Both prompts in the order of the passes: prompt, negative prompt, prompt."""
    import torch

    t5, no_t5, llama, no_llama, pooled, no_pooled = pipe.encode_prompt(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        do_classifier_free_guidance=guided,
        max_sequence_length=128,
    )
    if not guided:
        return Embeds(t5, llama, pooled)
    return Embeds(
        torch.cat([t5, no_t5, t5]), torch.cat([llama, no_llama, llama], dim=1), torch.cat([pooled, no_pooled, pooled])
    )


def _control_latents(pipe: Any, settings: Settings) -> "torch.Tensor":
    """The control image's latents [1, channels, height / 8, width / 8].

    It is resized twice: here to the size floored to 8, then by the image processor (Lanczos) to that floored to 16.
    """
    from PIL import Image

    picture = images.rgb(settings.control[0])
    asked = (settings.asked_width, settings.asked_height)
    if picture.size != asked:
        picture = picture.resize(asked, Image.Resampling.BILINEAR)
    vae = pipe.vae
    pixels = pipe.image_processor.preprocess(picture).to(pipe._execution_device, vae.dtype)
    latents: torch.Tensor = vae.encode(pixels).latent_dist.mode()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def _guide(prediction: "torch.Tensor", scale: float) -> "torch.Tensor":
    """Text guidance, its length clipped to that of the plain prediction at each place, then image guidance."""
    import torch

    without_image, negative, positive = prediction.chunk(3)
    text = negative + scale * (positive - negative)
    lengths = torch.norm(positive, dim=1, keepdim=True), torch.norm(text, dim=1, keepdim=True)
    text = text * (lengths[0] / (lengths[1] + 1e-8)).clamp(min=0.0, max=1.0)
    return without_image + IMAGE_GUIDANCE * (text - without_image)
