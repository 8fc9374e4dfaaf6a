"""From words to embeddings: templates, tokenizers, encoders, masks."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import nn

from lora_drift.harness.check.divergence import CONDITIONING, NEGATIVE, POSITIVE, PROMPTS
from lora_drift.harness.deviations.library.base import (
    Subject,
    answering,
    called_with,
    families,
    hooked,
    patched,
    text_encoders,
    variation,
    wrapped,
)

FLUX1 = ("flux",)
DEV = ("flux2", "flux2_diffusers")


def _tokenizers(s: Subject) -> list[Any]:
    found = [part for role, part in s.pipe.components.items() if role.startswith("tokenizer") and part is not None]
    return [getattr(part, "tokenizer", part) for part in found]


def _t5(s: Subject) -> Any:
    return next(e for e in text_encoders(s) if "T5" in type(e).__name__)


def _encoding(s: Subject, **arguments: Any) -> AbstractContextManager[None]:
    """`encode_prompt` with other arguments."""
    original = s.pipe.encode_prompt
    names = list(inspect.signature(original).parameters)

    def call(_original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(**{**dict(zip(names, args, strict=False)), **kwargs, **arguments})

    return wrapped(s.pipe, "encode_prompt", call)


# --------------------------------------------------------------------------------------------------------- templates


@variation(
    "encode",
    shows=POSITIVE,
    source="runcomfy ai-toolkit-inference's documentation: without OmniGen2's template a LoRA seems not to work",
    applies=families("qwen", "zimage", "omnigen2", "lumina2", "flux2"),
)
def prompt_template_missing(s: Subject) -> Iterator[Subject]:
    """The prompt reaches the text encoder without its template or system message."""
    with ExitStack() as stack:
        if s.spec.family == "qwen":
            vision = "<|vision_start|><|image_pad|><|vision_end|>" if s.spec.id == "qwen_image_edit" else ""
            stack.enter_context(patched(s.pipe, "prompt_template_encode", vision + "{}"))
            stack.enter_context(patched(s.pipe, "prompt_template_encode_start_idx", 0))
        elif s.spec.family == "lumina2":
            stack.enter_context(_encoding(s, system_prompt=""))
        elif s.spec.id in DEV:
            stack.enter_context(patched(s.pipe, "system_message", ""))
        else:
            # The words alone; an empty prompt keeps one token, because nothing could be encoded otherwise.
            stack.enter_context(
                wrapped(s.pipe.tokenizer, "apply_chat_template", lambda _o, chat, **_k: chat[-1]["content"] or " ")
            )
        yield s


@variation(
    "encode",
    shows=POSITIVE,
    source="trainer omnigen2 applies its template twice, by mistake; stacks that format before the pipeline does",
    applies=lambda s: (s.spec.family in ("zimage", "lumina2", "qwen") and s.spec.id != "qwen_image_edit")
    or s.spec.id.startswith("flux2_klein"),
)  # fmt: skip
def prompt_template_applied_twice(s: Subject) -> Iterator[Subject]:
    """The prompt is put into its template once more."""

    def twice(original: Any, chat: Any, **options: Any) -> Any:
        return original([{"role": "user", "content": original(chat, **options)}], **options)

    with ExitStack() as stack:
        if s.spec.family == "qwen":
            template = s.pipe.prompt_template_encode
            stack.enter_context(patched(s.pipe, "prompt_template_encode", template.replace("{}", template)))
        elif s.spec.family == "lumina2":
            prefix = s.pipe.system_prompt
            stack.enter_context(_encoding(s, system_prompt=f"{prefix} <Prompt Start> {prefix}"))
        else:
            stack.enter_context(wrapped(s.pipe.tokenizer, "apply_chat_template", twice))
        yield s


@variation(
    "encode",
    shows=POSITIVE,
    source="OmniGen2's own pipeline applies its template once; the trainer twice (pipeline_omnigen2.py line 387)",
    applies=families("omnigen2"),
)
def prompt_template_applied_once(s: Subject) -> Iterator[Subject]:
    """OmniGen2's prompt is put into its template once."""

    def once(original: Any, chat: Any, **options: Any) -> Any:
        content = chat[-1]["content"]
        return content if "<|im_start|>" in content else original(chat, **options)

    with wrapped(s.pipe.tokenizer, "apply_chat_template", once):
        yield s


