"""Miniature tokenizers, written as the plain JSON files that the real repositories hold.

Nothing here imports a tokenizer library: the files are data, and every stack reads them with its own code.
"""

from lora_drift.harness.minihub.tokenizers.byte_level import (
    QWEN_VL_CHAT,
    QWEN_VL_PLAIN,
    QWEN_VL_SPECIAL,
    llama3,
    mistral3,
    qwen,
    qwen_vl,
)
from lora_drift.harness.minihub.tokenizers.clip import CLIP_END, clip
from lora_drift.harness.minihub.tokenizers.common import WORDS
from lora_drift.harness.minihub.tokenizers.sentencepiece import gemma, gemma3, spiece, t5

__all__ = [
    "CLIP_END",
    "QWEN_VL_CHAT",
    "QWEN_VL_PLAIN",
    "QWEN_VL_SPECIAL",
    "WORDS",
    "clip",
    "gemma",
    "gemma3",
    "llama3",
    "mistral3",
    "qwen",
    "qwen_vl",
    "spiece",
    "t5",
]
