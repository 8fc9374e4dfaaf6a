"""The LoRA: which of it is applied, how strongly, in which arithmetic."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from lora_drift.harness.check.divergence import DENOISER, LORA, PROMPTS
from lora_drift.harness.deviations.library.base import Subject, patched, variation
from lora_drift.pipelines import adapter
from lora_drift.pipelines.lora import Delta, LoKr, LowRank


def _has(s: Subject) -> bool:
    return s.lora is not None and s.settings.multiplier != 0


def _scales(s: Subject) -> bool:
    return s.lora is not None and any(d.change.scale != 1 for d in s.lora.deltas)


def _low_rank(s: Subject) -> bool:
    return s.lora is not None and any(isinstance(d.change, LowRank) for d in s.lora.deltas)


def _strength(s: Subject) -> str:
    """Where another strength shows first: in the prompts, if the LoRA changes a text encoder."""
    encodes = s.lora is not None and any(d.component.startswith("text_encoder") for d in s.lora.deltas)
    return PROMPTS if encodes else DENOISER


def _rescaled(s: Subject, scale: Callable[[LowRank | LoKr], float]) -> Iterator[Subject]:
    yield s.with_deltas(lambda d: replace(d, change=replace(d.change, scale=scale(d.change))))


def _without(s: Subject, pattern: str) -> Callable[[Delta], Delta | None]:
    return lambda d: None if re.search(pattern, d.module) else d


def _drops_some(pattern: str) -> Callable[[Subject], bool]:
    """Does the pattern match some modules of the LoRA, and not all?"""

    def applies(s: Subject) -> bool:
        hits = [bool(re.search(pattern, d.module)) for d in s.lora.deltas] if s.lora else []
        return any(hits) and not all(hits)

    return applies


@variation(
    "adapter",
    shows=LORA,
    source="ostris/ai-toolkit issues 801, 667, 372, diffusers 9361: keys that match nothing are skipped silently",
    applies=_has,
)
def lora_off(s: Subject) -> Iterator[Subject]:
    """The LoRA has no effect."""
    yield s.with_deltas(lambda _delta: None)


@variation(
    "adapter",
    shows=_strength,
    source="runcomfy ai-toolkit-inference ltx2.py lines 155-158: the first load ignores a scale other than 1",
    applies=lambda s: _has(s) and s.settings.multiplier != 1,
)
def multiplier_ignored(s: Subject) -> Iterator[Subject]:
    """The LoRA is applied at strength 1."""
    yield s.but(multiplier=1.0)


@variation(
    "adapter",
    shows=_strength,
    source="runcomfy ai-toolkit-inference: each LoRA switch stacked on the fused old one; diffusers 5604, cog-flux 24",
    applies=_has,
)
def lora_applied_twice(s: Subject) -> Iterator[Subject]:
    """The LoRA is fused into weights that already hold it."""
    yield s.but(multiplier=2 * s.settings.multiplier)


@variation(
    "adapter",
    shows=_strength,
    source="slider LoRAs, whose two ends change places between programs; the trainer's merge_out adds with a minus",
    applies=_has,
)
def lora_inverted(s: Subject) -> Iterator[Subject]:
    """The LoRA is subtracted where it should be added."""
    yield s.but(multiplier=-s.settings.multiplier)


@variation(
    "adapter",
    shows=LORA,
    source="diffusers 9134, ComfyUI 6909; runcomfy ai-toolkit-inference hidream.py, omnigen2.py: alpha ignored",
    applies=_scales,
)
def alpha_ignored(s: Subject) -> Iterator[Subject]:
    """The LoRA is applied as if alpha were its rank."""
    yield from _rescaled(s, lambda change: 1.0)


@variation(
    "adapter",
    shows=LORA,
    source="alpha baked into the weights by a converter, and the key left in (kohya's and LyCORIS' scripts)",
    applies=_scales,
)
def alpha_applied_twice(s: Subject) -> Iterator[Subject]:
    """The LoRA is scaled by alpha / rank twice."""
    yield from _rescaled(s, lambda change: change.scale**2)


@variation(
    "adapter",
    shows=LORA,
    source="kohya's default alpha is 1; the trainer saves no alpha for transformers, where it forces alpha = rank",
    applies=lambda s: _has(s) and _low_rank(s) and not _scales(s),
)
def missing_alpha_read_as_one(s: Subject) -> Iterator[Subject]:
    """A file without alpha is scaled by 1 / rank."""
    yield from _rescaled(s, lambda c: 1.0 / c.down.shape[0] if isinstance(c, LowRank) else c.scale)


@variation(
    "adapter",
    shows=LORA,
    source="PEFT computes B @ A in the adapter's dtype and fuse_lora adds in bfloat16; trainer: float32, rounded once",
    applies=lambda s: _has(s) and _low_rank(s) and not _dora(s) and not s.pipeline.base.quantization.quantize,
)
def fused_in_bfloat16(s: Subject) -> Iterator[Subject]:
    """The product of the LoRA's halves is rounded to bfloat16 before it is merged."""
    scaled = adapter.scaled

    def rounded(change: LowRank | LoKr, multiplier: float) -> torch.Tensor:
        return scaled(change, multiplier).to(torch.bfloat16).float()

    with patched(adapter, "scaled", rounded):
        varied = s.with_deltas(lambda delta: delta, mode="merged")
        yield varied


