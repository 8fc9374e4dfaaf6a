"""Our part: the reference pipeline beside stock Diffusers, what it differs from the trainer by, and what fits where."""

import gc
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from lora_drift import pipelines
from lora_drift.harness.check import metrics, trace
from lora_drift.harness.check.noise_floor import deterministic_kernels
from lora_drift.harness.check.runner import LORA_FILES
from lora_drift.harness.check.trace import Trace, Tracer
from lora_drift.harness.environment import facts
from lora_drift.harness.studies import stock_diffusers
from lora_drift.harness.studies.speed import loras, stopwatch
from lora_drift.harness.studies.speed.accelerators import RECIPES
from lora_drift.harness.studies.speed.plan import Notes, Plan
from lora_drift.harness.studies.speed.stopwatch import GB, Stopwatch
from lora_drift.pipelines.spec import noise_stream_of, resize_order_of

Array = np.ndarray
ORIGINALS: Mapping[str, Mapping[str, Any]] = {
    "in_pageable_memory": {"fit": lambda _: False, "in_main_memory": lambda weight: weight.to("cpu", copy=True)},
    "in_pinned_memory": {"fit": lambda _: False},
    "on_device": {},
}
"""Where the original weights lie below a LoRA -> what makes the adapter put them there: first as it did until 0.1, then
as it does where there is no room, and where there is."""
SIDE = {"cuda": 8192, "cpu": 1024}
"""Of the matrices whose product gives the device's rate."""


@dataclass
class Runner:
    """One stack with its weights loaded: renders the case once."""

    pipe: Any
    render: Callable[[], Array]
    load_seconds: float
    beside_gb: float = 0.0
    """What else is in the device's memory meanwhile."""

    def timed(self, watch: Stopwatch, steps: int) -> tuple[Array, dict[str, float]]:
        with watch.watching(self.pipe.components):
            watch.begin()
            frames = self.render()
            seconds = watch.end(steps)
        own = {"peak_gb": seconds["peak_gb"] - self.beside_gb} if "peak_gb" in seconds else {}
        return frames, {**seconds, **own}


def load_ours(plan: Plan, watch: Stopwatch, **options: Any) -> tuple[Any, Runner]:
    """(pipeline with the LoRA, how to run it)"""
    import torch

    # The trainer runs on this torch and Pillow, too.
    drawn, resized = noise_stream_of(torch.__version__), resize_order_of(version("pillow"))
    pipeline = pipelines.load(
        plan.model, device=plan.device, dtype="bfloat16", noise_stream=drawn, resize_order=resized, **options
    )
    import_libraries(pipeline)
    pipe, seconds = watch.timed(lambda: pipeline.base.pipe)
    files: dict[str, Any] = {**lora_files(plan, pipeline)}
    pipeline = pipeline.with_lora(**files)

    def render() -> Array:
        return shown(pipeline.render(plan.settings, on_step=lambda *_: watch.mark()))

    return pipeline, Runner(pipe, render, seconds)


def import_libraries(pipeline: Any) -> None:
    """Which both import at first use, in seconds that are not loading."""
    import diffusers
    import transformers

    for name in ("CLIPTextModelWithProjection", "T5EncoderModel", "UMT5EncoderModel", "Qwen3ForCausalLM",
                 "Qwen2_5_VLForConditionalGeneration"):  # fmt: skip
        getattr(transformers, name)
    getattr(diffusers, pipeline.spec.pipeline)
    _ = pipeline.base.shapes


def lora_files(plan: Plan, pipeline: Any) -> dict[str, Path]:
    """What the trainer saved in this run; without a trainer a made-up LoRA."""
    note = plan.out / "trainer.json"
    saved = json.loads(note.read_text()).get("files", {}) if plan.trainer and note.is_file() else {}
    if saved:
        return {LORA_FILES[artefact]: Path(path) for artefact, path in saved.items()}
    made = plan.out / "random.safetensors"
    rank = plan.case.lora.network.linear if plan.case.lora else 0
    return {"path": made if made.is_file() else loras.random_lora(pipeline.spec, pipeline.base.shapes, rank, made)}


