"""Does the job reproduce? Renders every sample again, puts it through the sample's encoding, and compares."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from lora_drift.harness.check import metrics, tolerances, wav
from lora_drift.harness.check.goldens import CPU
from lora_drift.harness.check.metrics import Array, mean_difference
from lora_drift.harness.check.results import Metric
from lora_drift.harness.deviations.diagnosis.pictures import Picture
from lora_drift.harness.trainer.jobs import JobError, plan
from lora_drift.harness.trainer.jobs import sample_codec as codec
from lora_drift.harness.trainer.jobs.explain import explain
from lora_drift.harness.trainer.jobs.folder import Checkpoint, Folder, Sample
from lora_drift.harness.trainer.jobs.job_file import Sampling
from lora_drift.harness.trainer.jobs.plan import Plan
from lora_drift.harness.trainer.jobs.reader import Job
from lora_drift.harness.trainer.jobs.rounding import WORN, effects, worn
from lora_drift.pipelines import LoraError, RequestError
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.settings import LoraMode, Request, Settings
from lora_drift.pipelines.spec import NOISE_STREAMS, RESIZE_ORDERS, NoiseStream, ResizeOrder

Verdict = Literal["match", "rounding", "differs", "unpaired", "error"]
REMEDIES = {
    "control": "Name them in the job's samples (ctrl_img, or ctrl_img_1 to ctrl_img_3), as when it was trained.",
    "control_file": "Copy the job's control images into its folder.",
    "base": "Say with --base which folder, file or hub id has it here.",
    "dtype": "Say --dtype bfloat16 to see how far that is off.",
    "quantize": "Say --no-quantize to see how far the base model as it is is off.",
}
"""What mends an error, in options of `lora-drift verify`."""
EQUAL = 1.0
"""Largest pixel difference, in levels, of two decoded files of one picture."""
ROUNDING_FACTOR = 2.0
"""How many times a picture's measured answer to a legal rounding may a sample be off on average?"""
STREAMS_MATTER = "bfloat16"
"""The dtype in which the seed's noise depends on the torch that draws it."""


class Codec(BaseModel):
    """What the sample's encoding does to our own picture."""

    name: str
    lost: float
    """Mean difference between our picture and what is left of it in the file, in levels."""
    floor_max: float
    floor_mean: float
    """Largest and mean difference that it makes of pictures which legally differ by one level here and there: below
    this the file cannot tell."""


class Result(BaseModel):
    """The verdict on one sample."""

    file: str
    step: int
    index: int
    verdict: Verdict
    message: str = ""
    prompt: str = ""
    lora: list[str] = []
    lora_mode: LoraMode | None = None
    noise: NoiseStream | None = None
    """Which bfloat16 noise stream the picture is shown with; None where there is one only."""
    resize_order: ResizeOrder | None = None
    """Which Pillow's way to resize control images it is shown with; None without any."""
    metrics: list[Metric] = []
    codec: Codec | None = None
    effects: dict[str, float] = {}
    """Rounding that nobody can avoid -> mean pixel difference that it makes here; measured when the sample differs."""
    settings: dict[str, Any] = {}
    diagnosis: list[str] = []
    seconds: float = 0.0

    def metric(self, name: str) -> float | None:
        return next((m.value for m in self.metrics if m.name == name), None)


class Pair(NamedTuple):
    """A sample and ours after the same encoding, uint8 [frames, height, width, 3]."""

    sample: Array
    ours: Array
    sound: bytes
    """Ours as a WAV, as it was made; empty of a model without."""


@dataclass
class Verified:
    """All samples of a job, and the pictures for the report."""

    job: Job
    plan: Plan
    folder: Folder
    results: list[Result] = field(default_factory=list)
    pictures: dict[str, Pair] = field(default_factory=dict)
    """By file."""
    complete: bool = False
    """False: it is not at its end, or was interrupted."""

    @property
    def notes(self) -> list[str]:
        return [*self.plan.notes, *self.folder.notes]

    @property
    def passing(self) -> bool:
        return all(result.verdict in ("match", "rounding", "unpaired") for result in self.results)


@dataclass
class Asked:
    """A sample, what it takes to render it, or why it cannot be rendered."""

    sample: Sample
    request: Request | None = None
    settings: Settings | None = None
    checkpoint: Checkpoint | None = None
    mode: LoraMode = "merged"
    earlier: dict[int, Checkpoint | None] = field(default_factory=dict)
    """Step -> the LoRA that the trainer merged and took out before this sample; None if it is not there."""
    verdict: Verdict | None = None
    problem: str = ""


