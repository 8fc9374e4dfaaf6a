"""OmniGen2. Follows extensions_built_in/diffusion_models/omnigen2 of the trainer and its pipeline_omnigen2.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lora_drift.pipelines import images, loading
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.family import nothing_to_refuse, same_name
from lora_drift.pipelines.lora import Shapes, module_shapes
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import STEPS, TOKENIZERS, Filter, ModelSpec, Posterior, Quantizes, Scheduler

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class OmniGen2(ModelSpec):
    read_in: Literal["bfloat16", "float32"]
    """The dtype that every weight is rounded to before it gets the job's."""
    system_prompt: str
    template_applied: int
    """How often: the model applies the chat template, and its pipeline's encode_prompt again."""
    most_pixels: int
    """More are rendered smaller and blown up at the end."""
    render_divisor: int
    """Sides that are rendered: floored to a patch, 8 pixels for the VAE times 2 for the denoiser."""
    longest_reference_side: int
    """Of a control image."""
    control_filter: Filter
    """By which the control image is brought to the size of the picture."""
    control_posterior: Posterior
    final_filter: Filter
    """By which what was decoded is stretched to the size of the picture."""


ROWS = (
    OmniGen2(
        id="omnigen2",
        title="OmniGen2",
        kind="image",
        family="omnigen2",
        pipeline="ours",
        base="OmniGen2/OmniGen2",
        denoisers={"": "transformer"},
        quantizes=Quantizes(encoder_qtype="qtype_te", reads="neither", by_default=(False, True)),
        lora_prefixes=("diffusion_model.", "transformer."),
        scheduler=Scheduler("ours.OmniGen2FlowMatchEuler", {"num_train_timesteps": 1000}),
        size_divisor=8,
        width=1024,
        height=1024,
        steps=30,
        guidance_scale=4.0,
        guidance="cfg",
        max_sequence_length=256,
        controls=(0, 1),
        read_in="bfloat16",
        system_prompt="You are a helpful assistant that generates high-quality images based on user instructions.",
        template_applied=2,
        most_pixels=1024 * 1024,
        render_divisor=16,
        longest_reference_side=1024,
        control_filter="bilinear",
        control_posterior="sample",
        final_filter="bilinear",
        why_ours="Diffusers has neither the model nor the pipeline.",
        quirks=(
            "The chat template is applied twice, to the negative prompt too, also to an empty one.",
            "Image guidance is 1: a control image stays in the negative pass.",
            "The latents of a control image are a sample of the VAE's posterior, drawn from the same stream as the "
            "noise and before it, so that a control image changes the noise.",
            "Rendered at sizes floored to 16 (and at most a megapixel), then stretched to the size asked for.",
            "Weights are read in bfloat16 whatever the job's dtype is.",
            "Time is shifted by the root of the number of latent pixels, before they are grouped into patches.",
        ),
        source=(
            "extensions_built_in/diffusion_models/omnigen2/__init__.py",
            "extensions_built_in/diffusion_models/omnigen2/src/pipelines/omnigen2/pipeline_omnigen2.py",
            "extensions_built_in/diffusion_models/omnigen2/src/models/transformers/transformer_omnigen2.py",
            "extensions_built_in/diffusion_models/omnigen2/src/schedulers/scheduling_flow_match_euler_discrete.py",
        ),
        earlier=(TOKENIZERS, STEPS),
    ),
)


