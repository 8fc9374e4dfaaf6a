"""Is a golden what the trainer renders? The one answer that no file can forge: record it again.

Which goldens: those that a branch changed, and a few drawn by a word (the date, say), so that all are seen in time.
"""

import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_drift.harness.check import golden_file, goldens, metrics, tolerances
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import GOLDENS, Golden
from lora_drift.harness.environment import same_processor
from lora_drift.harness.paths import ROOT

SAME = ("settings", "output", "case_sha256", "minihub_sha256", "weights", "trainer", "patches", "origin")
"""What is the same on every machine."""


def drawn(cases: Sequence[Case], count: int, word: str) -> list[Case]:
    """`count` of the cases, another choice for each word."""
    return random.Random(word).sample(list(cases), min(count, len(cases)))


def changed(cases: Sequence[Case], tag: str, since: str, root: Path = GOLDENS, *, variant: str = "") -> list[Case]:
    """Cases whose golden at `tag` is another, or new, since the Git revision `since`.

    Raises:
        ValueError: there is no such revision.
    """
    found, before = [], dict[str, dict[str, Any]]()
    for case in cases:
        path = goldens.golden_path(tag, case.id, root, variant=variant)
        if str(path) not in before:
            before[str(path)] = _at(since, path)
        now = golden_file.read(path).get(case.id)
        if now is not None and now != before[str(path)].get(case.id):
            found.append(case)
    return found


def _at(revision: str, path: Path) -> dict[str, Any]:
    """The goldens of a file as they were then; none where it was not there."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "rev-parse", "--verify", "-q", f"{revision}^{{commit}}"], capture_output=True).returncode:
        raise ValueError(f"--changed-since {revision}: no such revision in {ROOT}")

    def text(folder: str) -> str | None:
        file = (path.parents[1] / folder / path.name).relative_to(ROOT).as_posix()
        shown = subprocess.run([*git, "show", f"{revision}:{file}"], capture_output=True)
        return shown.stdout.decode() if shown.returncode == 0 else None

    return golden_file.parse(text(path.parent.name), text)


def judged(verdict: str, content: Mapping[str, Any], artefacts: Mapping[str, Path], root: Path = GOLDENS) -> str:
    """`verdict` of a recording that is not byte for byte its golden: "same within rounding", if another processor
    explains all of the difference, by the tolerance that was measured for that."""
    where = goldens.variant(content["environment"])
    stored = goldens.content(content["tag"], content["case"], root, variant=where)
    if stored is None or any(stored.get(name) != content.get(name) for name in SAME):
        return verdict
    if same_processor(stored["environment"], content["environment"]):
        return verdict
    golden = Golden.model_validate(stored)
    golden.__dict__["root"] = root
    limits = tolerances.load("mini" if "weights" not in stored else "full", content["environment"],
                             stored["environment"])  # fmt: skip
    ours = _frames(artefacts["picture"], len(golden.frames()))
    measured = [*metrics.latents(golden.latents(), _latents(artefacts["latents"])),
                *metrics.pixel_levels(golden.frames(), ours)]  # fmt: skip
    within = all(metric.within for metric in tolerances.apply(measured, limits))
    return "same within rounding (another processor)" if within else verdict


def _frames(path: Path, count: int) -> np.ndarray:
    from PIL import Image

    strip = np.asarray(Image.open(path).convert("RGB"))
    return strip.reshape(count, strip.shape[0] // count, *strip.shape[1:])


def _latents(path: Path) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(path)["latents"]