def chosen(job: Job, found: Folder, step: str, prompt: int | None) -> list[Sample]:
    """The samples of `--step` (a number, or all) and `--prompt`.

    Raises:
        JobError: there is none such.
    """
    samples = list(found.samples)
    if step != "all":
        if not step.isdigit() or int(step) not in found.steps:
            raise JobError(f"--step {step}: the job was sampled at the steps {', '.join(map(str, found.steps))}")
        samples = [sample for sample in samples if sample.step == int(step)]
    if prompt is not None:
        there = sorted({sample.index for sample in samples})
        if prompt not in there:
            raise JobError(f"--prompt {prompt}: there are samples of the prompts {', '.join(map(str, there))}")
        samples = [sample for sample in samples if sample.index == prompt]
    return samples


def ask(job: Job, found: Folder, planned: Plan, samples: list[Sample], place: Path) -> list[Asked]:
    """Pair samples with prompts and checkpoints. All that can be known without weights is known after this."""
    asked = []
    for sample in samples:
        sampling = sampling_of(job, sample.step)
        wanted = plan.requests(planned, job, sampling, place)
        one = Asked(sample)
        asked.append(one)
        if sample.index >= len(wanted):
            one.verdict = "error"
            one.problem = (f"it is of prompt {sample.index}, but {job.path.name} has {len(wanted)} prompts (0 to "
                           f"{len(wanted) - 1}): was the job edited since?")  # fmt: skip
            continue
        one.request = wanted[sample.index]
        try:
            one.settings = plan.settled(planned, one.request)
            multipliers = {plan.settled(planned, request).multiplier for request in wanted}
        except RequestError as error:
            one.verdict, one.problem = "error", error.told(REMEDIES)
            continue
        if one.request.seed == -1 and not plan.sets_seed(one.request.prompt):
            one.verdict = "unpaired"
            one.problem = ("the job says seed -1, for which the trainer draws one that it writes nowhere: no render "
                           "can be compared with it")  # fmt: skip
            continue
        one.mode = plan.lora_mode(planned, job, multipliers)
        _pair(one, job, found)
    return asked


def sampling_of(job: Job, step: int) -> Sampling:
    """`first_sample` alone is what step 0 shows when the usual first samples are skipped."""
    process = job.process
    usual = process.sample or Sampling()
    skipped = bool((process.train.model_extra or {}).get("skip_first_sample"))
    return process.first_sample if step == 0 and process.first_sample and skipped else usual


