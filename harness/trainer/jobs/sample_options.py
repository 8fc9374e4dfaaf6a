"""`lora-drift sample --job`: what a job says, as options of the command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_drift.harness.trainer.jobs import JobError, folder, plan, reader
from lora_drift.harness.trainer.jobs.folder import Checkpoint
from lora_drift.harness.trainer.jobs.reader import Job
from lora_drift.harness.trainer.recorder.job_config import MODELS

FIELDS = {
    "dtype": "train.dtype",
    "quantize": "model.quantize",
    "quantize_te": "model.quantize_te",
    "qtype": "model.qtype",
    "qtype_te": "model.qtype_te",
    "recovery": "model.accuracy_recovery_adapter",
    "negative": "sample.neg",
    "width": "sample.width",
    "height": "sample.height",
    "steps": "sample.sample_steps",
    "guidance": "sample.guidance_scale",
    "guidance_rescale": "sample.guidance_rescale",
    "seed": "sample.seed",
    "multiplier": "sample.network_multiplier",
    "frames": "sample.num_frames",
    "fps": "sample.fps",
    "trigger": "trigger_word",
}
"""Option -> the field of the job that it overrides: of that, nothing is read, said or refused."""


def options(place: Path, step: int | None, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Option -> value, of the job in the folder `place` with its LoRA of `step` (None: the last; 0: no LoRA).

    And a line for each field that is not honoured. `given` are the options that the command line says itself; they win.

    Raises:
        JobError: the job cannot be read, or has no LoRA of that step.
    """
    job = reader.read(place, _fields(given), sampled=False)
    notes: list[str] = []
    home = place if place.is_dir() else place.parent
    found = {} if "lora" in given else folder.checkpoints(home, job, notes)
    planned = plan.plan(job, folder.Folder((), found, ()), given.get("tag"), given.get("base"))
    chosen = None if "lora" in given or step == 0 else _checkpoint(place, job, found, step)
    notes += [note for note in planned.notes if note != plan.CACHED or "trigger" not in given]
    said: dict[str, Any] = {
        "model": planned.model,
        "base": planned.base,
        "tag": planned.version,
        "dtype": planned.dtype,
        "quantize": planned.quantization.quantize,
        "quantize_te": planned.quantization.quantize_te,
        "qtype": planned.quantization.qtype,
        "qtype_te": planned.quantization.qtype_te,
        "recovery": planned.quantization.accuracy_recovery_adapter,
        "lora": [f"{name}={p}" if name != "path" else str(p) for name, p in chosen.files.items()] if chosen else [],
        "trigger": None if job.process.caches_prompts and "trigger" not in given else job.process.trigger_word,
        "name": job.name,
        **_sampling(job, planned, notes),
    }
    if planned.quantization.exclude:
        notes.append("model.quantize_kwargs.exclude is not honoured here: no layer is left out")
    if chosen is not None or "lora" in given:
        said["lora_mode"] = plan.lora_mode(planned, job, {said.get("multiplier", 1.0)})
    return {**said, **given}, notes


def _fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the job for what the command line says itself."""
    found = {FIELDS[option]: value for option, value in given.items() if option in FIELDS}
    if given.get("model") in MODELS:
        row = MODELS[given["model"]]
        found = {"model.arch": row["arch"], "model.name_or_path": row["name_or_path"], **found}
    return found


def _checkpoint(place: Path, job: Job, found: Mapping[int, Checkpoint], step: int | None) -> Checkpoint:
    folder.check_network(job)
    if not found:
        raise JobError(f"{place}: no LoRA is there, {job.name}_STEP.safetensors or {job.name}.safetensors.", "lora")
    if step is not None and step not in found:
        raise JobError(f"--step {step}: the job has LoRAs of the steps {', '.join(map(str, found))}")
    step = max(found) if step is None else step
    if found[step].problem:
        raise JobError(found[step].problem)
    if found[step].missing:
        raise JobError(f"{place}: of step {step}, {' and '.join(found[step].missing)} is not there, of which the job "
                       "trained both experts.", "expert")  # fmt: skip
    return found[step]


def _sampling(job: Job, planned: plan.Plan, notes: list[str]) -> dict[str, Any]:
    """The settings of a picture; without `sample:` in the job, the model's own."""
    sampling, video = job.process.sample, planned.spec.kind == "video"
    if sampling is None:
        notes.append(
            f"sample: the job has none, so size, steps and guidance are those that {planned.model} has without"
        )
        return {}
    if sampling.do_cfg_norm:
        notes.append("sample.do_cfg_norm is not honoured here: guidance is not normalised")
    return {
        "negative": sampling.neg if isinstance(sampling.neg, str) else "",
        "width": sampling.width,
        "height": sampling.height,
        "steps": sampling.sample_steps,
        "guidance": sampling.guidance_scale,
        "guidance_rescale": sampling.guidance_rescale,
        "seed": sampling.seed,
        "multiplier": sampling.network_multiplier,
        "frames": sampling.num_frames if video else None,
        "fps": sampling.fps,
    }
