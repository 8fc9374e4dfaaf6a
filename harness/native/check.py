"""What a ComfyUI workflow does otherwise than the trainer does for its model, and what mends it.

Reads the graph that ComfyUI's API takes, which it also saves in every picture. Only what a graph says is judged:
numbers that another node computes are passed over, and weights are not looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drift.harness.native import graphs, page, schedule
from lora_drift.harness.native.pack_graphs import Graph
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.spec import ModelSpec

SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
GUIDERS = ("CFGGuider", "BasicGuider")
TEXTS = ("CLIPTextEncode", "CLIPTextEncodeFlux", "CLIPTextEncodeSDXL", "CLIPTextEncodeLumina2", "LoraDriftText")
WEIGHED = {"sd", "flux", "chroma", "lumina2", "omnigen2", "wan"}
"""Families in whose prompts ComfyUI reads parentheses as weights."""
TABLE = {"flux": 10_000, "chroma": 10_000, "flux2": 10_000, "zimage": 1000, "lumina2": 1000, "omnigen2": 1000,
         "qwen": 1000}  # fmt: skip
"""Entries of the table of sigmas that ComfyUI's "simple" takes its own from."""


@dataclass(frozen=True)
class Finding:
    node: str
    """Its number in the graph."""
    said: str
    remedy: str


def read(path: Path) -> Graph:
    """The graph in a JSON file (of either form), or in a PNG that ComfyUI saved.

    Raises:
        RequestError: there is none.
    """
    try:
        if path.suffix.lower() == ".png":
            from PIL import Image

            with Image.open(path) as image:
                text = image.info.get("prompt")
            if text is None:
                raise RequestError(f"{path}: holds no workflow; ComfyUI writes one into the pictures that it saves")
        else:
            text = path.read_text(encoding="utf-8")
        graph = json.loads(text)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: not a workflow ({error})") from error
    if isinstance(graph, dict) and "nodes" in graph:
        try:
            graph = page.graph_of(graph)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise RequestError(f"{path}: not a workflow that is understood here ({error!r}); save it with Export "
                               "(API), or give a picture that it made") from error  # fmt: skip
    nodes = graph.values() if isinstance(graph, dict) else ()
    if not nodes or not all(isinstance(node, dict) and "class_type" in node and "inputs" in node for node in nodes):
        raise RequestError(f"{path}: not a workflow of ComfyUI")
    return dict(graph)


class _Reader:
    """A graph, and how to walk it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def kind(self, name: str) -> str:
        return str(self.graph[name]["class_type"])

    def inputs(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.graph[name]["inputs"]
        return found

    def of_kind(self, *kinds: str) -> list[str]:
        return [name for name in self.graph if self.kind(name) in kinds]

    def source(self, name: str, key: str) -> str | None:
        """The node that an input is linked to."""
        value = self.inputs(name).get(key)
        return str(value[0]) if isinstance(value, list) and str(value[0]) in self.graph else None

    def number(self, name: str, key: str) -> float | None:
        """An input's own value; None: another node computes it, or there is none."""
        value = self.inputs(name).get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def above(self, name: str, key: str) -> Iterator[str]:
        """The node behind an input, and all that it is made of."""
        first = self.source(name, key)
        seen, waiting = set[str](), [first] if first else []
        while waiting:
            node = waiting.pop(0)
            if node not in seen:
                seen.add(node)
                yield node
                waiting += filter(None, (self.source(node, other) for other in self.inputs(node)))

    def chain(self, name: str, key: str) -> list[str]:
        """Nodes that a MODEL or CLIP passes through, the nearest first."""
        found, node = [], self.source(name, key)
        while node is not None and node not in found:
            found.append(node)
            node = next(filter(None, (self.source(node, k) for k in ("model", "high", "clip", key))), None)
        return found


@dataclass(frozen=True)
class _Run:
    """One sampler with what it is given, however it is given."""

    node: str
    guider: str
    """The node that has model and conditionings."""
    sampler: str | None
    """The sampler's name; None: a node of another kind makes it."""
    sampler_node: str
    steps: str
    """The node that lays out the steps."""
    cfg: float | None

    @property
    def whole(self) -> bool:
        """Does one node do everything?"""
        return self.node == self.steps


