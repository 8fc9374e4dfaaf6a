"""From numbers to words: where a failing case began, and what to look at there."""

import re
from typing import Any, NamedTuple

from lora_drift.harness.check import divergence as d
from lora_drift.harness.check.results import Result

SUSPECTS = {
    d.LORA: "how the LoRA file is read: alpha, rank, key names",
    d.TOKENS: "the prompt or negative prompt, its template, the tokenizer: its normaliser, its limit",
    d.PROMPTS: "the prompt or negative prompt, its template, the tokenizer, the mask",
    d.CONTROL: "the control images: their size, order, or encoding",
    d.SCHEDULE: "the scheduler's class or config (shift), or the number of steps",
    d.NOISE: "the seed, the generator, or the latents' shape or dtype",
    d.SIZE: "the rules of size and of the number of frames",
    d.CONDITIONING: "ids, masks and sizes that the denoiser is told",
    d.GUIDANCE: "the guidance scale, its formula or its rescaling",
    d.INPUT: "how latents are packed or scaled",
    d.DENOISER: "the weights: LoRA multiplier or merging, dtype, attention, position ids",
    d.STEP: "the scheduler's step: its class, order, or noise",
    d.DECODER_INPUT: "the scaling, shift or unpacking of the latents",
    d.DECODER: "the VAE: its weights, dtype or tiling",
    d.PICTURE: "how the decoded numbers become pixels: rounding, clamping, the frames' order",
    d.SOUND: "the vocoder, or how sound is cut",
}
"""Component (the beginning of a place) -> what usually makes exactly this differ, when everything before it agrees."""
STEP = re.compile(r"step(\d+)/")


class Blame(NamedTuple):
    """Where a failing case began, and what explains it as far as the result itself can tell."""

    part: str
    """The component, one of `SUSPECTS`."""
    began: str
    """The component with its details."""
    cause: str


def blame(result: Result) -> Blame:
    """In words; empty strings where the result does not say."""
    first = result.first_divergence
    place = "" if first is None else first.place
    part = next((part for part in sorted(SUSPECTS, key=len, reverse=True) if place.startswith(part)), "")
    cause = [result.excuse.cause] if result.excuse else []
    if changed := _settings(result):
        cause.append("Settings differ: " + "; ".join(changed))
    if result.diagnosis is not None:
        cause.append(result.diagnosis.headline.rstrip("."))
    if first is not None and not cause:
        cause.append(f"Everything before agrees; look at {SUSPECTS.get(part, 'what happens there')}")
    return Blame(part, place, ". ".join(cause) or result.message)


def verdict(result: Result) -> str:
    """The message without where it begins, for readers who are told that beside it."""
    return result.message.replace(result.first_divergence.sentence, "") if result.first_divergence else result.message


def step(result: Result) -> int | None:
    """Denoising step at which the run left its golden."""
    found = STEP.match(result.first_divergence.boundary) if result.first_divergence else None
    return int(found[1]) if found else None


RENAMED = {"num_inference_steps": "steps", "network_multiplier": "multiplier"}
"""The trainer's name of a setting -> ours."""


def golden_settings(result: Result) -> dict[str, Any]:
    """The trainer's settings under our names."""
    return {RENAMED.get(key, key): value for key, value in result.golden_settings.items()}


def _settings(result: Result) -> list[str]:
    """`guidance_scale 4 → 3.5`, for what both sides have and disagree on."""
    golden = golden_settings(result)
    return [
        f"{key} {_short(golden[key])} → {_short(ours)}"
        for key, ours in result.settings.items()
        if key in golden and golden[key] != ours and not key.endswith("_2")  # a second encoder's copy of the same
    ]


def _short(value: object) -> str:
    text = str(value) if value not in ("", None) else "none"
    return text if len(text) <= 60 else text[:59] + "…"
