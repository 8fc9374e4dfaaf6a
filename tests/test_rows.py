"""No number of a row is dead: each field of each row is changed, and something that renders it must notice.

What notices is looked for from the cheapest to the dearest: the resolved settings, the scheduler, what is quantised and
where a LoRA goes (all of every row, in seconds); then, with the miniature, what is loaded, what the denoiser first
reads, and the picture of two steps (of a few models always, of all of them where slow tests run).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lora_drift.harness.check.cases import ASSETS
from lora_drift.pipelines import ModelSpec, RequestError, loading, lora, noise, quantize
from lora_drift.pipelines.family import same_name
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.registry import FAMILIES
from lora_drift.pipelines.registry import ROWS as MODELS
from lora_drift.pipelines.runtime import Base, Pipeline
from lora_drift.pipelines.settings import Request, Settings, resolve
from lora_drift.pipelines.spec import INFORMS, RESIZE_ORDER, Quantizes, Scheduler

VIDEO_ONLY = ("num_frames", "frame_step", "frames_floored")
"""Of rows that make one picture they change nothing: it has one frame."""
ELSEWHERE = ("tokenization", "slow_tokenizers", "digests_captions")
"""Few texts show them; tests/test_text.py and tests/test_ideogram4.py have those."""
IN_HALF_PRECISION = ("norms_in_float32",)
"""tests/test_bfloat16.py."""
TOLD = "quantizes.by_default"
"""What the trainer's UI writes: for the catalogue, and for jobs that are made, not rendered."""
ALWAYS = ("sd15", "flux_kontext", "chroma", "qwen_image_edit_plus")
"""Models whose miniature is loaded in the fast test, too: an own loader, control images, both kinds of guidance."""
OTHER: Mapping[str, Any] = {
    "family": "no such family",
    "controls": (4, 4),
    "width": 2048,
    "height": 2048,
    "num_frames": 81,
    "max_sequence_length": 9,
    "guidance": "cfg",
    "clip_resize": "pillow",
    "lora_prefixes": ("another_prefix.",),
    "encoders": (),
    "read_in": "float16",
    "encoder_layers": (1, 2, 3),
    "spatio_temporal_guidance_blocks": (0,),
    "audio_guidance_scale": 9.0,
    "audio_stg_scale": 0.5,
    "audio_modality_scale": 2.0,
    "audio_guidance_rescale": 0.5,
    "padding_side": "left",
    "boundary_ratio": 0.5,
    "logit_softcapping": 1.0,
    "seen_area": 128 * 128,
    "control_crf": 40,
    "norm_eps": 0.1,
    "padding_read": 5,
    "most_pixels": 64 * 64,
    "longest_reference_side": 48,
    "render_divisor": 64,
    "system_prompt": "You are a painter.",
    "stg_scale": 2.0,
    "modality_scale": 2.0,
    "guidance_rescale": 0.3,
}
"""Other values, where just another of the type would be refused, or would be too near; or would show nothing: a weight
that was saved in bfloat16 is the same read in float32, but a small one is not the same read in float16."""


