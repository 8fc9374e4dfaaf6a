"""OmniGen2. Follows extensions_built_in/diffusion_models/omnigen2 of the trainer and its pipeline_omnigen2.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import images, loading, noise, text
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.lora import Shapes, module_shapes
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    import torch

SYSTEM_PROMPT = "You are a helpful assistant that generates high-quality images based on user instructions."
MOST_PIXELS = 1024 * 1024
"""More are rendered smaller and blown up at the end."""
LONGEST_SIDE = 1024
"""Of a control image."""
DIVISOR = 16
"""Pixels of a patch: 8 for the VAE, 2 for the denoiser."""


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    import torch
    import transformers
    from diffusers import AutoencoderKL, DiffusionPipeline

    from lora_drift.pipelines.models.omnigen2 import OmniGen2Transformer2DModel

    class OmniGen2(DiffusionPipeline):  # a bag of parts, moved together
        model_cpu_offload_seq = "text_encoder->transformer->vae"

        def __init__(self, transformer: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(
                transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
            )

    def part(cls: Any, folder: str) -> Any:
        # The trainer reads everything in bfloat16, whatever the job's dtype is, and casts then.
        module = cls.from_pretrained(base, subfolder=folder, torch_dtype=torch.bfloat16)
        return module.to(dtype).eval().requires_grad_(False)

    tokenizer = transformers.Qwen2TokenizerFast.from_pretrained(base, subfolder="processor")
    return OmniGen2(
        transformer=part(OmniGen2Transformer2DModel, "transformer"),
        vae=part(AutoencoderKL, "vae"),
        text_encoder=part(transformers.Qwen2_5_VLForConditionalGeneration, "mllm"),
        tokenizer=text.as_the_trainer(tokenizer, spec, base, "processor"),
        scheduler=loading.scheduler(spec.scheduler),
    )


def denoiser_shapes(spec: ModelSpec, base: str) -> Shapes:
    import torch

    from lora_drift.pipelines.models.omnigen2 import OmniGen2Transformer2DModel

    try:
        config = OmniGen2Transformer2DModel.load_config(base, subfolder="transformer")
    except OSError as error:
        raise RequestError(
            f"base {base!r}: found no transformer/config.json there ({error}). Give the folder or hub id of a "
            f"{spec.title} model in the layout of {spec.base}"
        ) from error
    with torch.device("meta"):
        return {"transformer": dict(module_shapes(OmniGen2Transformer2DModel.from_config(config)))}


def render(pipe: Any, settings: Settings, *, generator: Any, callback_on_step_end: Any) -> Media:
    import torch
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(vae_scale_factor=DIVISOR)
    prompts = [encode(pipe, prompt) for prompt in (settings.prompt, settings.negative_prompt)]
    # Reference first: its posterior is sampled from the same stream as the noise.
    references = [_reference(pipe, processor, path, settings, generator) for path in settings.control]
    height, width = _render_size(settings.height, settings.width)
    shape = (1, pipe.transformer.config.in_channels, height // 8, width // 8)
    device = pipe._execution_device
    latents = noise.draw(shape, generator, pipe.text_encoder.dtype, device)

    tables = [table.to(device) for table in pipe.transformer.rotary_tables()]
    pipe.scheduler.set_timesteps(settings.steps, device=device, num_tokens=shape[2] * shape[3])
    for step, t in enumerate(pipe.scheduler.timesteps):

        def predict(prompt: Prompt, t: torch.Tensor = t, latents: torch.Tensor = latents) -> torch.Tensor:
            time = t.expand(1).to(latents.dtype)
            prediction: torch.Tensor = pipe.transformer(latents, time, prompt[0], tables, prompt[1], references)
            return prediction

        prediction = predict(prompts[0])
        if settings.guidance_scale > 1:
            # The trainer leaves image guidance at 1: the references stay in this pass too.
            negative = predict(prompts[1])
            prediction = negative + settings.guidance_scale * (prediction - negative)
        latents = pipe.scheduler.step(prediction, t, latents, return_dict=False)[0].to(pipe.vae.dtype)
        callback_on_step_end(pipe, step, t, {})

    scaled = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    decoded = pipe.vae.decode(scaled, return_dict=False)[0]
    decoded = torch.nn.functional.interpolate(decoded, size=(settings.height, settings.width), mode="bilinear")
    return Media(list(processor.postprocess(decoded, output_type="pil")))


Prompt = tuple["torch.Tensor", "torch.Tensor"]
"""Embeddings [1, tokens, width] and their mask [1, tokens], which hides nothing."""


def encode(pipe: Any, prompt: str) -> Prompt:
    """The last hidden states of at most 256 tokens; the template's own count."""
    for _ in range(2):  # the model applies the template, and its pipeline's encode_prompt again
        chat = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt}]
        prompt = pipe.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
    tokens = pipe.tokenizer([prompt], max_length=256, truncation=True, return_tensors="pt").to(pipe._execution_device)
    output = pipe.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
    embeds = output.hidden_states[-1]
    return embeds, tokens.attention_mask.to(embeds.dtype)


def _reference(pipe: Any, processor: Any, path: str, settings: Settings, generator: Any) -> torch.Tensor:
    """Latents [channels, height, width] of a control image in the picture's size and proportions."""
    from PIL import Image

    image = images.rgb(path)
    if image.size != (settings.width, settings.height):
        image = image.resize((settings.width, settings.height), Image.Resampling.BILINEAR)
    height, width = _render_size(image.height, image.width, LONGEST_SIDE)
    pixels = processor.preprocess(image, height=height, width=width).to(pipe._execution_device, pipe.vae.dtype)
    latents = noise.posterior_sample(pipe.vae.encode(pixels).latent_dist, generator)
    scaled: torch.Tensor = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    return scaled[0]


def _render_size(height: int, width: int, longest: int | None = None) -> tuple[int, int]:
    """Shrunk in proportion to `MOST_PIXELS` (and to the longest side), then floored to the patch."""
    ratio = min((MOST_PIXELS / (height * width)) ** 0.5, 1.0)
    if longest is not None:
        ratio = min(ratio, longest / max(height, width))
    return int(height * ratio) // DIVISOR * DIVISOR, int(width * ratio) // DIVISOR * DIVISOR
