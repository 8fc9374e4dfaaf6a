"""Which place a model or a trainer version still lacks. Adding one? Run this after each step; it names what is left.

    pytest tests/test_completeness.py -k lumina2

CONTRIBUTING.md says what to write in each place.
"""

import importlib
import json
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lora_drift.harness import tags
from lora_drift.harness.check.cases import CASES, Case, load_all
from lora_drift.harness.check.goldens import GOLDENS, content
from lora_drift.harness.minihub import factory, layout
from lora_drift.harness.minihub.repos import MODELS as MINIATURES
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.recorder import job_config
from lora_drift.pipelines.registry import MODELS, ROWS
from lora_drift.pipelines.spec import TOOLKITS

Places = Mapping[str, Callable[[str], bool]]
"""What has to be there -> whether it is, for a model id or a tag."""


@cache
def cases_of(model: str) -> tuple[Case, ...]:
    return tuple(case for case in load_all() if case.model == model)


@cache
def committed(path: str) -> Any:
    """A JSON file of the repository; {} where there is none."""
    file = ROOT / path
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@cache
def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- of a model


def has_family(model: str) -> bool:
    """Its row names a module that can load and render."""
    if model not in ROWS:
        return False
    module = importlib.import_module(f"lora_drift.pipelines.families.{ROWS[model].family}")
    return hasattr(module, "load") and hasattr(module, "render")


def has_layouts(model: str) -> bool:
    weights = [weights for repo in MINIATURES.get(model, ()) for weights in repo.weights]
    return bool(weights) and all((layout.LAYOUTS / f"{layout.config_key(w)}.json").is_file() for w in weights)


def has_manifests(model: str) -> bool:
    repos = MINIATURES.get(model, ())
    return bool(repos) and all((factory.MANIFESTS / f"{r.id.replace('/', '--')}.json").is_file() for r in repos)


def has_changed_lora(model: str) -> bool:
    return any(case.lora and case.sample.neg and case.sample.network_multiplier != 1 for case in cases_of(model))


def has_live_lora(model: str) -> bool:
    """Of a family, one model is enough: all of its models apply a live LoRA in the same way."""
    family = ROWS[model].family if model in ROWS else ""
    relatives = [name for name, row in ROWS.items() if row.family == family]
    return any(case.lora and case.lora.mode == "live" for name in relatives for case in cases_of(name))


def knows(tag: tags.Tag, model: str) -> bool:
    return model not in tag.lacks


def has_goldens(model: str) -> bool:
    """At the newest tag of each of its cases, and at each other tag that has the model of some."""
    recorded = [[content(row.tag, case.id) for case in cases_of(model)] for row in tags.rows() if knows(row, model)]
    return bool(cases_of(model)) and None not in recorded[-1] and all(any(some) for some in recorded)


def has_bfloat16_golden(model: str) -> bool:
    return any(content(tags.newest(), case.id, variant="cpu-bfloat16") for case in cases_of(model))


def has_results(model: str) -> bool:
    """In the committed summary of the newest tag each of its cases, and of each other tag that has it some."""
    wanted = {case.id for case in cases_of(model)}
    checked = [{line["case"] for line in summary(row.tag).get("cases", [])} for row in tags.rows() if knows(row, model)]
    return bool(wanted) and wanted <= checked[-1] and all(wanted & some for some in checked)


def summary(tag: str) -> Any:
    return committed(f"reports/{tag}/summary.json")


def has_mutation_score(model: str) -> bool:
    return model in committed("reports/mutation.json").get("models", {})


def has_page(model: str) -> bool:
    return (ROOT / "docs" / "models" / f"{model}.md").is_file()


OF_A_MODEL: Places = {
    "pipelines/families/*.py: a row in ROWS": lambda m: m in ROWS,
    "pipelines/families/*.py: `load` and `render` in the module that the row names": has_family,
    "harness/minihub/repos/*.py: its repositories, and a line in MODELS (__init__.py)": lambda m: m in MINIATURES,
    "harness/minihub/layouts/: run `python -m lora_drift.harness.minihub.read_layouts`": has_layouts,
    "harness/minihub/manifests/: run `lora-drift minihub manifest`": has_manifests,
    "harness/trainer/recorder/job_config.py: its `model:` section in MODELS": lambda m: m in job_config.MODELS,
    "cases/MODEL/base.yaml: without a LoRA": lambda m: any(case.lora is None for case in cases_of(m)),
    "cases/MODEL/lora.yaml: a LoRA, a negative prompt, a multiplier other than 1": has_changed_lora,
    "cases/MODEL/lora-live.yaml: `mode: live` in one model of the family": has_live_lora,
    "cases/MODEL/snapped.yaml: a size that the trainer changes": lambda m: (CASES / m / "snapped.yaml").is_file(),
    "cases/full/MODEL.yaml: the UI's default job": lambda m: (CASES / "full" / f"{m}.yaml").is_file(),
    "goldens/: record its cases at every tag that has it, or list it under `lacks` in tags.yaml": has_goldens,
    "goldens/TAG@cpu-bfloat16/: record one of its cases with --dtype bfloat16": has_bfloat16_golden,
    "reports/TAG/summary.json: run its cases at every tag, and commit the summary": has_results,
    "reports/mutation.json: run `lora-drift mutate`": lambda m: (
        m in committed("reports/mutation.json").get("models", {})
    ),
    "docs/models/: run `lora-drift models --write docs/models`": lambda m: (
        ROOT / "docs" / "models" / f"{m}.md"
    ).is_file(),
    "README.md: its id in the list of models": lambda m: m in re.findall(r"[\w.]+", text("README.md")),
}


