"""Two recordings of a case by the trainer, or a golden and one: are they the same, and if not, where do they part?"""

from functools import partial
from typing import NamedTuple

import numpy as np

from lora_drift.harness.check import divergence, metrics, runner, tolerances
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.results import Metric
from lora_drift.harness.check.trace import Trace

SAME, ROUNDING, CHANGED, FAILED = "same", "rounding", "changed", "failed"


class Difference(NamedTuple):
    """What became of a case."""

    case: str
    verdict: str
    """`SAME` (to the bit), `ROUNDING` (within what equally correct renders differ by), `CHANGED`, or `FAILED` (there is
    no second recording)."""
    place: str = ""
    """The first stage that differs, in words."""
    pixel_max: float | None = None
    pixel_mean: float | None = None
    latents: float | None = None
    """Relative L2 distance."""
    why: str = ""
    """Why there is no recording, or no distance."""

    @property
    def model(self) -> str:
        return self.case.split("/")[0]

    @property
    def size(self) -> str:
        """How large it is, in words."""
        if self.pixel_max is None or self.pixel_mean is None or self.latents is None:
            return self.why
        return f"max {self.pixel_max:g}, mean {self.pixel_mean:.3g} of 255; latents {self.latents:.2g}"


def compare(case: Case, before: Golden, after: Golden) -> Difference:
    sound = "audio" in before.artefacts, "audio" in after.artefacts
    sides = [(golden.frames(), golden.latents(), golden.audio() if "audio" in golden.artefacts else np.zeros(0))
             for golden in (before, after)]  # fmt: skip
    if all(np.array_equal(a, b) for a, b in zip(*sides, strict=True)):
        return Difference(case.id, SAME, pixel_max=0, pixel_mean=0, latents=0)
    limits = tolerances.load(case.tier, after.environment, before.environment, case.model)
    (frames, latents, audio), (frames_after, latents_after, audio_after) = sides
    try:
        measured = [*metrics.pixel_levels(frames, frames_after), *metrics.latents(latents, latents_after)]
        measured += [metrics.audio(audio, audio_after if sound[1] else None)] if sound[0] else []
    except ValueError as error:  # no distance
        sizes = [" x ".join(map(str, each.shape[:3])) for each in (frames, frames_after)]
        why = str(error) if sizes[0] == sizes[1] else f"{sizes[0]} (frames, height, width) became {sizes[1]}"
        return Difference(case.id, CHANGED, _place(case, before, after, limits, []), why=why)
    measured = tolerances.apply(measured, limits)
    value = {metric.name: metric.value for metric in measured}
    within = all(metric.within for metric in measured)
    place = "" if within else _place(case, before, after, limits, measured)
    return Difference(case.id, ROUNDING if within else CHANGED, place, value["pixel_max"], value["pixel_mean"],
                      value["latents_rel_l2"])  # fmt: skip


def _place(
    case: Case, before: Golden, after: Golden, limits: dict[str, tolerances.Tolerance], measured: list[Metric]
) -> str:
    then, now = Trace.load(before.path("trace")), Trace.load(after.path("trace"))
    found = divergence.distances(then, now)
    first = divergence.first(found, partial(tolerances.of_stage, limits)) or runner.finished(measured)
    facts = {**after.settings, "golden_lora_mode": before.settings.get("lora_mode"),
             "control": case.sample.control}  # fmt: skip
    return divergence.place(first, then, now, facts) if first else divergence.SIZE
