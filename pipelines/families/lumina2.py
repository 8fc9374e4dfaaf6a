"""Lumina Image 2.0. Follows toolkit/stable_diffusion_model.py (is_lumina2)."""

from typing import Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    pipe = loading.pipeline(spec, base, dtype)
    for layer in pipe.text_encoder.layers:
        # The trainer's transformers runs Gemma 2 on SDPA (`loading.ATTENTION`) and ignores the cap there; 5 refuses it.
        layer.self_attn.attn_logit_softcapping = None
    return pipe


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    # Both as if they were positive: stock Diffusers puts the system prompt before the positive one only.
    (prompt, prompt_mask), (negative, negative_mask) = (
        pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=256)[:2]
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
        guidance_scale=settings.guidance_scale,
        **call,
    )
    return Media(list(output.images))
