"""Coverage of inputs: along which axes the cases of a model vary, and which values and pairs they never visit.

A case that renders right says nothing of what no case asks. `AXES` is the one place that says what can be asked: each
axis has the values that a model knows, and the value (or values) of a case. `lora-drift coverage` shows what is missing
and proposes cases for it.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import combinations, product
from typing import NamedTuple

from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.runner import Bench
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.settings import Settings, resolve
from lora_drift.pipelines.spec import ModelSpec

LONG = 40
"""Words beyond which a prompt is long; all encoders of the miniatures read that many."""


class Axis(NamedTuple):
    """One way in which requests differ."""

    name: str
    values: Callable[[ModelSpec], Collection[str]]
    """Those that the model knows."""
    of: Callable[[Case, Settings, ModelSpec], str]


Value = tuple[str, str]
"""(axis, value)"""


def _text(case: Case, settings: Settings, spec: ModelSpec) -> str:
    prompt = settings.prompt
    if not prompt.isascii():
        return "beyond ASCII"
    if len(prompt.split()) > LONG:
        return "long"
    return "capitals" if re.search(r"[A-Z]", prompt) else "short"


def _controls(spec: ModelSpec) -> list[str]:
    return [str(count) for count in range(spec.controls[0], spec.controls[1] + 1)]


def _field(case: Case, settings: Settings, spec: ModelSpec) -> str:
    sample = case.sample
    if sample.located:
        return "in the prompt"
    if sample.ctrl_img is not None:
        return "both" if sample.ctrl_img_1 is not None else "ctrl_img"
    return "numbered" if sample.control else "none"


def _fields(spec: ModelSpec) -> list[str]:
    none = ["none"] if not spec.controls[0] else []
    if not spec.controls[1]:
        return ["none"]
    return [*none, "ctrl_img", "both", "in the prompt", *(["numbered"] if spec.controls[1] > 1 or none else [])]


def _shape(case: Case, settings: Settings, spec: ModelSpec) -> str:
    if settings.width == settings.height:
        return "square"
    return "wide" if settings.width > settings.height else "tall"


def _snapped(case: Case, settings: Settings, spec: ModelSpec) -> str:
    return "as asked" if (settings.width, settings.height) == (case.sample.width, case.sample.height) else "floored"


def _guided(case: Case, settings: Settings, spec: ModelSpec) -> str:
    return "two passes" if spec.guides(settings.guidance_scale) else "one pass"


def _guidance(spec: ModelSpec) -> list[str]:
    return {"embedded": ["one pass"], "cfg_always": ["two passes"]}.get(spec.guidance, ["one pass", "two passes"])


def _frames(case: Case, settings: Settings, spec: ModelSpec) -> str:
    if settings.num_frames == 1:
        return "short" if settings.moving else "one"
    return "several" if settings.num_frames == settings.asked_frames else "rounded"


def _seed(case: Case, settings: Settings, spec: ModelSpec) -> str:
    return "0" if settings.seed == 0 else "negative" if settings.seed < 0 else "of 32 bits and more" if (
        settings.seed >= 2**31) else "small"  # fmt: skip


def _multiplier(case: Case, settings: Settings, spec: ModelSpec) -> str:
    if case.lora is None:
        return "no LoRA"
    return "1" if settings.multiplier == 1 else "negative" if settings.multiplier < 0 else "another"


def _quantized(case: Case, settings: Settings, spec: ModelSpec) -> str:
    return "quantised" if case.quantization and case.quantization.quantize else "as it is"


def _mode(case: Case, settings: Settings, spec: ModelSpec) -> str:
    if case.lora is None:
        return "none"
    live = case.lora.network.type == "dora" or _quantized(case, settings, spec) == "quantised"  # none of which merges
    return "live" if live else case.lora.mode


AXES = (
    Axis("prompt", lambda spec: ["short", "capitals", "long", "beyond ASCII"], _text),
    Axis("negative prompt", lambda spec: ["empty", "given"],
         lambda case, settings, spec: "given" if settings.negative_prompt else "empty"),
    Axis("trigger word", lambda spec: ["none", "given"],
         lambda case, settings, spec: "none" if case.trigger_word is None else "given"),
    Axis("flags", lambda spec: ["none", "given"],
         lambda case, settings, spec: "given" if "--" in case.sample.prompt else "none"),
    Axis("network", lambda spec: ["none", "lora", "lokr"] + ["dora"] * (spec.family != "sd"),
         lambda case, settings, spec: case.lora.network.type if case.lora else "none"),
    Axis("LoRA", lambda spec: ["none", "merged", "live"], _mode),
    Axis("saved as", lambda spec: ["no LoRA", "float16", "bf16", "float32"],
         lambda case, settings, spec: case.lora.save_dtype if case.lora else "no LoRA"),
    Axis("modules", lambda spec: ["no LoRA", "blocks", "all"] + ["blocks and convolutions"] * (spec.family == "sd"),
         lambda case, settings, spec: "no LoRA" if case.lora is None else "all"
         if case.lora.network.transformer_only is False else "blocks and convolutions" if case.lora.network.conv
         else "blocks"),
    Axis("multiplier", lambda spec: ["no LoRA", "1", "another", "negative"], _multiplier),
    Axis("base", lambda spec: ["as it is", "quantised"], _quantized),
    Axis("shape", lambda spec: ["square", "wide", "tall"], _shape),
    Axis("size", lambda spec: ["as asked", "floored"], _snapped),
    Axis("guidance", _guidance, _guided),
    Axis("seed", lambda spec: ["0", "small", "of 32 bits and more", "negative"], _seed),
    Axis("frames", lambda spec: ["one", "short", "several", "rounded"] if spec.kind == "video" else ["one"], _frames),
    Axis("control images", _controls, lambda case, settings, spec: str(len(settings.control))),
    Axis("control field", _fields, _field),
)  # fmt: skip


def possible(values: Sequence[Value]) -> bool:
    """Can one request have all of these values?"""
    of = dict(values)
    without = {of.get("network") == "none", of.get("LoRA") == "none", of.get("saved as") == "no LoRA",
               of.get("modules") == "no LoRA", of.get("multiplier") == "no LoRA"}  # fmt: skip
    named = [axis for axis in ("network", "LoRA", "saved as", "modules", "multiplier") if axis in of]
    if without == {True, False} and len({of[axis] in ("none", "no LoRA") for axis in named}) > 1:
        return False
    unmergeable = of.get("base") == "quantised" or of.get("network") == "dora"
    if of.get("LoRA") == "merged" and unmergeable:
        return False
    return not (
        ("control images" in of and "control field" in of)
        and (of["control images"] == "0") != (of["control field"] == "none")
        and not (of["control images"] == "0" and of["control field"] == "numbered")  # which a model may not read
    )


class Coverage(NamedTuple):
    """What the cases of a model visit."""

    values: int
    pairs: int
    visited_values: int
    visited_pairs: int
    unvisited: list[Value]
    unvisited_pairs: list[tuple[Value, Value]]

    @property
    def words(self) -> str:
        share = 100 * self.visited_pairs // self.pairs
        return f"{self.visited_values} of {self.values} values, {self.visited_pairs} of {self.pairs} pairs ({share} %)"


def visited(case: Case, spec: ModelSpec) -> set[Value]:
    """The values of a case; none where the trainer refuses it."""
    try:
        settings = resolve(spec, Bench.request(case))
    except RequestError:
        return set()
    return {(axis.name, axis.of(case, settings, spec)) for axis in AXES}


def measure(model: str, cases: Sequence[Case]) -> Coverage:
    """Coverage of a model's inputs by those of `cases` that are its."""
    spec = spec_of(model)
    every = [[(axis.name, value) for value in axis.values(spec)] for axis in AXES]
    values = {value for axis in every for value in axis}
    pairs = {pair for one, other in combinations(every, 2) for pair in product(one, other) if possible(pair)}
    seen = [visited(case, spec) & values for case in cases if case.model == model]
    met = set().union(*seen) if seen else set()
    met_pairs = {pair for pair in pairs if any(set(pair) <= of for of in seen)}
    return Coverage(len(values), len(pairs), len(met), len(met_pairs), sorted(values - met), sorted(pairs - met_pairs))


def proposed(model: str, cases: Sequence[Case]) -> Iterator[dict[str, str]]:
    """Requests, as values of the axes, that together visit every pair that `cases` do not: a covering array, made
    greedily, each row with as many new pairs as can be found."""
    spec = spec_of(model)
    missing = set(measure(model, cases).unvisited_pairs)
    while missing:
        row = dict(max(missing))
        for axis in AXES:
            if axis.name in row:
                continue
            options = [(axis.name, value) for value in axis.values(spec)]
            fits = [option for option in options if possible([*row.items(), option])] or options
            row |= [max(fits, key=lambda option: _new(option, row, missing))]
        made = set(combinations([(axis.name, row[axis.name]) for axis in AXES], 2))
        missing = missing - made - {max(missing)}
        yield row


def _new(option: Value, row: dict[str, str], missing: set[tuple[Value, Value]]) -> int:
    return sum((value, option) in missing or (option, value) in missing for value in row.items())
