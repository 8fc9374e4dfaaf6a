"""`lora-drift sample --job`: what a job says, as options of the command."""

from pathlib import Path
from typing import Any

from lora_drift.harness.trainer.jobs import JobError, folder, plan, reader


def options(place: Path, step: int | None) -> tuple[dict[str, Any], list[str]]:
    """Option -> value, of the job in the folder `place` with its LoRA of `step` (None: the last; 0: no LoRA).

    And a line for each field that is not honoured.

    Raises:
        JobError: the job cannot be read, or has no LoRA of that step.
    """
    job = reader.read(place)
    notes: list[str] = []
    found = folder.checkpoints(place if place.is_dir() else place.parent, job, notes)
    planned = plan.plan(job, folder.Folder((), found, ()))
    sampling, process = job.process.sample, job.process
    if step is None and not found:
        raise JobError(f"{place}: no LoRA is there, {job.name}_STEP.safetensors or {job.name}.safetensors; --step 0 "
                       "renders the base model")  # fmt: skip
    if step is not None and step != 0 and step not in found:
        raise JobError(f"--step {step}: the job has LoRAs of the steps {', '.join(map(str, found)) or 'none'}")
    chosen = None if step == 0 else found[max(found) if step is None else step]
    files = [] if chosen is None else [f"{name}={p}" if name != "path" else str(p) for name, p in chosen.files.items()]
    video = planned.spec.kind == "video"
    notes += planned.notes
    if planned.quantization.exclude:
        notes.append("model.quantize_kwargs.exclude is not honoured here: no layer is left out")
    if sampling.do_cfg_norm:
        notes.append("sample.do_cfg_norm is not honoured here: guidance is not normalised")
    said = {
        "model": planned.model,
        "base": planned.base,
        "tag": planned.tag,
        "dtype": planned.dtype,
        "quantize": planned.quantization.quantize,
        "quantize_te": planned.quantization.quantize_te,
        "qtype": planned.quantization.qtype,
        "qtype_te": planned.quantization.qtype_te,
        "recovery": planned.quantization.accuracy_recovery_adapter,
        "lora": files,
        "lora_mode": plan.lora_mode(planned, job, {sampling.network_multiplier}) if files else None,
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
        "trigger": process.trigger_word,
        "name": job.name,
    }
    return said, notes
