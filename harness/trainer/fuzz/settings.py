"""Settings-only fuzzing: the same job, resolved by the trainer's own parser and by us, must come to the same.

The trainer's side does not know the model; what a model makes of the settings afterwards (its size rule, which control
images it reads) is stated here from its `generate_single_image`, or is a refusal that the model itself would raise.
"""

import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lora_drift.harness.check.cases import ASSETS
from lora_drift.harness.trainer.fuzz.child import Child
from lora_drift.harness.trainer.jobs import JobError, plan, reader
from lora_drift.harness.trainer.recorder.job_config import MODELS
from lora_drift.pipelines import RequestError, images
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.settings import Settings, resolve
from lora_drift.pipelines.spec import ModelSpec

Job = dict[str, Any]
Answer = dict[str, Any]
"""Of the trainer: {"samples": [...]} or {"refused": why}; of ours alike."""

LATER = (
    r"^size .* multiples of",
    r"^size .*at most 16384",
    r"^steps ",
    r"^(guidance_scale|guidance_rescale|multiplier) .*give a number",
    r"^frames/fps ",
    r"^control image",
    r"^ctrl_img .* the trainer stops",
)
"""What we refuse and the trainer's parser does not, because it is the model that fails (Wan at sizes, UniPC at too many
steps, editing without a picture), or because no picture comes of it (an infinite scale, a side beyond 16384)."""
NAMES = {
    "prompt": "prompt",
    "seed": "seed",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance_scale",
    "guidance_rescale": "guidance_rescale",
    "network_multiplier": "multiplier",
    "width": "asked_width",
    "height": "asked_height",
    "fps": "fps",
    "ctrl_idx": "ctrl_idx",
    "do_cfg_norm": "do_cfg_norm",
}
"""The trainer's setting -> ours."""


class Trainer:
    """The trainer's parser, kept running."""

    def __init__(self, python: Path, checkout: Path) -> None:
        self._child = Child("parser", python, checkout, subprocess.DEVNULL)

    def __call__(self, job: Job) -> Answer:
        answer: Answer = self._child.ask(job)
        return answer

    def close(self) -> None:
        self._child.close()


class Difference(NamedTuple):
    """What differs, in which models, of which job."""

    about: str
    """The field, or who refuses."""
    models: tuple[str, ...]
    told: str
    job: Job


def groups(models: Sequence[str], toolkit: str) -> dict[tuple[Any, ...], list[str]]:
    """Models that resolve alike, which is decided by these fields of their rows."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for model in models:
        spec = spec_of(model, toolkit)
        key = (spec.kind == "video", spec.controls, spec.refuses_control, spec.size_rule, spec.size_divisor,
               spec.smallest_side, spec.asked_divisor, spec.frame_step, spec.frames_floored, spec.fewest_steps,
               spec.most_steps)  # fmt: skip
        found.setdefault(key, []).append(model)
    return found


@contextmanager
def pictures_checked_once() -> Iterator[None]:
    """Control images are opened thousands of times; once tells all."""
    original, seen = images.check, set[str]()

    def check(path: str) -> str:
        if path not in seen:
            original(path)
            seen.add(path)
        return path

    images.check = check
    try:
        yield
    finally:
        images.check = original


def ours(job: Job, model: str, toolkit: str, folder: Path) -> list[Settings] | str:
    """What we resolve each sample of the job to, or why we refuse it."""
    file = folder / "config.json"
    process = {**job["config"]["process"][0], "model": MODELS[model]}
    file.write_text(json.dumps({**job, "config": {**job["config"], "process": [process]}}), encoding="utf-8")
    try:
        read = reader.read(file)
        spec = spec_of(model, toolkit)
        planned = plan.Plan(model, None, "", "float32", plan._quantization(read.process.model, spec), ())
        assert read.process.sample is not None
        asked = plan.requests(planned, read, read.process.sample, ASSETS)
        return [resolve(spec, request) for request in asked]
    except (JobError, RequestError) as error:
        return str(error)


def compared(theirs: Answer, found: list[Settings] | str, spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """(field, both values) of what differs."""
    if isinstance(found, str):
        problem = found.split("config.json: ")[-1]
        if "samples" in theirs and not any(re.search(pattern, problem) for pattern in LATER):
            yield "refused by us only", found
        return
    if "refused" in theirs:
        yield "refused by the trainer only", theirs["refused"]
        return
    if len(found) != len(theirs["samples"]):
        yield "number of samples", f"{len(theirs['samples'])} in the trainer, {len(found)} here"
    for sample, settings in zip(theirs["samples"], found, strict=False):
        for name, pair in _pairs(sample, settings, spec):
            if not _same(*pair):
                yield name, f"{pair[0]!r} in the trainer, {pair[1]!r} here"


def _pairs(sample: Answer, settings: Settings, spec: ModelSpec) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Field -> (theirs, ours)."""
    yield from ((name, (sample[name], getattr(settings, mine))) for name, mine in NAMES.items())
    for name in ("negative_prompt", "negative_prompt_2"):
        yield name, (sample[name] or "", getattr(settings, name))  # False: none was given
    if spec.kind == "video":
        yield "num_frames", (sample["num_frames"], settings.asked_frames)
    single, *numbered = (sample[name] for name in plan.CONTROLS)
    if spec.controls[1] > 1:  # qwen_image_edit_plus.py, flux2_model.py; base_model.py for the text encoder
        read = [single if single is not None else numbered[0], *numbered[1:]]
        seen = [single, *numbered]
        yield "shown", (_named(seen), _named(settings.shown or settings.control))
    else:
        read = [single] if spec.controls[1] else []
    yield "control", (_named(read), _named(settings.control))


