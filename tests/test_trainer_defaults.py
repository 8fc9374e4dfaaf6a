"""The trainer's own jobs, at each version: those of config/examples, and those that its UI makes.

`outcome` in trainer_defaults.json is the model that such a job is rendered with, and its base where that is not the
usual one (which the mini hub has; every model is rendered in cases/); or why it is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_drift.harness import tags
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.jobs import JobError, folder, plan, reader
from lora_drift.pipelines import MODELS

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
