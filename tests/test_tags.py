"""One install reproduces every recorded trainer version."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_drift import pipelines
from lora_drift.harness import tags
from lora_drift.harness.check import cases, goldens, runner
from lora_drift.harness.check.verified_by import vouching
from lora_drift.harness.minihub import factory
from lora_drift.pipelines import MODELS, RequestError
from lora_drift.pipelines.registry import ROWS, spec_of
from lora_drift.pipelines.spec import NEWEST, TOOLKITS, Earlier, age, nearest, noise_stream_at

UNSEEN = {"zimage", "zimage_deturbo"}
"""Models whose default settings do not show what changed (guidance above 1)."""
CHANGES = [
    (model, change)
    for model, spec in MODELS.items()
    for change in spec.earlier
    if model not in UNSEEN and age(change.before) <= age(TOOLKITS[-1])
]
"""Between two recorded versions."""


def test_the_pipelines_know_the_versions_of_the_tags() -> None:
    assert tuple(row.version for row in tags.rows()) == TOOLKITS
    for row in tags.all_rows():
        lacks = {model for model, spec in ROWS.items() if age(spec.since) > age(row.version)}
        assert set(row.lacks) == lacks


def test_a_version_without_the_model_is_refused_with_the_first_that_has_it() -> None:
    with pytest.raises(RequestError, match=r"trainer 0.7.19 does not know flux2_klein_4b yet; the first .* is 0.7.20"):
        pipelines.load("flux2_klein_4b", toolkit="0.7.19")
    with pytest.raises(RequestError, match=r"trainer 0.7.29 does not know krea2 yet; the first that does is 0.10.17"):
        pipelines.load("krea2", toolkit="0.7.29")
    with pytest.raises(RequestError, match=r"does not know krea2_o_edit yet; the first that does is 0.10.20"):
        pipelines.load("krea2_o_edit", toolkit="0.10.19")
    for unknown in ("0.6", "0.7.18", "99.0.0", "newest", ""):
        said = f"unknown trainer version '{unknown}'; reproduced are those from 0.7.19 to {NEWEST}"
        with pytest.raises(RequestError, match=re.escape(said)):
            spec_of("flux", unknown)


@pytest.mark.parametrize(
    ("version", "found"),
    [("0.9.7", "0.9.7"), ("0.10.2", "0.10.2"), ("0.7.30", "0.7.30"), ("0.7.3", "0.7.19"), ("0.2", "0.7.19"),
     ("0.12.27", NEWEST), ("1.0", NEWEST), ("0.9.7rc1", TOOLKITS[-1]), ("", TOOLKITS[-1])],
)  # fmt: skip
def test_what_any_trainer_made_is_rendered_as_by_the_nearest_that_is_reproduced(version: str, found: str) -> None:
    assert nearest(version) == found


def test_a_version_between_two_tags_has_the_rules_of_its_band() -> None:
    """Wan left UniPC with 0.9.3; Z-Image its floor to 32 with 0.9.14, its guidance with 0.10.21, then its steps."""
    wan = {v: spec_of("wan22_14b_t2v", v) for v in ("0.9.2", "0.9.3", "0.9.7", "0.10.12")}
    assert ["UniPC" in row.scheduler.name for row in wan.values()] == [True, False, False, False]
    assert wan["0.9.2"].scheduler.config["flow_shift"] == 3.0 and wan["0.9.7"].scheduler.config["shift"] == 5.0
    zimage = {v: spec_of("zimage_turbo", v) for v in ("0.9.13", "0.9.14", "0.10.20", "0.10.21", "0.10.23", "0.10.24")}
    assert [row.size_divisor for row in zimage.values()] == [32, 16, 16, 16, 16, 16]
    assert [row.guidance for row in zimage.values()] == [*["cfg_above_zero"] * 3, *["cfg"] * 3]
    assert [row.steps for row in zimage.values()] == [8, 8, 8, 9, 9, 9]
    assert [row.scheduler.name == "FlowMatchEulerToZero" for row in zimage.values()] == [True] * 5 + [False]
    assert noise_stream_at("0.11.1") == "torch-2.11" and noise_stream_at("0.12.2") == "torch-2.13"


@pytest.mark.parametrize(("model", "change"), CHANGES, ids=[f"{m} before {c.before}" for m, c in CHANGES])
def test_what_a_trainer_version_changed_is_reproduced_on_both_sides(model: str, change: Earlier) -> None:
    """Each version's golden is met by its own row of the table, and missed by the other's."""
    order = tags.names()
    newer = next(row.tag for row in tags.rows() if age(row.version) >= age(change.before))
    older = order[order.index(newer) - 1]
    case = cases.load(cases.CASES / model / "base.yaml")
    theirs = {tag: goldens.load(tag, case, factory.manifest_sha256(model)) for tag in (older, newer)}
    for tag, other in ((older, newer), (newer, older)):
        bench = runner.Bench(tag=tag)
        ours = bench.render(bench.pipeline(case, theirs[tag]), bench.settings(case)).frames
        assert levels(ours, theirs[tag].frames()) <= 1
        assert levels(ours, theirs[other].frames()) > 8


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference of two pictures, of 255."""
    return int(abs(a.astype(int) - b).max())


