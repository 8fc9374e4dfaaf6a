"""Krea 2's reference pictures: their sizes, times and places, who reads them, and when they are drawn."""

from collections.abc import Iterator
from typing import Any

import torch

from lora_drift.harness.check.divergence import CONDITIONING, CONTROL, DENOISER, POSITIVE
from lora_drift.harness.deviations.library.base import Subject, hooked, patched, variation, wrapped
from lora_drift.pipelines import noise


def _refers(s: Subject) -> bool:
    return bool(s.settings.control) and s.spec.family == "krea2"


@variation(
    "control",
    shows=CONTROL,
    source="trainers before 0.10.22, and jobs without match_target_res: a megapixel at most, and never enlarged",
    applies=_refers,
)
def references_in_their_own_size(s: Subject) -> Iterator[Subject]:
    """Reference pictures are not brought to the area of the picture."""
    yield s.with_spec(reference_area=1024 * 1024)


@variation(
    "control",
    shows=lambda s: CONTROL if s.guided else DENOISER,
    source="trainers before 0.10.22, and the toggle kv_cache of ComfyUI-Krea2-Ostris-Edit: no shortcut to one picture",
    applies=_refers,
)
def references_read_the_picture(s: Subject) -> Iterator[Subject]:
    """Reference pictures read the prompt and the picture, too, at each step."""
    yield s.with_spec(references_apart=False)


@variation(
    "control",
    shows=DENOISER,
    source='ComfyUI\'s reference_latents_method "index": references at the time of the step, not at 0',
    applies=_refers,
)
def references_as_noisy_as_the_picture(s: Subject) -> Iterator[Subject]:
    """Reference pictures get the time of the picture."""
    times: list[torch.Tensor] = []

    def modulation(original: Any, timestep: torch.Tensor, tokens: torch.Tensor) -> Any:
        times.append(timestep if timestep.any() else times[-1])
        return original(times[-1], tokens)

    with wrapped(s.denoisers[0], "_modulation", modulation):
        yield s


@variation(
    "control",
    shows=CONDITIONING,
    source='ComfyUI\'s reference_latents_method "offset" and "uxo": references beside the picture, in its frame',
    applies=_refers,
)
def references_in_the_frame_of_the_picture(s: Subject) -> Iterator[Subject]:
    """Reference pictures lie where the picture does, not each in a frame of its own."""

    def change(inputs: dict[str, Any]) -> dict[str, Any]:
        places = inputs["position_ids"].clone()
        places[:, 0] = 0
        return {**inputs, "position_ids": places}

    with hooked(s.denoisers[0], change):
        yield s


@variation(
    "control",
    shows=POSITIVE,
    source="ComfyUI and workflows that give references to the denoiser only (ReferenceLatent without an image encoder)",
    applies=_refers,
)
def references_not_seen_by_the_text_encoder(s: Subject) -> Iterator[Subject]:
    """The text encoder sees the words alone, the denoiser the reference pictures, too."""
    from lora_drift.pipelines.families import krea2

    encode = krea2.encode
    with patched(krea2, "encode", lambda pipe, spec, prompt, _seen=(): encode(pipe, spec, prompt)):
        yield s


@variation(
    "control",
    shows=CONTROL,
    source="Diffusers' VaeImageProcessor and ComfyUI's ImageScale smooth what they shrink; the trainer does not",
    applies=_refers,
)
def references_shrunk_with_antialiasing(s: Subject) -> Iterator[Subject]:
    """Reference pictures are averaged, not sampled, as they shrink."""
    from torch.nn import functional

    from lora_drift.pipelines.families import krea2

    interpolate, reference = functional.interpolate, krea2._reference

    def smooth(image: torch.Tensor, size: Any, mode: str) -> torch.Tensor:
        return interpolate(image, size=size, mode=mode, antialias=True)

    def shrunk(*args: Any) -> torch.Tensor:
        with patched(functional, "interpolate", smooth):
            return reference(*args)

    with patched(krea2, "_reference", shrunk):
        yield s


@variation(
    "control",
    shows=POSITIVE,
    source="transformers 5 numbers picture tokens like words where nobody marks them; so do Diffusers' Qwen pipelines",
    applies=_refers,
)
def reference_tokens_not_marked(s: Subject) -> Iterator[Subject]:
    """The text encoder counts the tokens of reference pictures like words."""

    def change(inputs: dict[str, Any]) -> dict[str, Any]:
        marks = inputs.get("mm_token_type_ids")
        return inputs if marks is None else {**inputs, "mm_token_type_ids": torch.zeros_like(marks)}

    with hooked(s.pipe.text_encoder, change):
        yield s


@variation(
    "noise",
    shows=CONTROL,
    source="Diffusers' and ComfyUI's editing graphs draw the noise from the seed whatever references there are",
    applies=_refers,
)
def noise_drawn_before_the_references(s: Subject) -> Iterator[Subject]:
    """The seed's first numbers are the picture's noise, and reference pictures get those that follow."""
    first: list[torch.Tensor] = []
    normal = noise.normal

    def change(shape: tuple[int, ...], generator: noise.Generator, dtype: torch.dtype) -> torch.Tensor:
        if not first:
            rows, columns = s.settings.height // 8, s.settings.width // 8
            first.append(normal((1, 16, rows, columns), generator, torch.float32))
        return first[0] if shape == tuple(first[0].shape) else normal(shape, generator, dtype)

    with patched(noise, "normal", change):
        yield s
