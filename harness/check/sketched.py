"""Samples that the trainer rendered when jobs were drawn at random (`lora-drift fuzz --render`), kept as sketches.

A file a model, `tests/corpus/rendered-<tag>/<model>.tar.xz`:

    samples.jsonl            first the environment in which the trainer rendered, and the pictures that it was shown;
                             then a sample a line: its case, the number of its job, and the size of what came out; or
                             why the trainer refused it
    sketches.npy             float32 [samples, 3, 32]: count sketches (trace.py) of the final latents, the picture and
                             the sound; zeros where there is none
    <job>/lora.safetensors   the file that the trainer saved, without the weights that are drawn again (lora_codec.py)

A sketch tells to 13 % how far two renders are apart, and takes 128 bytes; so hundreds of samples need less room than
ten goldens. They visit the pairs of inputs that no case visits (coverage.py), and tests render them again.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lora_drift.harness.check import control_pictures, lora_codec, tolerances
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.results import Metric
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.check.staged import staged
from lora_drift.harness.check.trace import Rendered, sketch
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines.errors import RequestError

FOLDER = ROOT / "tests" / "corpus"
BUCKETS = 32
PARTS = ("latents", "picture", "sound")


class Sample(NamedTuple):
    """One sample of a drawn job, and what the trainer made of it."""

    case: Case
    job: int
    refused: str
    """Why the trainer did not render it, or ""."""
    size: list[int]
    """[frames, height, width]"""
    sketches: np.ndarray
    """float32 [3, 32]"""


class Kept(NamedTuple):
    """The samples of a model."""

    tag: str
    environment: dict[str, Any]
    pictures: dict[str, str]
    """File name -> `pixels_of` it, of all control pictures of these samples."""
    samples: list[Sample]
    loras: dict[int, dict[str, bytes]]
    """Job -> artefact ("lora", ...) -> the file."""


def file_of(tag: str, model: str) -> Path:
    return FOLDER / f"rendered-{tag}" / f"{model}.tar.xz"


def models(tag: str) -> list[str]:
    """Those of which samples are kept."""
    return sorted(file.name.removesuffix(".tar.xz") for file in (FOLDER / f"rendered-{tag}").glob("*.tar.xz"))


def pixels_of(path: Path) -> str:
    """A hash of what a picture shows, whichever library packed it."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGBA")
    return sha256(repr(upright.size).encode() + upright.tobytes()).hexdigest()[:16]


def sketches(latents: np.ndarray, frames: np.ndarray, audio: np.ndarray | None) -> np.ndarray:
    """Of a render, float32 [3, 32]."""
    sound = np.zeros(BUCKETS, np.float32) if audio is None else sketch(audio, BUCKETS)
    return np.stack([sketch(latents, BUCKETS), sketch(frames, BUCKETS), sound])


def shown(case: Case) -> list[Path]:
    """The control pictures of a case."""
    sample = case.sample
    fields = (sample.ctrl_img, sample.ctrl_img_1, sample.ctrl_img_2, sample.ctrl_img_3)
    return [Path(value) for value in (*fields, *sample.located.values()) if value]


