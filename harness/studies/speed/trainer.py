"""The trainer's part; runs in its environment. It makes the LoRA, saves it, and samples the case several times over.

All samples are of one sampling event, so they share the weights into which the LoRA was merged once: the first warms
up and is the one that ours are compared with, the second against the first is the trainer's own noise.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from lora_drift.harness.check import metrics
from lora_drift.harness.check.lora_codec import TWINS
from lora_drift.harness.environment import facts
from lora_drift.harness.minihub.weights import STRENGTH
from lora_drift.harness.studies.speed import stopwatch
from lora_drift.harness.studies.speed.plan import Notes, Plan
from lora_drift.harness.studies.speed.stopwatch import Stopwatch
from lora_drift.harness.trainer.recorder import job_config, trainer_process
from lora_drift.harness.trainer.recorder.job_config import Where


class Pictures:
    """Times every picture from the end of the last one's saving to the start of its own."""

    def __init__(self, watch: Stopwatch, steps: int) -> None:
        self.watch, self.steps = watch, steps
        self.runs: list[dict[str, float]] = []
        self.frames: list[np.ndarray] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        from toolkit.config_modules import GenerateImageConfig

        save = GenerateImageConfig.save_image

        def save_image(config: Any, image: Any, *args: Any, **kwargs: Any) -> None:
            self.runs.append(self.watch.end(self.steps))
            images = image if isinstance(image, list) else [image]
            self.frames.append(np.stack([np.asarray(frame.convert("RGB")) for frame in images]))
            save(config, image, *args, **kwargs)
            self.watch.begin()

        GenerateImageConfig.save_image = save_image
        try:
            yield
        finally:
            GenerateImageConfig.save_image = save


def measure(plan: Plan, notes: Notes) -> None:
    """Run the trainer's process up to the end of its first sampling event."""
    if not plan.is_full:
        trainer_process.APPLY.get(plan.model, lambda _device: [])(plan.device)
    case, folder = plan.case, plan.out / "job"
    watch, seconds, began = Stopwatch(plan.device), {}, time.perf_counter()
    config = job_config.job(case, folder, None, Where(plan.device, "bfloat16"))
    section = config["config"]["process"][0]["sample"]
    section["samples"] = section["samples"] * (1 + plan.repeats)

    def loaded(process: Any, original: Callable[[], None]) -> None:
        """The trainer calls this right before `load_model`."""
        original()
        load = process.sd.load_model

        def load_model() -> None:
            _, seconds["load"] = watch.timed(load)

        process.sd.load_model = load_model

    def before_train_loop(process: Any, original: Callable[[], None]) -> None:
        original()
        trainer_process.fill(
            process.network,
            TWINS.get(plan.model, plan.model),
            "speed",
            STRENGTH["full" if plan.is_full else "mini"],
        )
        process.save()
        merge = process.network.merge_in

        def merge_in(*args: Any, **kwargs: Any) -> None:
            _, seconds["lora"] = watch.timed(lambda: merge(*args, **kwargs))

        process.network.merge_in = merge_in

    def sample(process: Any, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        notes.add(until_sampling=time.perf_counter() - began, **stopwatch.resident(plan.device))
        sd = process.sd
        encoders = sd.text_encoder if isinstance(sd.text_encoder, list) else [sd.text_encoder]
        components = {f"text_encoder_{i}": encoder for i, encoder in enumerate(encoders)} | {"vae": sd.vae}
        observer, pictures = trainer_process.Observer(plan.model), Pictures(watch, case.sample.sample_steps)
        with (
            # Of a video that takes longer than to render it.
            mock.patch("toolkit.config_modules.GenerateImageConfig.save_image"),
            watch.watching(components, trainer_process.denoisers(sd)["transformer"]),
            observer.watching(sd),
            pictures.watching(),
        ):
            watch.begin()
            original(*args, **kwargs)
        keep(plan, notes, observer, pictures, seconds)
        raise trainer_process.Done

    trainer_process.run_process(
        config, hook_after_sd_init_before_load=loaded, hook_before_train_loop=before_train_loop, sample=sample
    )


def keep(plan: Plan, notes: Notes, observer: Any, pictures: Pictures, seconds: dict[str, float]) -> None:
    assert observer.frames is not None
    first, *others = pictures.frames
    np.savez(plan.out / "trainer.npz", frames=first, latents=observer.tracer.trace.final_latents)
    observer.tracer.trace.save(plan.out / "trainer.safetensors")
    notes.add(
        lora_mode=observer.settings["lora_mode"],
        files={
            name: str(path) for name, path in trainer_process.lora_files(plan.out / "job" / "speed", "speed").items()
        },
        seconds={**seconds, **stopwatch.median(pictures.runs[1:])},
        first=pictures.runs[0],
        runs=pictures.runs[1:],
        noise=[int(metrics.pixel_max(first, other)) for other in others],
    )


def main(plan: Plan) -> None:
    notes = Notes(plan, "trainer")
    notes.add(environment=facts(plan.device, "bfloat16"))
    measure(plan, notes)


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))