BEGUN = sorted(ROWS.keys() - MODELS.keys())
"""Models that only a tag has which is being recorded."""
WITH_THE_TAG = ("goldens/", "reports/", "README.md")
"""What they lack until that one is."""


def recorded_at_begun_tag(model: str) -> bool:
    return all(content(tags.newest_of([model]), case.id) for case in cases_of(model))


OF_A_BEGUN_MODEL: Places = {
    "goldens/: record its cases at the tag that is being recorded": recorded_at_begun_tag,
    **{place: there for place, there in OF_A_MODEL.items() if not place.startswith(WITH_THE_TAG)},
}


def model_ids() -> list[str]:
    """Every model that at least one place knows, but `BEGUN`."""
    folders = {path.name for path in CASES.iterdir() if path.is_dir()} - {"assets", "full"}
    pages = {path.stem for path in (ROOT / "docs" / "models").glob("*.md")} - {"README"}
    return sorted({*MODELS, *MINIATURES, *job_config.MODELS, *folders, *pages} - set(BEGUN))


# ---------------------------------------------------------------------------------------------------------- of a tag


def row_of(tag: str) -> tags.Tag | None:
    return next((row for row in tags.rows() if row.tag == tag), None)


def version_of(tag: str) -> str:
    """v0.7.29.202603241 -> 0.7.29"""
    return ".".join(tag.lstrip("v").split(".")[:3])


def recorded(tag: str) -> bool:
    """Every model that the version has is recorded there; of the newest version every case."""
    row = row_of(tag)
    if row is None:
        return False
    there = {case.id for case in load_all() if content(tag, case.id)}
    wanted = [case for case in load_all() if knows(row, case.model)]
    if tag == tags.newest():
        return all(case.id in there for case in wanted)
    return {case.model for case in wanted} == {case.model for case in wanted if case.id in there}


OF_A_TAG: Places = {
    "harness/tags.yaml: a row with commit, version, what it pins, and what it `lacks`": lambda t: row_of(t) is not None,
    "pipelines/spec.py: its version in TOOLKITS": lambda t: version_of(t) in TOOLKITS,
    "goldens/TAG/: run `python -m lora_drift.harness.trainer.recorder --tag TAG`": recorded,
    "reports/TAG/summary.json, .md: run `lora-drift check --tag TAG`, and commit both": lambda t: (
        bool(summary(t)) and (ROOT / "reports" / t / "summary.md").is_file()
    ),
    "README.md: a row of the table of versions, with the commit": lambda t: (
        row_of(t) is not None and f"| {t} |" in text("README.md")
    ),
    "docs/models/: run `lora-drift models --write docs/models`": lambda t: f"[{t}]" in text("docs/models/flux.md"),
}


def tag_names() -> list[str]:
    """Every tag that at least one place knows, but those that are being recorded; a folder TAG@DEVICE-DTYPE belongs to
    its tag."""
    reports = [path.name for path in (ROOT / "reports").iterdir() if fnmatch(path.name, "v*")]
    folders = [path.name.split("@")[0] for path in GOLDENS.iterdir() if fnmatch(path.name, "v*")]
    begun = {row.tag for row in tags.all_rows() if row.begun}
    versions = {version_of(tag): tag for tag in {*tags.names(), *folders, *reports} - begun}
    return sorted({*versions.values(), *(f"v{version}" for version in TOOLKITS if version not in versions)})


# -------------------------------------------------------------------------------------------------------------- tests


def missing(name: str, places: Places) -> list[str]:
    """The places that lack `name`, in the order in which they are filled."""
    return [place.replace("MODEL/", f"{name}/") for place, there in places.items() if not there(name)]


@pytest.mark.parametrize("model", model_ids())
def test_a_model_is_everywhere(model: str) -> None:
    left = missing(model, OF_A_MODEL)
    assert not left, f"{model} is not complete (CONTRIBUTING.md, Add a model):\n- " + "\n- ".join(left)


@pytest.mark.parametrize("model", BEGUN)
def test_a_model_of_a_tag_that_is_being_recorded_is_everywhere_else(model: str) -> None:
    left = missing(model, OF_A_BEGUN_MODEL)
    assert not left, f"{model} is not complete (CONTRIBUTING.md, Add a model):\n- " + "\n- ".join(left)


@pytest.mark.parametrize("tag", tag_names())
def test_a_trainer_version_is_everywhere(tag: str) -> None:
    left = missing(tag, OF_A_TAG)
    assert not left, f"{tag} is not complete (CONTRIBUTING.md, Add a trainer version):\n- " + "\n- ".join(left)


def test_of_what_is_nowhere_every_place_is_missing() -> None:
    assert len(missing("nowhere", OF_A_MODEL)) == len(OF_A_MODEL)
    assert len(missing("v9.9.9.209901011", OF_A_TAG)) == len(OF_A_TAG)


def test_a_model_that_was_begun_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(job_config.MODELS, "begun", {"arch": "begun", "name_or_path": "nobody/begun"})
    assert "begun" in model_ids()
    left = missing("begun", OF_A_MODEL)
    assert len(left) == len(OF_A_MODEL) - 1 and not any("job_config.py" in place for place in left)


def test_the_places_are_in_the_repository() -> None:
    """A folder that was renamed would otherwise stay in the advice."""
    for place in (*OF_A_MODEL, *OF_A_TAG):
        path = re.split(r"[:,*]|MODEL|TAG", place)[0]
        assert (ROOT / path).exists(), place


def test_the_walk_through_names_every_place() -> None:
    said = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for place in (*OF_A_MODEL, *OF_A_TAG):
        path = Path(re.split(r"[:,*]|MODEL|TAG", place)[0])
        assert str(path) in said, place
