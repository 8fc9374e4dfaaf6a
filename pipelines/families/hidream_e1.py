"""HiDream-E1. Follows hidream_e1_model.py and pipeline_hidream_image_editing.py beside the files that I1 follows.

The denoiser sees the noisy picture and the control image side by side, and predicts both; the right half is dropped.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines import images
from pipelines.families import hidream
from pipelines.output import Media
from pipelines.settings import Settings
from pipelines.spec import ModelSpec

if TYPE_CHECKING:
    import torch

IMAGE_GUIDANCE = 2.0
"""The editing pipeline's default; the trainer passes none."""


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


def render(pipe: Any, settings: Settings, *, generator: Any, callback_on_step_end: Any) -> Media:
    guided = settings.guidance_scale > 1
    embeds = _encode(pipe, settings, guided)
    control = _control_latents(pipe, settings)
    # Passes in this order: without the control image, negative prompt, prompt.
    beside = control.new_zeros(control.shape).repeat(3, 1, 1, 1) if guided else control
    if guided:
        beside[1:] = control
    width, height = (n * pipe.vae_scale_factor for n in (control.shape[3], control.shape[2]))
    latents = pipe.prepare_latents(
        1, pipe.transformer.config.in_channels, height, width, control.dtype, control.device, generator
    )

    pipe.scheduler.set_timesteps(settings.steps, device=control.device)
    for step, t in enumerate(pipe.scheduler.timesteps):
        inputs = latents.repeat(len(beside), 1, 1, 1)
        prediction = pipe.transformer(
            hidden_states=_side_by_side(inputs, beside),
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
    """The control image's latents [1, channels, height, width], in the size of the picture."""
    from PIL import Image

    picture = images.rgb(settings.control[0])
    size = (settings.width, settings.height)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    vae = pipe.vae
    pixels = pipe.image_processor.preprocess(picture).to(vae.device, vae.dtype)
    latents: torch.Tensor = vae.encode(pixels).latent_dist.mode()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def _side_by_side(left: "torch.Tensor", right: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.cat([left, right], dim=-1)


def _guide(prediction: "torch.Tensor", scale: float) -> "torch.Tensor":
    """Text guidance, its length clipped to that of the plain prediction at each place, then image guidance."""
    import torch

    without_image, negative, positive = prediction.chunk(3)
    text = negative + scale * (positive - negative)
    lengths = torch.norm(positive, dim=1, keepdim=True), torch.norm(text, dim=1, keepdim=True)
    text = text * (lengths[0] / (lengths[1] + 1e-8)).clamp(min=0.0, max=1.0)
    return without_image + IMAGE_GUIDANCE * (text - without_image)
