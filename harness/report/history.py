"""What a trainer version changed, as measured: its goldens beside those of the version before."""

import math
from pathlib import Path
from typing import NamedTuple

from lora_drift.harness import tags
from lora_drift.harness.check import metrics
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import GOLDENS, Golden, content

SHOWN = ("picture", "latents", "audio")


class Change(NamedTuple):
    """A model at one tag, beside the tag before."""

    cases: int
    """Recorded at both."""
    changed: int
    """Of these, how many have other bytes."""
    pixel_max: float
    """Largest difference of a pixel, of 255, over all of them; infinite where the size changed."""

    def __str__(self) -> str:
        if not self.changed:
            return "the same bytes"
        size = "another size" if math.isinf(self.pixel_max) else f"up to {self.pixel_max:g}/255"
        return f"{self.changed} of {self.cases} cases differ, {size}"


def change(cases: list[Case], tag: str, root: Path = GOLDENS) -> Change | None:
    """How far the trainer's pictures of these cases are from those of the tag before; None: nothing to compare."""
    before = _before(tag)
    pairs = [] if before is None else [(_read(before, case, root), _read(tag, case, root)) for case in cases]
    both = [(old, new) for old, new in pairs if old and new and old.case_sha256 == new.case_sha256]
    other = [(old, new) for old, new in both if _bytes(old) != _bytes(new)]
    return Change(len(both), len(other), max((_distance(*pair) for pair in other), default=0)) if both else None


def _distance(old: Golden, new: Golden) -> float:
    a, b = old.frames(), new.frames()
    return metrics.pixel_max(a, b) if a.shape == b.shape else math.inf


def _before(tag: str) -> str | None:
    order = [row.tag for row in tags.all_rows()]
    place = order.index(tag)
    return order[place - 1] if place else None


def _read(tag: str, case: Case, root: Path) -> Golden | None:
    """Without the checks of `goldens.load`, which every run of the cases makes."""
    said = content(tag, case.id, root)
    if said is None:
        return None
    golden = Golden.model_validate(said)
    golden.__dict__["root"] = root
    return golden


def _bytes(golden: Golden) -> dict[str, str]:
    return {name: artefact.sha256 for name, artefact in golden.artefacts.items() if name in SHOWN}
