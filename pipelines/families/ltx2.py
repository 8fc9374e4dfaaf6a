"""LTX-2 and LTX-2.3. Follows extensions_built_in/diffusion_models/ltx2/ltx2.py."""

import inspect
from pathlib import Path
from typing import Any

from lora_drift.pipelines import images, loading, text
from lora_drift.pipelines.lora import Target
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec

TOKENS = 1024
"""Length to which embeddings are padded."""


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    from transformers import Gemma3ForConditionalGeneration, GemmaTokenizerFast

    options: dict[str, Any] = {}
    if "text_encoder" in spec.components and not (Path(base) / "text_encoder").is_dir():
        # From the root of Gemma's own repository (`ltx_te_path`).
        repo = spec.components["text_encoder"]
        options["text_encoder"] = Gemma3ForConditionalGeneration.from_pretrained(repo, dtype=dtype)
        options["tokenizer"] = text.as_the_trainer(GemmaTokenizerFast.from_pretrained(repo), spec, repo)
    pipe = loading.pipeline(spec, base, dtype, **options)
    pipe.text_encoder.model.vision_tower = None
    pipe.tokenizer.padding_side = "left"  # the connectors look at it
    pipe.guidance_options = dict(spec.extra)
    return pipe


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    _shift_by_tokens(pipe.scheduler, settings)
    embeds, mask = _embeddings(pipe, settings.prompt)
    negative_embeds, negative_mask = _embeddings(pipe, settings.negative_prompt)
    runner = pipe
    if settings.control:
        runner, conditioning = _image_to_video(pipe, settings)
        call |= conditioning
    # Diffusers 0.37 has none of these options: it does what LTX-2's values (and not LTX-2.3's) mean.
    known = inspect.signature(runner.__call__).parameters
    call |= {name: value for name, value in pipe.guidance_options.items() if name in known}
    # No frame_rate: the trainer leaves it at 24, whatever the fps of the file.
    frames, sound = runner(
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative_embeds,
        negative_prompt_attention_mask=negative_mask,
        width=settings.width,
        height=settings.height,
        num_frames=settings.num_frames,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        output_type="pil",
        return_dict=False,
        **call,
    )
    if settings.num_frames == 1:
        return Media(list(frames[0]))
    return Media(list(frames[0]), sound[0].float().cpu().numpy(), pipe.vocoder.config.output_sampling_rate)


def _shift_by_tokens(scheduler: Any, settings: Settings) -> None:
    """Settle how far the schedule is shifted: linear in the number of latent tokens, between the row's two shifts.

    Diffusers releases differ in whether they count tokens; with both shifts equal they agree.
    """
    config = scheduler.config
    tokens = ((settings.num_frames - 1) // 8 + 1) * (settings.height // 32) * (settings.width // 32)
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    shift = tokens * slope + (config.base_shift - slope * config.base_image_seq_len)
    scheduler.register_to_config(base_shift=shift, max_shift=shift)


def _embeddings(pipe: Any, prompt: str) -> tuple[Any, Any]:
    """Embeddings [1, 1024, width * layers] and mask [1, 1024]: every layer's hidden states of the prompt's tokens.

    Diffusers pads the tokens before Gemma sees them, the trainer pads what comes out, with zeros on the left
    (`get_prompt_embeds`, `pad_embeds`). It also casts the mask to the model's dtype.
    """
    import torch
    from torch.nn.functional import pad

    tokens = pipe.tokenizer([prompt.strip()], max_length=TOKENS, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask.to(pipe._execution_device)
    output = pipe.text_encoder(
        input_ids=tokens.input_ids.to(mask.device), attention_mask=mask, output_hidden_states=True
    )
    layers = torch.stack(output.hidden_states, dim=-1)
    if hasattr(pipe, "_pack_text_embeds"):  # Diffusers 0.37; later its connectors do this
        embeds = pipe._pack_text_embeds(layers, mask.sum(dim=-1), device=layers.device).to(pipe.transformer.dtype)
    else:
        embeds = layers.flatten(2, 3).to(pipe.transformer.dtype)
    missing = TOKENS - embeds.shape[1]
    return pad(embeds, (0, 0, missing, 0)), pad(mask.to(embeds.dtype), (missing, 0))


def _image_to_video(pipe: Any, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """The image-to-video pipeline over the same components, and its further arguments."""
    from diffusers import LTX2ImageToVideoPipeline
    from PIL import Image

    runner = LTX2ImageToVideoPipeline(**pipe.components)
    runner.set_progress_bar_config(disable=True)
    size = (settings.width, settings.height)
    arguments: dict[str, Any] = {"image": images.rgb(settings.control[0]).resize(size, Image.Resampling.LANCZOS)}
    if "image_crf" in inspect.signature(runner.__call__).parameters:
        arguments["image_crf"] = 0  # newer Diffusers would compress the picture first
    return runner, arguments


ORIGINAL_NAMES = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
}
"""LTX's names of what lies outside the blocks -> Diffusers' (convert_ltx2_to_diffusers.py). The matrices inside the
blocks, which are all that the trainer's own LoRAs change, have one name in both."""


def lora_targets(name: str) -> list[Target]:
    head, dot, rest = name.partition(".")
    return [Target(ORIGINAL_NAMES.get(head, head) + dot + rest)]
