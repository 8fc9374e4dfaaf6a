"""What quantised bases need besides the models: accuracy-recovery adapters, and a Wan 2.2 that uint4 takes hold of."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lora_drift.harness.minihub import layout, weights
from lora_drift.harness.minihub.repo import Repo, Tensors, Weights
from lora_drift.harness.minihub.repos import qwen, wan22
from lora_drift.harness.minihub.repos.wan import denoiser

RECOVERY_ID = "ostris/accuracy_recovery_adapters"
RANK = 2
ORIGINAL_WAN = (
    ("attn1.", "self_attn."),
    ("attn2.", "cross_attn."),
    ("to_out.0", "o"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
)
"""Diffusers' names of linear layers in Wan's blocks -> those under which the trainer saves LoRAs."""

WIDE: dict[str, Any] = {"attention_head_dim": 32, "ffn_dim": 128, "text_gain": wan22.CALM}
WAN22_14B_T2V_WIDE = replace(
    wan22.WAN22_14B_T2V,
    id="lora-drift/Wan2.2-T2V-A14B-wide",
    weights=(
        wan22.WAN22_14B_T2V.weights[0],
        denoiser("transformer", **WIDE),
        denoiser("transformer_2", **WIDE),
        wan22.WAN22_14B_T2V.weights[3],
    ),
)
"""Stands for a fine-tune of Wan 2.2. The trainer's uint types share a scale among 64 numbers, and leave a layer alone
whose rows are no multiple of that; those of the other miniature are not."""


def adapter(path: str, *parts: tuple[str, str, Weights], renamed: tuple[tuple[str, str], ...] = ()) -> Tensors:
    """A LoRA for every linear layer in the blocks of denoisers, as the trainer saves it: (prefix, blocks, denoiser).

    Its change has about a sixth of the size of the weights.
    """

    def values() -> Iterator[tuple[str, np.ndarray]]:
        for prefix, blocks, part in parts:
            for name, shape in layout.load(part).items():
                module, _, kind = name.rpartition(".")
                if len(shape) == 2 and name.startswith(blocks) and kind == "weight":
                    for old, new in renamed:
                        module = module.replace(old, new)
                    for half, size in (("lora_A", (RANK, shape[1])), ("lora_B", (shape[0], RANK))):
                        key = f"{prefix}{module}.{half}.weight"
                        yield key, weights.tensor(RECOVERY_ID, path, key, size, rules=((r"lora_B", 0.16),))

    return Tensors(path, dtype="bfloat16", values=lambda: dict(values()))


RECOVERY = Repo(
    RECOVERY_ID,
    tensors=(
        adapter(
            "qwen_image_torchao_uint3.safetensors",
            ("diffusion_model.", "transformer_blocks.", qwen.QWEN_IMAGE.weights[1]),
        ),
        adapter(
            "wan22_14b_t2i_torchao_uint4.safetensors",
            ("diffusion_model.transformer_1.", "blocks.", WAN22_14B_T2V_WIDE.weights[1]),
            ("diffusion_model.transformer_2.", "blocks.", WAN22_14B_T2V_WIDE.weights[2]),
            renamed=ORIGINAL_WAN,
        ),
    ),
)
"""The files that the trainer's UI names. That the real ones have such keys is not known; the trainer reads these."""
