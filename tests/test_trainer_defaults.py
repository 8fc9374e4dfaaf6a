"""The trainer's own jobs, at each version: those of config/examples, and those that its UI makes.

`outcome` in trainer_defaults.json is the model that such a job is rendered with, and its base where that is not the
usual one (which the mini hub has); or why it is refused. Those that are not refused are rendered, on the mini hub:
a few here, and all with

    LORA_DRIFT_DEFAULTS=all pytest tests/test_trainer_defaults.py -k mini_hub -s
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_drift.harness import tags
from lora_drift.harness.check.cases import ASSETS
from lora_drift.harness.cli.main import app
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.jobs import JobError, folder, plan, reader
from lora_drift.harness.trainer.jobs.plan import Plan
from lora_drift.pipelines import MODELS
from lora_drift.pipelines.spec import NEWEST

JOBS: list[dict[str, Any]] = json.loads((ROOT / "tests" / "trainer_defaults.json").read_text(encoding="utf-8"))


def written(facts: dict[str, Any], place: Path) -> Path:
    """A job file that says the same."""
    if facts.get("broken"):
        place.write_text('job: extension\nconfig:\n  name: "x\n  process:\n    - type: "sd_trainer"\n')
        return place
    process: dict[str, Any] = {
        "type": facts["type"],
        **({"model": facts["model"]} if "model" in facts else {}),
        **{section: {"type": facts[section]} for section in ("network", "adapter") if section in facts},
        **({"train": {"dtype": facts["dtype"]}} if "dtype" in facts else {}),
        **({"sample": {"sampler": facts.get("sampler"), "prompts": ["a fox"]}} if facts["samples"] else {}),
    }
    place.write_text(yaml.safe_dump({"job": facts["job"], "config": {"name": "x", "process": [process]}}))
    return place


def outcome(facts: dict[str, Any], place: Path) -> str:
    try:
        job = reader.read(written(facts, place))
        folder.check_network(job)
        planned = plan.plan(job, None)
    except JobError as error:
        said = error.problem.removeprefix(f"{place}: ")
        return "refused: " + re.split(r" \(", said)[0].removesuffix(".")  # what follows lists what there is
    return planned.model + (f" on {planned.base}" if planned.base else "")


@pytest.mark.parametrize("facts", JOBS, ids=[f"{row['file']} {row['versions'][0]}" for row in JOBS])
def test_a_job_of_the_trainers_own_is_rendered_or_refused_for_a_true_reason(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    assert outcome(facts, tmp_path / "job.yaml") == facts["outcome"]


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"edit": True, "match_target_res": True, "kv_cache": True}, "krea2_o_edit"),
        ({"edit": False}, "krea2"),
        (
            {"edit": True, "match_target_res": True},
            "refused: `model.model_kwargs.kv_cache: false` is not rendered: krea2_o_edit is with true, as the UI of "
            "trainer 0.12.26 writes it",
        ),
        (
            {"edit": True, "match_target_res": False, "kv_cache": True},
            "refused: `model.model_kwargs.match_target_res: false` is not rendered: krea2_o_edit is with true, as the "
            "UI of trainer 0.12.26 writes it",
        ),
    ],
)
def test_a_krea_2_that_edits_pictures_is_not_taken_for_the_one_that_does_not(
    kwargs: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = {"name_or_path": "krea/Krea-2-Raw", "arch": "krea2", "model_kwargs": kwargs}
    job = {"job": "extension", "type": "sd_trainer", "network": "lora", "samples": True, "model": model}
    assert outcome(job, tmp_path / "job.yaml") == said


def test_what_krea_2s_references_are_shown_follows_the_ui_of_the_jobs_trainer(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"edit": True}
    model = {"name_or_path": "krea/Krea-2-Turbo", "arch": "krea2:o_edit_turbo", "model_kwargs": kwargs}
    facts = {"job": "extension", "type": "sd_trainer", "network": "lora", "samples": True, "model": model}
    job = reader.read(written(facts, tmp_path / "job.yaml"))
    assert plan.plan(job, None, "0.10.21").spec.own["references_apart"] is False
    with pytest.raises(JobError, match="kv_cache: false` is not rendered"):
        plan.plan(job, None, "0.10.22")
    kwargs |= {"kv_cache": True, "match_target_res": True, "vlm_max_pixels": 64}
    planned = plan.plan(reader.read(written(facts, tmp_path / "job.yaml")), None, "0.10.22")
    assert planned.spec.own["references_apart"] is True
    assert [note for note in planned.notes if "model_kwargs" in note] == [
        "model.model_kwargs.vlm_max_pixels: 64 is not honoured: rendered as without it"
    ]


def test_a_quantised_anima_is_told_what_stays_as_it_is(tmp_path: Path) -> None:
    job = {"job": "extension", "type": "sd_trainer", "network": "lora", "samples": True}
    named = {"name_or_path": "circlestone-labs/Anima-Base-v1.0-Diffusers", "arch": "anima"}
    found = {}
    for quantize in (False, True):
        facts = {**job, "model": {**named, "quantize": quantize, "quantize_te": False}}
        notes = plan.plan(reader.read(written(facts, tmp_path / "job.yaml")), None).notes
        found[quantize] = [note for note in notes if "text conditioner" in note]
    assert found[False] == [] and len(found[True]) == 1


def test_the_documentation_has_them_all() -> None:
    text = (ROOT / "docs" / "field.md").read_text(encoding="utf-8")
    missing = [row["file"] for row in JOBS if line(row) not in text]
    assert missing == []


def line(row: dict[str, Any]) -> str:
    """Of the table in docs/field.md."""
    first, last = row["versions"][0], row["versions"][-1]
    return f"| {row['file'].removeprefix('config/examples/')} | {first} to {last} | {row['outcome']} |"


def test_every_model_is_reached_by_the_uis_defaults_and_every_version_is_there() -> None:
    rendered = {row["outcome"] for row in JOBS if row["file"].startswith("UI: ")}
    assert MODELS.keys() - {"flux2_diffusers"} <= rendered
    assert {row.version for row in tags.rows()} <= {version for row in JOBS for version in row["versions"]}


# ------------------------------------------------------------------------------------------------------------- rendered

SAMPLE = slice(None) if os.environ.get("LORA_DRIFT_DEFAULTS") == "all" else slice(2, None, 18)
"""The first of these is FLUX.1-schnell, whose base is made here."""
RECOVERY = "ostris/accuracy_recovery_adapters"
STAND_INS: dict[str, tuple[str, ...]] = {
    "uint3": ("--qtype", f"uint3|{RECOVERY}/qwen_image_torchao_uint3.safetensors"),
    "uint4": ("--base", "lora-drift/Wan2.2-T2V-A14B-wide"),
}
"""Of a quantisation whose adapter the mini hub lacks: one adapter for all of Qwen-Image, and a Wan 2.2 that the adapter
fits."""


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini hub's FLUX.1 dev without what schnell lacks: an embedded guidance, and a shift that follows the size."""
    dev = next((factory.repo_folder(factory.build(), "black-forest-labs/FLUX.1-dev") / "snapshots").iterdir())
    folder = Path(shutil.copytree(dev, tmp_path_factory.mktemp("bases") / "schnell"))
    lacks: dict[str, dict[str, Any]] = {
        "transformer/config.json": {"guidance_embeds": False},
        "scheduler/scheduler_config.json": {"use_dynamic_shifting": False, "shift": 1.0},
    }
    for file, changes in lacks.items():
        config = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps({**config, **changes}), encoding="utf-8")
    weights = next((folder / "transformer").glob("*.safetensors"))
    kept = {key: tensor for key, tensor in load_file(weights).items() if "guidance_embedder" not in key}
    save_file(kept, weights, {"format": "pt"})
    return folder