@variation(
    "adapter",
    shows=DENOISER,
    source="stacks with PEFT adapters (Diffusers set_adapters, ComfyUI) against the trainer's merge, or the reverse",
    applies=lambda s: _has(s) and not _dora(s) and not s.pipeline.base.quantization.quantize,
)
def live_for_merged(s: Subject) -> Iterator[Subject]:
    """The LoRA is added to each layer's output where the trainer merges it into the weights, or the other way round."""
    yield s.with_deltas(lambda delta: delta, mode="live" if s.pipeline.mode == "merged" else "merged")


def _rounded(change: LowRank | LoKr, dtype: torch.dtype) -> LowRank | LoKr:
    def to(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype).float()

    if isinstance(change, LoKr):
        return replace(change, w1=to(change.w1), w2=to(change.w2))
    return replace(change, down=to(change.down), up=to(change.up))


def _rounding(dtype: torch.dtype) -> Callable[[Subject], bool]:
    """Does rounding the file to `dtype` change it?"""

    def applies(s: Subject) -> bool:
        return _has(s) and s.lora is not None and any(
            not torch.equal(_rounded(d.change, dtype).weight(), d.change.weight()) for d in s.lora.deltas
        )  # fmt: skip

    return applies


@variation(
    "adapter",
    shows=LORA,
    source="the trainer's save.dtype is bf16 in its UI, float16 by default: a file converted once more is rounded",
    applies=_rounding(torch.bfloat16),
)
def lora_rounded_to_bfloat16(s: Subject) -> Iterator[Subject]:
    """The LoRA's numbers are cast to bfloat16."""
    yield s.with_deltas(lambda d: replace(d, change=_rounded(d.change, torch.bfloat16)))


@variation(
    "adapter",
    shows=LORA,
    source="ComfyUI and Nunchaku keep LoRAs in float8 with float8 bases; cog-flux issue 24 (needs 1.7 instead of 1.1)",
    applies=_rounding(torch.float8_e4m3fn),
)
def lora_rounded_to_float8(s: Subject) -> Iterator[Subject]:
    """The LoRA's numbers are cast to float8."""
    yield s.with_deltas(lambda d: replace(d, change=_rounded(d.change, torch.float8_e4m3fn)))


@variation(
    "adapter",
    shows=LORA,
    source="ostris/ai-toolkit issue 372: names of one kind of layer are not converted, and skipped with a warning",
    applies=_drops_some(r"to_out|to_add_out|proj_out|attn\.to_qkv_mlp_proj|o_proj|attention\.out"),
)
def output_projections_not_loaded(s: Subject) -> Iterator[Subject]:
    """The LoRA of the attention's output projections is skipped."""
    pattern = r"to_out|to_add_out|proj_out|attn\.to_qkv_mlp_proj|o_proj|attention\.out"
    yield s.with_deltas(_without(s, pattern))


@variation(
    "adapter",
    shows=LORA,
    source="kohya-style loaders with a map of attention layers only; musubi-tuner issue 661",
    applies=_drops_some(r"\bff\b|ff_|ff\.|ffn|mlp|feed_forward|conv|resnet|linear"),
)
def only_attention_layers_loaded(s: Subject) -> Iterator[Subject]:
    """The LoRA of the feed-forward layers and convolutions is skipped."""
    yield s.with_deltas(_without(s, r"\bff\b|ff_|ff\.|ffn|mlp|feed_forward|conv|resnet|linear"))


@variation(
    "adapter",
    shows=LORA,
    source="a loader that counts blocks from a shorter model (schnell, lite, pruned) leaves the last one out",
    applies=lambda s: _has(s) and s.lora is not None and len(s.lora.deltas) > 1,
)
def last_module_not_loaded(s: Subject) -> Iterator[Subject]:
    """One module of the LoRA is skipped."""
    assert s.lora is not None
    last = s.lora.deltas[-1]
    yield s.with_deltas(lambda d: None if d is last else d)


