"""A stand-in for what comfyui/ uses of ComfyUI, written from its documented behaviour: CI cannot get ComfyUI itself.

`tests/test_in_comfyui.py` holds it to the real one: both must describe our nodes in the same words (`info`).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from lora_drift.harness.paths import ROOT

PACK = ROOT / "comfyui"


class Interrupted(Exception):
    """ComfyUI's user asked to stop."""


class Blocker:
    def __init__(self, message: str) -> None:
        self.message = message


class Input:
    """An input of a type; what else is said of it goes to the front end as it is."""

    type = ""

    def __init__(self, id: str, *, optional: bool = False, **said: Any) -> None:
        self.id, self.optional, self.said = id, optional, said

    def info(self) -> tuple[str, dict[str, Any]]:
        said = {"display_mode": "display", "dynamic_prompts": "dynamicPrompts"}
        return self.type, {said.get(name, name): value for name, value in self.said.items() if value is not None}


@dataclass
class Output:
    id: str
    tooltip: str | None = None
    display_name: str | None = None
    type: str = ""


def Custom(name: str) -> Any:
    """A type of which the nodes know the name only."""

    def output(id: str, **said: Any) -> Output:
        return Output(id, **said, type=name)

    return SimpleNamespace(Input=type("Input", (Input,), {"type": name}), Output=output)


class _Combo(Input):
    type = "COMBO"

    def info(self) -> tuple[str, dict[str, Any]]:
        kind, said = super().info()
        return kind, {"multiselect": False, **said}


class _String(Input):
    type = "STRING"

    def info(self) -> tuple[str, dict[str, Any]]:
        kind, said = super().info()
        return kind, {"multiline": False, **said}


@dataclass
class Option:
    key: str
    inputs: list[Any]


class _DynamicCombo(Input):
    type = "COMFY_DYNAMICCOMBO_V3"

    def info(self) -> tuple[str, dict[str, Any]]:
        return self.type, {"options": [{"key": o.key, "inputs": described(o.inputs)} for o in self.said["options"]]}


@dataclass
class TemplatePrefix:
    input: Input
    prefix: str
    min: int
    max: int


class _Autogrow(Input):
    type = "COMFY_AUTOGROW_V3"

    def info(self) -> tuple[str, dict[str, Any]]:
        of = self.said["template"]
        template = {"input": described([of.input]), "prefix": of.prefix, "min": of.min, "max": of.max}
        return self.type, {"template": template}


def described(inputs: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"required": {}}
    for one in inputs:
        found.setdefault("optional" if one.optional else "required", {})[one.id] = list(one.info())
    return found


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    description: str
    inputs: list[Any]
    outputs: list[Output]
    search_aliases: list[str] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)


class ComfyNode:
    hidden: Any = None
    """What the schema asks for besides its inputs."""

    def __init__(self) -> None:
        pass


class NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.args = args


class ComfyExtension:
    pass


@dataclass
class VideoComponents:
    images: Any
    frame_rate: Any
    audio: Any = None


@dataclass
class VideoFromComponents:
    components: VideoComponents

    def get_components(self) -> VideoComponents:
        return self.components


io = SimpleNamespace(
    ComfyNode=ComfyNode,
    NodeOutput=NodeOutput,
    Schema=Schema,
    Custom=Custom,
    Int=Custom("INT"),
    Float=Custom("FLOAT"),
    Boolean=Custom("BOOLEAN"),
    Image=Custom("IMAGE"),
    Video=Custom("VIDEO"),
    Audio=Custom("AUDIO"),
    Model=Custom("MODEL"),
    Clip=Custom("CLIP"),
    Hidden=SimpleNamespace(prompt="PROMPT"),
    Vae=Custom("VAE"),
    Noise=Custom("NOISE"),
    Latent=Custom("LATENT"),
    Conditioning=Custom("CONDITIONING"),
    Sampler=Custom("SAMPLER"),
    Sigmas=Custom("SIGMAS"),
    String=SimpleNamespace(Input=_String, Output=Custom("STRING").Output),
    Combo=SimpleNamespace(Input=_Combo),
    DynamicCombo=SimpleNamespace(Input=_DynamicCombo, Option=Option),
    Autogrow=SimpleNamespace(Input=_Autogrow, TemplatePrefix=TemplatePrefix),
)