def other(spec: ModelSpec, name: str, value: Any) -> Any:
    """Another value for a field."""
    hint = get_type_hints(type(spec))[name]
    options = [o for part in (hint, *get_args(hint)) if get_origin(part) is Literal for o in get_args(part)]
    if name in OTHER and OTHER[name] != value:
        return OTHER[name]
    if options:
        return next(option for option in reversed(options) if option != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"no such {value}"


def changes(spec: ModelSpec) -> Iterator[tuple[str, ModelSpec]]:
    """(what is changed, the row with it): each field, and each entry of those that have entries."""
    for f in fields(spec):
        value = getattr(spec, f.name)
        if f.name in (*INFORMS, *ELSEWHERE, *IN_HALF_PRECISION) or (f.name in VIDEO_ONLY and spec.kind != "video"):
            continue
        if f.name == "guidance" and getattr(spec, "guidance_offset", 0) > 0:
            continue  # the pipeline does not guide at what the offset leaves of a small scale: it says the same
        if f.name == "refuses_control" and spec.controls[1]:
            continue  # it takes some
        if f.name == "size_rule" and spec.size_divisor == spec.asked_divisor:
            continue  # there is nothing left to floor, or to refuse
        if isinstance(value, Scheduler):
            yield "scheduler.cls", replace(spec, scheduler=replace(value, cls="ours.OmniGen2FlowMatchEuler"
                   if "OmniGen2" not in value.cls else "diffusers.DDPMScheduler"))  # fmt: skip
            for key, entry in value.config.items():
                config = {**value.config, key: f"{entry}?" if isinstance(entry, str) else
                          not entry if isinstance(entry, bool) else 2 * entry + 1}  # fmt: skip
                yield f"scheduler.{key}", replace(spec, scheduler=replace(value, config=config))
        elif isinstance(value, Quantizes):
            yield "quantizes", replace(spec, quantizes=None)
            yield "quantizes.encoders", replace(spec, quantizes=replace(value, encoders=()))
            te: Any = "qtype" if value.encoder_qtype == "qtype_te" else "qtype_te"
            yield "quantizes.encoder_qtype", replace(spec, quantizes=replace(value, encoder_qtype=te))
            yield "quantizes.spared", replace(spec, quantizes=replace(value, spared=("y*",)))
            by_layer = not value.layer_by_layer
            yield "quantizes.layer_by_layer", replace(spec, quantizes=replace(value, layer_by_layer=by_layer))
            for reads in {"adapter", "exclude", "neither"} - {value.reads}:
                yield f"quantizes.reads {reads}", replace(spec, quantizes=replace(value, reads=reads))  # type: ignore[arg-type]
        elif f.name == "quantizes":
            yield "quantizes", replace(spec, quantizes=Quantizes(("text_encoder",)))
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                new = f"nobody/{entry}" if f.name != "encoder_attention" else "sdpa" if entry != "sdpa" else "eager"
                entries: Any = {**value, key: new}
                yield f"{f.name}.{key}", replace(spec, **{f.name: entries})
        else:
            yield f.name, replace(spec, **{f.name: other(spec, f.name, value)})


def test_every_field_is_walked_or_declared() -> None:
    walked = {name.partition(".")[0].partition(" ")[0] for row in MODELS.values() for name, _ in changes(row)}
    every = {f.name for row in MODELS.values() for f in fields(row)}
    assert walked | {*INFORMS, *ELSEWHERE, *IN_HALF_PRECISION} == every
    assert not walked & set(INFORMS)
    assert all(is_dataclass(row) and row.__dataclass_params__.frozen for row in MODELS.values())  # type: ignore[attr-defined]
    ours = {"encoders", "encoder_qtype", "reads", "spared", "layer_by_layer", TOLD.partition(".")[2]}
    assert {f.name for f in fields(Quantizes)} == ours


# ------------------------------------------------------------------------------------------------ without any weights


ERRORS = (RequestError, OSError, KeyError, AttributeError, ValueError, TypeError, RuntimeError, AssertionError,
          ImportError)  # fmt: skip
"""A refusal, or whatever an impossible value leads to: it was read. An import: of a package that only the other value
needs (PyAV, to compress LTX-2's control image)."""


def outcome(do: Callable[[], Any]) -> str:
    try:
        return repr(do())
    except ERRORS as error:
        return f"{type(error).__name__}: {error}"


def settings_of(spec: ModelSpec, row: ModelSpec) -> list[str]:
    """How requests resolve that lie about the limits of `row`."""
    asked: list[dict[str, Any]] = [{"control": [str(ASSETS / "tall.png")] * n} for n in range(5)]
    least = asked[row.controls[0]]
    asked += [{**least, "steps": n} for n in (1, 2, row.most_steps, row.most_steps + 1)]
    asked += [{**least, "width": w, "height": h} for w, h in ((64, 64), (10, 10), (333, 777), (340, 72), (1024, 608))]
    asked += [{**least, "num_frames": n} for n in (2, 8, 16)]
    asked.append({"ctrl_img": str(ASSETS / "tall.png")})
    return [outcome(lambda more=more: resolve(spec, Request("a fox", **more))) for more in asked]  # type: ignore[misc]


class Named:
    """A pipeline whose components are their names."""

    def __getattr__(self, name: str) -> str:
        return name


def quantised(spec: ModelSpec) -> str:
    done: list[Any] = []

    def record(part: Any, qtype: str, exclude: Any = (), **how: Any) -> None:
        done.append((part, qtype, tuple(exclude), how))

    asked = Quantization(True, True, "uint4", "qfloat8", accuracy_recovery_adapter="a.safetensors", exclude=("x*",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "quantize", record)
        quantize.apply(Named(), spec, asked, None)
    return repr((done, asked.adapter_of(spec)))


def laid_out(row: Scheduler) -> Any:
    made = loading.scheduler(row)
    return type(made).__name__, sorted(made.config.items(), key=str)


def cheap(spec: ModelSpec, row: ModelSpec) -> list[str]:
    """What becomes of a row before anything is loaded."""
    shapes = {part: {"a": (4, 4)} for part in row.adapted}
    part = next(iter(row.denoisers.values()))
    resolver = lora._resolver(spec, shapes, same_name, part)
    base = outcome(lambda: Base(spec, spec.base, "cpu", "float32", "torch-2.11", RESIZE_ORDER, Quantization()).family)
    mode = outcome(lambda: Pipeline(Base(replace(spec, family=row.family), "", "cpu", "float32", "torch-2.11",
                                         RESIZE_ORDER, Quantization())).usual_mode)  # fmt: skip
    scheduler = outcome(lambda: laid_out(spec.scheduler))
    # The row's own prefixes alone would not do: the schemes of other trainers have most of them, too.
    sought = [repr(resolver(prefix + "a")) for prefix in (*row.lora_prefixes, *OTHER["lora_prefixes"])]
    sought += [repr(resolver(prefix + "text_model_a")) for prefix in row.encoder_prefixes]
    return [*settings_of(spec, row), quantised(spec), scheduler, base, mode, *sought]


LOADED = {
    "base", "pipeline", "components", "denoisers", "encoder_attention", "norm_eps", "logit_softcapping",
    "transformer_file", "vae_file", "text_encoder_class", "tokenizer_class", "padding_side", "read_in",
    "reference_dtype", "max_sequence_length", "boundary_ratio", "expand_timesteps", "clip_resize", "seen_in_place",
    "prompt_reversed", "unconditional_lora",
}  # fmt: skip
"""Fields that are read when weights load; the others when a render begins."""
NEEDS_WEIGHTS = {*LOADED, "guidance"}


def weightless(spec: ModelSpec, name: str) -> bool:
    field = name.partition(".")[0]
    return field not in NEEDS_WEIGHTS and field not in spec.own


@pytest.mark.parametrize("model", MODELS)
def test_what_needs_no_weights_is_read(model: str) -> None:
    row = MODELS[model]
    before = cheap(row, row)
    dead = [name for name, changed in changes(row) if weightless(row, name) and cheap(changed, row) == before]
    assert dead == []


# ------------------------------------------------------------------------------------------------- with the miniature


class Stop(Exception):
    """The denoiser was reached."""


def digest(value: Any) -> Any:
    """Tensors and pictures by their bytes, so that two calls can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), sha256(value.detach().float().numpy().tobytes()).hexdigest()
    if isinstance(value, Image.Image):
        return value.size, sha256(value.tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return {key: digest(entry) for key, entry in value.items()}
    return [digest(entry) for entry in value] if isinstance(value, list | tuple) else repr(value)


def loaded(spec: ModelSpec) -> Base:
    base = Base(spec, spec.base, "cpu", "float32", "torch-2.11", RESIZE_ORDER, Quantization())
    _ = base.adapter
    if spec.id == "hidream":  # the miniature's 256 tokens are an end of the line of shifts, where its slope is not seen
        base.pipe.transformer.max_seq = 1024
    return base


def graph(base: Base) -> Any:
    """What was loaded: classes, configs, weights, and how encoders attend and tokenizers pad."""
    parts: dict[str, Any] = {"pipeline": (type(base.pipe).__name__, dict(base.pipe.config))}
    for name, part in base.pipe.components.items():
        inner = getattr(part, "tokenizer", part)
        parts[name] = [type(part).__name__, getattr(inner, "padding_side", ""), getattr(inner, "model_max_length", 0)]
        if isinstance(part, nn.Module):
            weights = sum(float(value.double().abs().sum()) for value in part.parameters())
            attention = [m.config._attn_implementation for m in part.modules() if hasattr(m, "config")
                         and hasattr(m.config, "_attn_implementation")]  # fmt: skip
            parts[name] += [weights, attention, [getattr(m, "eps", 0) for m in part.modules()]]
            parts[name] += [getattr(m, "attn_logit_softcapping", None) for m in part.modules()]
    return repr(parts)


def asked_of(row: ModelSpec, tmp: Path) -> list[Settings]:
    """Small requests that reach all of a family: with and without control images, guided, barely guided, and not."""
    common: dict[str, Any] = {"width": 96, "height": 64, "steps": 2, "seed": 5, "negative": "blurry and dark"}
    if row.kind == "video":
        common["num_frames"] = row.frame_step + 1
    if row.id == "hidream":  # 256x64 becomes 2048x512, which the miniature's patches of 64 pixels divide
        common["width"] = 256
    if row.id == "ideogram4":  # of two steps, the second begins at the median, however wide its sigmas are spread
        common["steps"] = 3
    prompt = "a photo of a red fox by the sea, and behind it a ship, in the evening light"
    long_side = Image.open(ASSETS / "tall.png").convert("RGB").resize((64, 500))
    long_side.save(tmp / "long.png")
    shown: list[dict[str, Any]] = [{"ctrl_idx": 1, "control": (str(ASSETS / "tall.png"),) * n} for n in {
        row.controls[0], min(2, row.controls[1])}]  # fmt: skip
    if row.id == "flex2":
        shown.append({"ctrl_idx": 0, "control": (str(ASSETS / "masked.inpaint.png"),)})
    if row.family == "flux2":
        shown += [{"control": (str(tmp / "long.png"),)}]
        Image.new("RGB", (64, 64), "red").save(tmp / "small.png")
        Image.new("RGB", (64, 540), "red").save(tmp / "longer.png")
        shown += [{"control": (str(tmp / name),)} for name in ("small.png", "longer.png")]
    if row.id.startswith("qwen_image_edit_plus"):  # of these sides, a resized picture is resized to others once more
        Image.new("RGB", (160, 64), "red").save(tmp / "wide.png")
        shown.append({"control": (str(tmp / "wide.png"),)})
    if row.id.startswith("krea2_o_edit"):  # one that the text encoder sees smaller than it is, and one enlarged
        Image.new("RGB", (20, 64), "red").save(tmp / "narrow.png")
        shown += [{"control": (str(tmp / name),)} for name in ("long.png", "narrow.png")]
    scales = (3.0, 0.5)
    return [resolve(row, Request(prompt, guidance_scale=scale, **common, **more)) for more in shown for scale in scales]


def rendered(base: Base, spec: ModelSpec, settings: Settings, whole: bool) -> Any:
    """What Diffusers' pipeline is called with and the denoiser first reads; or, `whole`, all of it and the picture."""
    reads: list[Any] = []

    def read(_module: Any, args: Any, kwargs: Any) -> None:
        reads.append(digest((args, kwargs)))
        if not whole:
            raise Stop

    pipe, family = base.pipe, FAMILIES[spec.family]
    call = type(pipe).__call__

    @wraps(call)  # families ask for the names of its arguments
    def noted(self: Any, **arguments: Any) -> Any:
        ours = ("generator", "callback_on_step_end")
        reads.append(digest({name: value for name, value in arguments.items() if name not in ours}))
        return call(self, **arguments)

    pipe.scheduler = loading.scheduler(spec.scheduler)
    hooks = [getattr(pipe, name).register_forward_pre_hook(read, with_kwargs=True) for name in spec.denoisers.values()]
    try:
        family.check(spec, spec.base, settings)
        with torch.no_grad(), noise.diffusers_draws_ours(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(pipe), "__call__", noted)
            media = family.render(
                pipe, spec, settings, generator=noise.seeded(5, "torch-2.11"),
                callback_on_step_end=lambda _pipe, _step, _t, kwargs: kwargs,
            )  # fmt: skip
        return reads, [np.asarray(frame).tobytes() for frame in media.frames], digest(media.audio)
    except Stop:
        return reads
    finally:
        for hook in hooks:
            hook.remove()
        vars(pipe).pop("prepare_latents", None)


def notices(base: Base, changed: ModelSpec, asked: list[Settings], before: dict[Any, str]) -> bool:
    """Does anything that is rendered become another? `before` remembers what the row itself makes of `asked`."""
    for whole in (False, True):
        for settings in asked:
            row = MODELS[changed.id]
            if (settings, whole) not in before:
                before[settings, whole] = outcome(lambda: rendered(base, row, settings, whole))  # noqa: B023
            if outcome(lambda: rendered(base, changed, settings, whole)) != before[settings, whole]:  # noqa: B023
                return True
    return False


@pytest.mark.parametrize("model", [pytest.param(m, marks=() if m in ALWAYS else pytest.mark.slow) for m in MODELS])
def test_what_needs_weights_is_read(model: str, tmp_path: Path) -> None:
    row = MODELS[model]
    base, asked, before = loaded(row), asked_of(row, tmp_path), dict[Any, str]()
    whole, dead = graph(base), []
    before[asked[0], True] = repr(rendered(base, row, asked[0], True))  # an error here would hide what others become
    for name, changed in changes(row):
        if weightless(row, name) or (name == "pipeline" and row.pipeline == "ours"):
            continue
        if name.partition(".")[0] in LOADED:
            try:
                other_base = loaded(changed)
            except ERRORS:
                continue
            if graph(other_base) == whole and not notices(other_base, changed, asked, before):
                dead.append(name)
        elif not notices(base, changed, asked, before):
            dead.append(name)
    assert dead == []