def distinct(place: Path) -> Iterator[tuple[str, dict[str, Any], str, Plan]]:
    """(name, job, version, plan) of each that is rendered as no other is: by its plan, or by the model's row then."""
    seen = set()
    for facts in JOBS:
        if facts["outcome"].startswith("refused"):
            continue
        job = reader.read(written(facts, place))
        for version in facts["versions"]:
            planned = plan.plan(job, None, version)
            row = replace(planned.spec, toolkit="")
            key = repr((planned.model, planned.base, planned.dtype, planned.quantization, row))
            if key not in seen:
                seen.add(key)
                yield f"{facts['file']} at {version}", facts, version, planned


def test_the_trainers_own_jobs_render_on_the_mini_hub(tmp_path: Path, schnell: Path) -> None:
    failed = {}
    for name, facts, version, planned in list(distinct(tmp_path / "job.yaml"))[SAMPLE]:
        written(facts, tmp_path / "job.yaml")
        asked = ["--width", "64", "--height", "64", "--steps", str(max(2, planned.spec.fewest_steps)), "--tag", version]
        asked += STAND_INS.get(planned.quantization.type, ())
        asked += ["--base", str(schnell)] if planned.base == "black-forest-labs/FLUX.1-schnell" else []
        asked += ["--frames", "5"] if planned.spec.kind == "video" else []
        asked += ["--control", str(ASSETS / "wide.png")] * planned.spec.controls[0]
        output = tmp_path / ("o.mkv" if planned.spec.kind == "video" else "o.png")
        done = CliRunner().invoke(app, ["sample", "--mini", "--job", str(tmp_path / "job.yaml"), "--step", "0",
                                        "-p", "a fox", "-o", str(output), *asked])  # fmt: skip
        print(f"{name}: {planned.model}, {'rendered' if done.exit_code == 0 else done.output}")
        if done.exit_code != 0:
            failed[name] = done.output
            continue
        receipt = json.loads(output.with_name(f"{output.name}.json").read_text(encoding="utf-8"))
        said = {field: receipt[field] for field in ("model", "dtype", "reproduces")}
        meant = {"model": planned.model, "dtype": "bfloat16", "reproduces": f"ostris/ai-toolkit {version}"}
        if said != meant:
            failed[name] = f"{said}, not {meant}"
    assert failed == {}