def _named(paths: Sequence[str | None]) -> list[str]:
    return [Path(path).name for path in paths if path is not None]


def _same(theirs: Any, mine: Any) -> bool:
    if isinstance(theirs, float) and isinstance(mine, float):
        return theirs == mine or (math.isnan(theirs) and math.isnan(mine))
    return bool(theirs == mine)


def draws_its_seed(job: Job) -> bool:
    """Is a seed -1, for which each side draws one of its own?"""
    sample = job["config"]["process"][0]["sample"]
    items = sample.get("samples") or [{}] * len(sample.get("prompts", ()))
    seed = sample.get("seed", 0)
    walked = [seed + i for i in range(len(items))] if sample.get("walk_seed") else [seed]
    return -1 in (*walked, *(item.get("seed") for item in items))


def differences(job: Job, theirs: Answer, models: Sequence[str], toolkit: str, folder: Path) -> Iterator[Difference]:
    """Where any of the models resolves the job otherwise than the trainer."""
    for alike in groups(models, toolkit).values():
        spec = spec_of(alike[0], toolkit)
        for about, told in compared(theirs, ours(job, alike[0], toolkit, folder), spec):
            yield Difference(about, tuple(alike), told, job)


class _Found(AssertionError):
    def __init__(self, difference: Difference) -> None:
        super().__init__(difference.told)
        self.difference = difference


def search(
    ask: Callable[[Job], Answer],
    models: Sequence[str],
    toolkit: str,
    *,
    examples: int,
    seed: int,
    keep: Callable[[Job, Answer], None] = lambda job, answer: None,
) -> tuple[int, list[Difference]]:
    """Draw `examples` jobs; returns how many were compared, and what was found, each shrunk to its smallest job.

    `keep` is told of each job and what the trainer made of it.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from lora_drift.harness.trainer.fuzz.grammar import JOBS

    found: list[Difference] = []
    count = rounds = 0
    with TemporaryDirectory() as scratch, pictures_checked_once():

        def once(job: Job) -> None:
            nonlocal count
            if draws_its_seed(job):
                return
            count += 1
            theirs = ask(job)
            keep(job, theirs)
            for difference in differences(job, theirs, models, toolkit, Path(scratch)):
                if difference.about not in {one.about for one in found}:
                    raise _Found(difference)

        while count < examples:
            drawn = settings(
                max_examples=examples - count,
                database=None,
                deadline=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink),
            )
            rounds += 1
            try:
                seeded(seed + rounds)(drawn(given(JOBS)(once)))()
            except _Found as error:
                found.append(error.difference)
    return count, found
