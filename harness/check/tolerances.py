"""Tolerances: how far from its golden a render may be.

A tolerance is not chosen but derived: the largest distance measured between renders that are equally correct (the same
code again, merged against live LoRA, one thread against two, another torch with its libraries), times a stated factor.
`lora-drift tolerances` measures them and writes tolerances.json; the report shows spread and tolerance side by side.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_drift.harness.check.results import Metric

TOLERANCES = Path(__file__).parent / "tolerances.json"
FACTORS = {"latents_rel_l2": 4.0, "audio_rel_l2": 4.0, "pixel_mean": 4.0, "pixel_max": 1.0, "trace": 8.0}
"""pixel_max counts whole steps of 1/255, so its spread is its tolerance. A traced stage is known only from a sketch, so
its factor is larger."""


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


@cache
def load(tier: str, device: str, dtype: str, *, same_torch: bool = False) -> dict[str, Tolerance]:
    """Metric name -> tolerance. `device` is a kind of device (`environment.device_kind`); where the golden is of the
    same torch, what was measured for that counts: on a GPU, the same bits.

    Raises:
        ToleranceError: nothing was measured there; a run without a tolerance cannot pass.
    """
    key, exact = f"{tier}/{device}/{dtype}", f"{tier}/{device}/{dtype}/same torch"
    table = json.loads(TOLERANCES.read_text(encoding="utf-8"))["gates"]
    key = exact if same_torch and exact in table else key
    if key not in table:
        options = f"--tier {tier} --device {'cpu' if device == 'cpu' else 'cuda'} --dtype {dtype} --write"
        raise ToleranceError(f"no tolerances were measured for {key} (known: {', '.join(table)}), so nothing passes; "
                        f"measure them: lora-drift tolerances {options}")  # fmt: skip
    return {name: Tolerance.model_validate(value) for name, value in table[key].items()}


def apply(metrics: Iterable[Metric], tolerances: dict[str, Tolerance]) -> list[Metric]:
    """The same metrics with `gate` and `floor` filled in where there is a tolerance."""
    return [
        m.model_copy(update={"gate": tolerances[m.name].limit, "floor": tolerances[m.name].spread})
        if m.name in tolerances
        else m
        for m in metrics
    ]
