"""In which numbers, and with which attention, networks work."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from lora_drift.harness.check.divergence import DENOISER, POSITIVE, STEP
from lora_drift.harness.deviations.library.base import (
    Subject,
    changes,
    everywhere,
    families,
    patched,
    rounded,
    scheduler_made,
    text_encoders,
    variation,
    weights,
)
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.runtime import Base


def _denoiser_weights(s: Subject, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[Subject]:
    with ExitStack() as stack:
        for denoiser in s.denoisers:
            stack.enter_context(weights(s, denoiser, change))
        yield s


def _int8(weight: torch.Tensor) -> torch.Tensor:
    """Symmetric, one scale a row; what is not a matrix is left alone, as quantisers do."""
    if weight.dim() < 2:
        return weight
    scale = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round() * scale


def _float8(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.float8_e4m3fn).to(weight.dtype) if weight.dim() > 1 else weight


def _quantized(s: Subject) -> bool:
    asked = s.pipeline.base.quantization
    return s.spec.quantizes is not None and (asked.quantize or asked.encoders)


@variation(
    "precision",
    shows=lambda s: POSITIVE if s.pipeline.base.quantization.encoders else DENOISER,
    source="every stack that loads the released weights: the trainer's UI quantises most models by default",
    applies=_quantized,
)
def base_not_quantised(s: Subject) -> Iterator[Subject]:
    """The base model is as it was released, where the trainer had quantised it; the LoRA stays live."""
    base = s.pipeline.base
    plain = Base(base.spec, base.repo, base.device, base.dtype, base.noise_stream, base.resize_order, Quantization(),
                 offload=base.offload, vae_noise=base.vae_noise)  # fmt: skip
    yield replace(s, pipeline=replace(s.pipeline, base=plain))


@variation(
    "precision",
    shows=DENOISER,
    source="the trainer's quantize (qfloat8, the UI's default) and ComfyUI's fp8 weights; ostris/ai-toolkit issue 589",
    applies=lambda s: not s.pipeline.base.quantization.quantize,
)
def base_in_float8(s: Subject) -> Iterator[Subject]:
    """The denoiser's weights are rounded to float8."""
    yield from _denoiser_weights(s, _float8)


def _float8_e5m2(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.float8_e5m2).to(weight.dtype) if weight.dim() > 1 else weight


@variation(
    "precision",
    shows=DENOISER,
    source="ComfyUI's weight_dtype fp8_e5m2, for GPUs whose compiler knows no e4m3 (RTX 30); Forge's float8-e5m2",
    applies=lambda s: not s.pipeline.base.quantization.quantize,
)
def base_in_float8_e5m2(s: Subject) -> Iterator[Subject]:
    """The denoiser's weights are rounded to the float8 with two bits of mantissa."""
    yield from _denoiser_weights(s, _float8_e5m2)


@variation(
    "precision",
    shows=DENOISER,
    source="optimum-quanto qint8, bitsandbytes and torchao int8 bases; GGUF Q8_0",
    applies=lambda s: not s.pipeline.base.quantization.quantize,
)
def base_in_int8(s: Subject) -> Iterator[Subject]:
    """The denoiser's weights are rounded to 8-bit integers, one scale a row."""
    yield from _denoiser_weights(s, _int8)


@variation(
    "precision",
    shows=DENOISER,
    source="float16 variants on the hub (runcomfy ai-toolkit-inference sd15.py lines 45-50: fp16, then bf16)",
    applies=lambda s: any(changes(s, denoiser, rounded(torch.float16)) for denoiser in s.denoisers),
)
def base_in_float16(s: Subject) -> Iterator[Subject]:
    """The denoiser's weights are rounded to float16."""
    yield from _denoiser_weights(s, rounded(torch.float16))


@variation(
    "precision",
    shows=POSITIVE,
    source="torch.autocast around the call (runcomfy ai-toolkit-inference chroma.py, hidream.py, lumina2.py)",
    applies=everywhere,
)
def autocast_to_bfloat16(s: Subject) -> Iterator[Subject]:
    """Everything runs under autocast."""

    def render(original: Any, pipe: Any, settings: Any, call: dict[str, Any]) -> Any:
        with torch.autocast(torch.device(s.pipeline.base.device).type, dtype=torch.bfloat16):
            return original(pipe, settings, **call)

    yield s.around_render(render)


