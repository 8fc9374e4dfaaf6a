"""HiDream-I1. Follows extensions_built_in/diffusion_models/hidream (hidream_model.py, pipeline_hidream_image.py)."""

import math
from typing import Any

from lora_drift.pipelines import loading, text
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    """Diffusers' HiDreamImagePipeline, with the Llama that HiDream's repositories leave out."""
    import torch
    from torch import nn
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    # The trainer passes output_attentions=True, which makes transformers choose eager attention.
    llama = LlamaForCausalLM.from_pretrained(
        spec.components["text_encoder_4"], dtype=dtype, attn_implementation="eager"
    )
    repo = spec.components["tokenizer_4"]
    tokenizer = text.as_the_trainer(PreTrainedTokenizerFast.from_pretrained(repo), spec, repo)
    pipe = loading.pipeline(spec, base, dtype, text_encoder_4=llama, tokenizer_4=tokenizer)
    # The trainer loads every weight in bfloat16 and casts it afterwards. Buffers it computes in float32, as we did.
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(torch.bfloat16).to(dtype)
    return pipe


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift

    # The second of the schedule's two shifts: e^mu for the largest number of tokens (pipeline_hidream_image.py).
    pipe.scheduler.register_to_config(flow_shift=math.exp(calculate_shift(pipe.transformer.max_seq)))
    output = pipe(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        width=settings.width,  # the pipeline scales both, as the trainer's does
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        max_sequence_length=128,
        **call,
    )
    return Media(list(output.images))
