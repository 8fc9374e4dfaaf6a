"""HiDream-I1 and HiDream-E1. Follows extensions_built_in/diffusion_models/hidream of the trainer.

E1's denoiser sees the noisy picture and the control image side by side, and predicts both; the right half is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lora_drift.pipelines import images, loading
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.family import same_name
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import (
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
class HiDream(ModelSpec):
    read_in: Literal["bfloat16", "float32"]
    """The dtype that every weight is rounded to before it gets the job's."""


@dataclass(frozen=True, kw_only=True)
class HiDreamI1(HiDream):
    base_image_seq_len: int
    base_shift: float
    max_image_seq_len: int
    """The second shift is e^mu. mu is linear in tokens, base_shift at base_image_seq_len, and that of the scheduler's
    flow_shift at max_image_seq_len; it is taken at the largest number of tokens that the model takes."""


@dataclass(frozen=True, kw_only=True)
class HiDreamE1(HiDream):
    control_filter: Filter
    """By which the control image is brought to the size that was asked for; the image processor (Lanczos) then brings
    it to the picture's."""
    control_posterior: Posterior
    image_guidance_scale: float
    text_guidance_clipped: bool
    """May the text-guided prediction be no longer than the plain one, place by place?"""


LLAMA = "unsloth/Meta-Llama-3.1-8B-Instruct"


def unipc(flow_shift: float) -> Scheduler:
    """`flow_shift` is the second shift; the class makes the first."""
    return Scheduler(
        "ours.FlowUniPCShiftedTwice",
        {
            "final_sigmas_type": "zero",
            "flow_shift": flow_shift,
            "lower_order_final": True,
            "num_train_timesteps": 1000,
            "predict_x0": True,
            "prediction_type": "flow_prediction",
            "solver_order": 2,
            "solver_type": "bh2",
            "use_flow_sigmas": True,
        },
    )


ATTENTION: dict[str, Attention] = {
    "text_encoder": "sdpa",
    "text_encoder_2": "sdpa",
    "text_encoder_3": "eager",
    "text_encoder_4": "eager",  # the trainer passes output_attentions=True, which makes transformers choose it
}
FOLDER = "extensions_built_in/diffusion_models/hidream"
ENCODING = (
    "All four text encoders read the same prompt, 128 tokens at most.",
    "Llama runs with eager attention, because the trainer asks it for attentions that nothing reads. Padding in front "
    "of a prompt then comes out otherwise than with fused attention, and the model reads it.",
    "Weights are rounded to bfloat16 when they load, whatever the job's dtype.",
)

HIDREAM = HiDreamI1(
    id="hidream",
    title="HiDream-I1 Full",
    kind="image",
    family="hidream",
    pipeline="HiDreamImagePipeline",
    base="HiDream-ai/HiDream-I1-Full",
    components={"text_encoder_4": LLAMA, "tokenizer_4": LLAMA},
    denoisers={"": "transformer"},
    quantizes=Quantizes(("text_encoder_4", "text_encoder_3"), "qtype_te", reads="neither"),
    lora_prefixes=("diffusion_model.", "transformer."),
    scheduler=unipc(flow_shift=math.exp(1.15)),  # for a model of 4096 tokens, as the real one is
    most_steps=354,
    size_divisor=8,
    width=1024,
    height=1024,
    steps=30,
    guidance_scale=4.0,
    guidance="cfg",
    max_sequence_length=128,
    encoder_attention=ATTENTION,
    slow_tokenizers=("tokenizer_3",),
    read_in="bfloat16",
    base_image_seq_len=256,
    base_shift=0.5,
    max_image_seq_len=4096,
    quirks=(
        "The size only gives the shape: the picture is always scaled to the area of 1024 x 1024 and then floored to 16 "
        "(1024 x 576 becomes 1360 x 768).",
        "Sigmas are shifted twice: by 3, and between the shifted ends again by e^mu. mu belongs to the largest number "
        "of tokens that the model takes, not to the size of the picture.",
        *ENCODING,
    ),
    source=(
        f"{FOLDER}/hidream_model.py",
        f"{FOLDER}/src/pipelines/hidream_image/pipeline_hidream_image.py",
        f"{FOLDER}/src/schedulers/fm_solvers_unipc.py",
    ),
    requires=("ftfy",),
    earlier=(TOKENIZERS, clip_with_mask("text_encoder", "text_encoder_2"), STEPS),
)

