"""Workflows for ComfyUI with the nodes of `comfyui/` (docs/comfyui.md), in the form that its API takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_drift.harness.replay import Receipt
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.spec import RESIZE_ORDER, ModelSpec, noise_stream_at

Graph = dict[str, dict[str, Any]]
"""Id of a node -> its class and inputs; an input that is [id, n] is that node's n-th output."""
EXAMPLE = "example.png"
"""A picture that every ComfyUI has among its inputs."""
AS_TRAINER = "as the trainer"
"""The nodes' word for a default."""


def of_model(spec: ModelSpec, prompt: str, loras: Mapping[str, str]) -> Graph:
    """A workflow with the model's defaults. `loras`: expert ("" for the whole model) -> name in models/loras."""
    files = [(expert, name, 1.0, AS_TRAINER) for expert, name in loras.items()]
    graph: Graph = {}
    sample = {"model": spec.id, **_pictures(graph, [EXAMPLE] * spec.controls[0]), **_loras(graph, files)}
    return _saved(graph, "LoraDriftSample", {**sample, "prompt": prompt, "seed": 42}, spec, spec.num_frames)


def of_job(folder: Path, spec: ModelSpec, frames: int, step: int) -> Graph:
    """A workflow that renders a job's first prompt. `step`: of which LoRA; -1 the last, 0 without one."""
    return _saved({}, "LoraDriftJob", {"folder": str(folder), "step": step, "number": 0}, spec, frames)


def of_receipt(receipt: Receipt) -> tuple[Graph, list[str]]:
    """A workflow that renders a receipt again; and what is to be put where ComfyUI looks for it.

    Raises:
        RequestError: it was rendered with what no node has.
    """
    content = receipt.content
    toolkit = str(content["reproduces"]).rpartition(" ")[2]
    spec = spec_of(content["model"], toolkit)
    if any(len(name) == 64 and "." not in name for name in content["settings"]["control"]):
        raise RequestError(f"receipt {receipt.path}: inside a PNG, control images have no names; give the "
                           f"{receipt.path.name}.json that lay beside it")  # fmt: skip
    settings = receipt.settings([Path(path).name for path in content["settings"]["control"]])
    usual = {"noise_stream": noise_stream_at(toolkit), "resize_order": RESIZE_ORDER, "vae_noise": "device",
             "profile": "reference", "as_intended": False}  # fmt: skip
    odd = [name for name, value in usual.items() if content.get(name, value) != value]
    odd += ["do_cfg_norm"] if settings.do_cfg_norm else []
    odd += ["shown"] if settings.shown else []
    odd += ["exclude"] if content.get("quantization", {}).get("exclude") else []
    if odd:
        raise RequestError(f"receipt {receipt.path}: {odd[0]} is not as usual there, and the nodes for ComfyUI have no "
                           "input for it; use `lora-drift replay`")  # fmt: skip
    graph: Graph = {}
    lora = content["lora"]
    files = []
    if lora is not None:
        for name, expert in lora["experts"].items():
            strength = lora.get("strengths", {}).get(spec.denoisers.get(expert, ""), 1.0) * settings.multiplier
            files.append((expert, name, strength, lora["mode"]))
    flags = f" --n {settings.negative_prompt}" if settings.negative_prompt != settings.negative_prompt_2 else ""
    flags += f" --gr {settings.guidance_rescale}" if settings.guidance_rescale else ""
    own = {
        "width": settings.asked_width,
        "height": settings.asked_height,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        **({"negative": settings.negative_prompt_2} if spec.guidance != "embedded" else {}),
        **({"num_frames": settings.asked_frames, "fps": settings.fps} if spec.kind == "video" else {}),
    }
    sample = {
        "model": spec.id,
        **{f"model.{name}": value for name, value in own.items()},
        **_pictures(graph, settings.control),
        **_loras(graph, files),
        "loading": _loading(graph, content, spec, toolkit),
        "prompt": settings.prompt + flags,
        "seed": settings.seed,
    }
    needs = [f"the LoRA {name} in models/loras" for _, name, *_ in files]
    needs += [f"the picture {name} in input" for name in settings.control]
    return _saved(graph, "LoraDriftSample", sample, spec, settings.asked_frames), needs


def _loading(graph: Graph, content: Mapping[str, Any], spec: ModelSpec, toolkit: str) -> list[Any]:
    quantization = {**vars(Quantization()), **content.get("quantization", {})}
    encoders, adapter = quantization["quantize_te"], quantization["accuracy_recovery_adapter"]
    base = next(iter(content["base"]))
    graph["loading"] = {
        "class_type": "LoraDriftModel",
        "inputs": {
            "toolkit": toolkit,
            "dtype": content["dtype"],
            "quantize": quantization["quantize"],
            "qtype": quantization["qtype"] + (f"|{adapter}" if adapter else ""),
            "quantize_te": quantization["quantize"] if encoders is None else encoders,
            "qtype_te": quantization["qtype_te"],
            "offload": False,
            "base": "" if base == spec.base else base,
        },
    }
    return ["loading", 0]


def _pictures(graph: Graph, names: Sequence[str]) -> dict[str, Any]:
    """Nodes that load control images, and the inputs that take them."""
    taken: dict[str, Any] = {}
    for i, name in enumerate(names):
        graph[f"picture{i}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        taken[f"model.control.control{i}"] = [f"picture{i}", 0]
        if ".inpaint." in name:  # its alpha channel comes out beside it
            both = {"image": [f"picture{i}", 0], "alpha": [f"picture{i}", 1]}
            graph[f"alpha{i}"] = {"class_type": "JoinImageWithAlpha", "inputs": both}
            taken[f"model.control.control{i}"] = [f"alpha{i}", 0]
    return taken


def _loras(graph: Graph, files: Sequence[tuple[str, str, float, str]]) -> dict[str, Any]:
    """Nodes for LoRA files (expert, name, strength, mode), each chained to the one before; and the last as an input."""
    last: dict[str, Any] = {}
    for i, (expert, name, strength, mode) in enumerate(files):
        node = {"file": name, "strength": strength, "expert": expert or "all", "mode": mode}
        graph[f"lora{i}"] = {"class_type": "LoraDriftLora", "inputs": {**node, **last}}
        last = {"lora": [f"lora{i}", 0]}
    return last


def _saved(graph: Graph, node: str, inputs: dict[str, Any], spec: ModelSpec, frames: int) -> Graph:
    """With the node that renders, and what it renders saved and its receipt shown."""
    save: dict[str, Any] = {"filename_prefix": spec.id}
    if frames > 1:
        kind, save = "SaveVideo", {**save, "video": ["render", 1], "format": "auto", "codec": "auto"}
    else:
        kind, save = "SaveImage", {**save, "images": ["render", 0]}
    return numbered({
        **graph,
        "render": {"class_type": node, "inputs": inputs},
        "save": {"class_type": kind, "inputs": save},
        "receipt": {"class_type": "PreviewAny", "inputs": {"source": ["render", 3]}},
    })  # fmt: skip


def numbered(graph: Graph) -> Graph:
    """With numbers for names, as ComfyUI has them."""
    ids = {name: str(i) for i, name in enumerate(graph, 1)}

    def linked(value: Any) -> Any:
        return [ids[value[0]], value[1]] if isinstance(value, list) else value

    return {
        ids[name]: {**node, "inputs": {key: linked(value) for key, value in node["inputs"].items()}}
        for name, node in graph.items()
    }
