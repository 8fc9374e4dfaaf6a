"""A miniature's weights, from the mini hub to a file that ComfyUI loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lora_drift.harness.minihub import factory
from lora_drift.harness.minihub.repos import MODELS as REPOSITORIES
from lora_drift.pipelines import ModelSpec

Tensors = dict[str, torch.Tensor]


@dataclass
class Weights:
    """A file in one of ComfyUI's model folders."""

    tensors: Tensors
    size: dict[str, Any] = field(default_factory=dict)
    """What the fixture is told: "denoiser", "text" or "vae"."""

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.float().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, path, {"miniature": json.dumps(self.size)})


class Home:
    """The mini hub's repositories of a model."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.root = factory.build()
        self.repos = [factory.snapshot(self.root, repo.id) for repo in REPOSITORIES[spec.id]]

    def folder(self, component: str) -> Path:
        """Where the trainer takes a component from."""
        folder = factory.snapshot(self.root, self.spec.components.get(component, self.spec.base))
        # Chroma's T5 is the second encoder of Flex.1.
        named = f"{component}_2" if self.spec.id == "chroma" and component != "vae" else component
        return folder / named if (folder / named).is_dir() else folder

    def config(self, component: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder(component) / "config.json").read_text())
        return found

    def tensors(self, component: str) -> Tensors:
        return {
            name: t
            for file in sorted(self.folder(component).glob("*.safetensors"))
            for name, t in load_file(file).items()
        }

    def file(self, name: str) -> Tensors:
        """A single file of one of the repositories."""
        (path,) = (repo / name for repo in self.repos if (repo / name).is_file())
        return load_file(path)


Make = Callable[[Home], Weights]