HIDREAM_E1 = HiDreamE1(
    id="hidream_e1",
    requires=HIDREAM.requires,
    earlier=HIDREAM.earlier,
    title="HiDream-E1.1",
    kind="edit",
    family="hidream",
    pipeline="ours",
    base="HiDream-ai/HiDream-E1-1",
    components=HIDREAM.components,
    denoisers=HIDREAM.denoisers,
    quantizes=HIDREAM.quantizes,
    lora_prefixes=HIDREAM.lora_prefixes,
    scheduler=unipc(flow_shift=3.0),
    most_steps=375,
    size_divisor=16,
    width=1024,
    height=1024,
    steps=30,
    guidance_scale=4.0,
    guidance="cfg",
    max_sequence_length=128,
    encoder_attention=ATTENTION,
    slow_tokenizers=("tokenizer_3",),
    read_in="bfloat16",
    controls=(1, 1),
    control_filter="bilinear",
    control_posterior="mode",
    image_guidance_scale=2.0,
    text_guidance_clipped=True,
    why_ours="Diffusers has the transformer but no editing pipeline. Loading, text encoding and decoding are those of "
    "its HiDreamImagePipeline; only the denoising loop is written out.",
    quirks=(
        "The control image is resized bilinearly to the size floored to 8, then (Lanczos) to that floored to 16, which "
        "is the size of the picture.",
        "Picture and control image lie side by side. Together they may have as many tokens as the transformer's config "
        "says (`max_resolution`): the trainer, unlike other programs, does not raise that limit, and stops beyond it.",
        "Image guidance is 2 whatever the job says: the trainer does not pass a scale on.",
        "The pass without the control image reads the prompt, not the negative prompt, which is read together with the "
        "control image.",
        "The text-guided prediction is never longer than the plain one, place by place (clip_cfg_norm).",
        "Sigmas are shifted twice by 3.",
        *ENCODING,
    ),
    source=(
        f"{FOLDER}/hidream_e1_model.py",
        f"{FOLDER}/hidream_model.py",
        f"{FOLDER}/src/pipelines/hidream_image/pipeline_hidream_image_editing.py",
        f"{FOLDER}/src/schedulers/fm_solvers_unipc.py",
    ),
)

ROWS: tuple[HiDream, ...] = (HIDREAM, HIDREAM_E1)


def load(spec: HiDream, base: str, dtype: Any) -> Any:
    """Diffusers' HiDreamImagePipeline, with the Llama that HiDream's repositories leave out."""
    import torch
    from torch import nn
    from transformers import LlamaForCausalLM

    llama = LlamaForCausalLM.from_pretrained(
        spec.components["text_encoder_4"], dtype=dtype, attn_implementation=spec.encoder_attention["text_encoder_4"]
    )
    tokenizer = loading.tokenizer(spec, "tokenizer_4", "PreTrainedTokenizerFast", spec.components["tokenizer_4"])
    stock = replace(spec, pipeline=HIDREAM.pipeline) if spec.pipeline == "ours" else spec
    pipe = loading.pipeline(stock, base, dtype, text_encoder_4=llama, tokenizer_4=tokenizer)
    # Buffers the trainer computes in float32, as we did.
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(getattr(torch, spec.read_in)).to(dtype)
    return pipe


def check(spec: HiDream, base: str, settings: Settings) -> None:
    """Refuse a size of E1 at which the trainer stops too: more tokens than the padding has room for.

    The transformer pads whatever is not square to as many tokens as its config says; what is square it takes at any
    size.
    """
    if not isinstance(spec, HiDreamE1):
        return
    from diffusers import HiDreamImageTransformer2DModel

    config = HiDreamImageTransformer2DModel.load_config(base, subfolder="transformer")
    most = math.prod(config["max_resolution"]) // config["patch_size"] ** 2
    width, height = 2 * settings.width // 16, settings.height // 16
    if width != height and width * height > most:
        raise RequestError(
            f"size {settings.width}x{settings.height}: picture and control image make {width * height} tokens and this "
            f"model takes {most}, in the trainer too; choose at most {most // 2 * 256} pixels"
        )


