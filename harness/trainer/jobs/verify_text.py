"""What `lora-drift verify` prints, and its JSON."""

import io
import json

from lora_drift.harness.trainer.jobs.folder import Folder
from lora_drift.harness.trainer.jobs.plan import Plan
from lora_drift.harness.trainer.jobs.reader import Job
from lora_drift.harness.trainer.jobs.verify import Result, Verified

WIDTH = 150


def heading(job: Job, planned: Plan, found: Folder, *, quantized: bool) -> str:
    """What is verified, and every field that is not honoured."""
    asked = planned.quantization
    parts = {"base": asked.quantize and asked.qtype, "text encoder": asked.encoders and asked.qtype_te}
    numbers = ", ".join([planned.dtype, *(f"{part} in {qtype}" for part, qtype in parts.items() if qtype)])
    lines = [f"{job.name}: {planned.spec.title} ({planned.model}), as trainer {planned.version} samples it "
             f"({planned.decided}), {numbers}"]  # fmt: skip
    lines += ["  ! left unquantised (--no-quantize)"] if parts["base"] and not quantized else []
    lines += [f"  trainer of the LoRA files: {found.version}"] if found.version else []
    return "\n".join([*lines, *(f"  ! {note}" for note in (*planned.notes, *found.notes))])


def table(verified: Verified) -> str:
    """A line a sample, what is to be said of it below, and the sum."""
    from rich.console import Console
    from rich.table import Table

    shown = Table("step", "prompt", "verdict", "max", "mean", "codec floor", "LoRA", box=None, header_style="")
    for result in verified.results:
        shown.add_row(str(result.step), str(result.index), result.verdict, *_distances(result), _lora(result))
    buffer = io.StringIO()
    Console(file=buffer, width=WIDTH).print(shown)
    said = [
        f"{result.file}: {text}" for result in verified.results for text in (result.message, *result.diagnosis) if text
    ]
    verdicts = [result.verdict for result in verified.results]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    lines = [buffer.getvalue().rstrip("\n"), *said, f"{len(verdicts)} samples: {counts}"]
    if not verified.complete:
        lines.append("Interrupted: the samples after these were not verified.")
    return "\n".join(lines)


def _distances(result: Result) -> tuple[str, str, str]:
    largest, mean = result.metric("pixel_max"), result.metric("pixel_mean")
    return (
        "–" if largest is None else f"{largest:g}/255",
        "–" if mean is None else f"{mean:.3g}",
        "–" if result.codec is None else
        f"{result.codec.floor_max:g}/255, mean {result.codec.floor_mean:.2g} ({result.codec.name})",
    )  # fmt: skip


def _lora(result: Result) -> str:
    drawn = f", noise of {result.noise}" if result.noise else ""
    resized = f", resized as by {result.resize_order}" if result.resize_order else ""
    without = "none" if result.metrics else "–"
    lora = f"{', '.join(result.lora)}, {result.lora_mode}" if result.lora else without
    return lora + drawn + resized


def as_json(verified: Verified) -> str:
    content = {
        "job": verified.job.name,
        "model": verified.plan.model,
        "base": verified.plan.base or verified.plan.spec.base,
        "trainer": verified.plan.version,
        "dtype": verified.plan.dtype,
        "complete": verified.complete,
        "notes": verified.notes,
        "lora_metadata": {str(step): dict(c.metadata) for step, c in verified.folder.checkpoints.items()},
        "samples": [result.model_dump(mode="json") for result in verified.results],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
