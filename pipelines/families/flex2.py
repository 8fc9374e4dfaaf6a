"""Flex.2. Follows extensions_built_in/flex2/flex2.py and extensions_built_in/flex2/pipeline.py.

The denoiser is FLUX's with more input channels: each token is [latents 64 | inpainting latents 64, mask 4 | control
latents 64]. The stock FluxPipeline does the rest, given the noise, while a hook on the denoiser adds these channels.
"""

from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import images, loading, noise
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    import torch

INPAINT, CONTROL = 0, 1
"""Values of ctrl_idx."""


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    return loading.pipeline(spec, base, dtype)


def check(_spec: ModelSpec, _base: str, settings: Settings) -> None:
    """Refuse a control image that does not fit its slot."""
    for path in settings.control:
        if settings.ctrl_idx != (CONTROL if inpaint_alpha(path) is None else INPAINT):
            raise RequestError(
                f"control image {path}: ctrl_idx {settings.ctrl_idx} does not fit it. Inpainting (0) takes a picture "
                "with an alpha channel and `.inpaint.` in its file name, control (1) any other"
            )


def render(pipe: Any, settings: Settings, generator: Any, **call: Any) -> Media:
    import torch

    device, dtype = pipe._execution_device, pipe.transformer.dtype
    # The control image's latents are drawn first: with one, the noise is another than without.
    given = control_latents(pipe, settings, generator) if settings.control else None
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
        output = pipe(
            prompt=settings.prompt,
            width=settings.width,
            height=settings.height,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            max_sequence_length=512,
            latents=latents,
            generator=generator,
            **call,
        )
    finally:
        hook.remove()
    return Media(list(output.images))


def control_latents(pipe: Any, settings: Settings, generator: Any) -> "torch.Tensor":
    """Packed latents of the control image [1, tokens, 64], with an alpha channel followed by its mask (4 more)."""
    import torch
    from torch.nn import functional

    path = settings.control[0]
    alpha = inpaint_alpha(path)
    vae = pipe.vae
    pixels = pipe.image_processor.preprocess(images.rgb(path), height=settings.height, width=settings.width)
    # Contiguous, as FluxControlPipeline.prepare_image leaves it: torch normalises the other layout less precisely.
    posterior = vae.encode(pixels.to(pipe._execution_device, vae.dtype).contiguous()).latent_dist
    latents = (posterior.sample(generator=generator) - vae.config.shift_factor) * vae.config.scaling_factor
    if alpha is None:
        return pack(latents)
    keep = torch.from_numpy(alpha)[None, None].to(latents.device, latents.dtype)
    keep = functional.interpolate(keep, size=latents.shape[2:], mode="bilinear", align_corners=False)
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


def pack(latents: "torch.Tensor") -> "torch.Tensor":
    """[1, channels, height, width] -> [1, height/2 * width/2, 4 * channels], as FLUX packs its latents."""
    from torch.nn import functional

    return functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)
