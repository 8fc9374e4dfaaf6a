"""What a job left behind: samples and checkpoints, found by the names that the trainer gives them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_drift.harness.trainer.jobs import JobError
from lora_drift.harness.trainer.jobs.reader import Job
from lora_drift.pipelines import LoraError, lora

SAMPLE = re.compile(r"(?P<time>\d+)__(?P<step>\d{9})_(?P<index>\d+)\.(?:jpe?g|png|webp|mp4)")
"""TIME__STEP_INDEX.EXT (BaseSDTrainProcess.sample)"""
EXPERTS = {"": "path", "_high_noise": "high", "_low_noise": "low"}
"""End of a LoRA file's name -> argument of `Pipeline.with_lora`."""


@dataclass(frozen=True)
class Sample:
    """A picture or video that the trainer saved while it trained."""

    path: Path
    time: int
    """Milliseconds since 1970."""
    step: int
    index: int
    """Which of the job's prompts."""


@dataclass(frozen=True)
class Checkpoint:
    """The LoRA file(s) of one step."""

    files: Mapping[str, Path]
    """Argument of `Pipeline.with_lora` -> file."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why it cannot be read."""


@dataclass(frozen=True)
class Folder:
    """All of them."""

    samples: tuple[Sample, ...]
    checkpoints: Mapping[int, Checkpoint]
    """By step."""
    notes: tuple[str, ...]

    @property
    def steps(self) -> list[int]:
        return sorted({sample.step for sample in self.samples})

    @property
    def version(self) -> str:
        """Of the trainer, as its LoRA files say; "" when there is none."""
        said = (checkpoint.metadata.get("software", {}) for checkpoint in self.checkpoints.values())
        return next((str(software["version"]) for software in said if "version" in software), "")


def scan(folder: Path, job: Job) -> Folder:
    """Samples and checkpoints in the job's output folder.

    Raises:
        JobError: there are no samples, or none is named as the trainer names them.
    """
    notes: list[str] = []
    return Folder(tuple(samples(folder, notes)), checkpoints(folder, job, notes), tuple(notes))


def samples(folder: Path, notes: list[str]) -> list[Sample]:
    """By step, then by prompt. Of several of one step and prompt (a restarted job) the newest."""
    place = folder / "samples"
    files = sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else []
    if not files:
        raise JobError(f"{place}: no samples there; give the job's output folder as the trainer left it (was "
                       "`train.disable_sampling` set, or are the samples elsewhere?)")  # fmt: skip
    found: dict[tuple[int, int], Sample] = {}
    strange, older = [], 0
    for path in files:
        match = SAMPLE.fullmatch(path.name)
        if match is None:
            strange.append(path.name)
            continue
        sample = Sample(path, *(int(match[name]) for name in ("time", "step", "index")))
        place_of = (sample.step, sample.index)
        older += place_of in found
        if place_of not in found or found[place_of].time < sample.time:
            found[place_of] = sample
    if not found:
        raise JobError(f"{place}: none of its {len(files)} files is named as the trainer names samples, "
                       f"TIME__STEP_INDEX.jpg such as 1795424850441__000000500_0.jpg (found {strange[0]}); copy them "
                       "with their names")  # fmt: skip
    if strange:
        notes.append(f"samples: {len(strange)} files are not named as samples are, and were not looked at: "
                     f"{', '.join(strange[:3])}")  # fmt: skip
    if older:
        notes.append(f"samples: {older} older samples of a step and prompt that was sampled again were not looked at")
    return sorted(found.values(), key=lambda sample: (sample.step, sample.index))


def checkpoints(folder: Path, job: Job, notes: list[str]) -> dict[int, Checkpoint]:
    """By step. The file without a step in its name is of the step that its metadata says."""
    name = re.compile(re.escape(job.name) + r"(?:_(?P<step>\d{9}))?(?P<expert>_high_noise|_low_noise|)\.safetensors")
    files: dict[int, dict[str, Path]] = {}
    read: dict[int, tuple[dict[str, Any], str]] = {}
    foreign = []
    for path in sorted(folder.glob("*.safetensors"), reverse=True):  # a step's own file after the final one: it wins
        match = name.fullmatch(path.name)
        if match is None:
            foreign.append(path.name)
            continue
        metadata, problem = _metadata(path)
        said = metadata.get("training_info", {}).get("step", job.process.train.steps)
        step = int(match["step"] if match["step"] is not None else said)
        if step != said and "training_info" in metadata:
            notes.append(f"{path.name}: was saved at step {said}, says the file itself; was it renamed?")
        files.setdefault(step, {})[EXPERTS[match["expert"]]] = path
        if step not in read or problem or not read[step][1]:
            read[step] = metadata, problem
    if foreign:
        notes.append(f"{', '.join(foreign[:3])}: not a LoRA of this job, whose files are named {job.name}_STEP"
                     ".safetensors")  # fmt: skip
    return {step: Checkpoint(files[step], *read[step]) for step in sorted(files)}


def _metadata(path: Path) -> tuple[dict[str, Any], str]:
    """(what the trainer wrote into a LoRA file, why it cannot be read)"""
    try:
        return lora.metadata(path), ""
    except LoraError as error:
        return {}, str(error)
