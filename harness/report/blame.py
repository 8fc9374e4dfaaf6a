"""From numbers to words: which part of the render a boundary belongs to, and what to look at there."""

import re
from typing import Any, NamedTuple

from harness.results import Result


class Part(NamedTuple):
    """One part of a render, as the first boundary that differs names it."""

    name: str
    began: str
    """What differs, completed by the boundary's own parts."""
    suspects: str
    """What usually makes exactly this differ, when everything before it agrees."""


PARTS: tuple[tuple[str, Part], ...] = (
    (r"lora/(?P<a>.+)", Part("LoRA", "the weight change of {a}", "how the LoRA file is read: alpha, rank, key names")),
    (
        r"encode/(?P<a>[^#]+)#(?P<n>\d+)",
        Part("text", "{a}, call {n}", "the prompt or negative prompt, its template, the tokenizer, the mask"),
    ),
    (
        r"schedule/(?P<a>\w+)",
        Part("schedule", "the scheduler's {a}", "the scheduler's class or config (shift), or the number of steps"),
    ),
    (r"step\d+/noise", Part("noise", "the initial noise", "the seed, the generator, or the latents' shape or dtype")),
    (
        r"step(?P<k>\d+)/denoiser#\d+\.(?P<a>.+)",
        Part(
            "input", "{a}, as the denoiser gets it at step {k}", "how latents, ids or embeddings are packed or scaled"
        ),
    ),
    (
        r"step(?P<k>\d+)/denoiser#\d+",
        Part(
            "denoiser",
            "the denoiser's prediction at step {k}",
            "the weights: LoRA multiplier or merging, dtype, attention, position ids",
        ),
    ),
    (
        r"step(?P<k>\d+)/scheduler\.prediction",
        Part("guidance", "the guided prediction at step {k}", "the guidance scale, its formula or its rescaling"),
    ),
    (
        r"step(?P<k>\d+)/latents",
        Part("scheduler", "the latents after step {k}", "the scheduler's step: its class, order, or noise"),
    ),
    (r"decode/in", Part("latents", "the latents given to the decoder", "their scaling, shift or unpacking")),
    (r"decode/out", Part("decoder", "the decoded picture", "the VAE: its weights, dtype or tiling")),
)
STEP = re.compile(r"step(\d+)/")


class Blame(NamedTuple):
    """Where a failing case began, and what explains it as far as the result itself can tell."""

    part: str
    began: str
    cause: str


def blame(result: Result) -> Blame:
    """In words; empty strings where the result does not say."""
    part = _part(result)
    cause = [result.excuse.cause] if result.excuse else []
    if changed := _settings(result):
        cause.append("settings differ: " + "; ".join(changed))
    if part and not cause:
        cause.append(f"everything before agrees; look at {part.suspects}")
    if part is None:
        return Blame("", "", ". ".join(cause) or result.message)
    return Blame(part.name, part.began, ". ".join(cause))


def step(result: Result) -> int | None:
    """Denoising step at which the run left its golden."""
    found = STEP.match(result.first_divergence.boundary) if result.first_divergence else None
    return int(found[1]) if found else None


def _part(result: Result) -> Part | None:
    if result.first_divergence is None:
        return None
    boundary = result.first_divergence.boundary
    for pattern, part in PARTS:
        if found := re.fullmatch(pattern, boundary):
            return part._replace(began=part.began.format(**found.groupdict()))
    return Part("", boundary, "what happens there")


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
