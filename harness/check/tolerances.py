"""Tolerances: how far from its golden a render may be.

A tolerance is not chosen but derived: the largest distance measured between renders that are equally correct (the same
code again, merged against live LoRA, one thread against two, another torch with its libraries), times a stated factor.
`lora-drift tolerances` measures them and writes tolerances.json; the report shows spread and tolerance side by side.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_drift.harness.check import divergence
from lora_drift.harness.check.results import Metric
from lora_drift.harness.environment import architecture, same_processor

TOLERANCES = Path(__file__).parent / "tolerances.json"
FACTORS = {"latents_rel_l2": 4.0, "audio_rel_l2": 4.0, "pixel_mean": 4.0, "pixel_max": 1.0, "trace": 8.0}
"""pixel_max counts whole steps of 1/255, so its spread is its tolerance. A traced stage is known only from a sketch, so
its factor is larger."""
ANOTHER_PROCESSOR = "/another processor"
"""... than that of the golden: its kernels add up in another order, in the trainer as in ours."""
ANOTHER_ARCHITECTURE = "/another architecture/"
"""In half precision correct renders on two architectures are far apart, and how far depends on the model: a tolerance a
model. What a person sees is judged, too (SSIM, FLIP), since no bit is equal."""
STAGE = "trace: "
"""... and a kind of stage. Between processors some stages are equal to the bit (noise, tokens) and some are far apart
(the denoiser of FLUX.2), and how far depends on the model: with one tolerance for all, a rounding mistake in the noise
hides in what denoisers differ by, and the stage that is named is a later one."""
FACTOR_BETWEEN_ARCHITECTURES = 1.5
"""Small, so that the negative controls still show: it is measured on each model, and on its own cases."""


class Tolerance(BaseModel):
    """One limit: `spread` was measured in the comparison `seen_in`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spread: float
    factor: float
    seen_in: str

    @property
    def limit(self) -> float:
        return self.spread * self.factor


class ToleranceError(Exception):
    """No tolerance was measured for this tier, device and dtype."""


def factor(key: str, metric: str) -> float:
    """What the spread of a metric is multiplied with, under a key of the table."""
    return FACTOR_BETWEEN_ARCHITECTURES if ANOTHER_ARCHITECTURE in key else FACTORS[metric]


def elsewhere(environment: Mapping[str, Any], golden: Mapping[str, Any]) -> bool:
    """Was the golden recorded on another architecture (a CPU: another processor) than the one rendered on?"""
    where = architecture(environment)
    return where != architecture(golden) or (where == "cpu" and not same_processor(environment, golden))


def across(environment: Mapping[str, Any], golden: Mapping[str, Any]) -> bool:
    """Is it half precision on another architecture, where no render is equal?"""
    return environment["dtype"] != "float32" and elsewhere(environment, golden)


def sensitive(caught: Collection[bool], environment: Mapping[str, Any], golden: Mapping[str, Any]) -> bool:
    """Do the negative controls that were `caught` suffice? All must be; where no render is equal, one: the others may
    be smaller than what architectures differ by. Without controls nothing was asked."""
    return not caught or (any if across(environment, golden) else all)(caught)


def key(tier: str, environment: Mapping[str, Any], golden: Mapping[str, Any] | None = None, model: str = "") -> str:
    """What the tolerances are filed under for a render of `model` in `environment` (`environment.facts`) of a case
    whose golden was recorded in the environment `golden`; None: where the render was.

    In half precision a golden is met to the bit on its own architecture, and within what architectures differ by on
    others. In float32 the CPU's serve everywhere, and how far apart correct renders are depends on what lies between:
    the same processor, another one, or a GPU.
    """
    where, dtype = architecture(environment), environment["dtype"]
    if dtype != "float32":
        if golden is not None and across(environment, golden):
            return f"{tier}/{dtype}{ANOTHER_ARCHITECTURE}{model}"
        return f"{tier}/{where}/{dtype}"
    if where != "cpu":
        return f"{tier}/cuda/float32"
    other = golden is not None and not same_processor(golden, environment)
    return f"{tier}/cpu/float32" + (ANOTHER_PROCESSOR if other else "")


def load(
    tier: str, environment: Mapping[str, Any], golden: Mapping[str, Any] | None = None, model: str = ""
) -> dict[str, Tolerance]:
    """Metric name -> tolerance, for what `key` says; with `model`, those of its kinds of stages, too.

    Raises:
        ToleranceError: nothing was measured there; a run without a tolerance cannot pass.
    """
    wanted = key(tier, environment, golden, model)
    table = json.loads(TOLERANCES.read_text(encoding="utf-8"))
    if wanted not in table["gates"]:
        device = "cpu" if environment["device"] == "cpu" else "cuda"
        options = f"--tier {tier} --device {device} --dtype {environment['dtype']} --write"
        raise ToleranceError(f"no tolerances were measured for {wanted} (known: {', '.join(table['gates'])}), so "
                             f"nothing passes; measure them: lora-drift tolerances {options}")  # fmt: skip
    limits = {name: Tolerance.model_validate(value) for name, value in table["gates"][wanted].items()}
    # Never less than what legal variants differ by on one processor.
    least = table["gates"][f"{tier}/cpu/float32"]["trace"]["spread"] if wanted in table["stages"] else 0.0
    for kind, spread in table["stages"].get(wanted, {}).get(model, {}).items():
        seen = f"{model}, all cases: {kind}"
        limits[STAGE + kind] = Tolerance(spread=max(spread, least), factor=FACTORS["trace"], seen_in=seen)
    return limits


def of_stage(limits: Mapping[str, Tolerance], stage: str) -> float:
    """How far a traced stage may be from the golden's: by its kind where that was measured for the model."""
    return limits.get(STAGE + divergence.kind(stage), limits["trace"]).limit


def apply(metrics: Iterable[Metric], tolerances: dict[str, Tolerance]) -> list[Metric]:
    """The same metrics with `gate` and `floor` filled in where there is a tolerance."""
    return [_judged(m, tolerances[m.name]) if m.name in tolerances else m for m in metrics]


def _judged(metric: Metric, tolerance: Tolerance) -> Metric:
    limit, spread = tolerance.limit, tolerance.spread
    if metric.better == "higher":  # SSIM: what is filed is its distance from 1
        limit, spread = 1 - limit, 1 - spread
    return metric.model_copy(update={"gate": limit, "floor": spread})