def _pair(one: Asked, job: Job, found: Folder) -> None:
    step = one.sample.step
    started = job.process.network.pretrained_lora_path if job.process.network else None
    if step == 0 and started is None:
        return  # a new network changes nothing
    if step == 0:
        one.verdict = "unpaired"
        one.problem = f"the training began from {started}, so that the sample of step 0 is not the base model's"
        return
    one.checkpoint = found.checkpoints.get(step)
    if one.mode == "merged":
        one.earlier = {before: found.checkpoints.get(before) for before in found.steps if 0 < before < step}
    if one.checkpoint is None:
        there = ", ".join(map(str, found.checkpoints)) or "none"
        one.verdict = "unpaired"
        one.problem = (f"no LoRA of step {step} is there (of these steps: {there}); the trainer keeps the last "
                       "`save.max_step_saves_to_keep` only")  # fmt: skip
    elif one.checkpoint.problem:
        one.verdict, one.problem = "error", one.checkpoint.problem
    elif one.checkpoint.missing:
        one.verdict = "unpaired"
        one.problem = (f"of step {step}, {' and '.join(one.checkpoint.missing)} is not there: the job trained both "
                       "experts, and the sample shows both")  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How to verify."""

    device: str = "cpu"
    mini: bool = False
    quantized: bool = True
    """False: leave a base unquantised that the job quantised."""
    diagnose: str = "first"
    """Of the samples that differ: the first, all, or none."""
    seconds: float = 300.0
    """For each diagnosis."""


class Renderer:
    """Renders what was asked with one loaded model."""

    def __init__(self, planned: Plan, device: str, *, quantized: bool = True) -> None:
        from lora_drift import pipelines

        self.planned = planned
        self.pipeline = pipelines.load(
            planned.model,
            base=planned.base,
            device=device,
            dtype=planned.dtype,
            toolkit=planned.spec.toolkit,
            quantization=planned.quantization if quantized else Quantization(),
        )

    def check(self, asked: list[Asked]) -> None:
        """Match every LoRA to the model, by the shapes alone."""
        for one in asked:
            if one.verdict is None and one.checkpoint is not None:
                try:
                    self.with_lora(one)
                except LoraError as error:
                    one.verdict, one.problem = "error", error.told(REMEDIES)

    def with_lora(self, one: Asked, files: dict[str, Path] | None = None) -> Any:
        if one.checkpoint is None:
            return self.pipeline
        return self.pipeline.with_lora(**(files or one.checkpoint.files), mode=one.mode)  # type: ignore[arg-type]

    @property
    def streams(self) -> list[NoiseStream | None]:
        """The noise streams to try; a job does not say which torch made it."""
        if self.pipeline.base.dtype != STREAMS_MATTER:
            return [None]
        return sorted(NOISE_STREAMS, key=lambda stream: stream != self.pipeline.base.noise_stream)

    def orders(self, one: Asked) -> list[ResizeOrder | None]:
        """The resize orders to try; a job does not say which Pillow made it."""
        if one.settings is None or not one.settings.control:
            return [None]
        return sorted(RESIZE_ORDERS, key=lambda order: order != self.pipeline.base.resize_order)

    def prefer(self, result: Result) -> None:
        """Render from now on with what `result` is shown with, and try that first."""
        base = self.pipeline.base
        base.noise_stream = result.noise or base.noise_stream
        base.resize_order = result.resize_order or base.resize_order

    def media(self, one: Asked, files: dict[str, Path] | None = None, after: Iterable[Checkpoint] = ()) -> Media:
        """The picture, with its sound; with other LoRA `files` than the step's, or a base in which others were merged
        `after`."""
        assert one.settings is not None
        before = [self.pipeline.with_lora(**checkpoint.files).lora for checkpoint in after]  # type: ignore[arg-type]
        with worn(self.pipeline, [lora for lora in before if lora], one.settings.multiplier):
            media: Media = self.with_lora(one, files).render(one.settings).media
        return media

    def frames(self, one: Asked, files: dict[str, Path] | None = None, after: Iterable[Checkpoint] = ()) -> Array:
        """uint8 [frames, height, width, 3] of `media`."""
        return _frames(self.media(one, files, after))


def _frames(media: Media) -> Array:
    return np.stack([np.asarray(frame.convert("RGB")) for frame in media.frames])


def run(verified: Verified, asked: list[Asked], options: Options, progress: Callable[[int, str], object]) -> None:
    """Render and compare. A sample that cannot be verified gets a verdict that says why; the others go on.

    Ctrl-C ends it with what is known by then.
    """
    try:
        renderer = Renderer(verified.plan, options.device, quantized=options.quantized)
        try:
            renderer.check(asked)
        except RequestError as error:
            if verified.plan.guessed and error.remedy == "base":
                raise JobError(f"{verified.job.path}: `model.arch` is missing, so this is read as sd15: "
                               f"{error.told(REMEDIES)} Or add the arch of the training.") from error  # fmt: skip
            raise
        unexplained = {"none": 0, "first": 1, "all": len(asked)}[options.diagnose]
        for done, one in enumerate(asked):
            progress(done, one.sample.path.name)
            started = time.perf_counter()
            result = _result(one)
            try:
                if one.verdict is None:
                    _compare(result, one, renderer, verified)
            except RequestError as error:
                result.verdict, result.message = "error", error.told(REMEDIES)
            result.seconds = round(time.perf_counter() - started, 2)
            verified.results.append(result)
            if result.verdict == "differs" and unexplained:
                unexplained -= 1
                try:
                    result.diagnosis.append(_why(result, one, renderer, options))
                except RequestError as error:
                    result.diagnosis.append(f"It could not be explained: {error.told(REMEDIES)}")
        verified.complete = True
    except KeyboardInterrupt:
        pass  # the results so far are there


def _result(one: Asked) -> Result:
    """What is known before it is rendered."""
    result = Result(file=one.sample.path.name, step=one.sample.step, index=one.sample.index,
                    verdict=one.verdict or "error", message=one.problem)  # fmt: skip
    if one.settings is not None:
        result.prompt, result.settings = one.settings.prompt, _shown(one.settings)
    if one.checkpoint is not None:
        result.lora, result.lora_mode = [path.name for path in one.checkpoint.files.values()], one.mode
    return result


def _shown(settings: Settings) -> dict[str, Any]:
    names = {field: [Path(path).name for path in getattr(settings, field)] for field in ("control", "shown")}
    return {**settings.as_dict(), **names}


def _why(result: Result, one: Asked, renderer: Renderer, options: Options) -> str:
    """What the sample has that ours has not; of a base left unquantised, what ours has that the job had not."""
    assert one.request is not None
    sample = codec.read(one.sample.path)
    planned, mini, seconds = renderer.planned, options.mini, options.seconds
    if options.quantized or planned.quantization == Quantization() or not _rendered(planned):
        return explain(renderer.with_lora(one), one.request, sample, mini=mini, seconds=seconds)
    ours = Picture.of(renderer.frames(one))
    asked = Renderer(planned, options.device)
    asked.prefer(result)
    said = explain(asked.with_lora(one), one.request, ours, mini=mini, seconds=seconds)
    return f"ours, against the job as it was: {said}"


def _rendered(planned: Plan) -> bool:
    """Can the job's base be rendered as the job quantised it?"""
    try:
        planned.quantization.check(planned.spec)
    except RequestError:
        return False
    return True


