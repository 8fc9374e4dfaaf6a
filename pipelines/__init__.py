"""Reference pipelines for LoRAs trained with ostris/ai-toolkit. Importing this imports neither torch nor diffusers."""

from lora_drift.pipelines.errors import Cancelled, LoraError, RequestError
from lora_drift.pipelines.runtime import Output, Pipeline, load
from lora_drift.pipelines.spec import ModelSpec
from lora_drift.pipelines.table import MODELS

__all__ = ["MODELS", "Cancelled", "LoraError", "ModelSpec", "Output", "Pipeline", "RequestError", "load"]
