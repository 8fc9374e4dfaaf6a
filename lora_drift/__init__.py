"""LoRA inference that provably reproduces the samples of ostris/ai-toolkit.

    import lora_drift
    picture = lora_drift.load("flux").with_lora("my.safetensors").sample("a photo of sks")

The parts are `lora_drift.pipelines` (the reference pipelines), `lora_drift.harness` (cases, goldens, reports, the
command line) and `lora_drift.server`. In a checkout they are links to the folders of the same names beside this one.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_drift.pipelines import MODELS, Cancelled, LoraError, ModelSpec, Output, Pipeline, RequestError, load

__all__ = ["MODELS", "Cancelled", "LoraError", "ModelSpec", "Output", "Pipeline", "RequestError", "load"]


def __getattr__(name: str) -> Any:
    """The public names of `lora_drift.pipelines`, imported when first asked for: pytest imports this package at every
    start, also where nothing is rendered."""
    if name in __all__:
        from lora_drift import pipelines

        return getattr(pipelines, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
