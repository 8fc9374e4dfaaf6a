"""Rendered fuzzing with a stand-in for the trainer: our own code, with one thing wrong."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from lora_drift.harness.check import cases, coverage, runner
from lora_drift.harness.check.agreements import SETTINGS
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.trace import Rendered
from lora_drift.harness.environment import facts
from lora_drift.harness.trainer.fuzz import record, rendered, shrink
from lora_drift.harness.trainer.fuzz.draw import Drawer
from lora_drift.harness.trainer.fuzz.side_by_side import Bench
from lora_drift.pipelines.registry import MODELS, spec_of
from lora_drift.pipelines.settings import Settings

TAG, VERSION = "v0.7.29.202603241", "0.7.29"


class StandIn:
    """Renders as we do, but for `wrong`, which changes the settings; makes no LoRA."""

    def __init__(self, scratch: Path, wrong: Callable[[Settings], Settings]) -> None:
        self._bench, self._wrong, self.asked = Bench(TAG, facts("cpu", "float32"), scratch), wrong, 0

    def __call__(self, drawn: Sequence[Case], out: Path) -> Mapping[str, str]:
        shutil.rmtree(out, ignore_errors=True)
        return {case.id: self._render(case, out / case.id) for case in drawn}

    def _render(self, case: Case, folder: Path) -> str:
        if case.lora is not None:
            return "no LoRAs here"
        self.asked += 1
        try:
            told = self._bench.settings(case)
            pipeline = self._bench.loaded(case)
            ours = self._bench.render(pipeline, self._wrong(told))
        except ValueError as error:
            return str(error)
        folder.mkdir(parents=True)
        count, height, width, _ = ours.frames.shape
        Image.fromarray(np.concatenate(list(ours.frames))).save(folder / "picture.png")
        save_file({"latents": ours.latents}, folder / "latents.safetensors")
        ours.trace.save(folder / "trace.safetensors")
        settings = {theirs: getattr(told, mine) for theirs, mine in SETTINGS.items()} | {"lora_mode": None}
        output = {"frames": count, "width": width, "height": height, "fps": told.fps}
        result: dict[str, Any] = {
            "settings": settings,
            "output": output,
            "origin": "",
            "short_way": None,
            "patches": [],
        }
        (folder / "result.json").write_text(json.dumps(result))
        return ""


@pytest.fixture
def scratch(tmp_path: Path) -> rendered.Scratch:
    runner.use_minihub()
    return rendered.Scratch(tmp_path)


def fuzzer(scratch: rendered.Scratch, wrong: Callable[[Settings], Settings], model: str) -> rendered.Fuzzer:
    ask, bench = StandIn(scratch.folder, wrong), Bench(TAG, facts("cpu", "float32"), scratch.folder)
    return rendered.Fuzzer(ask, bench, scratch, [model], 0, note=lambda line: None)


def until(examples: int, run: rendered.Fuzzer) -> None:
    run.run(examples, lambda: not run.findings)


def test_a_trainer_with_one_thing_wrong_is_found_out_and_the_case_is_the_smallest(scratch: rendered.Scratch) -> None:
    """Its seeds have no sign; nothing else of the case that is written differs from what is plain."""
    run = fuzzer(scratch, lambda told: replace(told, seed=abs(told.seed)), "zimage_turbo")
    until(40, run)
    (found,) = run.findings
    assert (found.kind, found.models) == ("step0/noise", ["zimage_turbo"])
    assert found.file is not None
    assert cases.load(found.file).sha256 == found.case.sha256
    said = shrink.content(found.case)
    assert set(said) == {"schema", "id", "tier", "about", "sample"}
    sample = said["sample"]
    assert set(sample) == {"prompt", "width", "height", "seed", "sample_steps"}
    assert (sample["prompt"], sample["width"], sample["height"], sample["sample_steps"]) == ("a fox", 64, 64, 2)
    assert sample["seed"] < 0
    figures = dict(rendered.figures(scratch, ["zimage_turbo"]))["zimage_turbo"]
    assert figures["differs"] > 0 and figures["compared"] >= figures["differs"] + figures["same"]

    again = fuzzer(rendered.Scratch(scratch.folder), lambda told: told, "zimage_turbo")
    again.run(1, lambda: True)
    after = dict(rendered.figures(again._scratch, ["zimage_turbo"]))["zimage_turbo"]
    assert (after["differs"], after["drawn"]) == (0, figures["drawn"]), "what was mended is rendered again first"


def test_a_trainer_that_refuses_what_we_render_differs(scratch: rendered.Scratch) -> None:
    def wrong(told: Settings) -> Settings:
        if told.guidance_scale > 2:
            raise ValueError("too much")
        return told

    run = fuzzer(scratch, wrong, "zimage_turbo")
    until(40, run)
    (found,) = run.findings
    assert (found.kind, found.told) == ("refused by the trainer only", "too much")
    assert found.case.sample.guidance_scale > 2


def test_what_renders_alike_is_no_finding_and_is_not_drawn_again(scratch: rendered.Scratch) -> None:
    run = fuzzer(scratch, lambda told: told, "zimage_turbo")
    run.run(3, lambda: True)
    assert run.findings == []
    first = {key: [one.case for one in outcomes] for key, outcomes in scratch.jobs.items()}
    again = rendered.Scratch(scratch.folder)
    assert {key: [one.case for one in outcomes] for key, outcomes in again.jobs.items()} == first
    ask = StandIn(scratch.folder, lambda told: told)
    bench = Bench(TAG, facts("cpu", "float32"), scratch.folder)
    rendered.Fuzzer(ask, bench, again, ["zimage_turbo"], 0, lambda line: None).run(3, lambda: True)
    assert ask.asked == 0


@pytest.mark.parametrize(("far", "verdict"), [(0.02, "rounding decides"), (0.2, "differs")])
def test_what_differs_no_more_than_threads_do_is_counted_apart(
    far: float, verdict: str, scratch: rendered.Scratch
) -> None:
    run = fuzzer(scratch, lambda told: told, "zimage_turbo")

    def chaotic(pipeline: Any, settings: Settings) -> Rendered:
        ours = Bench.render(pipeline, settings)
        return replace(ours, latents=ours.latents * (1 + far + 0.01 * torch.get_num_threads()))

    run._bench.render = chaotic  # type: ignore[method-assign]
    (outcome,) = run._outcomes([bare(run)])
    assert outcome.verdict == verdict


def bare(run: rendered.Fuzzer) -> Case:
    """A case without a LoRA, which the stand-in can render."""
    jobs = (run._drawers["zimage_turbo"].job(number) for number in range(100))
    return next(case for job in jobs for case in job if case.lora is None)


@pytest.mark.parametrize("model", MODELS)
def test_jobs_are_drawn_that_soon_visit_most_pairs(model: str, scratch: rendered.Scratch) -> None:
    spec = spec_of(model, VERSION)
    drawer = Drawer(spec, scratch.assets, scratch.pictures, "0")
    every = len(drawer.missing)
    drawn = []
    for number in range(25):
        job = drawer.job(number)
        assert number > 1 or job == drawer.job(number), "the same twice"
        assert len({(one.lora, one.quantization, one.trigger_word) for one in map(_hashable, job)}) == 1
        if job[0].lora is not None and job[0].lora.mode == "merged":
            assert len({one.sample.network_multiplier for one in job}) == 1
        assert {one.model for one in job} == {model}
        for one in job:
            drawer.visit(one)
        drawn += job
    assert len(drawn) >= 60
    assert len(drawer.missing) < 0.25 * every
    assert drawer.missing == {frozenset(pair) for pair in coverage.measure(model, drawn).unvisited_pairs}


def _hashable(case: Case) -> Any:
    lora = case.lora.model_dump_json() if case.lora else None
    quantization = case.quantization.model_dump_json() if case.quantization else None
    return case.model_copy(update={"lora": lora, "quantization": quantization})


def test_the_record_keeps_other_models_and_seeds_and_what_was_mended(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.json"
    environment = dict.fromkeys(record.NOTED, "1")
    larger = {"kind": "size", "models": ["a"], "told": "larger"}
    found = [{**larger, "case": "/somewhere/a.yaml"}]
    record.write({"tag": TAG, "seed": 0, "models": {"a": {"drawn": 1}}, "found": found}, environment, file)
    said = json.loads(file.read_text())
    said["mended"] = [{"cause": "x"}]
    file.write_text(json.dumps(said))
    record.write({"tag": TAG, "seed": 0, "models": {"b": {"drawn": 2}}, "found": []}, environment, file)
    record.write({"tag": TAG, "seed": 1, "models": {"a": {"drawn": 3}}, "found": []}, environment, file)
    said = json.loads(file.read_text())
    assert said["mended"] == [{"cause": "x"}]
    assert said["seeds"] == {
        "0": {"found": [larger], "models": {"a": {"drawn": 1}, "b": {"drawn": 2}}},
        "1": {"found": [], "models": {"a": {"drawn": 3}}},
    }
    record.write({"tag": TAG, "seed": 0, "models": {"a": {"drawn": 4}}, "found": []}, environment, file)
    assert json.loads(file.read_text())["seeds"]["0"] == {"found": [], "models": {"a": {"drawn": 4}, "b": {"drawn": 2}}}
