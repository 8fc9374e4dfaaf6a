"""Reference pipelines for LoRAs trained with ostris/ai-toolkit. Importing this imports neither torch nor diffusers."""

from pipelines.errors import Cancelled, LoraError, RequestError
from pipelines.spec import MODELS, ModelSpec
from pipelines.runtime import Output, Pipeline, load

__all__ = ["MODELS", "Cancelled", "LoraError", "ModelSpec", "Output", "Pipeline", "RequestError", "load"]