def _tf32(x: torch.Tensor) -> torch.Tensor:
    """Rounded to 10 bits of mantissa, to nearest."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@variation(
    "precision",
    shows=POSITIVE,
    source="runcomfy ai-toolkit-inference wan22_t2v.py line 142 turns TF32 on for the whole process; pitfalls of cudnn",
    applies=lambda s: s.pipeline.base.dtype == "float32",
)
def matrices_multiplied_in_tf32(s: Subject) -> Iterator[Subject]:
    """Matrix products are computed from numbers with ten bits of mantissa."""
    linear = functional.linear

    def rounded_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear(_tf32(x), _tf32(weight), bias) if x.dtype == torch.float32 else linear(x, weight, bias)

    with patched(functional, "linear", rounded_linear):
        yield s


def _latents_between_steps(s: Subject, dtype: torch.dtype) -> Iterator[Subject]:
    def step(original: Any, _scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if isinstance(result, tuple):
            return (result[0].to(dtype).to(result[0].dtype), *result[1:])
        result.prev_sample = result.prev_sample.to(dtype).to(result.prev_sample.dtype)
        return result

    with scheduler_made(step=step):
        yield s


@variation(
    "precision",
    shows=STEP,
    source="half-precision pipelines keep latents in float16; Z-Image, Wan and LTX keep float32",
    applies=everywhere,
)
def latents_in_float16(s: Subject) -> Iterator[Subject]:
    """Latents are rounded to float16 between the steps."""
    yield from _latents_between_steps(s, torch.float16)


@variation(
    "precision",
    shows=STEP,
    source="the trainer's flux2/src/pipeline.py steps in the model's bfloat16, Diffusers' scheduler in float32",
    applies=everywhere,
)
def latents_in_bfloat16(s: Subject) -> Iterator[Subject]:
    """Latents are rounded to bfloat16 between the steps."""
    yield from _latents_between_steps(s, torch.bfloat16)


# ----------------------------------------------------------------------------------------------------- text encoders


def _text_encoders_in(dtype: torch.dtype) -> tuple[Callable[[Subject], bool], Callable[[Subject], Iterator[Subject]]]:
    change = rounded(dtype)

    def applies(s: Subject) -> bool:
        return any(changes(s, encoder, change) for encoder in text_encoders(s))

    def vary(s: Subject) -> Iterator[Subject]:
        with ExitStack() as stack:
            for encoder in text_encoders(s):
                stack.enter_context(weights(s, encoder, change))
            yield s

    return applies, vary


@variation(
    "encode",
    shows=POSITIVE,
    source="ComfyUI's t5xxl_fp8_e4m3fn and the trainer's quantize_te (qfloat8, the UI's default)",
    applies=everywhere,
)
def text_encoder_in_float8(s: Subject) -> Iterator[Subject]:
    """The text encoders' weights are rounded to float8."""
    yield from _text_encoders_in(torch.float8_e4m3fn)[1](s)


@variation(
    "encode",
    shows=POSITIVE,
    source="T5 in float16 (ComfyUI's t5xxl_fp16, half-precision pipelines)",
    applies=_text_encoders_in(torch.float16)[0],
)
def text_encoder_in_float16(s: Subject) -> Iterator[Subject]:
    """The text encoders' weights are rounded to float16."""
    yield from _text_encoders_in(torch.float16)[1](s)


@variation(
    "encode",
    shows=POSITIVE,
    source="hidream_model.py asks Llama for attentions, which makes it eager; everything else runs it fused",
    applies=families("hidream", "hidream_e1"),
)
def llama_with_fused_attention(s: Subject) -> Iterator[Subject]:
    """HiDream's Llama runs fused attention, in which padding in front comes out otherwise."""
    with _attention(s.pipe.text_encoder_4, "sdpa"):
        yield s


@contextmanager
def _attention(encoder: Any, kind: str) -> Iterator[None]:
    """While the block runs, `encoder` runs `kind` of attention."""
    before = encoder.config._attn_implementation
    encoder.config._attn_implementation = kind
    try:
        yield
    finally:
        encoder.config._attn_implementation = before


@variation(
    "encode",
    shows=POSITIVE,
    source="transformers 4.57 runs Gemma 2 on SDPA without its cap; newer ones apply it (pipelines/families/lumina2)",
    applies=families("lumina2"),
)
def attention_logits_capped(s: Subject) -> Iterator[Subject]:
    """Gemma 2 caps its attention logits, which only eager attention does."""
    encoder = s.pipe.text_encoder
    cap = encoder.config.attn_logit_softcapping
    with ExitStack() as stack:
        stack.enter_context(_attention(encoder, "eager"))
        for layer in encoder.layers:
            stack.enter_context(patched(layer.self_attn, "attn_logit_softcapping", cap))
        yield s
