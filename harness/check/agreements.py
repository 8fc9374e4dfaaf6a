"""What no distance tells: is what was rendered what the trainer rendered, and is it all there?

A picture can be right by luck: a setting that this case does not show, a frame rate, half the sample rate, a still that
comes with sound, a safety checker that found nothing to blacken. The golden says what the trainer resolved and saved.
"""

from collections.abc import Iterator
from typing import Any

from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.trace import Rendered
from lora_drift.pipelines.settings import Settings

SETTINGS = {
    "prompt": "prompt",
    "prompt_2": "prompt",
    "negative_prompt": "negative_prompt",
    "negative_prompt_2": "negative_prompt_2",
    "seed": "seed",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance_scale",
    "guidance_rescale": "guidance_rescale",
    "network_multiplier": "multiplier",
    "fps": "fps",
}
"""A setting that the golden holds -> ours. (Sizes and frames are those of what came out.)"""
NEVER = ("safety_checker", "watermark")
"""Parts of Diffusers' pipelines that change pictures and that the trainer loads none of."""


def settings(golden: Golden, ours: Settings) -> Iterator[str]:
    """Settings that the trainer resolved otherwise."""
    for theirs, name in SETTINGS.items():
        if golden.settings[theirs] != getattr(ours, name):
            yield f"{theirs} is {golden.settings[theirs]!r} in the trainer, {getattr(ours, name)!r} here"


def loaded(pipe: Any) -> Iterator[str]:
    """Parts that the trainer has not."""
    for name in NEVER:
        if getattr(pipe, name, None) is not None:
            yield f"a {name} is loaded, and the trainer has none"


def sound(golden: Golden, ours: Rendered, pipe: Any) -> Iterator[str]:
    """Sound where the trainer has none, or of another rate than its vocoder makes and its file says."""
    if "audio" not in golden.artefacts:
        if ours.audio is not None:
            yield "there is sound, and the trainer's sample has none"
        return
    rate = pipe.vocoder.config.output_sampling_rate
    if ours.audio is None:
        yield "there is no sound, and the trainer's sample has some"
    elif ours.sample_rate != rate:
        yield f"the sound is saved at {ours.sample_rate} samples a second, and the vocoder makes {rate}"


def disagreements(golden: Golden, asked: Settings, ours: Rendered, pipe: Any) -> list[str]:
    """All of these; empty where all agree."""
    return [*settings(golden, asked), *loaded(pipe), *sound(golden, ours, pipe)]
