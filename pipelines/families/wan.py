"""Wan 2.1 text to video. Follows toolkit/models/wan21/wan21.py."""

import re
from typing import Any

from pipelines import loading
from pipelines.lora import Target
from pipelines.output import Media
from pipelines.settings import Settings
from pipelines.spec import ModelSpec


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    return loading.pipeline(spec, base, dtype)


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    output = pipe(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        width=settings.width,
        height=settings.height,
        num_frames=settings.num_frames,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        max_sequence_length=512,
        output_type="pil",
        **call,
    )
    return Media(list(output.frames[0]))


def lora_targets(name: str) -> list[Target]:
    """Original Wan module names -> Diffusers' (toolkit/models/wan21/wan_lora_convert.py, the other way round)."""
    name = name.replace("self_attn", "attn1").replace("cross_attn", "attn2")
    name = re.sub(r"(attn[12])\.([qkv])$", r"\1.to_\2", name)
    name = re.sub(r"(attn[12])\.o$", r"\1.to_out.0", name)
    name = re.sub(r"(attn2)\.([kv])_img$", r"\1.add_\2_proj", name)
    return [Target(re.sub(r"ffn\.0$", "ffn.net.0.proj", re.sub(r"ffn\.2$", "ffn.net.2", name)))]
