"""Jobs that were drawn once, and what the trainer made of them: we make the same of each, for every model."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_drift.harness import tags
from lora_drift.harness.cli.main import app
from lora_drift.harness.trainer.fuzz import corpus, settings
from lora_drift.harness.trainer.recorder.job_config import MODELS
from lora_drift.pipelines.registry import spec_of

TAG = "v0.7.29.202603241"
ROW = tags.row(TAG)
HERE = [model for model in MODELS if model not in ROW.lacks]


def job(prompt: str = "a fox", **sample: Any) -> dict[str, Any]:
    process = {"type": "sd_trainer", "model": {"name_or_path": "x"}, "sample": {"prompts": [prompt], **sample}}
    return {"job": "extension", "config": {"name": "my_lora", "process": [process]}}


def by_the_trainer(prompt: str = "a fox", **changes: Any) -> dict[str, Any]:
    """What the trainer resolves `job(prompt)` to; `changes`: what it does otherwise."""
    sample = {
        "prompt": prompt, "negative_prompt": False, "negative_prompt_2": False, "seed": 0, "num_inference_steps": 20,
        "guidance_scale": 7, "guidance_rescale": 0.0, "network_multiplier": 1, "width": 512, "height": 512,
        "num_frames": 1, "fps": 16, "ctrl_idx": 0, "do_cfg_norm": False, "ctrl_img": None, "ctrl_img_1": None,
        "ctrl_img_2": None, "ctrl_img_3": None,
    }  # fmt: skip
    return {"samples": [{**sample, **changes}]}


@pytest.mark.parametrize("path", sorted(corpus.FOLDER.glob("settings-*.jsonl.xz")), ids=lambda path: path.stem)
def test_every_job_of_the_corpus_is_resolved_as_the_trainer_resolved_it(path: Path, tmp_path: Path) -> None:
    head = json.loads(lzma.decompress(path.read_bytes()).splitlines()[0])
    row = tags.row(head["tag"])
    assert head == {"tag": row.tag, "commit": row.commit}
    entries = corpus.read(path)
    assert len(entries) > 50
    models = [model for model in MODELS if model not in row.lacks]
    with settings.pictures_checked_once():
        for drawn, theirs in entries:
            found = list(settings.differences(drawn, theirs, models, row.version, tmp_path))
            assert [(one.about, one.told) for one in found] == [], json.dumps(drawn)
    assert sum("refused" in theirs for _, theirs in entries) > 10


def test_models_that_resolve_alike_are_resolved_once() -> None:
    alike = settings.groups(HERE, ROW.version)
    assert sorted(model for group in alike.values() for model in group) == sorted(HERE)
    assert len(alike) < len(HERE)


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"seed": 1}, "seed"),
        ({"width": 504}, "width"),
        ({"negative_prompt_2": "dark"}, "negative_prompt_2"),
        ({"guidance_scale": 7.5}, "guidance_scale"),
        ({"prompt": "A fox"}, "prompt"),
    ],
)
def test_a_trainer_that_resolves_otherwise_is_found_out(changes: dict[str, Any], about: str) -> None:
    """The jobs are drawn, and the answer is wrong for all: the smallest job is told."""
    right = by_the_trainer()

    def ask(drawn: dict[str, Any]) -> dict[str, Any]:
        return by_the_trainer(**changes) if drawn == job() else right

    with settings.pictures_checked_once():
        found = list(settings.differences(job(), ask(job()), ["sdxl"], ROW.version, Path("/tmp")))
    assert [one.about for one in found] == [about]


def test_a_difference_is_shrunk_to_the_smallest_job() -> None:
    """Of a trainer that knows no flag --s, among all jobs the smallest with that flag is shown."""

    def ask(drawn: dict[str, Any]) -> dict[str, Any]:
        sample = drawn["config"]["process"][0]["sample"]
        prompts = [item["prompt"] for item in sample.get("samples", ())] or sample["prompts"]
        return {"refused": "no --s"} if any("--s 7" in prompt for prompt in prompts) else {"samples": []}

    count, found = settings.search(ask, ["sdxl"], ROW.version, examples=300, seed=5)
    told = {one.about: one.job for one in found}
    assert count >= 300
    assert set(told) <= {"number of samples", "refused by the trainer only", "refused by us only"}
    assert "number of samples" in told
    sample = told["number of samples"]["config"]["process"][0]["sample"]
    assert sample in ({"prompts": [""]}, {"samples": [{"prompt": ""}]})


def test_a_refusal_of_one_side_counts() -> None:
    spec = spec_of("wan21_1b", ROW.version)
    assert list(settings.compared({"refused": "ValueError"}, [], spec)) == [
        ("refused by the trainer only", "ValueError")
    ]
    assert list(settings.compared({"refused": "ValueError"}, "any reason", spec)) == []
    assert list(settings.compared(by_the_trainer(), "no such thing", spec)) == [("refused by us only", "no such thing")]
    wan = "size 500x500: wan21_1b renders multiples of 16 only"
    assert list(settings.compared(by_the_trainer(), wan, spec)) == [], "Wan's own pipeline refuses it"


def test_the_corpus_keeps_what_shows_something_new(tmp_path: Path) -> None:
    kept = corpus.Corpus(tmp_path / "c.jsonl.xz", {"tag": "t", "commit": "c"})
    for prompt in ("a --s 3", "a --s 4", "a --w 3 --s 3", "a --w 5 --s 9"):
        kept.offer(job(prompt), {"samples": []})
    kept.add(job("found"), {"refused": "x"})
    kept.save()
    again = corpus.Corpus(tmp_path / "c.jsonl.xz", {"tag": "t", "commit": "c"})
    assert [entry[0] for entry in again.entries] == [job("a --s 3"), job("a --w 3 --s 3"), job("found")]


def test_the_command_refuses_what_is_no_trainer(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["fuzz", "--trainer", str(tmp_path), "--python", "python", "--tag", TAG])
    assert (done.exit_code, "is not a git checkout" in done.output) == (2, True), done.output
    done = CliRunner().invoke(app, ["fuzz", "--trainer", str(tmp_path), "--python", "python", "--model", "sd16"])
    assert (done.exit_code, "sd16: not a model" in done.output) == (2, True), done.output
