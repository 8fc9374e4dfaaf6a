"""Deterministic miniature weights: a pure function of (repository, file, tensor name, shape).

Only NumPy's Philox counter generator is used, so the bytes do not depend on the torch, transformers or
diffusers that happen to be installed: the trainer's environment and ours write the same files.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Rule = tuple[str, float]
"""(regular expression on "component/tensor name", gain). The first match multiplies the tensor's scale."""


def philox(*key: str) -> np.random.Philox:
    """A counter generator keyed by the SHA-256 of `key`."""
    digest = hashlib.sha256("\x00".join(key).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def uniform(shape: Sequence[int], *key: str) -> np.ndarray:
    """float32 in [-1, 1) with 24 random bits each, shape as given."""
    count = int(np.prod(shape, dtype=np.int64))
    bits = philox(*key).random_raw(count) >> np.uint64(40)
    return (bits.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)).reshape(tuple(shape))


def tensor(repo: str, file: str, name: str, shape: Sequence[int], rules: Sequence[Rule] = ()) -> np.ndarray:
    """One float32 parameter.

    Matrices and kernels: std `gain / sqrt(fan_in)`, so that activations keep their size through the depth.
    Norm weights and standard deviations: `gain * (1 +- 0.1)`. Biases and other vectors: +-0.05 `* gain`.
    """
    return scaled(uniform(shape, repo, file, name), f"{file}/{name}", shape, rules)


def scaled(values: np.ndarray, name: str, shape: Sequence[int], rules: Sequence[Rule] = ()) -> np.ndarray:
    """Uniform `values` in [-1, 1) at the scale of the tensor `name` ("component/tensor name") of this shape."""
    gain = np.float32(next((g for pattern, g in rules if re.search(pattern, name)), 1.0))
    if name.endswith("mel_basis"):  # a filter bank: averages a spectrum, so nothing in it is negative
        return gain * (np.float32(1.0) + values) / np.float32(shape[-1])
    if len(shape) >= 2:
        is_lookup = re.search(r"(embed_tokens|token_embedding|shared)\.weight$", name)
        fan_in = 1 if is_lookup else int(np.prod(shape[1:]))
        return values * gain * np.float32(np.sqrt(3.0 / fan_in))
    if name.endswith(("weight", "weights", "gamma", "latents_std")):
        return gain * (np.float32(1.0) + np.float32(0.1) * values)
    return gain * np.float32(0.05) * values


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16 (nearest, ties to even); returned as its uint16 bit pattern."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def to_float8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as float8 (e4m3), whose bit patterns are uint8, and the float32 scale of each row, which makes the
    largest number of the row the largest of the format."""
    exponent, fraction = np.divmod(np.arange(127), 8)
    known = np.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent - 7)).astype(np.float32)
    scale = np.abs(values).max(axis=1) / known[-1]
    codes = np.searchsorted((known[1:] + known[:-1]) / 2, np.abs(values) / scale[:, None]).astype(np.uint8)
    return codes | np.where(values < 0, np.uint8(128), np.uint8(0)), scale


SCALES = ".weight_scale"
"""How the names of scales of rows end, which are float32 in a file of any dtype."""


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "float32") -> None:
    """Write float32 arrays as a safetensors file of `dtype` (float32 | bfloat16 | float16); of uint8, which are
    float8's bit patterns, as they are.

    Written out here (8-byte header length, JSON header, raw data) because the `safetensors` library's own
    writer has no bfloat16 without torch, and its low-level call changed shape between releases.
    """
    formats: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
        "float32": ("F32", lambda v: v.astype("<f4")),
        "float16": ("F16", lambda v: v.astype("<f2")),
        "bfloat16": ("BF16", to_bfloat16),
        "float8": ("F8_E4M3", lambda v: v),
    }
    chunks = {}
    for name in sorted(tensors):
        kind = "float8" if tensors[name].dtype == np.uint8 else "float32" if name.endswith(SCALES) else dtype
        label, encode = formats[kind]
        chunks[name] = label, encode(tensors[name]).tobytes()
    start, _ = head({name: (label, tensors[name].shape, len(chunk)) for name, (label, chunk) in chunks.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(start + b"".join(chunk for _, chunk in chunks.values()))


def head(tensors: Mapping[str, tuple[str, Sequence[int], int]]) -> tuple[bytes, dict[str, int]]:
    """What a safetensors file begins with, and where in the file each tensor does, which follow in this order.

    `tensors`: name -> (dtype as the format names it, shape, size in bytes).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, places = 0, {}
    for name, (dtype, shape, size) in tensors.items():
        places[name] = offset
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = struct.pack("<Q", len(text)) + text
    return start, {name: len(start) + place for name, place in places.items()}


def parse_head(data: bytes) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file (tensors by name, and `__metadata__`), and where its tensors begin.

    Raises:
        ValueError: it is no such file.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), start


LORA_PARTS = ("lora_down", "lora_up", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


STRENGTH = {"mini": 0.6, "full": 0.05}
"""Tier -> size of a made LoRA's change, of that of the weights it is added to, whatever the layer's width and the rank.
A real model renders nothing but noise with much more."""


def lora(
    shape: Sequence[int], fan_in: int, model: str, name: str, module: str, part: str, strength: float = STRENGTH["mini"]
) -> np.ndarray:
    """One parameter (a `LORA_PARTS`) of a LoRA, float32; `fan_in` is that of the layer it changes.

    Values are multiples of 2^-9, so float16 holds them exactly. Goldens keep LoRA files without these values
    (`lora_drift.harness.check.lora_codec`): another arithmetic here, be it a rounding, makes them unreadable.
    """
    spread = {
        "lora_down": np.sqrt(3.0 / fan_in),
        "lora_up": strength * np.sqrt(3.0 / shape[1 % len(shape)]),  # [out, rank, ...]; a DoRA's magnitude is [out]
        "lokr_w1": 1.0,
        "lokr_w2": np.sqrt(3.0 / fan_in),
        "lokr_w2_a": np.sqrt(3.0 / shape[-1]),
        "lokr_w2_b": np.sqrt(3.0 / fan_in),
    }
    # In float32 throughout: NumPy 2 would go through float64 here, and round a few of a million values otherwise.
    scaled = uniform(shape, "lora", model, name, module, part) * np.float32(spread[part]) * np.float32(512)
    return np.round(scaled) / np.float32(512)
