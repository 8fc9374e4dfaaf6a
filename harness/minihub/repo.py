"""What a miniature repository is made of: text files, and weight files described by class and config."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lora_drift.harness.minihub.weights import Rule

Config = Mapping[str, Any]
Values = Callable[[], Mapping[str, np.ndarray]]
"""Tensors that are not drawn by name: the same weights as another file's, in another layout."""


@dataclass(frozen=True)
class Weights:
    """One component folder with its config.json and its weights.

    The tensor names and shapes come from `layouts/`, which were read once from the real class (`layout.py`);
    building therefore needs none of the model libraries.
    """

    folder: str
    cls: str
    """"library.Class"; decides the file names and what config.json says."""
    config: Config
    dtype: str = "float32"
    shards: int = 1
    """Only for transformers' classes: Diffusers (to 0.42 at least) asks the network for the shard list of a
    component loaded by hub id even with HF_HUB_OFFLINE=1, so a sharded denoiser could not be loaded at all."""
    rules: Sequence[Rule] = ()
    values: Values | None = None
    """Takes the place of the layout."""

    @property
    def is_diffusers(self) -> bool:
        """model_index.json names a class of a pipeline's own folder by that folder ("ltx2.LTX2Vocoder")."""
        return self.cls.startswith(("diffusers.", "ltx2."))

    @property
    def stem(self) -> str:
        return "diffusion_pytorch_model" if self.is_diffusers else "model"

    def config_json(self) -> str:
        name = self.cls.split(".")[1]
        head = {"_class_name": name} if self.is_diffusers else {"architectures": [name]}
        return to_json({**head, **self.config})


@dataclass(frozen=True)
class Tensors:
    """One loose weight file (a LoRA, an adapter), its shapes given here."""

    path: str
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    dtype: str = "float32"
    rules: Sequence[Rule] = ()
    values: Values | None = None
    """Takes the place of the shapes."""


@dataclass(frozen=True)
class Repo:
    """One hub repository: `files` are texts by path, `binaries` are bytes by path."""

    id: str
    weights: Sequence[Weights] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    tensors: Sequence[Tensors] = ()
    binaries: Mapping[str, bytes] = field(default_factory=dict)


def to_json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def in_folder(folder: str, files: Mapping[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


def model_index(pipeline: str, **components: Any) -> dict[str, str]:
    """model_index.json: component name -> "library.Class" (or a plain value for an option)."""
    entries = {name: v.split(".") if isinstance(v, str) else v for name, v in sorted(components.items())}
    return {"model_index.json": to_json({"_class_name": pipeline, "_diffusers_version": "0.37.0", **entries})}


def scheduler(name: str, **config: Any) -> dict[str, str]:
    head = {"_class_name": name, "_diffusers_version": "0.37.0"}
    return {"scheduler/scheduler_config.json": to_json({**head, **config})}