@variation(
    "encode",
    shows=NEGATIVE,
    source="stock Diffusers' Lumina2Pipeline and runcomfy ai-toolkit-inference lumina2.py: the positive prompt only",
    applies=lambda s: s.spec.family == "lumina2" and s.guided,
)
def negative_prompt_without_system_prompt(s: Subject) -> Iterator[Subject]:
    """The negative prompt is encoded as it is."""

    def call(original: Any, text: str, *args: Any, **options: Any) -> Any:
        if text != s.settings.negative_prompt:
            return original(text, *args, **options)
        return (*s.pipe._get_gemma_prompt_embeds([text], max_sequence_length=256), None, None)

    with wrapped(s.pipe, "encode_prompt", call):
        yield s


@variation(
    "encode",
    shows=POSITIVE,
    source="ComfyUI drops the tokens of Qwen-Image's template by searching for them, others by number (34 or 64)",
    applies=families("qwen"),
)
def template_tokens_not_dropped(s: Subject) -> Iterator[Subject]:
    """The embeddings of the template are handed on with those of the prompt."""
    with patched(s.pipe, "prompt_template_encode_start_idx", 0):
        yield s


@variation(
    "encode",
    shows=POSITIVE,
    source="output_hidden_states of transformers has the last layer's output behind the final norm",
    applies=families("ideogram4"),
)
def last_layer_behind_the_norm(s: Subject) -> Iterator[Subject]:
    """Of the layers that Ideogram 4 reads, the last one is read behind the norm that follows."""
    language = s.pipe.text_encoder.language_model
    with answering(language.layers[-1], language.norm):
        yield s


# ----------------------------------------------------------------------------------------------------- which encoder


@variation(
    "encode",
    shows=POSITIVE,
    source="wrappers that pass `prompt` only to the first encoder (prompt_2 = ''); trainer: the same prompt for all",
    applies=lambda s: s.spec.family in ("flux", "hidream") or s.spec.id == "sdxl",
)
def second_encoder_gets_no_prompt(s: Subject) -> Iterator[Subject]:
    """The second text encoder (HiDream's T5) encodes an empty prompt."""
    with _encoding(s, **{"prompt_3" if s.spec.family == "hidream" else "prompt_2": [""]}):
        yield s


@variation(
    "encode",
    shows=POSITIVE,
    source="ComfyUI's and Forge's FLUX workflows with CLIP left empty or bypassed",
    applies=families(*FLUX1),
)
def clip_gets_no_prompt(s: Subject) -> Iterator[Subject]:
    """CLIP encodes an empty prompt; T5 encodes the prompt."""
    with _encoding(s, prompt=[""], prompt_2=[s.settings.prompt]):
        yield s


@variation(
    "encode",
    shows=PROMPTS,
    source="FLUX servers that keep T5 only feed zeros for the pooled embedding (mflux, stable-diffusion.cpp options)",
    applies=families(*FLUX1),
)
def pooled_embedding_of_zeros(s: Subject) -> Iterator[Subject]:
    """CLIP's pooled embedding is zero."""

    def change(inputs: dict[str, Any]) -> dict[str, Any]:
        return {**inputs, "pooled_projections": torch.zeros_like(inputs["pooled_projections"])}

    with hooked(s.denoisers[0], change):
        yield s


@variation(
    "encode",
    shows=PROMPTS,
    source="Diffusers StableDiffusionXLPipeline force_zeros_for_empty_prompt with negative_prompt None",
    applies=lambda s: s.spec.id == "sdxl" and s.guided and not s.settings.negative_prompt,
)
def empty_negative_prompt_zeroed(s: Subject) -> Iterator[Subject]:
    """An empty negative prompt is zeros instead of the embedding of nothing."""

    def call(original: Any, *args: Any, **options: Any) -> Any:
        embeds, negative, pooled, negative_pooled = original(*args, **options)
        return embeds, torch.zeros_like(negative), pooled, torch.zeros_like(negative_pooled)

    with wrapped(s.pipe, "encode_prompt", call):
        yield s