def _runs(reader: _Reader) -> Iterator[_Run]:
    for node in reader.of_kind(*SAMPLERS):
        inputs = reader.inputs(node)
        if reader.kind(node).startswith("KSampler"):
            name = inputs.get("sampler_name")
            yield _Run(node, node, name if isinstance(name, str) else None, node, node, reader.number(node, "cfg"))
            continue
        guider = reader.source(node, "guider") or node
        sampler = reader.source(node, "sampler") or node
        name = str(reader.inputs(sampler).get("sampler_name")) if reader.kind(sampler) == "KSamplerSelect" else None
        cfg = 1.0 if reader.kind(guider) == "BasicGuider" else reader.number(guider, "cfg")
        yield _Run(node, guider, name, sampler, reader.source(node, "sigmas") or node, cfg)


def findings(graph: Graph, spec: ModelSpec) -> list[Finding]:
    """What the graph does otherwise; nothing: nothing that a graph can say.

    Raises:
        RequestError: no graph is known that matches this model, or this one has no sampler.
    """
    if spec.id not in graphs.RECIPES:
        raise RequestError(f"{spec.id}: no graph of ComfyUI's nodes is known that matches the trainer")
    reader = _Reader(graph)
    runs = list(_runs(reader))
    if not runs:
        raise RequestError(f"the workflow has none of the samplers that are known here: {', '.join(SAMPLERS)}")
    found: list[Finding] = []
    for part in (_sampler, _steps, _guidance, _text, _model, _latent):
        for run in runs:
            found += [finding for finding in part(reader, spec, run) if finding not in found]
    if len(runs) > 1 and spec.id in graphs.EXPERTS:
        said = (
            f"{len(runs)} samplers: the second begins without what the first has seen, from which the trainer's goes on"
        )
        found.append(Finding(runs[1].node, said, "one sampler behind the pack's node Two experts"))
    return found


def told(graph: Graph, found: Sequence[Finding]) -> str:
    """For who reads them: two lines each."""
    return "\n".join(
        f"{finding.node} {graph[finding.node]['class_type']}: {finding.said}\n    remedy: {finding.remedy}"
        for finding in found
    )


def _sampler(reader: _Reader, spec: ModelSpec, run: _Run) -> Iterator[Finding]:
    recipe = graphs.RECIPES[spec.id]
    if recipe.sampler == "pack":
        if reader.kind(run.sampler_node) != "LoraDriftSampler":
            why = {"sd": "the trainer's DDPM draws each step's noise from the stream that the seed began",
                   "wan": "the trainer's UniPC has other steps, and rounds timesteps to whole numbers"}  # fmt: skip
            said = f"sampler {run.sampler or reader.kind(run.sampler_node)}: {why[spec.family]}; no core sampler does"
            yield Finding(run.sampler_node, said, f"the pack's node Sampler, like {spec.id}")
        elif reader.inputs(run.sampler_node).get("like") != spec.id:
            yield Finding(run.sampler_node, f"the Sampler node is not like {spec.id}", f"like {spec.id}")
    elif run.sampler not in (None, "euler"):
        yield Finding(run.sampler_node, f"sampler {run.sampler}: the trainer steps with Euler", "sampler euler")
    if (denoise := reader.number(run.steps, "denoise")) is not None and denoise < 1:
        yield Finding(run.steps, f"denoise {denoise:g}: the trainer begins with noise alone", "denoise 1")


def _steps(reader: _Reader, spec: ModelSpec, run: _Run) -> Iterator[Finding]:
    """Of models that are sampled with Euler: the sigmas."""
    if graphs.RECIPES[spec.id].sampler == "pack":
        return
    listed = f"ManualSigmas, as `lora-drift comfy {spec.id} --native` lists them"
    kind, (width, height) = reader.kind(run.steps), _size(reader, run)
    if kind == "ManualSigmas":
        text = str(reader.inputs(run.steps).get("sigmas"))
        ours = [float(number) for number in re.findall(r"[-+]?(?:\d*\.*\d+)", text)]
        late = spec.family == "zimage"  # whose last step changes nothing, and is left out
        count = len(ours) - (0 if late else 1)
        if width is None or height is None or not spec.fewest_steps <= count <= spec.most_steps:
            return
        theirs = schedule.sigmas(spec, count, int(width), int(height))
        if len(ours) != len(theirs) or not all(map(lambda a, b: math.isclose(a, b, abs_tol=1e-5), ours, theirs)):
            yield Finding(run.steps, f"the sigmas are not those of {count} steps at {width:g}x{height:g}", listed)
        return
    if kind == "Flux2Scheduler":
        said = "Flux2Scheduler fits the shift to the number of steps as well; the trainer's follows the size only"
        yield Finding(run.steps, said, f"BasicScheduler simple behind ModelSamplingFlux 1.15, 0.5; or {listed}")
        return
    name, steps = reader.inputs(run.steps).get("scheduler"), reader.number(run.steps, "steps")
    if not isinstance(name, str):
        return
    if name != "simple":
        yield Finding(run.steps, f"scheduler {name}: the trainer's steps are even before the shift", listed)
    elif steps is not None and spec.family in TABLE and TABLE[spec.family] % steps:
        said = f"simple takes {steps:g} sigmas from a table of {TABLE[spec.family]}, and so not quite the trainer's"
        yield Finding(run.steps, said, listed)
    yield from _shift(reader, spec, run, listed, width, height)
    if spec.family == "zimage" and steps is not None:
        yield Finding(run.steps, f"{steps:g} steps: the trainer's last step changes nothing, so these are its "
                      f"{steps + 1:g}", f"one step fewer than the trainer's; or {listed}")  # fmt: skip