@pytest.mark.parametrize(
    ("arch", "base", "before", "since"),
    [
        ("qwen_image", "Qwen/Qwen-Image", "0.10.21", "0.10.22"),
        ("wan22_5b", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "0.10.21", "0.10.22"),
        ("krea2", "krea/Krea-2-Raw", None, "0.10.17"),
        ("zimage", "Tongyi-MAI/Z-Image", NEWEST, None),
    ],
)
def test_it_is_said_from_which_version_on_low_vram_cuts_pictures_into_tiles(
    tmp_path: Path, arch: str, base: str, before: str | None, since: str | None
) -> None:
    model = {"name_or_path": base, "arch": arch, "low_vram": True}
    facts = {"job": "extension", "type": "sd_trainer", "network": "lora", "samples": True, "model": model}
    job = reader.read(written(facts, tmp_path / "job.yaml"))
    for version, tiled in ((before, False), (since, True)):
        if version is not None:
            notes = plan.plan(job, None, version).notes
            assert any("model.low_vram: true is not honoured" in note for note in notes) is tiled


@pytest.mark.parametrize(
    ("qtype", "why"),
    [("convrot8", "multiplies in 8 or 4 bits"), ("nvfp4", "scaled 4-bit numbers"), ("int8", "8-bit integers")],
)
def test_a_newer_quantisation_is_refused_with_the_true_reason(tmp_path: Path, qtype: str, why: str) -> None:
    model = {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": True, "qtype": qtype}
    facts = {"job": "extension", "type": "sd_trainer", "network": "lora", "samples": True, "model": model}
    job = reader.read(written(facts, tmp_path / "job.yaml"))
    with pytest.raises(JobError, match=rf"qtype '{qtype}' is not rendered: .*{why}"):
        plan.plan(job, None, NEWEST)


def test_when_samples_begin_changes_none_of_them(tmp_path: Path) -> None:
    """`sample_start_step`, since 0.10.24."""
    model = {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image"}
    facts = {"job": "extension", "type": "sd_trainer", "network": "lora", "samples": True, "model": model}
    path = written(facts, tmp_path / "job.yaml")
    plain = plan.plan(reader.read(path), None, "0.10.24")
    said = yaml.safe_load(path.read_text())
    said["config"]["process"][0]["sample"]["sample_start_step"] = 500
    path.write_text(yaml.safe_dump(said))
    assert plan.plan(reader.read(path), None, "0.10.24") == plain
    assert any("sample_start_step" in note for note in plan.plan(reader.read(path), None, "0.10.23").notes)
