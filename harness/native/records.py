"""What ComfyUI itself rendered with a graph of `graphs.py`, against the trainer's golden: a file a model.

Only `studies/comfyui/record.py` writes them, by running ComfyUI. CI cannot: it asks whether the graph, the pack's nodes
in it and the golden are still those that were compared (`stale`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_drift.harness.check import cases, goldens, runner
from lora_drift.harness.minihub import factory
from lora_drift.harness.native import graphs, lora, resize, sampling, schedule, stock
from lora_drift.harness.native.pack_graphs import Graph
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import MODELS

RECORDS = Path(__file__).parent / "records"
CASES = ("base", "lora")
NEAR = 1.0
"""Levels of 255 within which a graph counts as the trainer's: what rounding to 8 bits makes of a last digit."""
LORAS = {"lora": "", "lora_high": "high", "lora_low": "low"}
"""A golden's artefact -> the expert that it is for."""


class Distance(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    pixel_max: float
    pixel_mean: float


class Rendered(BaseModel):
    """A case in ComfyUI."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    golden: str
    """Seal of the golden."""
    workflow: str
    """Hash of the graph."""
    picture: str
    """Hash of the pixels, rounded as the trainer rounds them."""
    pixel_max: float
    pixel_mean: float
    latents_rel_l2: float | None
    """None: ComfyUI lays this model's latents out otherwise than the golden, and they were not compared."""
    stock: Distance | None
    """How far the settings of ComfyUI's template are (`stock.py`); None: they are not comparable."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    tag: str
    comfyui: dict[str, str]
    """Version, commit, and the hash of its Python files."""
    environment: dict[str, str]
    options: list[str]
    """Of ComfyUI's command line, as far as they change numbers."""
    minihub: str
    """Hash of the miniatures."""
    nodes: list[str]
    """The pack's nodes in the graph; none: core nodes only."""
    pack: str
    """Hash of the code behind them."""
    cases: dict[str, Rendered]
    seal: str

    @property
    def matches(self) -> bool:
        return all(case.pixel_max <= NEAR for case in self.cases.values())


def load(model: str) -> Record | None:
    """None: ComfyUI was not run for it."""
    path = RECORDS / f"{model}.json"
    return Record.model_validate_json(path.read_text()) if path.is_file() else None


def golden_of(model: str, name: str) -> tuple[cases.Case, goldens.Golden]:
    """A case, and its golden at the newest tag."""
    case = cases.load(cases.CASES / model / f"{name}.yaml")
    return case, goldens.load(runner.newest_tag(), case, factory.manifest_sha256(case.model, case.extras))


def file_names(model: str) -> dict[str, str]:
    """Part of the model -> file, when a case is rendered."""
    return {part: f"{model}-{part}.safetensors" for part in graphs.RECIPES[model].files}


def lora_names(case: cases.Case, golden: goldens.Golden) -> dict[str, str]:
    """Artefact of the golden -> file."""
    return {artefact: f"{case.model}-{artefact}.safetensors" for artefact in LORAS if artefact in golden.artefacts}


def graph_of(case: cases.Case, golden: goldens.Golden) -> Graph:
    """The graph by which a case is rendered."""
    loras = {LORAS[artefact]: name for artefact, name in lora_names(case, golden).items()}
    settings = runner.Bench(tag=golden.tag).settings(case)
    return graphs.build(MODELS[case.model], settings, file_names(case.model), loras)


def stock_of(case: cases.Case, golden: goldens.Golden) -> Graph | None:
    """The graph that ComfyUI's template would be for a case."""
    return stock.of(graph_of(case, golden), MODELS[case.model], runner.Bench(tag=golden.tag).settings(case))


def workflow_hash(graph: Graph) -> str:
    return sha256(json.dumps(graph, sort_keys=True).encode()).hexdigest()


def pack_hash(model: str, nodes: Sequence[str]) -> str:
    """Of the code behind the pack's nodes, and the scheduler that they make; "" of a graph without any."""
    if not nodes:
        return ""
    files = [
        ROOT / "comfyui" / "native.py",
        *(Path(str(module.__file__)) for module in (lora, resize, sampling, schedule)),
    ]
    code = b"".join(file.read_bytes() for file in files)
    return sha256(code + repr(MODELS[model].scheduler).encode()).hexdigest()


def stale(record: Record) -> list[str]:
    """What is no longer as it was when ComfyUI rendered."""
    content: dict[str, Any] = record.model_dump()
    found = [] if goldens.seal(content) == record.seal else ["the record was edited"]
    found += [] if record.pack == pack_hash(record.model, record.nodes) else ["the pack's nodes changed"]
    found += [] if record.tag == runner.newest_tag() else ["another trainer is the newest"]
    found += [] if record.minihub == factory.manifest_sha256(record.model) else ["the miniatures changed"]
    for name, rendered in record.cases.items():
        case, golden = golden_of(record.model, name)
        found += [] if rendered.golden == golden.seal else [f"{name}: the golden changed"]
        found += [] if rendered.workflow == workflow_hash(graph_of(case, golden)) else [f"{name}: the graph changed"]
    return found
