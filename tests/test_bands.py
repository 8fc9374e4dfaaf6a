"""Versions between the tags: what the trainer itself rendered in each band, and that no other rules render that."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from turns import chosen, today
from typer.testing import CliRunner

from lora_drift.harness import tags
from lora_drift.harness.check import cases, runner, sketched
from lora_drift.harness.check.sketched import Kept
from lora_drift.harness.cli.main import app
from lora_drift.harness.trainer.recorder import bands, build_environment, pins
from lora_drift.pipelines.registry import ROWS
from lora_drift.pipelines.spec import DEFAULTS, INFORMS, TOOLKITS, ModelSpec, age

KEPT = [(band, model) for band in bands.rows() for model in sketched.models(band.version)]
IDS = [f"{model} {band.version}" for band, model in KEPT]


class At(runner.Bench):
    """Renders as any trainer version does."""

    @property
    def toolkit(self) -> str:
        return self.tag


def seen(spec: ModelSpec) -> dict[str, Any]:
    """What of a row a float32 sample on the mini hub shows."""
    unseen = {*INFORMS, *DEFAULTS, "norms_in_float32"}
    if not _reads_signs(spec):
        unseen.add("tokenization")
    rules = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in unseen}
    row = spec.quantizes
    if row is not None and row.reads != "exclude" and not row.spared:  # then nothing is to be spared
        rules["quantizes"] = replace(row, layer_by_layer=True)
    return rules


def _reads_signs(spec: ModelSpec) -> bool:
    """Do its tokenizers, as the mini hub has them, read the signs of the cases `text` otherwise since 0.9.1? (Qwen's do
    with a few new letters only, in vocabularies that hold them; Llama's, Gemma's and Mistral's never: docs/text.md.)"""
    return spec.family in ("sd", "flux", "chroma", "hidream", "wan")


def starts(model: str) -> list[str]:
    """The first version of each band of a model."""
    row = ROWS[model]
    found = [row.since]
    for version in sorted({change.before for change in row.earlier}, key=age):
        if age(version) > age(row.since) and seen(row.at(version)) != seen(row.at(found[-1])):
            found.append(version)
    return found


def start_of(model: str, version: str) -> str:
    """That of the band in which `version` lies."""
    return max((start for start in starts(model) if age(start) <= age(version)), key=age)


@pytest.fixture(scope="module", autouse=True)
def on_the_mini_hub() -> None:
    runner.use_minihub()
    torch.set_num_threads(1)


def read(band: bands.Band, model: str) -> Kept:
    return sketched.read(sketched.file_of(band.version, model), cases.ASSETS)


@pytest.mark.parametrize("model", ROWS)
def test_the_trainer_rendered_in_every_band_of_a_model(model: str) -> None:
    """At a tag, or at a version between."""
    assert {start_of(model, version) for version in recorded(model)} == set(starts(model))


@pytest.mark.parametrize(("band", "model"), KEPT, ids=IDS)
def test_what_is_kept_is_what_was_asked_of_the_pinned_trainer(band: bands.Band, model: str) -> None:
    kept = read(band, model)
    wanted = [case for case in (sample.made() for sample in band.samples) if case.model == model]
    assert [sample.case for sample in kept.samples] == wanted
    told = kept.environment
    assert (kept.tag, told["trainer"]["commit"], told["trainer"]["diffusers_commit"], told["transformers"]) == (
        band.version, band.commit, band.diffusers, band.transformers,
    )  # fmt: skip


@pytest.mark.parametrize(("band", "model"), KEPT, ids=IDS)
def test_a_sample_of_a_band_is_as_the_trainer_had_it(band: bands.Band, model: str, tmp_path: Path) -> None:
    kept = read(band, model)
    assert sketched.problems(At(tag=band.version, controls=False), kept, kept.samples, tmp_path) == []


def recorded(model: str) -> list[str]:
    """At which versions the trainer rendered: those of tags, and between them."""
    at = [row.version for row in tags.all_rows() if model not in row.lacks]
    return sorted([*at, *(band.version for band, kept in KEPT if kept == model)], key=age)


def beside(model: str, version: str) -> list[str]:
    """Versions of the bands before and after: where none is recorded nearer to the border, which then shows it."""
    order = starts(model)
    here = order.index(start_of(model, version))
    same = [other for other in recorded(model) if start_of(model, other) == order[here]]
    before = order[max(0, here - 1) : here] if version == same[0] else []
    return before + (order[here + 1 : here + 2] if version == same[-1] else [])


@pytest.mark.parametrize(("band", "model"), chosen(KEPT, today(), 0), ids=chosen(IDS, today(), 0))
def test_by_the_rules_of_the_bands_beside_it_is_another(band: bands.Band, model: str, tmp_path: Path) -> None:
    kept = read(band, model)
    for other in beside(model, band.version):
        assert sketched.problems(At(tag=other, controls=False), kept, kept.samples, tmp_path / other), other


def test_a_lora_is_rendered_as_the_version_between_tags_did_that_saved_it(tmp_path: Path) -> None:
    """From the command line to the trainer's own picture: since 0.9.14 sizes are floored to 16, until 0.10.21 guidance
    is the old one; the tags on either side have neither or both."""
    (band,) = (band for band in bands.rows() if band.version == "0.10.20")
    kept = read(band, "zimage_turbo")
    (sample,) = (sample for sample in kept.samples if sample.case.lora is not None)
    (tmp_path / "lora.safetensors").write_bytes(kept.loras[sample.job]["lora"])
    asked, picture = sample.case.sample, tmp_path / "out.png"
    said = {
        "--prompt": asked.prompt, "--negative": asked.neg, "--width": asked.width, "--height": asked.height,
        "--seed": asked.seed, "--steps": asked.sample_steps, "--guidance": asked.guidance_scale,
        "--multiplier": asked.network_multiplier, "--trigger": sample.case.trigger_word,
        "--lora": tmp_path / "lora.safetensors", "--output": picture,
    }  # fmt: skip
    words = [str(word) for option in said.items() for word in option]
    distances = {}
    for tag in ("", "0.7.29", "0.12.26"):
        command = ["sample", "--mini", "--model", "zimage_turbo", *words, *(["--tag", tag] if tag else [])]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        ours = np.asarray(Image.open(picture).convert("RGB"))[None]
        sketch = sketched.sketches(np.zeros(1), ours, None)[1]
        theirs = sample.sketches[1]
        distances[tag] = float(np.linalg.norm(sketch - theirs) / np.linalg.norm(theirs))
        made = json.loads(Path(f"{picture}.json").read_text())["reproduces"]
        assert made == f"ostris/ai-toolkit {tag or band.version}"
    assert distances[""] < 1e-3 < 0.01 < min(distances["0.7.29"], distances["0.12.26"])


def test_the_bands_are_no_tags() -> None:
    versions = {band.version for band in bands.rows()}
    assert not versions & {row.version for row in tags.all_rows()} and not versions & set(TOOLKITS)
    for band in bands.rows():
        with pytest.raises(tags.TagError, match="unknown tag"):
            tags.row(band.version)
        assert bands.row(band.version) == band
        assert build_environment.lock_file(band.version).is_file()
    assert bands.row(tags.newest()) == tags.row(tags.newest())
    with pytest.raises(tags.TagError, match=r"unknown tag '0\.9\.8'"):
        pins.check("0.9.8", Path(), None)
