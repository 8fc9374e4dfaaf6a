"""Wan 2.1 and 2.2, from text or from a first frame. Follows toolkit/models/wan21/*.py and, for 2.2, wan22/*.py."""

import re
from pathlib import Path
from typing import Any

from lora_drift.pipelines import images, loading, noise
from lora_drift.pipelines.lora import Target
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    import diffusers
    import transformers

    options = dict(spec.extra.get("pipeline", {}))
    if "vae" in spec.components and not (Path(base) / "vae").is_dir():
        # This repository is the autoencoder and nothing else: no subfolder.
        options["vae"] = diffusers.AutoencoderKLWan.from_pretrained(spec.components["vae"])
    if spec.pipeline == "WanImageToVideoPipeline" and "boundary_ratio" not in options:
        # Transformers 5 gave the old name to another resize; the old one, by Pillow, is the trainer's.
        processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
        options["image_processor"] = processor.from_pretrained(base, subfolder="image_processor")
    return loading.pipeline(spec, base, dtype, **options)


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    call |= {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "width": settings.width,
        "height": settings.height,
        "num_frames": settings.num_frames,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "max_sequence_length": 512,
        "output_type": "pil",
    }
    if settings.control:
        pipe, call = _from_first_frame(pipe, settings, call)
    return Media(list(pipe(**call).frames[0]))


def _from_first_frame(pipe: Any, settings: Settings, call: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(pipeline, arguments) that make the video begin with the control image."""
    from PIL import Image

    # The trainer stretches the picture to the video before the pipeline, and so CLIP, sees it.
    size = (settings.width, settings.height)
    call = {**call, "image": images.rgb(settings.control[0]).resize(size, Image.Resampling.LANCZOS)}
    if pipe.config.expand_timesteps:
        return _held_first_frame(pipe, call)
    if pipe.config.boundary_ratio is not None:
        return _sampled_condition(pipe, call)
    return pipe, call  # Wan 2.1: as stock Diffusers does, which takes the posterior's mode


def _sampled_condition(pipe: Any, call: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Wan 2.2 14B: noise beside a mask and the encoded first frame, 16 + 4 + 16 channels.

    Follows `add_first_frame_conditioning` in toolkit/models/wan21/wan_utils.py.
    """
    import torch

    latents = _noise(pipe, call, channels=pipe.vae.config.z_dim)
    frame = _pixels(pipe, call).unsqueeze(2)
    black = frame.new_zeros(()).expand(1, 3, call["num_frames"] - 1, *frame.shape[3:])
    condition = _encode(pipe, torch.cat([frame, black], dim=2), call["generator"])
    # Four mask channels, one for each of the frames that a latent frame holds; of the first only one is a frame.
    mask = torch.zeros(1, 4, *latents.shape[2:], dtype=latents.dtype, device=latents.device)
    mask[:, :, 0] = 1
    prepared = latents.float(), torch.cat([mask, condition], dim=1)
    # The pipeline has no argument for the condition: it would make its own, from the posterior's mode.
    pipe.prepare_latents = lambda *_args, **_options: prepared
    return pipe, call


def _held_first_frame(pipe: Any, call: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Wan 2.2 5B: the first latent frame is the encoded picture, at timestep 0 throughout.

    Follows `add_first_frame_conditioning_v22` in toolkit/models/wan21/wan_utils.py and the mask in wan22_pipeline.py.
    """
    import torch
    from diffusers import WanImageToVideoPipeline

    latents = _noise(pipe, call, channels=pipe.transformer.config.in_channels)
    condition = _encode(pipe, _pixels(pipe, call).unsqueeze(2), call["generator"])
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

    frames = (call["num_frames"] - 1) // pipe.vae_scale_factor_temporal + 1
    height, width = (call[side] // pipe.vae_scale_factor_spatial for side in ("height", "width"))
    shape = (1, channels, frames, height, width)
    return noise.draw(shape, call["generator"], torch.float32, pipe._execution_device).to(pipe.transformer.dtype)


def _pixels(pipe: Any, call: dict[str, Any]) -> Any:
    """The control image [1, 3, height, width], -1 to 1, rounded to the model's dtype before it is scaled."""
    from torchvision.transforms.functional import to_tensor

    picture = to_tensor(call["image"]).unsqueeze(0)
    return picture.to(pipe._execution_device, pipe.transformer.dtype) * 2.0 - 1.0


def _encode(pipe: Any, video: Any, generator: Any) -> Any:
    """Normalised latents of `video` [1, 3, frames, height, width]: a *sample* of the posterior, in its dtype."""
    import torch

    latents = noise.posterior_sample(pipe.vae.encode(video).latent_dist, generator)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    return (latents - mean.to(latents)) * (1.0 / std.to(latents))


def lora_targets(name: str) -> list[Target]:
    """Original Wan module names -> Diffusers' (toolkit/models/wan21/wan_lora_convert.py, the other way round).

    A file that holds both experts of Wan 2.2 says in each key which it is for (wan22_14b_model.py, save_lora).
    """
    expert, _, rest = name.partition(".")
    component = {"transformer_1": "transformer", "transformer_2": "transformer_2"}.get(expert)
    name = (rest if component else name).replace("self_attn", "attn1").replace("cross_attn", "attn2")
    name = re.sub(r"(attn[12])\.([qkv])$", r"\1.to_\2", name)
    name = re.sub(r"(attn[12])\.o$", r"\1.to_out.0", name)
    name = re.sub(r"(attn2)\.([kv])_img$", r"\1.add_\2_proj", name)
    name = re.sub(r"ffn\.0$", "ffn.net.0.proj", re.sub(r"ffn\.2$", "ffn.net.2", name))
    return [Target(name, component=component)]
