"""How much it costs to do one thing as ComfyUI does it, of each model that has no native graph.

    python -m lora_drift.harness.studies.comfyui.unmatched

Rendered in our own pipeline and not in ComfyUI: the model's base case with exactly that done otherwise which
`harness/native/unmatched.py` names, against the trainer's golden. Writes harness/native/unmatched.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from lora_drift.harness.check import divergence, metrics, runner, tolerances
from lora_drift.harness.check.trace import Trace
from lora_drift.harness.deviations.library import LIBRARY, Subject
from lora_drift.harness.deviations.library.base import patched
from lora_drift.harness.native import records, unmatched


@contextmanager
def llama_padded_behind(subject: Subject) -> Iterator[Subject]:
    """The trainer's tokenizer of Llama pads in front."""
    with patched(subject.pipe.tokenizer_4, "padding_side", "right"):
        yield subject


@contextmanager
def guided_by_the_prompt_only(subject: Subject) -> Iterator[Subject]:
    """LTX-2.3 without what CFGGuider has not: perturbed and modality passes, rescaling, the sound's own scale."""
    off: dict[str, Any] = {"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0,
                           **dict.fromkeys(("audio_guidance_scale", "audio_stg_scale", "audio_modality_scale",
                                            "audio_guidance_rescale"))}  # fmt: skip
    yield subject.with_spec(**off)


def changed(model: str, subject: Subject) -> AbstractContextManager[Subject]:
    """The subject with the named thing done as ComfyUI does it."""
    if subject.spec.family == "qwen":
        return LIBRARY["picture divided by 255 once"].applied(subject)
    if subject.spec.family == "hidream":
        return llama_padded_behind(subject)
    if model == "ltx2":
        return LIBRARY["shift by the number of tokens"].applied(subject)
    return guided_by_the_prompt_only(subject)


def measured(model: str) -> tuple[unmatched.Measured, str]:
    """The size, and the first stage that the traces show to differ.

    Raises:
        ValueError: the case does not differ.
    """
    case, golden = records.golden_of(model, unmatched.CASE)
    bench = runner.Bench(tag=golden.tag)
    subject = Subject.of(bench.pipeline(case, golden), bench.request(case))
    with changed(model, subject) as varied:
        ours = bench.render(varied.pipeline, varied.settings)
    found = divergence.distances(Trace.load(golden.path("trace")), ours.trace)
    stage = divergence.first(found, partial(tolerances.of_stage, bench.tolerances(case, golden)))
    if stage is None:
        raise ValueError(f"{case.id}: nothing differs")
    theirs, pixels = golden.frames(), ours.frames
    return unmatched.Measured(
        golden=golden.seal,
        pixel_max=metrics.pixel_max(theirs, pixels),
        pixel_mean=round(metrics.mean_difference(theirs, pixels), 4),
    ), stage


def main() -> None:
    runner.use_minihub()
    kept = {model: measured(model)[0].model_dump() for model in unmatched.UNMATCHED}
    unmatched.FILE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
