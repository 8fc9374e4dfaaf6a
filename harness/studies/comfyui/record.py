"""Renders cases in ComfyUI with the graphs of `harness/native`, and records how far they are from the goldens.

    python -m lora_drift.harness.studies.comfyui.record CHECKOUT [MODEL...] --python PYTHON --commit COMMIT

CHECKOUT is ComfyUI's repository, at COMMIT; PYTHON runs it, and has its packages and those of lora-drift. It computes
on the CPU in float32, as the goldens were.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from lora_drift.harness.check import goldens, metrics, runner
from lora_drift.harness.minihub import factory
from lora_drift.harness.native import graphs, records
from lora_drift.harness.paths import ROOT
from lora_drift.harness.studies.comfyui import checkpoints
from lora_drift.harness.studies.comfyui.server import ComfyUI

OPTIONS = ("--force-fp32", "--fp32-text-enc", "--fp32-vae")
SAVES = {"SaveImage", "CreateVideo", "SaveVideo"}


def rendered(comfyui: ComfyUI, graph: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """uint8 "pixels" [frames, height, width, 3] and float32 "latents" of a graph. Not what it saves: SaveImage rounds
    down, where the trainer rounds."""
    (decode,) = [name for name, node in graph.items() if node["class_type"] == "VAEDecode"]
    name = f"arrays-{time.monotonic_ns()}.npz"
    arrays = {"images": [decode, 0], "latent": graph[decode]["inputs"]["samples"], "name": name}
    kept = {name: node for name, node in graph.items() if node["class_type"] not in SAVES}
    comfyui.run({**kept, "arrays": {"class_type": "FixtureSaveArrays", "inputs": arrays}})
    path = comfyui.folder / "output" / name
    with np.load(path) as saved:
        found = dict(saved)
    path.unlink()
    return found


def measured(comfyui: ComfyUI, model: str, name: str) -> tuple[records.Rendered, list[str]]:
    """A case rendered in ComfyUI, and the pack's nodes in its graph."""
    case, golden = records.golden_of(model, name)
    for artefact, file in records.lora_names(case, golden).items():
        shutil.copy(golden.path(artefact), comfyui.folder / "models" / "loras" / file)
    for picture in case.sample.control:
        shutil.copy(picture, comfyui.folder / "input")
    graph = records.graph_of(case, golden)
    found = rendered(comfyui, graph)
    theirs, latents = golden.frames(), golden.latents()
    distance = None
    if found["latents"].squeeze().shape == latents.squeeze().shape:
        distance = metrics.relative_l2(latents, found["latents"].reshape(latents.shape))
    template = records.stock_of(case, golden)
    lost = None
    if template is not None:
        pixels = rendered(comfyui, template)["pixels"]
        lost = records.Distance(**distances(theirs, pixels))
    return records.Rendered(
        golden=golden.seal,
        workflow=records.workflow_hash(graph),
        picture=sha256(found["pixels"].tobytes()).hexdigest(),
        latents_rel_l2=None if distance is None else float(f"{distance:.2g}"),
        stock=lost,
        **distances(theirs, found["pixels"]),
    ), graphs.nodes_of_pack(graph)


def distances(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Levels of 255."""
    mean = round(metrics.mean_difference(theirs, ours), 6)
    return {"pixel_max": metrics.pixel_max(theirs, ours), "pixel_mean": mean}


def recorded(comfyui: ComfyUI, model: str, commit: str) -> records.Record:
    checkpoints.write(model, comfyui.folder / "models")
    found = {name: measured(comfyui, model, name) for name in records.CASES}
    nodes = sorted({node for _, nodes in found.values() for node in nodes})
    content = {
        "model": model,
        "tag": runner.newest_tag(),
        "comfyui": source(comfyui.checkout, commit),
        "environment": {"python": comfyui.call("/system_stats")["system"]["python_version"].split()[0],
                        **packages(comfyui)},
        "options": list(OPTIONS),
        "minihub": factory.manifest_sha256(model),
        "nodes": nodes,
        "pack": records.pack_hash(model, nodes),
        "cases": {name: case.model_dump() for name, (case, _) in found.items()},
    }  # fmt: skip
    return records.Record.model_validate({**content, "seal": goldens.seal(content)})


def source(checkout: Path, commit: str) -> dict[str, str]:
    """What was run: version, commit, and a hash of the Python files, as a copy without its history has no commit."""
    version: dict[str, str] = {}
    exec((checkout / "comfyui_version.py").read_text(), version)
    files = [*checkout.glob("*.py"), *checkout.glob("comfy/**/*.py"), *checkout.glob("comfy_extras/**/*.py")]
    digest = sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()
    return {"version": version["__version__"], "commit": commit, "sha256": digest}


def packages(comfyui: ComfyUI) -> dict[str, str]:
    """Versions of what computes, as the fixture found them in ComfyUI's process."""
    found: dict[str, str] = comfyui.call("/fixture/packages")
    return found


@contextmanager
def started(checkout: Path, python: str, folder: Path) -> Iterator[ComfyUI]:
    """A ComfyUI that can load the miniatures."""
    nodes = {"lora-drift": ROOT / "comfyui", "fixture.py": Path(__file__).with_name("fixture.py")}
    comfyui = ComfyUI(checkout, python, folder, nodes, OPTIONS)
    try:
        comfyui.wait()
        yield comfyui
    finally:
        comfyui.close()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("models", nargs="*", default=list(graphs.RECIPES))
    parser.add_argument("--python", default=sys.executable, help="the Python that runs ComfyUI")
    parser.add_argument("--commit", required=True, help="the commit of the checkout")
    asked = parser.parse_args(arguments)
    records.RECORDS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, started(asked.checkout.resolve(), asked.python, Path(folder)) as it:
        for model in asked.models:
            record = recorded(it, model, asked.commit)
            path = records.RECORDS / f"{model}.json"
            path.write_text(json.dumps(record.model_dump(), indent=1) + "\n")
            worst = max(case.pixel_max for case in record.cases.values())
            print(f"{model}: {worst:g} of 255, with {', '.join(record.nodes) or 'core nodes only'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