def render(pipe: Any, spec: HiDream, settings: Settings, **call: Any) -> Media:
    if isinstance(spec, HiDreamE1):
        return _edit(pipe, spec, settings, **call)
    assert isinstance(spec, HiDreamI1)
    from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift

    max_shift = math.log(pipe.scheduler.config.flow_shift)
    mu = calculate_shift(
        pipe.transformer.max_seq, spec.base_image_seq_len, spec.max_image_seq_len, spec.base_shift, max_shift
    )
    pipe.scheduler.register_to_config(flow_shift=math.exp(mu))
    output = pipe(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        width=settings.width,  # the pipeline scales both, as the trainer's does
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=spec.pipeline_scale(settings.guidance_scale),
        max_sequence_length=spec.max_sequence_length,
        **call,
    )
    return Media(list(output.images))


# ----------------------------------------------------------------------------------------------------------- HiDream-E1


class Embeds(NamedTuple):
    """What the denoiser reads of a batch of prompts."""

    t5: torch.Tensor
    """[batch, tokens, width]"""
    llama: torch.Tensor
    """[layers, batch, tokens, width]"""
    pooled: torch.Tensor
    """[batch, width of both CLIPs]"""


def _edit(pipe: Any, spec: HiDreamE1, settings: Settings, *, generator: Any, callback_on_step_end: Any) -> Media:
    import torch

    guided = spec.guides(settings.guidance_scale)
    embeds = _encode(pipe, spec, settings, guided)
    control = _control_latents(pipe, spec, settings, generator)
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
            prediction = _guide(spec, prediction, settings.guidance_scale)
        latents = pipe.scheduler.step(prediction, t, latents, return_dict=False)[0]
        callback_on_step_end(pipe, step, t, {})

    scaled = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    decoded = pipe.vae.decode(scaled, return_dict=False)[0]
    return Media(list(pipe.image_processor.postprocess(decoded, output_type="pil")))


def _encode(pipe: Any, spec: HiDreamE1, settings: Settings, guided: bool) -> Embeds:
    """Both prompts in the order of the passes: prompt, negative prompt, prompt."""
    import torch

    t5, no_t5, llama, no_llama, pooled, no_pooled = pipe.encode_prompt(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        do_classifier_free_guidance=guided,
        max_sequence_length=spec.max_sequence_length,
    )
    if not guided:
        return Embeds(t5, llama, pooled)
    return Embeds(
        torch.cat([t5, no_t5, t5]), torch.cat([llama, no_llama, llama], dim=1), torch.cat([pooled, no_pooled, pooled])
    )


def _control_latents(pipe: Any, spec: HiDreamE1, settings: Settings, generator: Any) -> torch.Tensor:
    """The control image's latents [1, channels, height / 8, width / 8]."""
    asked = (settings.asked_width, settings.asked_height)
    picture = images.resized(images.rgb(settings.control[0]), asked, spec.control_filter)
    vae = pipe.vae
    pixels = pipe.image_processor.preprocess(picture).to(pipe._execution_device, vae.dtype)
    posterior = vae.encode(pixels).latent_dist
    latents: torch.Tensor = posterior.mode() if spec.control_posterior == "mode" else posterior.sample(generator)
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def _guide(spec: HiDreamE1, prediction: torch.Tensor, scale: float) -> torch.Tensor:
    """Text guidance, its length clipped to that of the plain prediction at each place, then image guidance."""
    import torch

    without_image, negative, positive = prediction.chunk(3)
    text = negative + scale * (positive - negative)
    if spec.text_guidance_clipped:
        lengths = torch.norm(positive, dim=1, keepdim=True), torch.norm(text, dim=1, keepdim=True)
        text = text * (lengths[0] / (lengths[1] + 1e-8)).clamp(min=0.0, max=1.0)
    return without_image + spec.image_guidance_scale * (text - without_image)


# ----------------------------------------------------------------------------------------------------------------- LoRA

denoiser_shapes = loading.denoiser_shapes
lora_targets = same_name
