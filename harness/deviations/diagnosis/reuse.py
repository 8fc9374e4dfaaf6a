"""What need not be computed twice when one thing at a time is changed.

While the reference renders, the answers of text encoders and denoisers are kept, by their inputs. A variation that
comes later in the graph then gives them the same inputs, and gets the same answers without computing: one of guidance
saves the first step, one of the decoder all steps. Where a variation changes what a network computes, nothing is kept
of that network.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from types import MethodType
from typing import Any

import torch
from torch import nn

from lora_drift.harness.check.runner import encodings_kept
from lora_drift.harness.deviations.library.base import Kind, Subject, Variation, patched

CHANGE_ENCODERS: set[Kind] = {"encode", "precision"}
CHANGE_DENOISERS: set[Kind] = {"denoiser", "precision"}
CHANGE_VAE: set[Kind] = {"precision", "output"}
"""Kinds of variations that change how these compute, not only what they are given."""


class Memory:
    """Answers of the networks of one loaded model, with one LoRA."""

    def __init__(self, subject: Subject) -> None:
        self._lora = _adapted(subject)
        parts: dict[str, Any] = subject.pipe.components
        self._vae = parts["vae"]
        self._denoisers = list(subject.denoisers)
        self._encoders = [
            part for role, part in parts.items()
            if re.match("text_encoder|mllm|image_encoder", role) and isinstance(part, nn.Module)
        ]  # fmt: skip
        self._kept: dict[tuple[int, bytes], Any] = {}
        self._recording = False
        self._encodings = ExitStack()

    def __enter__(self) -> Memory:
        self._encodings.enter_context(encodings_kept(self._vae))
        return self

    def __exit__(self, *_error: object) -> None:
        self._encodings.close()

    @contextmanager
    def recording(self, subject: Subject) -> Iterator[None]:
        """Keep the answers of this render: the reference's."""
        self._recording = True
        try:
            with self.used(subject, ()):
                yield
        finally:
            self._recording = False

    @contextmanager
    def used(self, subject: Subject, variations: tuple[Variation, ...]) -> Iterator[None]:
        """Give kept answers while `subject`, to which `variations` are applied, renders."""
        kinds = {variation.kind for variation in variations}
        with ExitStack() as stack:
            if kinds & CHANGE_VAE:
                stack.enter_context(patched(self._vae, "encode", MethodType(type(self._vae).encode, self._vae)))
            adapted = _adapted(subject)
            modules: list[nn.Module] = []
            if not kinds & CHANGE_ENCODERS and (adapted == self._lora or not subject.spec.encoder_prefixes):
                modules += self._encoders
            if not kinds & CHANGE_DENOISERS and adapted == self._lora:
                modules += self._denoisers
            for module in modules:
                stack.enter_context(patched(module, "forward", self._remembering(module)))
            yield

    def _remembering(self, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        @functools.wraps(forward)  # pipelines and tracers inspect the signature
        def remembered(*args: Any, **kwargs: Any) -> Any:
            key = _key((args, kwargs))
            if key is None:
                return forward(*args, **kwargs)
            known = self._kept.get((id(module), key))
            if known is None:
                known = forward(*args, **kwargs)
                if not self._recording:
                    return known
                self._kept[id(module), key] = known
            return copy.deepcopy(known)  # pipelines work on answers in place

        return remembered


def _adapted(subject: Subject) -> tuple[Any, ...] | None:
    """What decides about the LoRA that is applied."""
    if subject.lora is None:
        return None
    return subject.lora.sha256, subject.pipeline.mode, subject.settings.multiplier


def _key(value: Any) -> bytes | None:
    """A digest of what a network is given; None where something is neither a number, a word nor a tensor."""
    digest = sha256()
    return digest.digest() if _add(digest, value) else None


def _add(digest: Any, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        digest.update(repr((tuple(value.shape), value.dtype)).encode())
        flat = value.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)  # what is expanded, too
        digest.update(flat.view(torch.uint8).numpy().tobytes())
        return True
    if isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__} {len(value)}".encode())
        return all(_add(digest, item) for item in value)
    if isinstance(value, dict):
        digest.update(repr(list(value)).encode())
        return all(_add(digest, item) for item in value.values())
    digest.update(repr(value).encode())
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device)
