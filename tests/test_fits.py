"""`lora-drift models --fits`: computed memory is near what was measured, and sizes come from the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from lora_drift.harness.cli.main import app
from lora_drift.harness.machine import downloads, fits
from lora_drift.harness.machine.downloads import File, Part
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import MODELS, RequestError

MEASURED = [json.loads(line) for line in (ROOT / "reports" / "performance.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("line", MEASURED, ids=lambda line: line["model"])
def test_computed_memory_is_within_a_tenth_of_what_was_measured(line: dict[str, dict[str, dict[str, float]]]) -> None:
    ours, model = line["ours"], str(line["model"])
    resident, peak = float(ours["resident_gb"]), ours["ours_seconds"]["peak_gb"]  # type: ignore[arg-type]
    assert fits.Need(model, (), resident, 0).computed == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize(("model", "largest"), [("sdxl", 5.13), ("zimage_turbo", 12.31)])
def test_so_it_is_with_model_offload(model: str, largest: float) -> None:
    """`largest`: the denoiser in bfloat16, 2.567 and 6.155 billion parameters."""
    peaks = [line["ours"]["offload_model"]["peak_gb"] for line in MEASURED
             if line["model"] == model and "offload_model" in line["ours"]]  # fmt: skip
    assert fits.Need(model, (), 0, largest).computed_offloaded == pytest.approx(peaks[-1], rel=0.1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mini hub's files for the hub's; sd15 cannot be read."""

    def parts(model: str) -> list[Part]:
        if model == "sd15":
            raise RequestError("no network")
        return [
            Part(repo, f"page of {repo}", "a-licence", repo.startswith("black-forest-labs"), tuple(files(repo)))
            for repo in downloads.table()[model]
        ]

    def files(repo: str) -> list[File]:
        folder = factory.snapshot(factory.build(), repo)
        found = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return [File(str(path.relative_to(folder)), path.stat().st_size, False) for path in found]

    monkeypatch.setattr(downloads, "parts", parts)
    monkeypatch.setattr(
        fits, "_parameters", lambda repo, path: parameters(factory.snapshot(factory.build(), repo) / path)
    )


def parameters(file: Path) -> int:
    total = 0
    with safe_open(file, "np") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            size = 1
            for length in tensors.get_slice(name).get_shape():
                size *= length
            total += size
    return total


def test_every_model_has_its_line_and_what_is_not_known_is_said(hub: None) -> None:
    told = {each["model"]: each for each in json.loads(run("--fits", "24", "--json"))}
    assert list(told) == list(MODELS)
    assert told["sd15"]["problem"] == "no network" and told["sd15"]["fits"] is None
    assert told["flux"]["gb"]["measured"] == 36.3 and told["flux"]["fits"] == "model offload"
    assert told["qwen_image_edit"]["gb"]["measured"] is None and told["qwen_image_edit"]["fits"] == "whole"
    assert told["qwen_image_edit"]["gb"]["computed"] == pytest.approx(2.6, abs=0.1), "a miniature"
    text = {line.split()[0]: line for line in run("--fits", "24").splitlines() if line.strip()}
    assert "36.3 GB" in text["flux"] and "gated" in text["flux"] and "model offload" in text["flux"]
    assert "no network" in text["sd15"]


def run(*args: str) -> str:
    done = CliRunner().invoke(app, ["models", *args])
    assert done.exit_code == 0, done.output
    return done.stdout