def load(spec: OmniGen2, base: str, dtype: Any) -> Any:
    import torch
    import transformers
    from diffusers import AutoencoderKL, DiffusionPipeline

    from lora_drift.pipelines.families.omnigen2_transformer import OmniGen2Transformer2DModel

    class OmniGen2Pipeline(DiffusionPipeline):  # a bag of parts, moved together
        model_cpu_offload_seq = "text_encoder->transformer->vae"

        def __init__(self, transformer: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(
                transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
            )

    def part(cls: Any, folder: str) -> Any:
        return cls.from_pretrained(base, subfolder=folder, torch_dtype=getattr(torch, spec.read_in))

    pipe = OmniGen2Pipeline(
        transformer=part(OmniGen2Transformer2DModel, "transformer"),
        vae=part(AutoencoderKL, "vae"),
        text_encoder=part(transformers.Qwen2_5_VLForConditionalGeneration, "mllm"),
        tokenizer=loading.tokenizer(spec, "tokenizer", "Qwen2TokenizerFast", base, "processor"),
        scheduler=loading.scheduler(spec.scheduler),
    )
    return loading.finished(pipe, spec, dtype)


check = nothing_to_refuse


def render(pipe: Any, spec: OmniGen2, settings: Settings, *, generator: Any, callback_on_step_end: Any) -> Media:
    import torch
    from diffusers.image_processor import VaeImageProcessor

    from lora_drift.pipelines import noise

    processor = VaeImageProcessor(vae_scale_factor=spec.render_divisor)
    prompts = [encode(pipe, spec, prompt) for prompt in (settings.prompt, settings.negative_prompt)]
    # Reference first: its posterior is sampled from the same stream as the noise.
    references = [_reference(pipe, processor, path, spec, settings, generator) for path in settings.control]
    height, width = _render_size(spec, settings.height, settings.width)
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
        if spec.guides(settings.guidance_scale):
            # The trainer leaves image guidance at 1: the references stay in this pass too.
            negative = predict(prompts[1])
            prediction = negative + settings.guidance_scale * (prediction - negative)
        latents = pipe.scheduler.step(prediction, t, latents, return_dict=False)[0].to(pipe.vae.dtype)
        callback_on_step_end(pipe, step, t, {})

    scaled = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    decoded = pipe.vae.decode(scaled, return_dict=False)[0]
    decoded = torch.nn.functional.interpolate(decoded, size=(settings.height, settings.width), mode=spec.final_filter)
    return Media(list(processor.postprocess(decoded, output_type="pil")))


Prompt = tuple["torch.Tensor", "torch.Tensor"]
"""Embeddings [1, tokens, width] and their mask [1, tokens], which hides nothing."""


def encode(pipe: Any, spec: OmniGen2, prompt: str) -> Prompt:
    """The last hidden states; the template's tokens count, too."""
    for _ in range(spec.template_applied):
        chat = [{"role": "system", "content": spec.system_prompt}, {"role": "user", "content": prompt}]
        prompt = pipe.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
    tokens = pipe.tokenizer([prompt], max_length=spec.max_sequence_length, truncation=True, return_tensors="pt")
    tokens = tokens.to(pipe._execution_device)
    output = pipe.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
    embeds = output.hidden_states[-1]
    return embeds, tokens.attention_mask.to(embeds.dtype)


def _reference(
    pipe: Any, processor: Any, path: str, spec: OmniGen2, settings: Settings, generator: Any
) -> torch.Tensor:
    """Latents [channels, height, width] of a control image in the picture's size and proportions."""
    from lora_drift.pipelines import noise

    image = images.resized(images.rgb(path), (settings.width, settings.height), spec.control_filter)
    height, width = _render_size(spec, image.height, image.width, spec.longest_reference_side)
    pixels = processor.preprocess(image, height=height, width=width).to(pipe._execution_device, pipe.vae.dtype)
    latents = noise.posterior(pipe.vae.encode(pixels).latent_dist, spec.control_posterior, generator)
    scaled: torch.Tensor = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    return scaled[0]


def _render_size(spec: OmniGen2, height: int, width: int, longest: int | None = None) -> tuple[int, int]:
    """Shrunk in proportion to `most_pixels` (and to the longest side), then floored to the patch."""
    ratio = min((spec.most_pixels / (height * width)) ** 0.5, 1.0)
    if longest is not None:
        ratio = min(ratio, longest / max(height, width))
    divisor = spec.render_divisor
    return int(height * ratio) // divisor * divisor, int(width * ratio) // divisor * divisor


# ----------------------------------------------------------------------------------------------------------------- LoRA


def denoiser_shapes(spec: OmniGen2, base: str) -> Shapes:
    import torch

    from lora_drift.pipelines.families.omnigen2_transformer import OmniGen2Transformer2DModel

    try:
        config = OmniGen2Transformer2DModel.load_config(base, subfolder="transformer")
    except OSError as error:
        raise RequestError(
            f"base {base!r}: found no transformer/config.json there ({error}). Give the folder or hub id of a "
            f"{spec.title} model in the layout of {spec.base}"
        ) from error
    with torch.device("meta"):
        return {"transformer": dict(module_shapes(OmniGen2Transformer2DModel.from_config(config)))}


lora_targets = same_name
