"""What a job left behind: samples and checkpoints, found by the names that the trainer gives them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_drift.harness.trainer.jobs import JobError
from lora_drift.harness.trainer.jobs.reader import Job
from lora_drift.pipelines import LoraError, lora

SAMPLE = re.compile(r"(?P<time>\d+)__(?P<step>\d{9})_(?P<index>\d+)\.(?:jpe?g|png|webp|mp4|bmp|tiff?|gif)")
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
    missing: tuple[str, ...] = ()
    """Names of files that the job saved beside these, and that are not there."""


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
        said = (_said(checkpoint.metadata, "software", "version") for checkpoint in self.checkpoints.values())
        return next((version for version in said if isinstance(version, str)), "")


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
    """By step. The file without a step in its name is of the step that its metadata says, and so is a renamed one."""
    names = re.compile(re.escape(job.name) + r"(?:_(?P<step>\d{9}))?(?P<expert>_high_noise|_low_noise|)\.safetensors")
    files: dict[int, dict[str, Path]] = {}
    read: dict[int, tuple[dict[str, Any], str]] = {}
    foreign = []
    found = [(names.fullmatch(path.name), path) for path in sorted(folder.glob("*.safetensors"))]
    # A step's own file before the final one, and both before renamed ones: what comes first is taken.
    for match, path in sorted(found, key=lambda pair: (pair[0] is None, pair[0] is not None and not pair[0]["step"])):
        metadata, problem = _metadata(path)
        said = _step(metadata)
        if match is None and (metadata.get("ss_output_name") != job.name or said is None):
            foreign.append(path.name)
            continue
        if match is None and said in files and "path" not in (_expert(path, match), *files[said]):
            pass  # the other expert's, perhaps
        elif match is None and said in files:
            notes.append(f"{path.name}: is another copy of this job's LoRA of step {said}, and was not looked at")
            continue
        if match is None:
            notes.append(f"{path.name}: is read as this job's LoRA of step {said}, as the file itself says, though its "
                         "name is another")  # fmt: skip
        elif metadata.get("ss_output_name", job.name) != job.name:
            notes.append(f"{path.name}: was saved by the job {metadata['ss_output_name']}, says the file itself; is it "
                         "this job's?")  # fmt: skip
        named = int(match["step"]) if match is not None and match["step"] is not None else None
        if named is not None and said not in (None, named):
            notes.append(f"{path.name}: was saved at step {said}, says the file itself; was it renamed?")
        step = named if named is not None else job.process.train.steps if said is None else said
        assert step is not None
        if files.setdefault(step, {}).setdefault(_expert(path, match), path) == path and (
            step not in read or problem or not read[step][1]
        ):
            read[step] = metadata, problem
    if foreign:
        notes.append(f"{', '.join(sorted(foreign)[:3])}: not a LoRA of this job, whose files are named {job.name}_STEP"
                     ".safetensors")  # fmt: skip
    return {step: Checkpoint(files[step], *read[step], _missing(job, files[step])) for step in sorted(files)}


def _expert(path: Path, match: re.Match[str] | None) -> str:
    """Argument of `Pipeline.with_lora` that takes the file."""
    if match is not None:
        return EXPERTS[match["expert"]]
    found = re.search(r"(high|low)[ _-]?noise", path.stem, re.IGNORECASE)
    return found[1].lower() if found else "path"


def _missing(job: Job, files: Mapping[str, Path]) -> tuple[str, ...]:
    """Of two experts that were trained, the files that are not there (wan22_14b_model.py save_lora)."""
    trained = [end for end, expert in EXPERTS.items()
               if expert != "path" and job.process.model.model_kwargs.get(f"train{end}", True)]  # fmt: skip
    if "path" in files or len(trained) < 2:
        return ()
    there = {expert: path.name for expert, path in files.items()}
    other = next(iter(there.values()))
    return tuple(re.sub("_(high|low)_noise", end, other) for end in trained if EXPERTS[end] not in there)


def check_network(job: Job) -> None:
    """Refuse a job whose checkpoints are no LoRA files.

    Raises:
        JobError: it says what they are. Remedy "whole" for whole models.
    """
    process, extra = job.process, job.process.model_extra or {}
    if process.network is not None:
        return
    for section, what in (
        ("embedding", "an embedding"),
        ("decorator", "a decorator's tokens"),
        ("adapter", "an adapter"),
    ):
        if extra.get(section):
            raise JobError(f"{job.path}: `network` is missing and `{section}` is there: the job trained {what}, which "
                           "we do not render; it takes a job that trained a LoRA, DoRA or LoKr")  # fmt: skip
    raise JobError(f"{job.path}: `network` is missing: the job is a full fine-tune, whose checkpoints are whole models "
                   "instead of LoRA files. We read jobs that trained a LoRA, DoRA or LoKr.", "whole")  # fmt: skip


def _said(metadata: Mapping[str, Any], *place: str) -> Any:
    """What the file says there; None if it says nothing, or its metadata has another shape."""
    found: Any = metadata
    for name in place:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _step(metadata: Mapping[str, Any]) -> int | None:
    step = _said(metadata, "training_info", "step")
    return step if type(step) is int and 0 <= step < 10**9 else None


def _metadata(path: Path) -> tuple[dict[str, Any], str]:
    """(what the trainer wrote into a LoRA file, why it cannot be read)"""
    try:
        return lora.metadata(path), ""
    except LoraError as error:
        return {}, error.problem