SINGLE = r"^single_"


@variation(
    "adapter",
    shows=LORA,
    source="loaders for double blocks only (XLabs' FLUX adapters); ComfyUI's block-weight nodes with SINGLE at 0",
    applies=_drops_some(SINGLE),
)
def single_blocks_not_loaded(s: Subject) -> Iterator[Subject]:
    """The LoRA of the blocks in which words and picture are one sequence is skipped."""
    yield s.with_deltas(_without(s, SINGLE))


OF_WORDS = r"add_[qkv]_proj$|to_add_out$|ff_context|norm1_context|txt_m|attn1\.to_(q|k|v|out)_t$|ff_t\."


@variation(
    "adapter",
    shows=LORA,
    source="converters of fused qkv matrices that know the picture's stream only (txt_attn, add_q_proj left over)",
    # Wan's add_k_proj is for the picture that CLIP sees.
    applies=lambda s: s.spec.family != "wan" and _drops_some(OF_WORDS)(s),
)
def layers_for_words_not_loaded(s: Subject) -> Iterator[Subject]:
    """Of blocks with a stream for words and one for the picture, the LoRA changes the picture's alone."""
    yield s.with_deltas(_without(s, OF_WORDS))


def _of_later_blocks(s: Subject) -> set[tuple[str, str]]:
    """(component, module) of what lies in the second half of the denoiser's blocks of its kind."""
    assert s.lora is not None
    matches = [(d, re.match(r"(.*?)\.(\d+)\.", d.module)) for d in s.lora.deltas if not _of_encoder(s, d)]
    placed = [(d, m[1], int(m[2])) for d, m in matches if m]
    last: dict[str, int] = {}
    for _, kind, number in placed:
        last[kind] = max(last.get(kind, 0), number)
    return {(d.component, d.module) for d, kind, number in placed if number > last[kind] / 2}


@variation(
    "adapter",
    shows=LORA,
    source="block weights (sd-webui-lora-block-weight, ComfyUI Inspire's LoRA Loader by blocks) with later blocks at 0",
    applies=lambda s: s.lora is not None and 0 < len(_of_later_blocks(s)) < len(s.lora.deltas),
)
def later_blocks_not_loaded(s: Subject) -> Iterator[Subject]:
    """The LoRA changes the first half of the blocks of each kind only."""
    later = _of_later_blocks(s)
    yield s.with_deltas(lambda d: None if (d.component, d.module) in later else d)


