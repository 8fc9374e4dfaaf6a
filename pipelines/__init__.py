"""Reference pipelines for LoRAs trained with ostris/ai-toolkit. Importing this imports neither torch nor diffusers."""

from lora_drift.pipelines.errors import Cancelled, LoraError, RequestError
from lora_drift.pipelines.output import Output
from lora_drift.pipelines.registry import MODELS, spec_of
from lora_drift.pipelines.runtime import Pipeline, load
from lora_drift.pipelines.spec import ModelSpec

__all__ = ["MODELS", "Cancelled", "LoraError", "ModelSpec", "Output", "Pipeline", "RequestError", "load", "spec_of"]
