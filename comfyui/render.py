"""From what the nodes were given to a render, and from a render to what ComfyUI passes on."""

from __future__ import annotations

import gc
import json
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import InputImpl, Types, io
from comfy_execution.graph_utils import ExecutionBlocker

from lora_drift.pipelines import Output, Pipeline, RequestError, load
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.settings import Settings

REMEDIES = {
    "experts": "Give each expert its file in a LoRA node of its own, with expert high or low, and chain the two.",
    "control": "Link them to control0, control1 and so on, in order.",
    "base": "Give the model's folder, file or hub id as base in a Model node.",
}
"""What mends an error, in the words of these nodes. They have no other: a LoRA that fits in part is refused."""


@dataclass(frozen=True)
class Loading:
    """How a base model is loaded: what a Model node says, or the defaults without one."""

    toolkit: str | None = None
    base: str | None = None
    dtype: str | None = None
    quantization: Quantization | None = None
    offload: bool = False


@dataclass(frozen=True)
class LoraFile:
    path: str
    expert: str
    """ "high", "low", or "" for a file of the whole model."""
    strength: float
    mode: str | None


# ------------------------------------------------------------------------------------------------------- base models


class Held:
    """The base model that is in memory: one at a time."""

    def __init__(self) -> None:
        self._key: tuple[str, Loading] | None = None
        self._pipeline: Pipeline | None = None

    def pipeline(self, model: str, loading: Loading) -> Pipeline:
        """The model without a LoRA; the one before is let go of, and ComfyUI's own models make room."""
        if self._pipeline is None or self._key != (model, loading):
            self.forget()
            device = str(model_management.get_torch_device())
            model_management.unload_all_models()
            model_management.soft_empty_cache()
            given = {name: getattr(loading, name) for name in loading.__dataclass_fields__}
            self._pipeline, self._key = load(model, device=device, **given), (model, loading)
        return self._pipeline

    def forget(self) -> None:
        self._pipeline = None
        gc.collect()


_held: weakref.ref[Held] | None = None


def held() -> Held:
    """The same for everybody who asks, for as long as anybody keeps it. Sample nodes do; ComfyUI drops these when no
    graph has one any longer, and when its user frees the memory."""
    global _held
    found = _held() if _held is not None else None
    if found is None:
        found = Held()
        _held = weakref.ref(found)
    return found


# ------------------------------------------------------------------------------------------------------------ LoRAs


def chained(before: tuple[LoraFile, ...], file: LoraFile) -> tuple[LoraFile, ...]:
    """Both experts of a model.

    Raises:
        RequestError: a second LoRA for the same weights, or another mode.
    """
    for other in before:
        both = f"{Path(other.path).name} and {Path(file.path).name}"
        if not (file.expert and other.expert) or file.expert == other.expert:
            raise RequestError(
                f"lora: {both} change the same weights. The trainer samples with one LoRA, and so do these nodes; take "
                "one of them out. What can be chained are the files of two experts, one with expert high, one with low."
            )
        if file.mode != other.mode:
            raise RequestError(f"mode: {both} have different ones; choose the same in both LoRA nodes.")
    return (*before, file)


def with_lora(pipeline: Pipeline, lora: Sequence[LoraFile]) -> tuple[Pipeline, float]:
    """With its LoRA, and the multiplier: a strength that all files share is the trainer's `network_multiplier`."""
    if not lora:
        return pipeline, 1.0
    strengths = {file.expert: file.strength for file in lora}
    shared = lora[0].strength if len(set(strengths.values())) == 1 else None
    adapted = pipeline.with_lora(
        **{file.expert or "path": file.path for file in lora},  # type: ignore[arg-type]
        mode=lora[0].mode,  # type: ignore[arg-type]
        strengths=strengths if shared is None else None,
    )
    return adapted, 1.0 if shared is None else shared


# --------------------------------------------------------------------------------------------------- control images


