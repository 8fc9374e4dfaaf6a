"""The same graph as ComfyUI's template for the model has it: what is lost where nobody looked at the trainer."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from lora_drift.harness.native.pack_graphs import Graph
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec


class Template(NamedTuple):
    """Of comfyui_workflow_templates 0.8.31."""

    sampler: str
    scheduler: str
    shifting: str = ""
    """Node that says the shift, and below: which."""
    shift: float = 0.0


TEMPLATES = {
    "sd": Template("euler", "normal"),
    "flux": Template("euler", "simple"),
    "chroma": Template("euler", "beta", "ModelSamplingAuraFlow", 1.0),
    "flux2": Template("euler", "Flux2Scheduler"),
    "qwen": Template("euler", "simple", "ModelSamplingAuraFlow", 3.1),
    "zimage": Template("res_multistep", "simple", "ModelSamplingAuraFlow", 3.0),
    "lumina2": Template("res_multistep", "simple", "ModelSamplingAuraFlow", 4.0),
    "omnigen2": Template("euler", "simple"),
    "wan": Template("uni_pc", "simple", "ModelSamplingSD3", 8.0),
}
PASSED = {"T5TokenizerOptions": "clip", "LoraDriftGuidance": "model", "LoraDriftResize": "image"}
"""Nodes that templates have not -> the input that takes their place."""


def of(graph: Graph, spec: ModelSpec, settings: Settings) -> Graph | None:
    """A graph of `graphs.build` with the template's settings and ComfyUI's own nodes, the trainer's guidance typed in
    as cfg. None: the template has two samplers, whose steps are not comparable, or core nodes do not run the model."""
    kinds = [node["class_type"] for node in graph.values()]
    if "LoraDriftExperts" in kinds or "LoraDriftBlank" in kinds:
        return None
    template = TEMPLATES[spec.family]
    stock: Graph = {name: copy.deepcopy(node) for name, node in graph.items() if node["class_type"] not in PASSED}

    def linked(value: Any) -> Any:
        while isinstance(value, list) and value[0] not in stock:
            passed = graph[value[0]]
            value = passed["inputs"][PASSED[passed["class_type"]]]
        return value

    for node in stock.values():
        inputs = node["inputs"]
        if node["class_type"] == "LoraDriftText":
            node.update(class_type="CLIPTextEncode", inputs={key: inputs[key] for key in ("clip", "text")})
        if node["class_type"] == "LoraDriftPatch":
            inputs.pop("like")
            inputs["strength_model"] = inputs.pop("strength")
            node["class_type"] = "LoraLoaderModelOnly"
        if node["class_type"] == "CFGGuider" and spec.guides(settings.guidance_scale):
            inputs["cfg"] = settings.guidance_scale
        node["inputs"] = {key: linked(value) for key, value in node["inputs"].items()}
    _sampled(stock, spec, settings, template)
    return stock


def _sampled(stock: Graph, spec: ModelSpec, settings: Settings, template: Template) -> None:
    """The template's sampler and steps, and its negative, in place."""
    (sample,) = [node for node in stock.values() if node["class_type"] == "SamplerCustomAdvanced"]
    guider = stock[sample["inputs"]["guider"][0]]
    model = guider["inputs"]["model"]
    if template.shifting:
        stock["shift"] = {"class_type": template.shifting, "inputs": {"model": model, "shift": template.shift}}
        model = guider["inputs"]["model"] = ["shift", 0]
    steps: dict[str, Any] = {"steps": settings.steps}
    if template.scheduler == "Flux2Scheduler":
        stock["steps"] = {
            "class_type": template.scheduler,
            "inputs": {**steps, "width": settings.width, "height": settings.height},
        }
    else:
        steps |= {"model": model, "scheduler": template.scheduler, "denoise": 1.0}
        stock["steps"] = {"class_type": "BasicScheduler", "inputs": steps}
    stock["stepper"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": template.sampler}}
    sample["inputs"] |= {"sigmas": ["steps", 0], "sampler": ["stepper", 0]}
    if spec.id == "zimage_turbo":
        positive = guider["inputs"]["positive"]
        stock["zeroed"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": positive}}
        guider["inputs"] |= {"negative": ["zeroed", 0], "cfg": 1.0}
