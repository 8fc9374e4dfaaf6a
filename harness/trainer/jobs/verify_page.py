"""The report of a verified job: a timeline of the training, each sample beside our picture, and the report's viewer."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lora_drift.harness.check import metrics
from lora_drift.harness.check.metrics import Array
from lora_drift.harness.report.pictures import Strip, png
from lora_drift.harness.report.render import environment, scripts, style
from lora_drift.harness.trainer.jobs import sample_codec
from lora_drift.harness.trainer.jobs.verify import Pair, Result, Verified
from lora_drift.pipelines import RequestError

NAME = "index.html"
WIDEST = 512
"""Pixels a side of a picture in the page; larger ones are scaled down."""
GAIN = 8
"""What the difference is multiplied by, to be seen."""
CHIPS = {"match": "match", "rounding": "known", "differs": "drift", "unpaired": "missing", "error": "error"}
"""Verdict -> colour of the drift report."""
REST = {"differs": "differ", "error": "could not be compared", "unpaired": "without their LoRA"}
WIDTH, HEIGHT = 640, 90
SMALL = 256
"""Pixels a side of a video's frame in the viewer."""


class Cell(NamedTuple):
    """One sample."""

    result: Result
    chip: str
    pictures: dict[str, str]
    """Title -> data URI."""
    strips: dict[str, str]
    """The same title -> data URI of the frames of a video, one below the other, for the viewer."""
    sounds: dict[str, str]
    """The same title -> data URI of what is to be heard."""
    frames: int
    compared: bool
    """Whether there are both, for the viewer."""
    moved: float | None
    """Mean difference from the sample of step 0 of the same prompt, in levels: what the training has done."""


class Line(NamedTuple):
    """One prompt over the training."""

    number: int
    prompt: str
    cells: list[Cell]
    trends: dict[str, str]
    """Title -> points of an SVG polyline."""
    highest: float


def write(verified: Verified, folder: Path) -> None:
    """Write `NAME` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    process = verified.job.process
    shown = {
        "model": f"{verified.plan.spec.title} ({verified.plan.model})",
        "base": process.model.name_or_path,
        "trainer": verified.folder.version or "not said by a LoRA file",
        "reproduced as": f"trainer {verified.plan.version}",
        "precision": verified.plan.dtype,
        "trigger word": process.trigger_word or "none",
        "LoRA": f"{process.network.type}, saved as {process.save.dtype}" if process.network else "none",
        "averaged weights (EMA)": "yes" if process.train.ema_config and process.train.ema_config.use_ema else "no",
    }
    html = (
        environment()
        .get_template("verify.html.j2")
        .render(
            name=verified.job.name,
            title=_title(verified),
            fps=verified.plan.spec.fps,
            **scripts("dom", "viewer", "verify"),
            counts=_counts(verified),
            chips=CHIPS,
            facts=shown,
            notes=verified.notes,
            lines=list(_lines(verified)),
            metadata=_metadata(verified),
            width=WIDTH,
            height=HEIGHT,
            gain=GAIN,
            style=style("base", "viewer", "verify"),
        )
    )
    (folder / NAME).write_text(html, encoding="utf-8")


def _title(verified: Verified) -> str:
    """The news, first of all if it is bad."""
    counts = _counts(verified)
    whole = sum(counts.get(verdict, 0) for verdict in ("match", "rounding"))
    told = {verdict: f"{counts[verdict]} {words}" for verdict, words in REST.items() if verdict in counts}
    alone = told.pop("unpaired", None)
    judged = sum(counts.values()) - counts.get("unpaired", 0)
    said = "; ".join([*told.values(), f"{whole} of {judged} samples are reproduced", *filter(None, [alone])])
    return said if verified.complete else f"{said} (interrupted)"


def _counts(verified: Verified) -> dict[str, int]:
    found = [result.verdict for result in verified.results]
    return {verdict: found.count(verdict) for verdict in CHIPS if verdict in found}


def _lines(verified: Verified) -> Iterator[Line]:
    for index in sorted({result.index for result in verified.results}):
        results = [result for result in verified.results if result.index == index]
        first = next((verified.pictures.get(r.file) for r in results if r.step == 0), None)
        cells = [_cell(result, verified, first) for result in results]
        moved = [(cell.result.step, cell.moved) for cell in cells if cell.moved is not None]
        apart = [(cell.result.step, value) for cell in cells
                 if (value := cell.result.metric("pixel_mean")) is not None]  # fmt: skip
        highest = max((value for _, value in moved + apart), default=0.0)
        trends = {"moved by the training": _points(moved, highest), "ours from the sample": _points(apart, highest)}
        yield Line(index, results[-1].prompt, cells, trends, highest)


def _points(values: list[tuple[int, float]], highest: float) -> str:
    if len(values) < 2 or not highest:
        return ""
    last = values[-1][0] or 1
    return " ".join(f"{4 + step / last * (WIDTH - 8):.1f},{HEIGHT - 4 - value / highest * (HEIGHT - 8):.1f}"
                    for step, value in values)  # fmt: skip


def _cell(result: Result, verified: Verified, first: Pair | None) -> Cell:
    pair, pictures, strips, moved = verified.pictures.get(result.file), {}, {}, None
    frames = 1
    file = next(sample.path for sample in verified.folder.samples if sample.path.name == result.file)
    sounds = _sounds(file, pair)
    if pair is None:
        pictures = _alone(file)
    else:
        sample, ours = pair.sample, pair.ours
        frames = min(len(sample), len(ours))
        pictures = {"sample": _uri(sample), "ours": _uri(ours)}
        if frames > 1:
            strips = {"sample": _strip(sample[:frames]), "ours": _strip(ours[:frames])}
        if sample.shape == ours.shape:
            amplified = np.minimum(metrics.difference(sample, ours) * GAIN, 255)
            pictures["difference"] = _uri(amplified.astype(np.uint8))
        if first is not None and first.sample.shape == sample.shape:
            moved = metrics.mean_difference(first.sample, sample)
    return Cell(result, CHIPS[result.verdict], pictures, strips, sounds, frames, pair is not None, moved)


def _sounds(sample: Path, pair: Pair | None) -> dict[str, str]:
    try:
        found = {"sample": sample_codec.sound(sample)}
    except RequestError:
        found = {}  # a file that cannot be read has its message
    found |= {"ours": pair.sound} if pair else {}
    return {title: Strip(data, kind="audio/wav").uri for title, data in found.items() if data}


def _alone(sample: Path) -> dict[str, str]:
    """The sample, where there is nothing to compare it with."""
    try:
        return {"sample": _uri(sample_codec.read(sample).frames)}
    except (RequestError, OSError):
        return {}  # the message says what is wrong with it


def _strip(frames: Array) -> str:
    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((SMALL, SMALL))
    return Strip(png(np.concatenate([np.asarray(image) for image in images]))).uri


def _uri(frames: Array) -> str:
    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((WIDEST, WIDEST))
    buffer = io.BytesIO()
    small = max(frames.shape[1:3]) <= WIDEST
    more: dict[str, Any] = {"save_all": True, "append_images": images[1:], "loop": 0} if len(images) > 1 else {}
    images[0].save(buffer, "WEBP", lossless=small, quality=90, **more)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _metadata(verified: Verified) -> dict[str, dict[str, Any]]:
    """Step -> what the trainer wrote into that LoRA file."""
    return {
        f"step {step}": dict(found.metadata) for step, found in verified.folder.checkpoints.items() if found.metadata
    }
