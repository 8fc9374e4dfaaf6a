"""Which of the samples that were drawn are kept for tests (`check/sketched.py`), and how they get there."""

import lzma
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_drift.harness.check import lora_codec, sketched
from lora_drift.harness.check.cases import Case
from lora_drift.harness.trainer.fuzz import shrink
from lora_drift.harness.trainer.fuzz.draw import pairs_in, pairs_of
from lora_drift.harness.trainer.fuzz.side_by_side import Outcome
from lora_drift.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from lora_drift.harness.trainer.fuzz.rendered import Scratch

REFUSED = "refused by both"
SAMPLE, ROOM = 500, 12_000
"""Bytes that a sample takes, and all of a model's may."""
Chosen = tuple[int, Outcome]
"""(job, sample)"""


def fit(one: Outcome) -> bool:
    """Is there all that a test needs?"""
    return one.verdict == REFUSED or (one.verdict == "same" and one.sketches is not None)


def chosen(spec: ModelSpec, known: Sequence[Case], scratch: "Scratch") -> Iterator[Chosen]:
    """Of what was drawn, samples that visit pairs of values which `known` does not, most pairs a byte first, until none
    visits another or `ROOM` is taken; whatever both sides refuse comes before. The LoRA of a job is stored once."""
    missing = pairs_of(spec)
    for case in known:
        missing -= pairs_in(case, spec)
    drawn = scratch.of(spec.id)
    left = [(job, one) for job, outcomes in drawn.items() for one in outcomes if fit(one) and _there(one, job, scratch)]
    left.sort(key=lambda choice: choice[1].verdict != REFUSED)
    pairs = {one.case.id: pairs_in(one.case, spec) for _, one in left}
    files = {job: _packed(scratch, spec.id, job) for job in drawn}
    taken = 0

    def worth(choice: Chosen) -> float:
        job, one = choice
        return 1.0 if one.verdict == REFUSED else len(pairs[one.case.id] & missing) / (SAMPLE + files[job])

    while left:
        best = max(left, key=worth)
        job, one = best
        if not worth(best) or taken + SAMPLE + files[job] > ROOM:
            left.remove(best)
            continue
        taken += SAMPLE + files[job]
        files[job] = 0
        missing -= pairs[one.case.id]
        left.remove(best)
        yield best


def _there(one: Outcome, job: int, scratch: "Scratch") -> bool:
    """Is the LoRA of its job still there?"""
    return one.case.lora is None or scratch.loras(one.case.model, job).is_dir()


def _packed(scratch: "Scratch", model: str, job: int) -> int:
    """Bytes that the LoRA of a job takes."""
    files = scratch.loras(model, job).glob("*.safetensors")
    return sum(len(lzma.compress(lora_codec.without(file.read_bytes(), model))) for file in files)


def write(path: Path, tag: str, environment: Mapping[str, Any], samples: Sequence[Chosen], scratch: "Scratch") -> None:
    """Store `samples` of a model in place of what is there."""
    made = [
        sketched.Sample(
            one.case,
            job,
            one.told.split(" | ")[0] if one.verdict == REFUSED else "",
            one.size or [],
            np.asarray(one.sketches or np.zeros((len(sketched.PARTS), sketched.BUCKETS)), np.float32),
        )
        for job, one in samples
    ]
    pictures = {picture.name: sketched.pixels_of(picture) for sample in made for picture in sketched.shown(sample.case)}
    loras = {
        sample.job: {file.stem: file.read_bytes() for file in scratch.loras(sample.case.model, sample.job).iterdir()}
        for sample in made
        if sample.case.lora is not None
    }
    whole = sketched.Kept(tag, dict(environment), dict(sorted(pictures.items())), made, loras)
    sketched.write(path, whole, [shrink.content(sample.case) for sample in made])
