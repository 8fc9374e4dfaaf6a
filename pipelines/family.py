"""What the runtime asks of a family's file, and the answers of those that have nothing special to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lora_drift.pipelines.lora import Shapes, Target
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from lora_drift.pipelines.noise import Generator

Row = TypeVar("Row", bound=ModelSpec)
StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""Diffusers' `callback_on_step_end`: (pipeline, step, timestep, tensors) -> tensors."""


class Family(Protocol[Row]):
    """A module of `lora_drift.pipelines.families`, read top to bottom in the order the data flows."""

    @property
    def ROWS(self) -> tuple[Row, ...]:
        """Its models."""

    def load(self, spec: Row, base: str, dtype: Any) -> Any:
        """The loaded pipeline, on the CPU. `base`: hub id or folder; `dtype`: of torch.

        Raises:
            OSError, RequestError: `base` is no such model.
        """

    def check(self, spec: Row, base: str, settings: Settings) -> None:
        """Refuse, before weights load, what this family alone cannot render.

        Raises:
            RequestError: names the field and a remedy.
        """

    def render(
        self,
        pipe: Any,
        spec: Row,
        settings: Settings,
        *,
        generator: Generator,
        callback_on_step_end: StepEnd,
    ) -> Media:
        """Encode the prompts, prepare, denoise and decode. (Most hand further arguments on to Diffusers' pipeline.)"""

    def denoiser_shapes(self, spec: Row, base: str) -> Shapes:
        """What a LoRA can change, without loading weights."""

    def lora_targets(self, name: str) -> list[Target]:
        """Module name of a LoRA file -> Diffusers' module, or several that share its matrix."""


def nothing_to_refuse(_spec: ModelSpec, _base: str, _settings: Settings) -> None:
    """`check` of a family that renders whatever `settings.resolve` lets pass."""


def same_name(name: str) -> list[Target]:
    """`lora_targets` of a family whose LoRA files name modules as Diffusers does."""
    return [Target(name)]