class Comfy:
    """What ComfyUI is to the nodes: its folders, its progress bar, its stop button."""

    def __init__(self, loras: Path) -> None:
        self.loras = loras
        self.progress: list[tuple[int, int]] = []
        self.stop_at: int | None = None
        """After which step the user presses stop."""
        self.unloaded = 0

    def interrupt(self) -> None:
        if self.stop_at is not None and len(self.progress) >= self.stop_at:
            raise Interrupted

    def unload(self) -> None:
        self.unloaded += 1

    def lora(self, kind: str, name: str) -> str:
        assert kind == "loras"
        path = self.loras / name
        if not path.is_file():
            raise FileNotFoundError(f"{name} is not in {kind}")
        return str(path)

    def modules(self) -> dict[str, ModuleType]:
        bar = type(
            "ProgressBar",
            (),
            {"__init__": lambda bar, total: None, "update_absolute": lambda bar, i, n: self.progress.append((i, n))},
        )
        return {
            "comfy": _module("comfy"),
            "comfy.lora": _module("comfy.lora", model_lora_keys_unet=lambda model, _found: model.names),
            "comfy.samplers": _module("comfy.samplers", Sampler=object),
            "comfy.utils": _module("comfy.utils", ProgressBar=bar),
            "comfy.model_management": _module(
                "comfy.model_management",
                get_torch_device=lambda: "cpu",
                unload_all_models=self.unload,
                soft_empty_cache=lambda: None,
                throw_exception_if_processing_interrupted=self.interrupt,
            ),
            "comfy_api": _module("comfy_api"),
            "comfy_api.latest": _module(
                "comfy_api.latest",
                io=io,
                ComfyExtension=ComfyExtension,
                InputImpl=SimpleNamespace(VideoFromComponents=VideoFromComponents),
                Types=SimpleNamespace(VideoComponents=VideoComponents),
            ),
            "comfy_execution": _module("comfy_execution"),
            "comfy_execution.graph_utils": _module("comfy_execution.graph_utils", ExecutionBlocker=Blocker),
            "folder_paths": _module(
                "folder_paths",
                get_filename_list=lambda kind: sorted(path.name for path in self.loras.glob("*.safetensors")),
                get_full_path_or_raise=self.lora,
            ),
        }


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


@contextmanager
def loaded(comfy: Comfy, put: Callable[[Any, str, Any], None]) -> Iterator[ModuleType]:
    """The pack, imported as ComfyUI imports a folder of custom_nodes. `put`: MonkeyPatch.setitem."""
    for name, module in comfy.modules().items():
        parent, _, child = name.rpartition(".")
        put(sys.modules, name, module)
        if parent:
            setattr(sys.modules[parent], child, module)
    spec = importlib.util.spec_from_file_location("lora_drift_pack", PACK / "__init__.py")
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    put(sys.modules, spec.name, pack)
    spec.loader.exec_module(pack)
    yield pack
    for name in [name for name in sys.modules if name.startswith(f"{spec.name}.")]:
        del sys.modules[name]


def info(node: Any) -> dict[str, Any]:
    """As ComfyUI describes a node to its front end (`/object_info`), as far as our nodes say something."""
    schema = node.define_schema()
    return {
        "input": described(schema.inputs),
        "output": [output.type for output in schema.outputs],
        "output_name": [output.display_name or output.id for output in schema.outputs],
        "output_tooltips": [output.tooltip for output in schema.outputs],
        "name": schema.node_id,
        "display_name": schema.display_name,
        "description": schema.description,
        "category": schema.category,
    }


def execute(node: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Run a node with the inputs of a graph, of which "model.width" belongs to "model"; under inference mode."""
    import torch

    given: dict[str, Any] = {}
    for name, value in inputs.items():
        *parents, last = name.split(".")
        into = given
        for parent in parents:
            into = into.setdefault(parent, {})
        if name in {other.partition(".")[0] for other in inputs if "." in other}:
            into = into.setdefault(name, {})
        into[last] = value
    with torch.inference_mode():
        output = node.execute(**given)
    return tuple(output.args)


LORAS = {"lora": "path", "lora_high": "high", "lora_low": "low"}
"""Artefact of a golden -> argument of `with_lora`."""


def lora_files(case: Any, golden: Any, folder: Path) -> dict[str, Path]:
    """The LoRA files of a case, put into models/loras, as `with_lora` takes them."""
    return {
        argument: Path(
            shutil.copy(golden.path(artefact), folder / f"{case.id.replace('/', '-')}-{argument}.safetensors")
        )
        for artefact, argument in LORAS.items()
        if artefact in golden.artefacts
    }


def request(case: Any) -> Any:
    """What a case asks of Python; a negative prompt that its model does not read has no widget."""
    from dataclasses import replace

    from lora_drift.harness.check.runner import Bench
    from lora_drift.pipelines import MODELS

    asked = Bench.request(case)
    return replace(asked, negative="") if MODELS[case.model].guidance == "embedded" else asked


def receipt_file(output: Any, folder: Path) -> Path:
    """Where the receipt of an output lies that was saved without loss."""
    file = output.save(folder / f"out.{'mkv' if len(output.frames) > 1 else 'png'}")
    return Path(f"{file}.json")


def frames(output: Any) -> Any:
    import numpy as np

    return np.stack([np.asarray(frame.convert("RGB")) for frame in output.frames])


def comparable(receipt: Mapping[str, Any]) -> Any:
    """A receipt without what says where control images lay and as which file (their pixels are in the picture), without
    its case, and with quantize_te said, which is the denoiser's where it is not."""
    left_out = ("control_sha256", "shown_sha256", "verified_by")
    kept: Any = {name: value for name, value in json.loads(json.dumps(receipt)).items() if name not in left_out}
    del kept["settings"]["control"], kept["settings"]["shown"]
    kept.get("quantization", {}).pop("quantize_te", None)
    return kept


def frames_of_job(place: Path, step: int, number: int) -> Any:
    """What `lora-drift verify` renders for a sample of a job."""
    from lora_drift.harness.trainer.jobs import folder, plan, reader, verify

    job = reader.read(place)
    found = folder.scan(place, job)
    planned = plan.plan(job, found)
    asked = verify.ask(job, found, planned, list(found.samples), place)
    (one,) = [one for one in asked if (one.sample.step, one.sample.index) == (step, number)]
    return verify.Renderer(planned, "cpu").frames(one)