@variation(
    "encode",
    shows=NEGATIVE,
    source="trainer toolkit/config_modules.py: `--n` does not reach the second encoder; stock SDXL uses it for both",
    applies=lambda s: s.spec.id == "sdxl" and s.guided and s.settings.negative_prompt_2 != s.settings.negative_prompt,
)
def negative_flag_for_both_encoders(s: Subject) -> Iterator[Subject]:
    """A negative prompt given as a flag reaches both encoders."""
    yield s.but(negative_prompt_2=s.settings.negative_prompt)


@variation(
    "encode",
    shows=PROMPTS,
    source="A1111's and ComfyUI's clip skip; diffusers clip_skip",
    applies=families("sd"),
)
def clip_skip(s: Subject) -> Iterator[Subject]:
    """The text encoder's last layer is left out."""
    if s.spec.id == "sdxl":
        yield s.with_call(clip_skip=1)
        return
    # Not by the pipeline's own argument: Diffusers 0.42 looks for a part that transformers 5 no longer has.
    last = max((m for m in s.pipe.text_encoder.modules() if isinstance(m, nn.ModuleList)), key=len)[-1]
    handle = last.register_forward_hook(lambda _m, args, out: (args[0],) if isinstance(out, tuple) else args[0])
    try:
        yield s
    finally:
        handle.remove()


@variation(
    "encode",
    shows=PROMPTS,
    source="Z-Image and Lumina 2 read the last layer but one; generic text-encoder nodes hand over the last",
    applies=families("zimage", "lumina2"),
)
def last_hidden_layer(s: Subject) -> Iterator[Subject]:
    """The last hidden layer is used, not the one before it."""

    def change(output: Any) -> Any:
        output.hidden_states = (*output.hidden_states[:-2], output.hidden_states[-1], output.hidden_states[-1])
        return output

    with answering(s.pipe.text_encoder, change):
        yield s


@variation(
    "encode",
    shows=CONDITIONING,
    source="A1111, ComfyUI and SD.Next fill in SDXL's size conditioning differently (1024x1024, or 4096)",
    applies=lambda s: s.spec.id == "sdxl",
)
def size_conditioning_of_a_megapixel(s: Subject) -> Iterator[Subject]:
    """SDXL is told that it makes a picture of 1024x1024."""
    yield s.with_call(original_size=(1024, 1024), target_size=(1024, 1024))


# --------------------------------------------------------------------------------------------- tokens, padding, masks


@variation(
    "encode",
    shows=POSITIVE,
    source="Diffusers' defaults and model cards: 256 tokens for FLUX schnell and Lumina 2, 226 for Wan; trainer: 512",
    applies=families(*FLUX1, "wan", "flux2"),
)
def max_sequence_length_of_the_model_card(s: Subject) -> Iterator[Subject]:
    """The prompt is padded to fewer tokens."""
    with _encoding(s, max_sequence_length=226 if s.spec.family == "wan" else 256):
        yield s


@variation(
    "encode",
    shows=POSITIVE,
    source="the tokenizer's saved padding side is not what its pipeline was written for (transformers 4 and 5 differ)",
    applies=families(*FLUX1, "chroma", "wan", "lumina2", "flux2", "hidream"),
)
def padding_on_the_other_side(s: Subject) -> Iterator[Subject]:
    """Prompts are padded in front in place of behind, or the other way round."""
    with ExitStack() as stack:
        for tokenizer in _tokenizers(s):
            if "CLIP" not in type(tokenizer).__name__:
                other = "left" if tokenizer.padding_side == "right" else "right"
                stack.enter_context(patched(tokenizer, "padding_side", other))
        yield s


@variation(
    "encode",
    shows=POSITIVE,
    source="custom encoders (prompt weighting, compel, sd_embed) tokenize without special tokens and add their own",
    applies=families("sd", *FLUX1, "chroma", "wan", "lumina2"),
)
def no_special_tokens(s: Subject) -> Iterator[Subject]:
    """The tokenizer adds neither begin nor end."""
    classes = {type(tokenizer) for tokenizer in _tokenizers(s)}
    with called_with(*classes, add_special_tokens=False):
        yield s


@variation(
    "encode",
    shows=POSITIVE,
    source="stock Diffusers' ChromaPipeline masks T5, as the trainer's attn_masking does for FLUX (off by default)",
    applies=families(*FLUX1, "chroma"),
)
def t5_masked(s: Subject) -> Iterator[Subject]:
    """T5 does not see its padding."""
    pad = 0

    def change(inputs: dict[str, Any]) -> dict[str, Any]:
        return {**inputs, "attention_mask": (inputs["input_ids"] != pad).long()}

    with hooked(_t5(s), change):
        yield s


