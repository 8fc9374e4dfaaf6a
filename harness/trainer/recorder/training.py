"""Records a golden through a real training run: the trainer's `run.py`, a job file, and its sample at the end.

The saved LoRA is then sampled once more through the short way (`trainer_process.render`), and the two pictures are
compared: the golden keeps the distance, which shows that the short way stands for a training run.
"""

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lora_drift.harness.check import metrics
from lora_drift.harness.check.cases import Case
from lora_drift.harness.minihub.weights import uniform
from lora_drift.harness.trainer.recorder import job_config, trainer_process
from lora_drift.harness.trainer.recorder.job_config import Where

CAPTIONS = ("a photo of sks in the forest", "a small sks by the sea", "sks at night")


def make_dataset(folder: Path, size: int) -> None:
    """Made-up pictures (smooth random colour fields) with captions."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index, caption in enumerate(CAPTIONS):
        values = ((uniform((8, 8, 3), "dataset", str(index)) + 1) * 127.5).astype(np.uint8)
        Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption)


@contextmanager
def _observed(observer: trainer_process.Observer) -> Iterator[None]:
    """Watch the sampling events of whatever process `run.py` starts."""
    from jobs.process import BaseSDTrainProcess

    original = BaseSDTrainProcess.sample

    def sample(process: Any, *args: Any, **kwargs: Any) -> None:
        for name, delta in trainer_process.lora_deltas(process.sd):
            observer.tracer.trace.add(f"lora/{name}", delta)
        with observer.watching(process.sd):
            original(process, *args, **kwargs)

    BaseSDTrainProcess.sample = sample
    try:
        yield
    finally:
        BaseSDTrainProcess.sample = original


def train(case: Case, folder: Path, observer: trainer_process.Observer, where: Where) -> dict[str, Path]:
    """Run `run.py` on the case's job; returns the LoRA file(s) that it saved at the end."""
    assert case.lora is not None and case.training is not None
    make_dataset(folder / "dataset", case.training.resolution)
    job_file = folder / "job.yaml"
    job_file.write_text(yaml.safe_dump(job_config.job(case, folder, None, where)))
    arguments, sys.argv = sys.argv, ["run.py", str(job_file)]
    try:
        with _observed(observer):
            runpy.run_path(str(Path.cwd() / "run.py"), run_name="__main__")
    finally:
        sys.argv = arguments
    return trainer_process.lora_files(folder / case.job_name, case.job_name)


def record(case: Case, folder: Path, out: Path, where: Where) -> None:
    """Record `case` at the end of its training, and compare with the short way."""
    trained = trainer_process.Observer()
    loras = train(case, folder / "training" / case.id, trained, where)
    short = trainer_process.Observer()
    untrained = case.model_copy(update={"training": None})
    trainer_process.render(untrained, next(iter(loras.values())), folder / "jobs" / case.id, short, where)
    assert trained.frames is not None and short.frames is not None
    assert trained.tracer.trace.final_latents is not None and short.tracer.trace.final_latents is not None
    agreement = {
        "pixel_max": metrics.pixel_max(np.stack(trained.frames), np.stack(short.frames)),
        "latents_rel_l2": metrics.relative_l2(trained.tracer.trace.final_latents, short.tracer.trace.final_latents),
    }
    trainer_process.write_result(case, trained, loras, out, {"origin": "training run", "short_way": agreement})