def _shift(
    reader: _Reader, spec: ModelSpec, run: _Run, listed: str, width: float | None, height: float | None
) -> Iterator[Finding]:
    chain = reader.chain(run.guider, "model")
    shifts = {reader.kind(node): node for node in reversed(chain) if reader.kind(node).startswith("ModelSampling")}
    if spec.family in ("flux", "chroma", "flux2"):
        node = shifts.get("ModelSamplingFlux")
        if node is None:
            yield Finding(run.steps, "no shift by the size of the picture (ModelSamplingFlux)",
                          f"ModelSamplingFlux 1.15, 0.5 with the picture's size; or {listed}")  # fmt: skip
            return
        said = {key: reader.number(node, key) for key in ("max_shift", "base_shift", "width", "height")}
        wanted = {"max_shift": 1.15, "base_shift": 0.5, "width": width, "height": height}
        for key, value in wanted.items():
            if value is not None and said[key] not in (None, value):
                yield Finding(node, f"{key} {said[key]:g}: it should be {value:g}", f"{key} {value:g}")
    elif spec.family == "qwen":
        yield Finding(run.steps, "the trainer shifts by the size of the picture and ends at 0.02, which no scheduler "
                      "node here does", listed)  # fmt: skip
    elif spec.family in ("zimage", "lumina2"):
        wanted_shift = {"zimage": 3.0, "lumina2": 1.0}[spec.family]
        node = shifts.get("ModelSamplingAuraFlow") or shifts.get("ModelSamplingSD3")
        shift = reader.number(node, "shift") if node else {"zimage": 3.0, "lumina2": 6.0}[spec.family]
        if shift not in (None, wanted_shift):
            yield Finding(node or run.steps, f"shift {shift:g}: the trainer's is {wanted_shift:g}",
                          f"ModelSamplingAuraFlow {wanted_shift:g}")  # fmt: skip
        if "ModelSamplingSD3" in shifts:
            yield Finding(shifts["ModelSamplingSD3"], "ModelSamplingSD3 counts timesteps to 1000, this model to 1",
                          f"ModelSamplingAuraFlow {wanted_shift:g}")  # fmt: skip
    elif spec.family == "omnigen2":
        yield Finding(run.steps, "the trainer shifts times by the size of the picture", listed)


def _guidance(reader: _Reader, spec: ModelSpec, run: _Run) -> Iterator[Finding]:
    kinds = [reader.kind(node) for node in reader.chain(run.guider, "model")]
    if spec.guidance == "embedded":
        if run.cfg is not None and run.cfg != 1:
            yield Finding(run.guider, f"cfg {run.cfg:g}: the trainer guides by an input of the model only", "cfg 1")
        positive = "conditioning" if reader.kind(run.guider) == "BasicGuider" else "positive"
        behind = {reader.kind(node) for node in reader.above(run.guider, positive)}
        if not behind & {"FluxGuidance", "CLIPTextEncodeFlux"}:
            yield Finding(run.guider, "no guidance is said, and ComfyUI takes 3.5", "FluxGuidance with the trainer's")
        return
    if spec.family == "zimage" and run.cfg == 1:
        usual = spec.guidance_scale
        said = f"cfg 1 guides nothing: cfg is the trainer's guidance_scale + 1 (whose default here is {usual:g})"
        yield Finding(run.guider, said, f"cfg {usual + 1:g}")
    guided = run.cfg is not None and run.cfg > 1
    for node in reader.chain(run.guider, "model"):
        if reader.kind(node) in ("CFGNorm", "RenormCFG", "RescaleCFG"):
            yield Finding(node, f"{reader.kind(node)} is another formula than the trainer's", "take it out")
    if guided and spec.family in ("qwen", "lumina2") and "LoraDriftGuidance" not in kinds:
        yield Finding(run.guider, "the guided prediction has not the length of the positive one",
                      f"the pack's node Guidance, like {spec.id}")  # fmt: skip
    negative = reader.source(run.guider, "negative")
    made_of = [negative, *reader.above(negative, "conditioning")] if negative else []
    zeroed = "ConditioningZeroOut" in map(reader.kind, made_of)
    if zeroed and (guided or spec.family == "zimage"):
        yield Finding(str(negative), "the negative is zeros: the trainer encodes the negative prompt, an empty one too",
                      "a text node with the negative prompt")  # fmt: skip