def saved_by(version: str, source: Path, target: Path) -> Path:
    """The LoRA file `source`, as another version of the trainer would have signed it."""
    software = json.dumps({"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit", "version": version})
    save_file(load_file(source), target, {"software": software, "format": "pt"})
    return target


def test_a_lora_is_rendered_as_the_trainer_does_that_made_it(lora_of: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline = pipelines.load("zimage")
    between = pipeline.with_lora(saved_by("0.9.14", lora_of("zimage/lora"), tmp_path / "between.safetensors"))
    assert between.spec == spec_of("zimage", "0.9.14")
    future = pipeline.with_lora(saved_by("1.2", lora_of("zimage/lora"), tmp_path / "future.safetensors"))
    assert future.spec == spec_of("zimage", NEWEST)
    nobody = pipeline.with_lora(saved_by("?", lora_of("zimage/lora"), tmp_path / "nobody.safetensors"))
    assert nobody.spec == pipeline.spec
    told = pipelines.load("zimage", toolkit="0.7.29").with_lora(tmp_path / "between.safetensors")
    assert told.spec == spec_of("zimage", "0.7.29")


def test_versions_with_the_same_rules_share_what_is_loaded(lora_of: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline = pipelines.load("flux")
    adapted = pipeline.with_lora(saved_by("0.8.1", lora_of("flux/lora"), tmp_path / "a.safetensors"))
    assert adapted.base is pipeline.base and adapted.toolkit == "0.8.1"


def test_nothing_vouches_for_rules_that_no_tag_has() -> None:
    assert vouching(spec_of("flux", "0.8.1")) == vouching(spec_of("wan21_1b", "0.7.25")) == "v0.7.29.202603241"
    assert vouching(spec_of("qwen_image_edit", "0.8.1")) is None  # the sides are no longer swapped
    assert vouching(spec_of("wan21_1b", "0.7.24")) == "v0.7.24.202603201"


def test_the_trainers_mistakes_are_mended_only_on_request() -> None:
    ltx2 = pipelines.load("ltx2", toolkit="0.10.24", as_intended=True)
    assert not ltx2.spec.own["prompt_reversed"] and spec_of("ltx2", "0.10.24").own["prompt_reversed"]
    edit = pipelines.load("qwen_image_edit", toolkit="0.7.29", as_intended=True).spec.own
    assert (edit["seen_sides_swapped"], edit["seen_in_place"], edit["seen_white"]) == (False, True, 255.0)
    with pytest.raises(RequestError, match="renders ltx2 as it was meant; leave it out"):
        pipelines.load("ltx2", toolkit="0.7.29", as_intended=True)