@contextmanager
def _files(images: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Name of an input -> a PNG of its picture, which the pipelines read as they read the trainer's files."""
    with tempfile.TemporaryDirectory() as folder:
        yield {name: _written(name, image, Path(folder)) for name, image in images.items()}


def _written(name: str, image: Any, folder: Path) -> str:
    import numpy as np
    from PIL import Image

    if len(image) != 1:
        raise RequestError(f"{name}: {len(image)} pictures at once; the trainer takes one as each control image")
    levels = (image[0].cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
    # By this part of its name the trainer knows a picture that is transparent where it is to be painted.
    path = folder / (f"{name}.inpaint.png" if levels.shape[-1] == 4 else f"{name}.png")
    Image.fromarray(levels).save(path)
    return str(path)


# ------------------------------------------------------------------------------------------------------------ render


@contextmanager
def told(remedies: Mapping[str, str], names: Mapping[str, str]) -> Iterator[None]:
    """Errors in the words of a node: `remedies`, and the `names` that its user knows for paths."""
    try:
        yield
    except RequestError as error:
        said = error.told(remedies)
        for path, name in names.items():
            said = said.replace(path, name)
        raise RequestError(said) from None


def sample(
    model: str, loading: Loading, lora: Sequence[LoraFile], images: Mapping[str, Any], **request: Any
) -> tuple[Any, Any, Any, str]:
    """IMAGE, VIDEO, AUDIO and the receipt.

    Raises:
        RequestError: with the remedy in the words of the nodes.
        InterruptProcessingException: ComfyUI's, after the step in which its user asked to stop.
    """
    import torch

    from lora_drift.pipelines.settings import Request, resolve

    images = {name: image for name, image in images.items() if image is not None}
    # ComfyUI runs nodes in inference mode, in which weights would be made that can never leave it.
    with torch.inference_mode(False), _files(images) as paths:
        names = {path: name for name, path in paths.items()}
        with told(REMEDIES, names):
            pipeline, multiplier = with_lora(held().pipeline(model, loading), lora)
            spec, control = pipeline.spec, list(paths.values())
            asked = Request(control=control, multiplier=multiplier, located={}, **request)
            if control and "mask_filter" in spec.own:  # Flex.2 has one slot for what is to be painted, one for others
                asked = replace(asked, ctrl_idx=0 if control[0].endswith(".inpaint.png") else 1)
            return rendered(pipeline, resolve(spec, asked), names)


def rendered(
    pipeline: Pipeline, settings: Settings, names: Mapping[str, str], **more: Any
) -> tuple[Any, Any, Any, str]:
    """The same of resolved settings. `names`: path of a control image -> what the receipt calls it; `more`: what else
    stands there."""
    from lora_drift.harness.check import verified_by

    bar = ProgressBar(settings.steps)

    def on_step(step: int, steps: int) -> None:
        model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(step, steps)

    model_management.throw_exception_if_processing_interrupted()
    output = pipeline.render(settings, on_step=on_step)
    receipt = {**output.receipt, "verified_by": verified_by.covering_case(pipeline, settings), **more}
    return *_passed_on(output), _public(receipt, names)


def _public(receipt: dict[str, Any], inputs: Mapping[str, str]) -> str:
    """The receipt as JSON. Where things lie on this machine is nobody's business who gets the picture: control images
    are called as the inputs that they came from, and what is a path by its last part."""

    def name(place: str) -> str:
        return Path(place).name if Path(place).is_absolute() else place

    settings = receipt["settings"]
    told = {**settings, **{field: [inputs[path] for path in settings[field]] for field in ("control", "shown")}}
    receipt |= {"settings": told, "base": {name(repo): revision for repo, revision in receipt["base"].items()}}
    if quantization := receipt.get("quantization"):
        qtype, bar, adapter = quantization["qtype"].partition("|")
        receipt["quantization"] = {**quantization, "qtype": f"{qtype}{bar}{name(adapter)}"}
    return json.dumps(receipt, indent=2, ensure_ascii=False)


def outputs() -> list[Any]:
    """What a node that renders gives."""
    return [
        io.Image.Output("image", tooltip="The picture, or all frames."),
        io.Video.Output("video", tooltip="With its sound; of video models."),
        io.Audio.Output("audio", tooltip="Of models that make sound."),
        io.String.Output("receipt", tooltip="JSON: how it was rendered, and which case vouches for it."),
    ]


def _passed_on(output: Output) -> tuple[Any, Any, Any]:
    """IMAGE, VIDEO and AUDIO. What a model does not make says so where it is used."""
    import numpy as np
    import torch

    frames = np.stack([np.asarray(frame.convert("RGB")) for frame in output.frames])
    image = torch.from_numpy(frames).float() / 255
    media, settings = output.media, output.settings
    model = output.receipt["model"]
    sound = None
    if media.audio is not None:
        sound = {"waveform": torch.from_numpy(np.asarray(media.audio))[None], "sample_rate": media.sample_rate}
    audio = sound or ExecutionBlocker(f"audio: {model} makes no sound")
    if not settings.moving:
        return image, ExecutionBlocker(f"video: {model} made one picture, which is in image"), audio
    parts = Types.VideoComponents(images=image, frame_rate=Fraction(settings.fps), audio=sound)
    return image, InputImpl.VideoFromComponents(parts), audio
