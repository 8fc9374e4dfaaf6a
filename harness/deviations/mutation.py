"""The mutation score: would the cases notice each variation, and does the localiser name where it begins?

For every model, each variation that applies is rendered on the model's cases, the quickest first, until one of them is
caught: a judged metric is outside its tolerance. Then the stage that the localiser names is held to the one that the
variation says it must show at.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from lora_drift.harness.check import cases, divergence, goldens, metrics, runner, tolerances
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.results import Metric
from lora_drift.harness.check.runner import Bench, encodings_kept
from lora_drift.harness.check.trace import Rendered, Trace
from lora_drift.harness.deviations.equivalent import EQUIVALENT, ROUNDED_ALREADY
from lora_drift.harness.deviations.library import LIBRARY, Subject, Variation
from lora_drift.pipelines.files import lines_of

Verdict = Literal["caught", "survived", "equivalent", "error"]


class Outcome(BaseModel):
    """One variation on one model."""

    model_config = ConfigDict(extra="forbid")

    model: str
    variation: str
    verdict: Verdict
    case: str = ""
    """The case that caught it; of a survivor, the case on which it was largest."""
    distance: float | None = None
    """Relative L2 distance of the final latents there; None when the shapes differ."""
    truth: str = ""
    """The stage at which it must show first."""
    named: str = ""
    """The one that the localiser named."""
    boundary: str = ""
    note: str = ""
    seconds: float = 0.0

    @property
    def located(self) -> bool:
        return divergence.agrees(self.named, self.truth)


@dataclass(frozen=True)
class Prepared:
    """A case that matches as it is."""

    case: Case
    golden: Golden
    subject: Subject
    reference: np.ndarray
    trace: Trace
    whole: bool
    """Whether the render has every stage of the golden. (Of an old LoKr of Chroma's or FLUX.2's, the file and the
    trainer's network name the modules otherwise, so that anything would be named a LoRA that was not applied.)"""
    seconds: float


@dataclass(frozen=True)
class Where:
    """On what the variations are rendered, and how they are judged."""

    device: str = "cpu"
    dtype: str | None = None
    """None: float32 on the CPU, bfloat16 elsewhere."""
    capability: str = ""
    """Judge as on a GPU of this compute capability: one without goldens is held to the nearest set, within what
    architectures differ by."""

    def bench(self, tag: str) -> Bench:
        return Bench(self.device, self.dtype, tag=tag, capability=self.capability)


class NotMatching(RuntimeError):
    """A case does not match without any variation, so it cannot judge one."""


def outcomes(
    model: str, only_cases: list[str], tag: str, wanted: Callable[[str, str], bool], where: Where | None = None
) -> Iterator[Outcome]:
    """Every variation that applies to a case of `model` and is `wanted(model, variation)`. In half precision the cases
    are those that the set of goldens has.

    Raises:
        NotMatching: a case is red already.
        Missing: in float32, a case without a golden.
    """
    bench = (where or Where()).bench(tag)
    chosen = cases.choose(cases.load_all(), [model], only_cases, tag=tag)
    if bench.dtype != "float32":
        chosen = [case for case in chosen if _recorded(bench, case)]
    prepared = [_prepare(bench, case) for case in chosen]
    # The quickest first, but those without control images before: beside a picture, noise is not always seen apart.
    prepared.sort(key=lambda p: (not p.whole, bool(p.subject.settings.control), p.seconds))
    if not prepared:
        return
    with encodings_kept(prepared[0].subject.pipe.vae):
        for variation in LIBRARY.values():
            applying = [p for p in prepared if variation.applies(p.subject)]
            if applying and wanted(model, variation.name):
                yield _outcome(bench, variation, applying)


def _recorded(bench: Bench, case: Case) -> bool:
    try:
        bench.golden(case)
    except goldens.Missing:
        return False
    return True


def _prepare(bench: Bench, case: Case) -> Prepared:
    golden = bench.golden(case)
    subject = Subject.of(bench.pipeline(case, golden), bench.request(case))
    _ = subject.pipe  # loading is no part of the case's time
    started = time.perf_counter()
    ours = bench.render(subject.pipeline, subject.settings)
    seconds, trace = time.perf_counter() - started, Trace.load(golden.path("trace"))
    whole = all(np.isfinite(distance) for distance in divergence.distances(trace, ours.trace).values())
    prepared = Prepared(case, golden, subject, golden.frames(), trace, whole, seconds)
    outside = [m.name for m in _measured(prepared, ours, bench) if not m.within]
    if outside:
        raise NotMatching(f"{case.id} does not match without any variation ({', '.join(outside)}); mend it first")
    return prepared


def _outcome(bench: Bench, variation: Variation, applying: list[Prepared]) -> Outcome:
    started = time.perf_counter()
    model = applying[0].case.model
    best = Outcome(model=model, variation=variation.name, verdict="survived", distance=-1.0)
    for prepared in applying:
        try:
            outcome = _on(bench, variation, prepared)
        except Exception as error:  # noqa: BLE001  one broken variation must not hide the rest; its verdict fails the run
            note = f"{type(error).__name__}: {error}"[:300]
            outcome = Outcome(model=model, variation=variation.name, verdict="error", case=prepared.case.id, note=note)
        if outcome.verdict != "survived" or (outcome.distance or 0) >= (best.distance or 0):
            best = outcome
        if outcome.verdict != "survived":
            break
    reason = EQUIVALENT.get((variation.name, model)) or EQUIVALENT.get((variation.name, ""))
    if bench.dtype != "float32":
        reason = ROUNDED_ALREADY if best.distance == 0 and variation.kind in ("precision", "noise") else None
    if best.verdict == "survived" and reason:
        best = best.model_copy(update={"verdict": "equivalent", "note": reason})
    return best.model_copy(update={"seconds": round(time.perf_counter() - started, 2)})


def _on(bench: Bench, variation: Variation, prepared: Prepared) -> Outcome:
    """One variation on one case: survived, or caught and located."""
    subject = prepared.subject
    truth = variation.shows(subject)
    with _honest_encodings(variation, subject), variation.applied(subject) as varied:
        ours = bench.render(varied.pipeline, varied.settings)
        mode = varied.pipeline.applied_mode
    measured = _measured(prepared, ours, bench)
    distances = {m.name: m.value for m in measured}
    outcome = Outcome(
        model=prepared.case.model,
        variation=variation.name,
        verdict="survived" if all(m.within for m in measured) else "caught",
        case=prepared.case.id,
        distance=distances.get("latents_rel_l2"),
        truth=truth,
    )
    if outcome.verdict == "survived":
        return outcome
    limit = partial(tolerances.of_stage, bench.tolerances(prepared.case, prepared.golden))
    found = divergence.distances(prepared.trace, ours.trace)
    stage = divergence.first(found, limit) or runner.finished(measured) or ""
    golden_mode = prepared.golden.settings.get("lora_mode")
    control = subject.settings.control  # what the golden was made with
    facts = {**ours.settings, "control": control, "lora_mode": mode, "golden_lora_mode": golden_mode}
    named = divergence.place(stage, prepared.trace, ours.trace, facts) if stage else "nowhere"
    return outcome.model_copy(update={"named": named, "boundary": stage})


def _honest_encodings(variation: Variation, subject: Subject) -> AbstractContextManager[Any]:
    """Control images are encoded afresh by what changes how the VAE computes."""
    from lora_drift.harness.deviations.library.base import patched

    vae = subject.pipe.vae
    if variation.kind not in ("precision", "output"):
        return nullcontext()
    return patched(vae, "encode", MethodType(type(vae).encode, vae))


def _measured(prepared: Prepared, ours: Rendered, bench: Bench) -> list[Metric]:
    """The judged metrics; one that cannot be measured (another shape, not a number) is outside its tolerance."""
    limits = bench.tolerances(prepared.case, prepared.golden)
    if prepared.reference.shape != ours.frames.shape or not np.isfinite(ours.latents).all():
        return [Metric(name="pixel_max", value=None, gate=limits["pixel_max"].limit)]
    latents = prepared.golden.latents()
    if latents.shape != ours.latents.shape:
        return [Metric(name="latents_rel_l2", value=None, gate=limits["latents_rel_l2"].limit)]
    seen = metrics.pixels if "ssim" in limits else metrics.pixel_levels  # which takes longer
    measured = [*metrics.latents(latents, ours.latents), *seen(prepared.reference, ours.frames)]
    if "audio" in prepared.golden.artefacts:
        golden = prepared.golden.audio()
        same = ours.audio is not None and golden.shape == np.asarray(ours.audio).shape
        measured.append(metrics.audio(golden, ours.audio) if same else Metric(name="audio_rel_l2", value=None))
    return tolerances.apply(measured, limits)


def read(path: Path) -> list[Outcome]:
    """Outcomes that an earlier run left behind; a last line cut short is left out."""
    if not path.is_file():
        return []
    whole = [line for line in lines_of(path) if line.endswith("}")]
    return [Outcome.model_validate(json.loads(line)) for line in whole]


def of_model(task: tuple[str, list[str], str, Where, list[str], Path]) -> str:
    """Append the outcomes of one model to a file, as they come: (model, cases, tag, where, variations to try, file).

    A worker of its own: it sets up the mini hub and loads the model. Returns the model's id.
    """
    model, only_cases, tag, where, wanted, file = task
    from lora_drift.harness.hf_logging import quiet

    runner.use_minihub()  # before any Hugging Face library is imported, which `quiet` does
    quiet()
    for outcome in outcomes(model, only_cases, tag, lambda _model, variation: variation in wanted, where):
        with file.open("a", encoding="utf-8") as stream:  # one write a line: several workers append
            stream.write(outcome.model_dump_json() + "\n")
    return model


def run(
    only_models: list[str],
    only_cases: list[str],
    *,
    tag: str,
    where: Where,
    workers: int,
    file: Path,
    resume: bool,
    progress: Callable[[int, str], object],
    variations: Sequence[str] = tuple(LIBRARY),
) -> list[Outcome]:
    """Every variation (or those named) on every chosen model, a model at a time in each of `workers` processes.

    `file` holds the outcomes as they come; with `resume`, those that it holds already are kept.

    Raises:
        CaseError, TagError: no such model or case, or none left to try.
    """
    chosen = cases.choose(cases.load_all(), only_models, only_cases, tag=tag)
    models = list(dict.fromkeys(c.model for c in chosen))
    if not resume:
        file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    before = {(outcome.model, outcome.variation) for outcome in read(file)}
    tasks = [(m, only_cases, tag, where, [v for v in variations if (m, v) not in before], file) for m in models]
    # A process a model, which gives its memory back. (An executor that replaces its workers was seen to hang here.)
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for number, model in enumerate(pool.imap_unordered(of_model, tasks), 1):
            progress(number, model)
    return [outcome for outcome in read(file) if outcome.model in models and outcome.variation in variations]
