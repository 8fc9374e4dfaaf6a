"""Anima. Follows extensions_built_in/diffusion_models/anima of the trainer."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.family import nothing_to_refuse
from lora_drift.pipelines.lora import Target
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec, Quantizes, Scheduler

if TYPE_CHECKING:
    import torch

ROWS = (
    ModelSpec(
        id="anima",
        title="Anima",
        kind="image",
        family="anima",
        pipeline="ours",
        base="circlestone-labs/Anima-Base-v1.0-Diffusers",
        denoisers={"": "transformer"},
        quantizes=Quantizes(encoder_qtype="qtype_te", by_default=(False, False)),
        lora_prefixes=("diffusion_model.",),
        scheduler=Scheduler(
            "diffusers.FlowMatchEulerDiscreteScheduler",
            {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False},
        ),
        size_divisor=32,
        width=1024,
        height=1024,
        steps=30,
        guidance_scale=4.0,
        guidance="cfg_always",
        max_sequence_length=512,
        why_ours="Diffusers has Anima as a modular pipeline only, whose blocks encode an empty prompt otherwise.",
        requires=("diffusers>=0.39", "transformers>=5"),
        quirks=(
            "The shift is 3.0, whatever the repository's own scheduler says.",
            "The size is floored to 32, although the model takes 16.",
            "An empty prompt is one token of padding that is read; stock Diffusers sets what the encoder makes of it "
            "to zero. So a negative prompt that is left empty renders another picture.",
            "Guidance runs at every scale but 1, below it too.",
        ),
        source=("extensions_built_in/diffusion_models/anima/anima.py",),
        since="0.10.24",
    ),
)


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    import diffusers
    import transformers

    class AnimaPipeline(diffusers.DiffusionPipeline):  # a bag of parts, moved together
        model_cpu_offload_seq = "text_encoder->text_conditioner->transformer->vae"

        def __init__(
            self, transformer: Any, text_conditioner: Any, vae: Any, text_encoder: Any, tokenizer: Any,
            t5_tokenizer: Any, scheduler: Any,
        ) -> None:  # fmt: skip
            super().__init__()
            self.register_modules(
                transformer=transformer, text_conditioner=text_conditioner, vae=vae, text_encoder=text_encoder,
                tokenizer=tokenizer, t5_tokenizer=t5_tokenizer, scheduler=scheduler,
            )  # fmt: skip

    def part(cls: Any, folder: str) -> Any:
        return cls.from_pretrained(base, subfolder=folder, torch_dtype=dtype)

    pipe = AnimaPipeline(
        transformer=part(diffusers.CosmosTransformer3DModel, "transformer"),
        text_conditioner=part(diffusers.AnimaTextConditioner, "text_conditioner"),
        vae=part(diffusers.AutoencoderKLQwenImage, "vae"),
        text_encoder=part(transformers.Qwen3Model, "text_encoder"),
        tokenizer=loading.tokenizer(spec, "tokenizer", "Qwen2Tokenizer", base, "tokenizer"),
        t5_tokenizer=loading.tokenizer(spec, "t5_tokenizer", "T5TokenizerFast", base, "t5_tokenizer"),
        scheduler=loading.scheduler(spec.scheduler),
    )
    loading.normalize(pipe.vae, in_float32=True)
    return loading.finished(pipe, spec, dtype)


check = nothing_to_refuse


def render(pipe: Any, spec: ModelSpec, settings: Settings, *, generator: Any, callback_on_step_end: Any) -> Media:
    import numpy as np
    import torch
    from diffusers.image_processor import VaeImageProcessor

    from lora_drift.pipelines import noise

    device, dtype = pipe._execution_device, pipe.transformer.dtype
    guides = spec.guides(settings.guidance_scale) and not math.isclose(settings.guidance_scale, 1.0)
    texts = [settings.prompt, settings.negative_prompt] if guides else [settings.prompt]
    prompts = [encode(pipe, spec, text) for text in texts]
    latents = noise.draw((1, 16, 1, settings.height // 8, settings.width // 8), generator, torch.float32, device)
    padding = torch.zeros(1, 1, settings.height, settings.width, dtype=dtype, device=device)

    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / settings.steps, settings.steps), device=device)
    pipe.scheduler.set_begin_index(0)
    for step, t in enumerate(pipe.scheduler.timesteps):
        positive, *negative = (
            pipe.transformer(
                hidden_states=latents.to(dtype),
                timestep=t.expand(1).to(dtype) / 1000,
                encoder_hidden_states=prompt,
                padding_mask=padding,
                return_dict=False,
            )[0]
            for prompt in prompts
        )
        prediction = negative[0] + settings.guidance_scale * (positive - negative[0]) if negative else positive
        latents = pipe.scheduler.step(prediction, t, latents, return_dict=False)[0]
        callback_on_step_end(pipe, step, t, {})

    latents = latents.to(pipe.vae.dtype)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(device, latents.dtype)
        for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    decoded = pipe.vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]
    return Media(list(VaeImageProcessor(vae_scale_factor=8).postprocess(decoded, output_type="pil")))


def encode(pipe: Any, spec: ModelSpec, prompt: str) -> torch.Tensor:
    """[1, 512, width]: what the conditioner makes of Qwen's hidden states, for each token of T5."""
    import torch

    device = pipe._execution_device
    cut: dict[str, Any] = {"max_length": spec.max_sequence_length, "truncation": True, "return_tensors": "pt"}
    words, queries = (tokenizer([prompt], **cut).to(device) for tokenizer in (pipe.tokenizer, pipe.t5_tokenizer))
    ids, mask = words.input_ids.long(), words.attention_mask.long()
    read = mask
    if not ids.shape[1]:
        ids = torch.full((1, 1), pipe.tokenizer.pad_token_id, device=device)
        mask, read = torch.zeros_like(ids), torch.ones_like(ids)
    hidden = pipe.text_encoder(ids, attention_mask=mask).last_hidden_state.to(pipe.transformer.dtype)
    found: torch.Tensor = pipe.text_conditioner(
        source_hidden_states=hidden * read.to(hidden.dtype).unsqueeze(-1),
        target_input_ids=queries.input_ids,
        target_attention_mask=queries.attention_mask,
        source_attention_mask=read,
    )
    return found


denoiser_shapes = loading.denoiser_shapes


def lora_targets(name: str) -> list[Target]:
    """Module names as ComfyUI's network has them, under which the trainer saves -> Diffusers'."""
    for old, new in (
        (r"^blocks\.", "transformer_blocks."),
        (r"adaln_modulation_self_attn\.", "norm1.linear_"),
        (r"adaln_modulation_cross_attn\.", "norm2.linear_"),
        (r"adaln_modulation_mlp\.", "norm3.linear_"),
        (r"self_attn\.", "attn1."),
        (r"cross_attn\.", "attn2."),
        (r"\.output_proj$", ".to_out.0"),
        (r"\.([qkv])_proj$", r".to_\1"),
        (r"mlp\.layer1$", "ff.net.0.proj"),
        (r"mlp\.layer2$", "ff.net.2"),
        # Outside the blocks, which a LoRA changes with `transformer_only: false`.
        (r"^final_layer\.adaln_modulation\.", "norm_out.linear_"),
        (r"^final_layer\.linear$", "proj_out"),
        (r"^t_embedder\.1\.", "time_embed.t_embedder."),
        (r"^x_embedder\.proj\.1$", "patch_embed.proj"),
    ):
        name = re.sub(old, new, name)
    return [Target(name)]
