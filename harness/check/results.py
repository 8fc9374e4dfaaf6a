"""What one checked case yields: one JSON object a line in `--drift-json FILE`, and the report's only input."""

from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lora_drift.pipelines.files import lines_of, whole

Verdict = Literal["match", "drift", "known", "missing", "stale", "corrupt", "error"]
PASSING: frozenset[str] = frozenset({"match", "known"})
"""Verdicts that leave the exit code at 0. (`known` stops counting when its expiry date has passed.)"""

IDENTICAL = "identical"
"""Note of a metric without a value because nothing differs: the PSNR of equal pictures is infinite."""


JUDGED = ("latents_rel_l2", "pixel_max", "pixel_mean")
"""Distances that every comparison has, and that decide it."""


class Made(BaseModel):
    """What made a result (`trusted.py`)."""

    model_config = ConfigDict(extra="forbid")

    code: str
    """Hash of the files that decide it."""
    commit: str
    at: datetime
    machine: str


class Metric(BaseModel):
    """One measured distance to the golden and its tolerance. `value` None: not evaluated, `note` says why."""

    model_config = ConfigDict(extra="forbid")

    name: str
    value: float | None
    gate: float | None = None
    """The limit; None for a metric that is only shown."""
    floor: float | None = None
    """The spread measured between equally correct renders, from which the tolerance was derived."""
    better: Literal["lower", "higher"] = "lower"
    unit: str = ""
    note: str = ""

    @property
    def within(self) -> bool:
        if self.gate is None:
            return True
        if self.value is None:  # a judged distance that could not be measured is not a small one
            return self.note == IDENTICAL
        return self.value <= self.gate if self.better == "lower" else self.value >= self.gate


class Control(BaseModel):
    """A deliberate mistake, which must be outside the tolerance, or the case proves nothing."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """"lora off", "seed + 1", "one step fewer", ..."""
    pixel_max: float
    latents_rel_l2: float
    pixel_mean: float | None = None
    caught: bool

    @property
    def distances(self) -> dict[str, float]:
        return {name: value for name in JUDGED if (value := getattr(self, name)) is not None}


class Divergence(BaseModel):
    """The first traced stage at which the run leaves its golden."""

    model_config = ConfigDict(extra="forbid")

    boundary: str
    error: float | None
    """None: the run has no such stage, or a tensor of another shape there."""
    gate: float
    place: str
    """The component in words (harness/check/divergence.py)."""

    @property
    def sentence(self) -> str:
        """How a message ends that says where the run left its golden."""
        size = "absent or of another shape" if self.error is None else f"{self.error:.2g}, tolerance {self.gate:.2g}"
        return f"; it begins in: {self.place} [{self.boundary}: {size}]"


class Suspect(BaseModel):
    """A named deviation (`harness/deviations/library`) and how far the run's picture is from ours with it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    about: str
    distance: float
    """Root mean square, in levels of 255."""


class Diagnosis(BaseModel):
    """What `lora-drift diagnose --results` found: which deviation of pipelines that match makes the run's picture."""

    model_config = ConfigDict(extra="forbid")

    headline: str
    ranking: list[Suspect]
    """The nearest first."""


class Excuse(BaseModel):
    """The entry of `cases/known.yaml` that covers a case, whatever became of its verdict."""

    model_config = ConfigDict(extra="forbid")

    cause: str
    expires: date
    expired: bool


class Result(BaseModel):
    model_config = ConfigDict(extra="forbid")

    case: str
    model: str
    tag: str
    tier: str
    device: str
    dtype: str
    verdict: Verdict
    disagreements: list[str] = []
    """What no distance tells (`agreements.py`)."""
    message: str = ""
    """One paragraph for the reader: what is wrong and what to do. Empty for a match."""
    traceback: str = ""
    """Of an exception that nobody expected: whole, because one line of it tells nobody where."""
    about: str = ""
    lora: str = ""
    """Type of the LoRA's network ("lora", "dora", "lokr"); empty without one."""
    excuse: Excuse | None = None
    made: Made | None = None
    seconds: float = 0.0
    metrics: list[Metric] = []
    controls: list[Control] = []
    first_divergence: Divergence | None = None
    diagnosis: Diagnosis | None = None
    trace: dict[str, float | None] = {}
    """Stage -> relative error, in the order of the run; None as in `Divergence`."""
    schedule: dict[str, tuple[list[float | None], list[float | None]]] = {}
    """Of a schedule that differs: "timesteps", "sigmas" -> the golden's and ours; None where the trace cannot tell."""
    settings: dict[str, Any] = {}
    """Resolved settings of this run (size after snapping, steps, guidance, ...)."""
    golden_settings: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    golden_environment: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    """From the golden: trainer and Diffusers commit, origin, patches, recorder."""
    noise_floor: dict[str, dict[str, float]] = {}
    """Of `--drift-floor`: comparison -> metric -> distance between renders here that are legally the same."""
    frames: int = 1
    fps: int = 0
    golden_picture: str | None = None
    """PNG (the frames of a video one below the other), maybe a difference (`golden_store`); a path relative to the
    repository."""
    output_picture: str | None = None
    """PNG of this run in the same form; a path relative to `root`."""
    golden_sound: str | None = None
    """safetensors (maybe a difference, as the picture may be); a path relative to the repository."""
    output_sound: str | None = None
    """WAV of this run (`wav.py`), from which the golden's rate is known, too; a path relative to `root`."""
    root: str = ""
    """The checkout (or folder) in which this ran, by its name on that machine."""

    def output_file(self, name: str, *others: Path) -> Path:
        """`name` (`output_picture`, `output_sound`) where this ran, else below the first of `others` that has it; there
        or not.

        A picture of another run, which lies at the same place of another checkout, is not this run's: `others` are
        folders to which the pictures of the results came along.
        """
        folders = [*([Path(self.root)] if self.root else []), *others]
        paths = [folder / name for folder in folders]
        return next((path for path in paths if path.is_file()), paths[0])


def merge(paths: list[Path]) -> list[Result]:
    """Results of several files, by tag and case. Of a case that ran twice on one device, the last result counts."""
    found = {(r.tag, r.case, r.tier, r.device, r.dtype): r for path in paths for r in read(path)}
    return [found[key] for key in sorted(found)]


def write(path: Path, results: list[Result]) -> None:
    """Write a results file anew; one that is there stays whole if this is killed."""
    with whole(path) as part:
        part.write_text("".join(f"{result.model_dump_json()}\n" for result in results), encoding="utf-8")


def read(path: Path) -> list[Result]:
    """Read a results file; a last line cut short by a killed run is left out."""
    results = []
    lines = lines_of(path)
    for number, line in enumerate(lines, 1):
        try:
            results.append(Result.model_validate_json(line))
        except ValueError as error:
            if number != len(lines):
                raise ValueError(f"{path}:{number}: not a result line: {error}") from error
    return results
