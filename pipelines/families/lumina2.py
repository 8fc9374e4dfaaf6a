"""Lumina Image 2.0. Follows toolkit/stable_diffusion_model.py (is_lumina2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.family import nothing_to_refuse, same_name
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import LAYER_BY_LAYER, LEGACY, STEPS, TOKENIZERS, ModelSpec, Quantizes, Scheduler


@dataclass(frozen=True, kw_only=True)
class Lumina2(ModelSpec):
    logit_softcapping: float | None
    """Of Gemma 2's attention. The trainer's transformers ignores the cap on SDPA; 5 refuses it there."""


ROWS = (
    Lumina2(
        id="lumina2",
        title="Lumina Image 2.0",
        kind="image",
        family="lumina2",
        pipeline="Lumina2Pipeline",
        base="Alpha-VLLM/Lumina-Image-2.0",
        denoisers={"": "transformer"},
        quantizes=Quantizes(reads="exclude", by_default=(False, True)),
        lora_prefixes=("transformer.",),
        scheduler=Scheduler(
            "diffusers.FlowMatchEulerDiscreteScheduler",
            {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
        ),
        size_divisor=16,
        size_rule="refuse",
        width=1024,
        height=1024,
        steps=30,
        guidance_scale=4.0,
        guidance="cfg",
        max_sequence_length=256,
        encoder_attention={"text_encoder": "sdpa"},
        logit_softcapping=None,
        quirks=(
            "The trainer asks for shift 6.0, but its scheduler class loses every argument on the way: the steps are "
            "not shifted at all.",
            "The system prompt is put before the negative prompt too, also before an empty one.",
            "Gemma 2 runs without the soft cap on its attention logits: the transformers that the trainer "
            "pins gives it SDPA attention, which has none.",
            "A size that is not a multiple of 16 stops the trainer; here it is refused before anything loads.",
        ),
        source=LEGACY,
        earlier=(LAYER_BY_LAYER, TOKENIZERS, STEPS),
    ),
)


def load(spec: Lumina2, base: str, dtype: Any) -> Any:
    pipe = loading.pipeline(spec, base, dtype)
    for layer in pipe.text_encoder.layers:
        layer.self_attn.attn_logit_softcapping = spec.logit_softcapping
    return pipe


check = nothing_to_refuse


def render(pipe: Any, spec: Lumina2, settings: Settings, **call: Any) -> Media:
    # Both as if they were positive: stock Diffusers puts the system prompt before the positive one only.
    (prompt, prompt_mask), (negative, negative_mask) = (
        pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=spec.max_sequence_length)[:2]
        for text in (settings.prompt, settings.negative_prompt)
    )
    output = pipe(
        prompt_embeds=prompt,
        prompt_attention_mask=prompt_mask,
        negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=spec.pipeline_scale(settings.guidance_scale),
        **call,
    )
    return Media(list(output.images))


denoiser_shapes = loading.denoiser_shapes
lora_targets = same_name