def load_plain(plan: Plan, watch: Stopwatch, lora: Path) -> tuple[Runner, dict[str, Any]]:
    """(stock Diffusers with the LoRA fused, what is to be noted of it)"""
    with nothing_of_ours():
        pipe, seconds = watch.timed(lambda: stock_diffusers.stock(plan.model, "bfloat16")[0].to(plan.device))
    pipe.set_progress_bar_config(disable=True)
    settings = plan.settings
    noted: dict[str, Any] = {}

    def fuse() -> None:
        stock_diffusers.load_lora(pipe, lora)
        pipe.fuse_lora()
        pipe.unload_lora_weights()

    try:
        noted["lora"] = watch.timed(fuse)[1]
    except Exception as error:  # noqa: BLE001  that stock Diffusers cannot read the file is a finding
        noted["lora_error"] = stock_diffusers.short(error)
    call = stock_diffusers.arguments(pipe, settings)

    def mark(_pipe: Any, _step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        watch.mark()
        return kwargs

    def render() -> Array:
        import torch

        with torch.no_grad():
            return stock_diffusers.render(pipe, call, settings.seed, callback_on_step_end=mark)

    return Runner(pipe, render, seconds), noted


@contextmanager
def nothing_of_ours() -> Iterator[None]:
    """`plain.stock` borrows our loading of the trainer's single files: without what it then rounds as the trainer."""
    with (
        mock.patch("lora_drift.pipelines.families.flux2_rounding.round_like_the_trainers_network"),
        mock.patch("lora_drift.pipelines.loading.pin_attention_backends"),
    ):
        yield


def shown(output: Any) -> Array:
    return np.stack([np.asarray(frame.convert("RGB")) for frame in output.frames])


def final(tracer: Tracer) -> Array:
    """What the decoder received."""
    assert tracer.trace.final_latents is not None
    return tracer.trace.final_latents


def difference(expected: Array, found: Array) -> dict[str, Any]:
    if expected.shape != found.shape:
        return {"equal": False, "note": f"another size: {found.shape[2]}x{found.shape[1]}, {len(found)} frame(s)"}
    levels = {m.name: m.value for m in metrics.pixel_levels(expected, found)}
    return {"equal": bool((expected == found).all()), **levels}


class Part:
    """The stages, in their order; each is noted as soon as it is there."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.watch, self.notes = plan, Stopwatch(plan.device), Notes(plan, "ours")
        self.frames: Array

    def run(self) -> None:
        notes = self.notes
        notes.add(environment=facts(self.plan.device, "bfloat16"))
        self.pipeline, self.ours = load_ours(self.plan, self.watch)
        self.lora = lora_files(self.plan, self.pipeline)
        notes.add(load=self.ours.load_seconds, **stopwatch.resident(self.plan.device))
        if notes.stage("first", self.first) is None:
            return
        notes.stage("against_trainer", self.against_trainer)
        notes.stage("timing", self.side_by_side)
        notes.stage("floor", self.floor)
        notes.stage("deterministic", self.deterministic)
        notes.stage("lora", self.switch)
        if self.plan.device.startswith("cuda"):
            notes.stage("offload_model", lambda: self.offloaded("model"))
            notes.stage("offload_group", lambda: self.offloaded("group"))
        if notes.found.get("in_turn") is False:
            notes.stage("plain_alone", self.plain_alone)

    def first(self) -> dict[str, float]:
        """Warms up; keeps the picture and its trace."""
        tracer = Tracer()
        self.watch.begin()
        output = self.pipeline.render(self.plan.settings, watch=tracer.watching)
        seconds = self.watch.end(self.plan.settings.steps)
        self.frames, self.trace = shown(output), tracer.trace
        self.latents = final(tracer)
        np.savez(self.plan.out / "ours.npz", frames=self.frames, latents=self.latents)
        return seconds

    def against_trainer(self) -> dict[str, Any]:
        """How far from the trainer's picture, and where that began."""
        file = self.plan.out / "trainer.npz"
        if not file.is_file():
            return {"note": "the trainer rendered nothing in this run"}
        theirs = np.load(file)
        found = difference(theirs["frames"], self.frames)
        found["latents_rel_l2"] = metrics.relative_l2(theirs["latents"], self.latents)
        recorded = Trace.load(self.plan.out / "trainer.safetensors")
        parted = next(((n, e) for n, e in trace.errors(recorded, self.trace).items() if e > 0), None)
        return {**found, "first_difference": parted}

    def side_by_side(self) -> None:
        """Ours and stock Diffusers in turn, if both have room; else ours alone."""
        together = self.has_room(self.notes.found.get("resident_gb", 0.0))
        self.notes.add(in_turn=together)
        runners = {"ours": self.ours, **({"plain": self.load_plain(self.ours)} if together else {})}
        self.repeat({name: runner for name, runner in runners.items() if runner is not None})
        self.ours.beside_gb = 0.0
        runners.clear()
        self.forget()

    def repeat(self, runners: dict[str, Runner]) -> None:
        """Renders of each in turn, and their medians."""
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
        for _ in range(self.plan.repeats):
            for name, runner in runners.items():
                runs[name].append(self.once(name, runner))
        for name, found in runs.items():
            self.notes.add(**{f"{name}_runs": found, f"{name}_seconds": stopwatch.median(found)})

    def plain_alone(self) -> None:
        """Stock Diffusers once ours has gone: there was no room for both."""
        del self.ours, self.pipeline
        self.forget()
        runner = self.load_plain()
        if runner is not None:
            self.repeat({"plain": runner})

    def has_room(self, used: float) -> bool:
        """For the same weights once more, and a render."""
        import torch

        if not self.plan.device.startswith("cuda"):
            return True
        self.forget()
        return torch.cuda.mem_get_info()[0] / GB > 1.02 * used + 1.5 * (torch.cuda.max_memory_allocated() / GB - used)

    def load_plain(self, ours: Runner | None = None) -> Runner | None:
        """`ours`: what is loaded already."""
        found: dict[str, Any] = {}

        def load() -> dict[str, Any]:
            before = stopwatch.resident(self.plan.device).get("resident_gb", 0.0)
            found["runner"], noted = load_plain(self.plan, self.watch, next(iter(self.lora.values())))
            noted |= stopwatch.resident(self.plan.device, before)
            if ours is not None:
                found["runner"].beside_gb, ours.beside_gb = before, noted.get("resident_gb", 0.0)
            frames = found["runner"].render()
            file = self.plan.out / "trainer.npz"
            against = {"against_trainer": difference(np.load(file)["frames"], frames)} if file.is_file() else {}
            beside = {"against_ours": difference(self.frames, frames)}
            return {"load": found["runner"].load_seconds, **noted, **against, **beside}

        return found.get("runner") if self.notes.stage("plain", load) else None

    def once(self, name: str, runner: Runner) -> dict[str, float]:
        frames, seconds = runner.timed(self.watch, self.plan.settings.steps)
        if name == "ours" and not (frames == self.frames).all():
            self.notes.add(ours_repeat=difference(self.frames, frames))
        return seconds

    def floor(self) -> dict[str, float]:
        """Operations of a step over the rate of a large matrix product: what a step takes at least."""
        from torch.utils.flop_counter import FlopCounterMode

        denoiser = getattr(self.ours.pipe, next(iter(self.pipeline.spec.denoisers.values())))
        steps, original = 2, denoiser.forward
        calls: list[int] = []

        def counted(*args: Any, **kwargs: Any) -> Any:
            with FlopCounterMode(display=False) as counter:
                result = original(*args, **kwargs)
            calls.append(counter.get_total_flops())
            return result

        # Not in a render whose picture is compared: what counts takes some operations apart.
        denoiser.forward = counted
        try:
            self.pipeline.render(replace(self.plan.settings, steps=steps))
        finally:
            del denoiser.forward
        operations = sum(calls) / steps
        rate, step = self.matrix_rate(), self.notes.found.get("ours_seconds", {}).get("step")
        return {
            "calls_per_step": len(calls) / steps,
            "tera_operations_per_step": operations / 1e12,
            "tera_operations_per_second": rate / 1e12,
            "seconds": operations / rate,
            **({"step_over_floor": step * rate / operations} if step else {}),
        }

    def matrix_rate(self) -> float:
        """Operations a second of a square bfloat16 product, the median of ten."""
        import torch

        side = SIDE[self.plan.device.split(":")[0]]
        a, b = (torch.randn(side, side, device=self.plan.device, dtype=torch.bfloat16) for _ in range(2))
        torch.mm(a, b)
        seconds = [self.watch.timed(lambda: torch.mm(a, b))[1] for _ in range(10)]
        return 2 * side**3 / float(np.median(seconds))

    def deterministic(self) -> dict[str, Any]:
        """The same render with deterministic kernels."""
        with warnings.catch_warnings(record=True) as warned, deterministic_kernels():
            warnings.simplefilter("always")
            frames, seconds = self.ours.timed(self.watch, self.plan.settings.steps)
        without = sorted({str(w.message).split(" ")[0] for w in warned if "deterministic" in str(w.message)})
        return {**difference(self.frames, frames), "total": seconds["total"], "operations_without": without}

    def switch(self) -> dict[str, Any]:
        """Seconds to read another LoRA, and to put in a first and then another, wherever the original weights lie."""
        others: dict[str, Any] = {**loras.negated(self.lora, self.plan.out)}
        other, read = self.watch.timed(lambda: self.pipeline.with_lora(**others))
        adapter = self.pipeline.base.adapter
        found: dict[str, Any] = {"read": read}
        for place, patches in ORIGINALS.items():
            adapter.set(None)
            self.forget()
            with ExitStack() as patched:
                for name, how in patches.items():
                    patched.enter_context(mock.patch(f"lora_drift.pipelines.adapter.{name}", how))
                first, another = (
                    self.watch.timed(partial(adapter.set, view.lora, 1.0, view.mode))[1]
                    for view in (self.pipeline, other)
                )
            found[place] = {"first": first, "another": another}
        return found

    def offloaded(self, way: str) -> dict[str, float]:
        """A render of the base with weights in main memory but while they are used.

        Without the LoRA, since merging it keeps the original weights there, too."""
        import torch

        pipeline, pipe, settings = replace(self.pipeline, lora=None), self.ours.pipe, self.plan.settings
        pipeline.base.adapter.set(None)
        pipe.remove_all_hooks()
        pipe.to("cpu")
        self.forget()
        if way == "model":
            pipe.enable_model_cpu_offload(device=self.plan.device)
        else:
            pipe.enable_group_offload(torch.device(self.plan.device), offload_type="leaf_level", use_stream=True,
                                      low_cpu_mem_usage=self.notes.found["resident_gb"] > 40)  # fmt: skip
        runner = Runner(pipe, lambda: shown(pipeline.render(settings, on_step=lambda *_: self.watch.mark())), 0.0)
        return runner.timed(self.watch, settings.steps)[1]

    def forget(self) -> None:
        import torch

        gc.collect()
        if self.plan.device.startswith("cuda"):
            torch.cuda.empty_cache()


def timed_after(first: Callable[[], Any], notes: Notes, watch: Stopwatch, runner: Runner) -> bool:
    """The first render, which compiles and is compared, and if it went well those that are timed. Did it?"""
    if notes.stage("first", first) is None:
        return False
    runs = [runner.timed(watch, notes.plan.settings.steps)[1] for _ in range(notes.plan.repeats)]
    notes.add(runs=runs, seconds=stopwatch.median(runs))
    return True


def profiled(profile: str, plan: Plan) -> None:
    """The part of a profile: seconds to warm up, seconds, and how far from the reference."""
    notes, watch = Notes(plan, profile), Stopwatch(plan.device)
    pipeline, runner = load_ours(plan, watch, profile=profile)
    tracer = Tracer()

    def first() -> dict[str, Any]:
        pipeline.base.adapter.set(pipeline.lora, 1.0, pipeline.mode)  # not part of what the compiler takes
        tracer.attach({"vae": runner.pipe.vae})  # hooks on a compiled denoiser would compile it again
        frames, seconds = watch.timed(runner.render)
        tracer.detach()
        reference = np.load(plan.out / "ours.npz")
        latents = metrics.relative_l2(reference["latents"], final(tracer))
        return {"total": seconds, "drift": {**difference(reference["frames"], frames), "latents_rel_l2": latents}}

    notes.add(load=runner.load_seconds)
    timed_after(first, notes, watch, runner)


def accelerated(recipe: str, plan: Plan) -> None:
    """The part of what people use in our stead: stock Diffusers with a recipe, and how far from the reference."""
    notes, watch = Notes(plan, recipe), Stopwatch(plan.device)
    pipeline = pipelines.load(plan.model, device=plan.device, dtype="bfloat16")
    runner, noted = load_plain(plan, watch, next(iter(lora_files(plan, pipeline).values())))
    notes.add(load=runner.load_seconds, **noted)
    reference = np.load(plan.out / "ours.npz")["frames"]

    def first(change: Callable[[Any], None]) -> dict[str, Any]:
        _, prepared = watch.timed(lambda: change(runner.pipe))
        frames, seconds = watch.timed(runner.render)
        return {"total": prepared + seconds, "drift": difference(reference, frames)}

    # What comes later overwrites "first", "runs" and "seconds": those of the whole recipe stay.
    for number, change in enumerate(RECIPES[recipe], 1):
        if not timed_after(partial(first, change), notes, watch, runner):
            return  # what stands there is of the parts that are named as applied
        notes.add(applied=[done.__name__ for done in RECIPES[recipe][:number]])


def main(part: str, plan: Plan) -> None:
    from lora_drift.harness.hf_logging import quiet

    quiet()
    if part == "ours":
        Part(plan).run()
    elif part in RECIPES:
        accelerated(part, plan)
    else:
        profiled(part, plan)


if __name__ == "__main__":
    main(sys.argv[1], Plan(**json.loads(sys.argv[2])))