def _text(reader: _Reader, spec: ModelSpec, run: _Run) -> Iterator[Finding]:
    recipe = graphs.RECIPES[spec.id]
    conditionings = ("positive", "negative", "conditioning")
    texts = {node for key in conditionings for node in reader.above(run.guider, key) if reader.kind(node) in TEXTS}
    for node in sorted(texts):
        if recipe.text == "pack" and reader.kind(node) != "LoraDriftText":
            said = "T5 reads no padding here" if spec.family == "chroma" else "padding is zeros here"
            remedy = f"the pack's node Text, like {spec.id}"
            yield Finding(node, f"{said}; the trainer's is read up to {spec.max_sequence_length} tokens", remedy)
        chain = reader.chain(node, "clip")
        lengths = [n for n in chain if reader.kind(n) == "T5TokenizerOptions"]
        if recipe.t5_length and not any((reader.number(n, "min_length") or 0) >= recipe.t5_length for n in lengths):
            yield Finding(node, f"T5 is padded to 256 tokens; the trainer pads to {recipe.t5_length}",
                          f"T5TokenizerOptions with min_length {recipe.t5_length}")  # fmt: skip
        for skip in (n for n in chain if reader.kind(n) == "CLIPSetLastLayer"):
            layer = reader.number(skip, "stop_at_clip_layer")
            if layer is not None and layer != -1:
                yield Finding(skip, f"clip skip {layer:g}: the trainer reads the last layer", "take it out")
        text = reader.inputs(node).get("text")
        if not isinstance(text, str) or reader.kind(node) == "LoraDriftText":
            continue
        if spec.family in WEIGHED and re.search(r"(?<!\\)[()]", text):
            yield Finding(node, "parentheses are weights here; the trainer reads them as text", r"\( and \)")
        start = recipe.template.partition("{}")[0]
        if start and reader.kind(node) == "CLIPTextEncode" and not text.startswith(start):
            named = "template is applied twice" if spec.family == "omnigen2" else "system prompt stands before it"
            yield Finding(node, f"the trainer's {named}, in the negative prompt too", f"begin the text with: {start!r}")


def _model(reader: _Reader, spec: ModelSpec, run: _Run) -> Iterator[Finding]:
    chain = reader.chain(run.guider, "model")
    kinds = [reader.kind(node) for node in chain]
    if spec.family == "lumina2":
        for node in chain:
            if reader.kind(node) in ("LoraLoader", "LoraLoaderModelOnly"):
                yield Finding(node, "ComfyUI loads no key of the trainer's LoRAs for this model, and does not say so",
                              f"the pack's node LoRA in all formats, like {spec.id}")  # fmt: skip
    if spec.id in graphs.BLANK and "LoraDriftBlank" not in kinds:
        yield Finding(run.guider, "the model's further channels are not those of the trainer without a control image",
                      "the pack's node No control image")  # fmt: skip
    if spec.id in graphs.RESIZED:
        for node in reader.of_kind("ImageScale", "FluxKontextImageScale", "ImageScaleToTotalPixels"):
            yield Finding(node, f"{reader.kind(node)} resizes otherwise than the trainer",
                          f"the pack's node Resize, like {spec.id}")  # fmt: skip


def _latent(reader: _Reader, _spec: ModelSpec, run: _Run) -> Iterator[Finding]:
    node = reader.source(run.node, "latent_image")
    batch = reader.number(node, "batch_size") if node else None
    if node and batch is not None and batch > 1:
        yield Finding(node, f"batch_size {batch:g}: the trainer samples one by one, each with its own seed", "1")


def _size(reader: _Reader, run: _Run) -> tuple[float | None, float | None]:
    node = reader.source(run.node, "latent_image")
    return (reader.number(node, "width"), reader.number(node, "height")) if node else (None, None)
