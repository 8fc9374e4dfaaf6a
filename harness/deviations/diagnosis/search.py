"""The search for the variation, or the two, that make our picture theirs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from lora_drift.harness.check import divergence, tolerances
from lora_drift.harness.check.divergence import SIZE
from lora_drift.harness.check.metrics import rms_difference
from lora_drift.harness.check.trace import Trace, Tracer
from lora_drift.harness.deviations.diagnosis.pictures import Frames, Picture
from lora_drift.harness.deviations.diagnosis.reuse import Memory
from lora_drift.harness.deviations.equivalent import EQUIVALENT
from lora_drift.harness.deviations.library import Subject, Variation, applicable
from lora_drift.harness.deviations.library.base import Kind
from lora_drift.harness.environment import facts
from lora_drift.pipelines.errors import NotFinite

Verdict = Literal["same", "explained", "ambiguous", "unexplained"]

ORDER: tuple[Kind, ...] = (
    "output", "guidance", "request", "noise", "schedule", "adapter", "text", "encode", "control", "denoiser",
    "precision",
)  # fmt: skip
"""Kinds of variations by what they cost, the cheapest first: those of the output need no denoising."""
FIRSTS = 3
"""Of how many variations, the best by themselves, pairs with all others are tried."""
PROMISING = 0.8
"""A variation is worth pairing if it brings the distance down to this part: distances of independent causes add like
squares, so that one of two takes away three tenths by itself. (Less contrast brings any two pictures nearer.)"""
UNMEASURED = 0.05
"""Where no tolerance was measured: the part of the distance that may be left and count as arithmetic."""


class Candidate(BaseModel):
    """One variation, or two at once, and how far the picture is with it."""

    model_config = ConfigDict(extra="forbid")

    variations: list[str]
    about: list[str]
    sources: list[str]
    distance: float | None = None
    """None: of another size, or it could not be rendered."""
    note: str = ""
    picture: str = ""
    """Hash of its pixels, as rendered."""

    @property
    def name(self) -> str:
        return " + ".join(self.variations)


class Diagnosis(BaseModel):
    """What was found. Distances are root mean squares in levels of 255; of a trace, relative L2 of final latents."""

    model_config = ConfigDict(extra="forbid")

    model: str
    verdict: Verdict
    """explained: one cause makes this very picture. ambiguous: several do, and their own pictures differ by less than
    can be told apart. unexplained: none does. same: there is nothing to explain."""
    reference: float | None
    """The distance before anything is varied; None: of another size."""
    limit: float | None
    """Up to here a distance is arithmetic; None where that is not known."""
    measured_limit: bool
    """Whether `limit` follows from a tolerance, or was assumed."""
    size: str = ""
    codec: str = ""
    codec_floor: float | None = None
    """What the codec alone does to the reference."""
    first_divergence: str = ""
    """Of the two traces, if there is theirs."""
    ranking: list[Candidate]
    """The nearest first, without those that could not be compared."""
    not_compared: list[Candidate]
    tried: int
    complete: bool
    """False: the time ran out, or it was interrupted."""
    seconds: float

    @property
    def best(self) -> list[Candidate]:
        """The nearest, and what makes the same picture as it."""
        return [c for c in self.ranking if c.picture == self.ranking[0].picture]

    @property
    def nearest(self) -> Candidate | None:
        """The nearest, if it takes away at least a fifth of the distance: less is no evidence. Of a picture of another
        size, the distance that counts is the least that any one variation leaves."""
        return nearest(self.ranking, self.reference)


Progress = Callable[[int, int, "Candidate | None"], object]
"""Called as (renders done, renders planned, the nearest so far, if it is near enough to be named)."""


def nearest(ranking: list[Candidate], reference: float | None) -> Candidate | None:
    """See `Diagnosis.nearest`."""
    if not ranking:
        return None
    if reference is None:
        single = next((c for c in ranking if len(c.variations) == 1), None)
        if single is None or (single.distance or 0) * PROMISING < (ranking[0].distance or 0):
            return single
        return ranking[0]
    return ranking[0] if (ranking[0].distance or 0) <= PROMISING * reference else None


def diagnose(
    subject: Subject,
    theirs: Picture | None = None,
    *,
    trace: Trace | None = None,
    tier: str = "full",
    seconds: float | None = None,
    progress: Progress = lambda done, total, best: None,
) -> Diagnosis:
    """What explains a picture (or a trace) of another stack that should have rendered `subject`.

        subject = Subject.of(pipelines.load("flux").with_lora(file), Request("a fox", seed=7))
        found = diagnose(subject, pictures.read(path))
        print(found.verdict, found.ranking[0].variations if found.ranking else "")

    Args:
        trace: what `trace.capture` saw there; without a picture, its final latents are compared.
        tier: of the base model's weights, by which tolerances are chosen: "mini" or "full".
        seconds: stop after this time with what is known by then.
    """
    search = Search(subject, theirs, trace=trace, tier=tier)
    search.run(seconds, progress)
    return search.diagnosis()


class OutOfTime(Exception):
    pass


class Search:
    """One search; whatever ends it, `diagnosis()` says what is known."""

    def __init__(
        self, subject: Subject, theirs: Picture | None = None, *, trace: Trace | None = None, tier: str = "full"
    ) -> None:
        assert theirs is not None or trace is not None
        self.subject, self.theirs, self.trace = subject, theirs, trace
        self.candidates: list[Candidate] = []
        self.reference: float | None = None
        self.complete = False
        self.size, self.first = "", ""
        self.floor: float | None = None
        self.limit: float | None = None
        self._started, self._deadline = time.perf_counter(), float("inf")
        self._limits = self._tolerances(tier)
        self._frames: Frames | None = None

    # ---------------------------------------------------------------------------------------------------- the search

    def run(self, seconds: float | None = None, progress: Progress = lambda done, total, best: None) -> None:
        self._started = time.perf_counter()
        self._deadline = float("inf") if seconds is None else self._started + seconds
        with Memory(self.subject) as memory:
            self._refer(memory)
            if self.reference is not None and self.limit is not None and self.reference <= self.limit:
                self.complete = True
                return
            try:
                self._search(memory, progress)
                self.complete = True
            except OutOfTime:
                return

    def _search(self, memory: Memory, progress: Progress) -> None:
        singles = self._ordered()
        for number, variation in enumerate(singles):
            progress(number, len(singles), self._nearest())
            self._try(memory, (variation,))
        if self.reference is None and not any(c.distance is not None for c in self.candidates):
            singles.append(_of_their_size(self.subject, self.theirs))
            self._try(memory, (singles[-1],))
        if self._explained():
            return
        pairs = list(self._pairs(singles))
        for number, pair in enumerate(pairs, len(singles)):
            progress(number, len(singles) + len(pairs), self._nearest())
            self._try(memory, pair)

    def _ordered(self) -> list[Variation]:
        """The cheapest first; before them those that show where the traces part."""
        found = sorted(applicable(self.subject), key=lambda v: ORDER.index(v.kind))
        if self.first:
            found.sort(key=lambda v: not divergence.agrees(self.first, v.shows(self.subject)))
        return found

    def _pairs(self, singles: list[Variation]) -> Iterator[tuple[Variation, ...]]:
        """Of the best ones with all others, each pair in the order of the graph."""
        most = float("inf") if self.reference is None else PROMISING * self.reference
        near = [c for c in self._ranking() if c.distance is not None and c.distance <= most][:FIRSTS]
        near = [c for c in near if (c.variations[0], "") not in EQUIVALENT]
        by_name = {v.name: v for v in singles}
        place = {name: number for number, name in enumerate(by_name)}
        seen = set()
        for first in near:
            for other in singles:
                if (other.name, "") in EQUIVALENT:  # rounding, of which a codec makes a chance hit
                    continue
                names = frozenset((first.variations[0], other.name))
                if len(names) == 2 and names not in seen:
                    seen.add(names)
                    pair = (by_name[first.variations[0]], other)
                    # What changes the picture's pixels comes last, whatever was tried first.
                    yield tuple(sorted(pair, key=lambda v: (v.kind == "output", ORDER.index(v.kind), place[v.name])))

    # ---------------------------------------------------------------------------------------------------- one render

    def _refer(self, memory: Memory) -> None:
        with memory.recording(self.subject):
            frames, trace = self._render(self.subject)
        self._frames = frames
        if self.trace is not None:
            self.first = self._divergence(trace)
        if self.theirs is not None:
            if frames.shape != self.theirs.frames.shape:
                self.size = f"theirs is {_words(self.theirs.size)}, the reference {_words(frames.shape[:3])}"
            elif self.theirs.again is not None:
                self.floor = rms_difference(self.theirs.again(frames), frames)
        self.reference = self._distance(frames, trace)
        self.limit = self._arithmetic(frames)

    def _try(self, memory: Memory, variations: tuple[Variation, ...]) -> None:
        if time.perf_counter() > self._deadline:
            raise OutOfTime
        found = Candidate(
            variations=[v.name for v in variations],
            about=[v.about for v in variations],
            sources=[v.source for v in variations],
        )
        try:
            made = self._varied(memory, variations)
            if made is None:
                found.note = "of another size"
            else:
                found.picture = sha256(repr(made[0].shape).encode() + made[0].tobytes()).hexdigest()
                found.distance = self._distance(*made)
                found.note = "of another size" if found.distance is None else ""
        except Exception as error:  # noqa: BLE001  some pairs cannot be rendered; the result lists them with the reason
            found.note = f"could not be rendered: {type(error).__name__}: {error}"[:300]
        self.candidates.append(found)

    def _varied(self, memory: Memory, variations: tuple[Variation, ...]) -> tuple[Frames, Trace] | None:
        """A render under variations; None if it would be of another size than theirs."""
        with ExitStack() as stack:
            varied = self.subject
            for variation in variations:
                varied = stack.enter_context(variation.applied(varied))
            stack.enter_context(memory.used(varied, variations))
            return None if self._of_another_size(varied, variations) else self._render(varied)

    def _render(self, subject: Subject) -> tuple[Frames, Trace]:
        tracer = Tracer()
        watch: dict[str, Any] = {"watch": tracer.watching} if self.trace is not None else {}
        try:
            output = subject.pipeline.render(subject.settings, **watch)
        except NotFinite as error:
            if subject is self.subject:
                raise
            output = error.output  # another stack may well have saved it
        return np.stack([np.asarray(frame.convert("RGB")) for frame in output.frames]), tracer.trace

    def _of_another_size(self, varied: Subject, variations: tuple[Variation, ...]) -> bool:
        """Known without rendering, where what is rendered is as large as the settings say."""
        assert self._frames is not None
        ours = _asked(self.subject)
        if self.theirs is None or self._frames.shape[:3] != ours or any(v.kind == "output" for v in variations):
            return False
        return _asked(varied) != self.theirs.size

    # ----------------------------------------------------------------------------------------------------- distances

    def _distance(self, frames: Frames, trace: Trace) -> float | None:
        if self.theirs is None:
            assert self.trace is not None
            error = divergence.distances(self.trace, trace).get("decode/in", float("inf"))
            return error if np.isfinite(error) else None
        if frames.shape != self.theirs.frames.shape:
            return None
        return rms_difference(frames if self.theirs.again is None else self.theirs.again(frames), self.theirs.frames)

    def _tolerances(self, tier: str) -> dict[str, tolerances.Tolerance] | None:
        base = self.subject.pipeline.base
        try:
            return tolerances.load(
                tier, facts(base.device, base.dtype), {"cpu": "theirs, whatever it was"}, base.spec.id
            )
        except tolerances.ToleranceError:
            return None

    def _arithmetic(self, frames: Frames) -> float | None:
        """The largest distance between pictures that are legally the same, as this codec leaves it."""
        again = self.theirs.again if self.theirs else None
        if self.theirs is not None and again is None:
            return None
        if self._limits is None:
            return None if self.reference is None else UNMEASURED * self.reference
        if again is None or self.theirs is None:
            return self._limits["trace"].limit
        mean = self._limits["pixel_mean"]  # the share of values that are off, by one level each
        least = float(np.sqrt(mean.limit))
        if self.theirs.lossless:
            return least
        # A codec makes much of little. The spread itself, then: what is beyond it would hide small causes.
        saved = again(frames)
        return max(least, *(rms_difference(again(_nudged(frames, mean.spread, seed)), saved) for seed in range(3)))

    def _divergence(self, ours: Trace) -> str:
        """Where their trace leaves ours."""
        assert self.trace is not None
        limits = self._limits
        limit = partial(tolerances.of_stage, limits) if limits else lambda _stage: UNMEASURED
        first = divergence.first(divergence.distances(ours, self.trace), limit)
        facts = {"control": self.subject.settings.control}
        return divergence.place(first, ours, self.trace, facts) if first else ""

    # -------------------------------------------------------------------------------------------------------- result

    def _ranking(self) -> list[Candidate]:
        compared = [c for c in self.candidates if c.distance is not None]
        return sorted(compared, key=lambda c: (c.distance, len(c.variations)))

    def _nearest(self) -> Candidate | None:
        return nearest(self._ranking(), self.reference)

    def _explained(self) -> list[Candidate]:
        """Those whose distance is arithmetic."""
        return [c for c in self._ranking() if self.limit is not None and (c.distance or 0) <= self.limit]

    def diagnosis(self) -> Diagnosis:
        explained = self._explained()
        if (
            self.reference is not None
            and self.limit is not None
            and self.reference <= self.limit
            and (
                self._limits or self.reference == 0  # where nothing was measured, only the very picture is the same
            )
        ):
            verdict: Verdict = "same"
        elif not explained:
            verdict = "unexplained"
        else:
            verdict = "explained" if len({c.picture for c in explained}) == 1 else "ambiguous"
        return Diagnosis(
            model=self.subject.spec.id,
            verdict=verdict,
            reference=self.reference,
            limit=self.limit,
            measured_limit=self._limits is not None,
            size=self.size,
            codec=self.theirs.codec if self.theirs else "",
            codec_floor=self.floor,
            first_divergence=self.first,
            ranking=self._ranking(),
            not_compared=[c for c in self.candidates if c.distance is None],
            tried=len(self.candidates),
            complete=self.complete,
            seconds=round(time.perf_counter() - self._started, 2),
        )


def _nudged(frames: Frames, share: float, seed: int) -> Frames:
    """With a share of the values one level off."""
    generator = np.random.default_rng(seed)
    chosen = generator.random(frames.shape) < share
    sign = np.where(frames > 127, -1, 1)
    return (frames + chosen * sign).astype(np.uint8)


def _asked(subject: Subject) -> tuple[int, int, int]:
    return subject.settings.num_frames, subject.settings.height, subject.settings.width


def _words(size: tuple[int, ...]) -> str:
    count, height, width = size
    return f"{width}x{height}" + (f" with {count} frames" if count > 1 else "")


def _of_their_size(subject: Subject, theirs: Picture | None) -> Variation:
    """What no rule of the library gives: simply their size, so that the rest can be looked for."""
    assert theirs is not None
    frames, height, width = theirs.size

    def change(s: Subject) -> Iterator[Subject]:
        yield replace(s, settings=replace(s.settings, width=width, height=height, num_frames=frames))

    about = f"It was rendered at {_words(theirs.size)}, for whatever reason."
    return Variation("another size", about, "your picture", "request", lambda _s: True, change, SIZE)
