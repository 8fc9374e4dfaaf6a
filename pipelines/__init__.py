"""Reference pipelines for LoRAs trained with ostris/ai-toolkit. Importing this imports neither torch nor diffusers."""

from pipelines.errors import Cancelled, LoraError, RequestError
from pipelines.runtime import Output, Pipeline, load
from pipelines.spec import ModelSpec
from pipelines.table import MODELS

__all__ = ["MODELS", "Cancelled", "LoraError", "ModelSpec", "Output", "Pipeline", "RequestError", "load"]
