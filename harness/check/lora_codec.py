"""LoRA files without what the recorder drew: such weights hardly pack, and are a pure function of names.

What cannot be drawn again from the names in a file (trained weights, a scale) stays as it is, so any file may be given.
"""

import math
import re

import numpy as np

from lora_drift.harness.minihub import weights

PARTS = {"lora_A": "lora_down", "lora_B": "lora_up"}
"""What PEFT calls the parts of a LoRA -> what the trainer's networks do."""

WAN = {
    r"\.self_attn\.": ".attn1.", r"\.cross_attn\.": ".attn2.", r"(attn\d)\.o$": r"\1.to_out.0",
    r"(attn\d)\.([qkv])$": r"\1.to_\2", r"(attn2)\.([kv])_img$": r"\1.add_\2_proj",
    r"\.ffn\.0$": ".ffn.net.0.proj", r"\.ffn\.2$": ".ffn.net.2",
}  # fmt: skip
"""Names in the files of Wan -> those of Diffusers, which the trainer's network has (`wan_lora_convert.py`)."""

TWINS = {"flux2_diffusers": "flux2"}
"""Ids that the trainer does not know -> the id with whose LoRAs the trainer's goldens for them are recorded: the same
model from other files, which must render the same pictures."""


def without(data: bytes, model: str) -> bytes:
    """A LoRA file of `model` whose numbers are XORed with what was drawn for them; twice is the file again.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError: it is no safetensors file.
    """
    header, start = weights.parse_head(data)
    lora = header.pop("__metadata__", {}).get("name", "")
    model = TWINS.get(model, model)
    body = np.frombuffer(data, np.uint8)[start:].copy()
    for key, tensor in header.items():
        module, _, part = key.removesuffix(".weight").rpartition(".")
        first, last = tensor["data_offsets"]
        part, shape = PARTS.get(part, part), tensor["shape"]
        size = {"F32": 4, "F16": 2, "BF16": 2}.get(tensor["dtype"], 0) * math.prod(shape)
        if part in weights.LORA_PARTS and 0 < size == last - first <= len(body) - first:
            inside = header.get(f"{module}.lokr_w1", tensor)["shape"][1] if part.startswith("lokr_w2") else 1
            values = weights.lora(shape, inside * math.prod(shape[1:]), model, lora, _network_name(module), part)
            body[first:last] ^= _bytes(values, tensor["dtype"])
    return data[:start] + body.tobytes()


def _network_name(module: str) -> str:
    """What the trainer's network calls a module, from its name in the file."""
    _, dot, rest = module.partition(".")
    if not dot:
        return module  # Kohya's names are the same in both
    for pattern, name in WAN.items():
        rest = re.sub(pattern, name, rest)
    return f"transformer$${rest.replace('.', '$$')}"


def _bytes(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return weights.to_bfloat16(values).astype("<u2").ravel().view(np.uint8)
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).ravel().view(np.uint8)
