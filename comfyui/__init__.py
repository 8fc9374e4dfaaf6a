"""lora-drift inside ComfyUI: renders a LoRA as ostris/ai-toolkit sampled it while training (docs/comfyui.md).

ComfyUI loads this folder from its custom_nodes. The pictures come from the package `lora_drift`, of which this folder
is only the face.
"""

import sys

try:
    import lora_drift  # noqa: F401
except ImportError as error:  # ComfyUI writes the message to its log, beside the name of this folder
    raise ImportError(f"lora-drift is missing; install it with: {sys.executable} -m pip install lora-drift") from error

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
