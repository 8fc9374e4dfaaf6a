"""Nodes for a training job's folder: its prompts rendered with its settings and LoRAs, and its samples verified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io

from lora_drift.pipelines import RequestError

from . import render

LAST = -1
REMEDIES = {
    **render.REMEDIES,
    "lora": "Give step 0 to render the base model.",
    "control_file": "Copy the job's control images into its folder.",
    "base": "The job names it; it must be there, or on the hub.",
}
"""What mends an error, in the words of these nodes."""


def folder_input() -> Any:
    return io.String.Input("folder", default="", tooltip="Output folder of the job, with its config.yaml.")


@contextmanager
def _at(folder: str) -> Iterator[Path]:
    """The folder, with errors for who looks at a node, and outside inference mode (see `render.sample`)."""
    import torch

    with torch.inference_mode(False), render.told(REMEDIES, {}):
        if not folder.strip():
            raise RequestError("folder: say where the trainer left the job (its output folder, OUTPUT/NAME)")
        yield Path(folder.strip()).expanduser()


class Job(io.ComfyNode):
    def __init__(self) -> None:
        super().__init__()
        self.held = render.held()  # as the Sample node's

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftJob",
            display_name="Job (like the trainer)",
            category="lora-drift",
            description="Renders a prompt of an ai-toolkit job with the job's settings and one of its LoRAs.",
            inputs=[
                folder_input(),
                io.Int.Input("step", default=LAST, min=LAST, max=10**9, tooltip="-1: the last LoRA; 0: without one."),
                io.Int.Input("number", default=0, min=0, max=9999, tooltip="Which of the job's prompts, from 0."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Takes the place of that prompt. May hold [trigger] and flags: --seed 7",
                ),
            ],
            outputs=render.outputs(),
        )

    @classmethod
    def execute(cls, folder: str, step: int, number: int, prompt: str = "") -> io.NodeOutput:
        with _at(folder) as place:
            return io.NodeOutput(*_rendered(place, None if step == LAST else step, number, prompt))

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_others: Any) -> str:
        return state(folder)


def state(folder: str) -> str:
    """Of a job's files: a training that goes on makes others."""
    place = Path(folder.strip()).expanduser()
    files = [path for path in (*place.glob("*"), *place.glob("samples/*")) if path.is_file()]
    return repr(sorted((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files))


def _rendered(place: Path, step: int | None, number: int, prompt: str) -> tuple[Any, ...]:
    from lora_drift.harness.cli.sample import lora_files
    from lora_drift.harness.trainer.jobs import folder, plan, reader, sample_options
    from lora_drift.harness.trainer.jobs.job_file import Sampling

    chosen, _ = sample_options.options(place, step, {})
    notes: list[str] = []
    job = reader.read(place, sampled=False)
    planned = plan.plan(job, folder.Folder((), folder.checkpoints(place, job, notes), ()))
    wanted = plan.requests(planned, job, job.process.sample or Sampling(), place)
    if number >= len(wanted):
        raise RequestError(f"number {number}: the job has {len(wanted)} prompts, counted from 0")
    if prompt.strip():
        wanted[number] = replace(wanted[number], prompt=prompt)
    settings = plan.settled(planned, wanted[number])
    loading = render.Loading(planned.spec.toolkit, planned.base, planned.dtype, planned.quantization)
    pipeline = render.held().pipeline(planned.model, loading)
    files = lora_files(chosen["lora"])
    if files:
        multipliers = {settings.multiplier}
        for request in wanted:  # samples of several multipliers keep a LoRA out of the weights
            with suppress(RequestError):
                multipliers.add(plan.settled(planned, request).multiplier)
        pipeline = pipeline.with_lora(**files, mode=plan.lora_mode(planned, job, multipliers))  # type: ignore[arg-type]
    names = {path: Path(path).name for path in (*settings.control, *settings.shown)}
    told = {"name": job.name, "not_honoured": [*planned.notes, *notes]}
    return render.rendered(pipeline, settings, names, job=told)


class Verify(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftVerify",
            display_name="Verify job (like the trainer)",
            category="lora-drift",
            description="Renders a job's own samples again, and says which are reproduced.",
            inputs=[
                folder_input(),
                io.String.Input("step", default="all", tooltip="Samples of this step, or all."),
            ],
            outputs=[io.String.Output("verdicts")],
        )

    @classmethod
    def execute(cls, folder: str, step: str) -> io.NodeOutput:
        from lora_drift.harness.trainer.jobs import folder as folders
        from lora_drift.harness.trainer.jobs import plan, reader, verify, verify_text

        with _at(folder) as place:
            job = reader.read(place)
            found = folders.scan(place, job)
            folders.check_network(job)
            planned = plan.plan(job, found)
            samples = verify.chosen(job, found, step.strip(), None)
            asked = verify.ask(job, found, planned, samples, place)
            bar = ProgressBar(len(asked))

            def note(done: int, _sample: str) -> None:
                model_management.throw_exception_if_processing_interrupted()
                bar.update_absolute(done, len(asked))

            render.held().forget()  # what verifies loads the model for itself
            verified = verify.Verified(job, planned, found)
            device = str(model_management.get_torch_device())
            verify.run(verified, asked, verify.Options(device, diagnose="none"), note)
            bar.update_absolute(len(asked), len(asked))
            heading = verify_text.heading(job, planned, found, quantized=True)
            return io.NodeOutput(f"{heading}\n{verify_text.table(verified)}")

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_others: Any) -> str:
        return state(folder)