def _in_steps(s: Subject, *, first: bool) -> Subject:
    """With the denoiser's LoRA in the first half of the steps only, or in the others only."""
    varied = s.with_deltas(lambda delta: delta)  # by its hash another one, whose answers are other than the whole one's
    whole, adapter_of = varied.lora, s.pipeline.base.adapter
    assert whole is not None
    for_words = replace(whole, deltas=tuple(d for d in whole.deltas if _of_encoder(s, d)))

    def act(step: int) -> None:
        now = (step < s.settings.steps // 2) == first
        adapter_of.set(whole if now else for_words, s.settings.multiplier, varied.pipeline.mode)

    return varied.before_each_step(act)


def _in_several_steps(s: Subject) -> bool:
    return _has(s) and s.settings.steps > 1


@variation(
    "adapter",
    shows=DENOISER,
    source="ComfyUI's LoRA hooks and A1111's [<lora:x:1>::0.5]: a LoRA that ends halfway",
    applies=_in_several_steps,
)
def lora_in_the_first_half_of_the_steps(s: Subject) -> Iterator[Subject]:
    """From the middle of the steps on, the denoiser is without the LoRA."""
    yield _in_steps(s, first=True)


@variation(
    "adapter",
    shows=DENOISER,
    source="ComfyUI's LoRA hooks, second samplers and refiners: a LoRA that begins halfway",
    applies=_in_several_steps,
)
def lora_in_the_second_half_of_the_steps(s: Subject) -> Iterator[Subject]:
    """Up to the middle of the steps, the denoiser is without the LoRA."""
    yield _in_steps(s, first=False)


@variation(
    "adapter",
    shows=LORA,
    source="ostris/ai-toolkit issue 739: LTX-2's sound layers spoil the result elsewhere and are left out there",
    applies=lambda s: s.spec.family == "ltx2" and _drops_some("audio|video_to_audio|a2v|v2a")(s),
)
def sound_layers_not_loaded(s: Subject) -> Iterator[Subject]:
    """The LoRA of the layers for sound is skipped."""
    yield s.with_deltas(_without(s, "audio|video_to_audio|a2v|v2a"))


def _expert(component: str) -> Callable[[Subject], bool]:
    def applies(s: Subject) -> bool:
        names = {d.component for d in s.lora.deltas} if s.lora else set()
        return len(s.spec.denoisers) > 1 and component in names

    return applies


@variation(
    "adapter",
    shows=LORA,
    source="ostris/ai-toolkit issue 349: only one of Wan 2.2's two files is loaded",
    applies=_expert("transformer_2"),
)
def low_noise_lora_missing(s: Subject) -> Iterator[Subject]:
    """The expert for little noise gets no LoRA."""
    yield s.with_deltas(lambda d: None if d.component == "transformer_2" else d)


@variation(
    "adapter",
    shows=LORA,
    source="ostris/ai-toolkit issue 349: only one of Wan 2.2's two files is loaded",
    applies=_expert("transformer"),
)
def high_noise_lora_missing(s: Subject) -> Iterator[Subject]:
    """The expert for much noise gets no LoRA."""
    yield s.with_deltas(lambda d: None if d.component == "transformer" else d)


@variation(
    "adapter",
    shows=LORA,
    source="ostris/ai-toolkit issues 349 and 421: high and low confused",
    applies=lambda s: _expert("transformer")(s) or _expert("transformer_2")(s),
)
def experts_loras_swapped(s: Subject) -> Iterator[Subject]:
    """Each of Wan 2.2's experts gets the other's LoRA."""
    other = {"transformer": "transformer_2", "transformer_2": "transformer"}
    yield s.with_deltas(lambda d: replace(d, component=other[d.component]))


def _dora(s: Subject) -> bool:
    return s.lora is not None and any(getattr(d.change, "magnitude", None) is not None for d in s.lora.deltas)


@variation(
    "adapter",
    shows=DENOISER,
    source="the trainer's key `magnitude` is neither Diffusers' lora_magnitude_vector nor ComfyUI's dora_scale",
    applies=_dora,
)
def dora_magnitude_ignored(s: Subject) -> Iterator[Subject]:
    """A DoRA is applied like a LoRA."""

    def plain(delta: Delta) -> Delta:
        change: Any = delta.change
        return replace(delta, change=replace(change, magnitude=None))

    yield s.with_deltas(plain, mode="live")


@variation(
    "adapter",
    shows=LORA,
    source="convolutions of LoCon files are skipped by loaders for Linear layers (diffusers before 0.17, kohya names)",
    applies=lambda s: s.lora is not None and any(_convolution(d) for d in s.lora.deltas),
)
def convolutions_not_loaded(s: Subject) -> Iterator[Subject]:
    """The LoRA of 3x3 convolutions is skipped."""
    yield s.with_deltas(lambda d: None if _convolution(d) else d)


def _convolution(delta: Delta) -> bool:
    return isinstance(delta.change, LowRank) and delta.change.down.dim() == 4 and delta.change.down.shape[-1] > 1


@variation(
    "adapter",
    shows=LORA,
    source="fused qkv matrices split in another order (BFL's, Diffusers', musubi's): FLUX.2 and Chroma converters",
    applies=lambda s: (
        s.lora is not None
        and s.spec.family in ("flux2", "chroma")
        and any(re.search(r"to_k$|add_k_proj$", d.module) for d in s.lora.deltas)
    ),
)
def keys_and_values_exchanged(s: Subject) -> Iterator[Subject]:
    """Of a fused matrix, the rows for keys go to the values and the other way round."""
    assert s.lora is not None
    swaps = (("to_k", "to_v"), ("to_v", "to_k"), ("add_k_proj", "add_v_proj"), ("add_v_proj", "add_k_proj"))
    changes = {(d.component, d.module): d.change for d in s.lora.deltas}

    def exchanged(delta: Delta) -> Delta:
        for name, other in swaps:
            if delta.module.endswith(name):
                module = delta.module.removesuffix(name) + other
                return replace(delta, change=changes[delta.component, module])
        return delta

    yield s.with_deltas(exchanged)


def _of_encoder(s: Subject, delta: Delta) -> bool:
    return delta.component in s.spec.encoder_prefixes.values()


@variation(
    "adapter",
    shows=LORA,
    source="ComfyUI issue 6584, kohya-ss/sd-scripts 1425; loaders that patch the denoiser only skip lora_te keys",
    applies=lambda s: s.lora is not None and any(_of_encoder(s, d) for d in s.lora.deltas),
)
def text_encoder_lora_not_loaded(s: Subject) -> Iterator[Subject]:
    """The LoRA of the text encoders is skipped."""
    yield s.with_deltas(lambda d: None if _of_encoder(s, d) else d)