def write(path: Path, kept: Kept, contents: Sequence[Mapping[str, Any]]) -> None:
    """Store the samples of a model, always in the same bytes; `contents`: what the file of each one's case says."""
    lines: list[dict[str, Any]] = [{"tag": kept.tag, "environment": kept.environment, "pictures": kept.pictures}]
    for sample, content in zip(kept.samples, contents, strict=True):
        line = {"case": content, "job": sample.job}
        lines.append(line | ({"refused": sample.refused} if sample.refused else {"size": sample.size}))
    packed = io.BytesIO()
    np.save(packed, np.stack([sample.sketches for sample in kept.samples]))
    files = {
        "samples.jsonl": "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines).encode(),
        "sketches.npy": packed.getvalue(),
    }
    for job, loras in sorted(kept.loras.items()):
        files |= {f"{job}/{name}.safetensors": lora_codec.without(data, path.name.split(".tar")[0])
                  for name, data in sorted(loras.items())}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz", format=tarfile.USTAR_FORMAT, preset=9) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def read(path: Path, assets: Path) -> Kept:
    """The samples of a model; `assets`: the folder of `control_pictures.write`."""
    model = path.name.split(".tar")[0]
    with tarfile.open(path) as archive:
        files = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    head, *lines = map(json.loads, files.pop("samples.jsonl").decode().splitlines())
    drawn = np.load(io.BytesIO(files.pop("sketches.npy")))
    samples = [
        Sample(Case.model_validate(line["case"], context={"assets": assets}), line["job"], line.get("refused", ""),
               line.get("size", []), drawn[number])
        for number, line in enumerate(lines)
    ]  # fmt: skip
    loras: dict[int, dict[str, bytes]] = {}
    for name, data in files.items():
        job, _, file = name.partition("/")
        loras.setdefault(int(job), {})[file.removesuffix(".safetensors")] = lora_codec.without(data, model)
    return Kept(head["tag"], head["environment"], head["pictures"], samples, loras)


@cache
def cases_of(tag: str, model: str) -> tuple[Case, ...]:
    """What is asked of the model; nothing where no sample is kept, or there is no checkout."""
    path = file_of(tag, model)
    return tuple(sample.case for sample in read(path, Path(_pictures().name)).samples) if path.is_file() else ()


@cache
def _pictures() -> "TemporaryDirectory[str]":
    """All control pictures, until this process ends."""
    folder = TemporaryDirectory(prefix="lora-drift-pictures-")
    control_pictures.write(Path(folder.name))
    return folder


def problems(bench: Bench, kept: Kept, samples: Iterable[Sample], folder: Path) -> list[str]:
    """Render `samples` again, one after the other; a line for each that is not as the trainer had it.

    `folder`: for the LoRA files.
    """
    found = []
    for sample in samples:
        place = folder / str(sample.job)
        for name, data in kept.loras.get(sample.job, {}).items():
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.safetensors").write_bytes(data)
        if problem := _problem(bench, kept, sample, place):
            found.append(f"{sample.case.id}: {problem}")
    return found


def _problem(bench: Bench, kept: Kept, sample: Sample, folder: Path) -> str:
    case = sample.case
    for picture in shown(case):
        if pixels_of(picture) != kept.pictures[picture.name]:
            return f"{picture.name} is another picture here than where the trainer rendered: another Pillow made it"
    golden = staged(case, folder, kept.tag, kept.environment)
    try:
        ours = bench.render(bench.pipeline(case, golden), bench.settings(case))
    except RequestError as error:
        return "" if sample.refused else f"refused, and the trainer renders it: {error}"
    if sample.refused:
        return f"rendered, and the trainer refuses it: {sample.refused}"
    if list(ours.frames.shape[:3]) != sample.size:
        return f"[frames, height, width] are {list(ours.frames.shape[:3])}, the trainer's {sample.size}"
    measured = tolerances.apply(distances(sample, ours), bench.tolerances(case, golden))
    outside = [metric for metric in measured if not metric.within]
    return ", ".join(f"{metric.name} {metric.value:.3g} (limit {metric.gate:.3g})" for metric in outside)


def distances(sample: Sample, ours: Rendered) -> list[Metric]:
    """Estimates of the judged metrics. Of pixels the mean of the squares: the mean itself where none is more than 1 of
    255 away, and more elsewhere."""
    found = dict(zip(PARTS, sketches(ours.latents, ours.frames, ours.audio) - sample.sketches, strict=True))
    size = dict(zip(PARTS, sample.sketches, strict=True))
    relative = {name: float(np.linalg.norm(found[name]) / (np.linalg.norm(size[name]) or 1.0)) for name in PARTS}
    pixels = float(np.square(found["picture"], dtype=np.float64).sum() / ours.frames.size)
    metrics = [
        Metric(name="latents_rel_l2", value=relative["latents"]), Metric(name="pixel_mean", value=pixels),
    ]  # fmt: skip
    return [*metrics, Metric(name="audio_rel_l2", value=relative["sound"])] if ours.audio is not None else metrics