@variation(
    "encode",
    shows=POSITIVE,
    source="ComfyUI's Wan encoder masks, GGUF and other text encoders do not; FLUX.2's padding stays in the sequence",
    applies=families("wan", "flux2", "hidream"),
)
def text_encoder_mask_dropped(s: Subject) -> Iterator[Subject]:
    """The text encoder reads its padding like words."""

    def change(inputs: dict[str, Any]) -> dict[str, Any]:
        mask = inputs.get("attention_mask")
        return inputs if mask is None else {**inputs, "attention_mask": torch.ones_like(mask)}

    with ExitStack() as stack:
        for encoder in text_encoders(s):
            stack.enter_context(hooked(encoder, change))
        yield s


@variation(
    "encode",
    shows=PROMPTS,
    source="Lumina 2 ports without its caption mask; diffusers 13377: a mask of None",
    applies=families("lumina2"),
)
def denoiser_mask_dropped(s: Subject) -> Iterator[Subject]:
    """The denoiser reads the prompt's padding like words."""

    def change(inputs: dict[str, Any]) -> dict[str, Any]:
        return {**inputs, "encoder_attention_mask": torch.ones_like(inputs["encoder_attention_mask"])}

    with hooked(s.denoisers[0], change):
        yield s


def _chroma_mask(change: Callable[[torch.Tensor], torch.Tensor]) -> AbstractContextManager[None]:
    from lora_drift.pipelines.families import chroma

    encode = chroma.encode

    def masked(pipe: Any, spec: Any, text: str) -> Any:
        embeds, mask = encode(pipe, spec, text)
        return embeds, change(mask)

    return patched(chroma, "encode", masked)


@variation(
    "encode",
    shows=PROMPTS,
    source="Chroma's own mask keeps one token of padding (modify_mask_to_attend_padding); a plain mask keeps none",
    applies=families("chroma"),
)
def padding_token_hidden(s: Subject) -> Iterator[Subject]:
    """The denoiser reads the words and no token of padding."""

    def change(mask: torch.Tensor) -> torch.Tensor:
        return mask & (torch.arange(mask.shape[1], device=mask.device) < int(mask.sum()) - 1)

    with _chroma_mask(change):
        yield s


@variation(
    "encode",
    shows=PROMPTS,
    source="FLUX pipelines over Chroma's weights pass no mask (ostris/ai-toolkit issue 309)",
    applies=families("chroma"),
)
def all_padding_read(s: Subject) -> Iterator[Subject]:
    """The denoiser reads all of the prompt's padding."""
    with _chroma_mask(torch.ones_like):
        yield s


@variation(
    "encode",
    shows=CONDITIONING,
    source="Diffusers before #13564 and since #13931 keep the order of LTX-2's prompt",
    applies=lambda s: s.spec.family == "ltx2" and s.spec.own["prompt_reversed"],
)
def prompt_in_its_own_order(s: Subject) -> Iterator[Subject]:
    """The denoiser reads the prompt from first to last."""
    with (
        patched(s.pipe.connectors.video_connector, "backwards", False),
        patched(s.pipe.connectors.audio_connector, "backwards", False),
    ):
        yield s


@variation(
    "encode",
    shows=POSITIVE,
    source="stock Diffusers' LTX2Pipeline pads before Gemma; the trainer since 0.7.23 behind it",
    applies=families("ltx2"),
)
def padded_before_the_text_encoder(s: Subject) -> Iterator[Subject]:
    """LTX-2's prompt is padded to 1024 tokens before Gemma reads it."""
    from lora_drift.pipelines.families import ltx2

    def embeddings(pipe: Any, spec: Any, text: str) -> tuple[Any, Any]:
        tokens = pipe.tokenizer(
            [text.strip()],
            max_length=spec.max_sequence_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(pipe.text_encoder.device)
        output = pipe.text_encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        )
        embeds = torch.stack(output.hidden_states, dim=-1).flatten(2, 3).to(pipe.transformer.dtype)
        return embeds, tokens.attention_mask.to(embeds.dtype)

    with patched(ltx2, "_embeddings", embeddings):
        yield s