def _compare(result: Result, one: Asked, renderer: Renderer, verified: Verified) -> None:
    """Fill in the verdict; of the noise streams in bfloat16 and the ways to resize control images, what comes nearest.

    Raises:
        RequestError, JobError: the sample, or what it takes to render it, cannot be read.
    """
    sample = codec.read(one.sample.path)
    best: Result | None = None
    for stream, order in product(renderer.streams, renderer.orders(one)):
        found = result.model_copy(update={"noise": stream, "resize_order": order})
        renderer.prefer(found)
        pair = _compared(found, one, renderer, sample)
        if best is None or (found.metric("pixel_mean") or 0.0) < (best.metric("pixel_mean") or 0.0):
            best = found
            verified.pictures[result.file] = pair
        if found.verdict != "differs" or found.metric("pixel_mean") is None:
            break
    assert best is not None
    renderer.prefer(best)
    _fill(result, best)


def _fill(result: Result, other: Result) -> None:
    for name in Result.model_fields:
        setattr(result, name, getattr(other, name))


def _compared(result: Result, one: Asked, renderer: Renderer, sample: Picture) -> Pair:
    """Fill in the verdict with the noise stream of `result`."""
    pair = _measured(result, one, renderer, sample)
    if result.verdict == "match" or not result.metrics:
        return pair
    known = [checkpoint for checkpoint in one.earlier.values() if checkpoint and not checkpoint.problem]
    if known and len(known) == len(one.earlier):
        after = result.model_copy()
        other = _measured(after, one, renderer, sample, known)
        if after.verdict == "match":
            steps = ", ".join(map(str, one.earlier))
            after.message = "; ".join(filter(None, (f"{WORN} (of the steps {steps})", after.message)))
            _fill(result, after)
            return other
    result.effects = effects(one, renderer, pair.ours, lambda frames: codec.encoded(frames, sample))
    cause = max(result.effects, key=result.effects.__getitem__, default="")
    if cause and (result.metric("pixel_mean") or 0.0) <= ROUNDING_FACTOR * result.effects[cause]:
        result.verdict = "rounding"
        result.message = f"{cause}: that alone moves this picture by {result.effects[cause]:.3g}/255 on average"
    return pair


def _measured(
    result: Result, one: Asked, renderer: Renderer, sample: Picture, after: Iterable[Checkpoint] = ()
) -> Pair:
    """Fill in the distances, and whether they are a match."""
    media = renderer.media(one, after=after)
    rendered = _frames(media)
    sound = b"" if media.audio is None else wav.encoded(media.audio, media.sample_rate)
    ours = codec.encoded(rendered, sample)
    result.verdict = "differs"
    if sample.frames.shape != ours.shape:
        result.message = f"the sample is {_size(sample.frames)}, ours is {_size(ours)}"
        return Pair(sample.frames, ours, sound)
    share = tolerances.load("mini", CPU | {"cpu": "ours"}, {"cpu": "the trainer's, unknown"})["pixel_mean"].spread
    largest, mean = codec.floor(rendered, sample, share)
    result.codec = Codec(name=sample.codec, lost=mean_difference(rendered, ours), floor_max=largest, floor_mean=mean)
    result.metrics = metrics.pixels(sample.frames, ours)
    off_max, off_mean = result.metric("pixel_max") or 0.0, result.metric("pixel_mean") or 0.0
    if off_max <= EQUAL:
        result.verdict = "match"
    elif off_max <= largest and off_mean <= mean:
        result.verdict = "match"
        result.message = "at the codec floor: the encoder makes as much of values that are one level off"
    return Pair(sample.frames, ours, sound)


def _size(frames: Array) -> str:
    count, height, width, _ = frames.shape
    return f"{width}x{height}" + (f", {count} frames" if count > 1 else "")
