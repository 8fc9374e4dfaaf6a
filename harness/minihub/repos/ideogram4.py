"""Ideogram 4: a denoiser in float8 under its maker's names, FLUX.2's autoencoder, and what the trainer takes elsewhere.

The repository's text encoder and its second denoiser, for the pass without text, are left out: the trainer loads
Qwen's own repository, and a LoRA in place of that denoiser.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_drift.harness.minihub import weights
from lora_drift.harness.minihub.repo import Repo, Tensors, to_json
from lora_drift.harness.minihub.repos import flux2, krea2, qwen
from lora_drift.harness.minihub.repos.encoders import WIDTH
from lora_drift.harness.minihub.weights import Rule

ID, LORA_ID = "ideogram-ai/ideogram-4-fp8", "ostris/ideogram_4_unconditional_lora"
FILE, LORA_FILE = "transformer/diffusion_pytorch_model.safetensors", "ideogram_4_unconditional_lora_r16.safetensors"
RANK = 2
RULES: tuple[Rule, ...] = ((r"/llm_cond_proj\.weight$", 2.0), (r"/final_layer\.linear\.weight$", 1.5))
LORA_RULES: tuple[Rule, ...] = ((r"lora_B\.weight$", 0.4),)


@dataclass(frozen=True)
class Transformer:
    """Size of the denoiser, in the words of the trainer's `Ideogram4Config`."""

    emb_dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    intermediate_size: int = 128
    adanln_dim: int = 32
    llm_features_dim: int = 13 * WIDTH
    """As many layers of the text encoder are read."""

    def config(self) -> dict[str, Any]:
        return {**asdict(self), "mrope_section": (3, 2, 2)}

    def linear(self) -> dict[str, tuple[int, int]]:
        """Linear layer -> (out, in)."""
        h, latent, ada = self.emb_dim, flux2.AUTOENCODER.latent * 4, self.adanln_dim
        found = {
            "input_proj": (h, latent),
            "llm_cond_proj": (h, self.llm_features_dim),
            "t_embedding.mlp_in": (h, h),
            "t_embedding.mlp_out": (h, h),
            "adaln_proj": (ada, h),
            "final_layer.linear": (latent, h),
            "final_layer.adaln_modulation": (h, ada),
        }
        for i in range(self.num_layers):
            found |= {
                f"layers.{i}.attention.qkv": (3 * h, h),
                f"layers.{i}.attention.o": (h, h),
                f"layers.{i}.feed_forward.w1": (self.intermediate_size, h),
                f"layers.{i}.feed_forward.w2": (h, self.intermediate_size),
                f"layers.{i}.feed_forward.w3": (self.intermediate_size, h),
                f"layers.{i}.adaln_modulation": (4 * h, ada),
            }
        return found

    def others(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of all that is no matrix of a linear layer."""
        unbiased = ("attention.qkv", "attention.o", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
        for name, (out, _) in self.linear().items():
            if not name.endswith(unbiased):
                yield f"{name}.bias", (out,)
        yield "llm_cond_norm.weight", (self.llm_features_dim,)
        yield "embed_image_indicator.weight", (2, self.emb_dim)
        for i in range(self.num_layers):
            for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
                yield f"layers.{i}.{name}.weight", (self.emb_dim,)
            for name in ("norm_q", "norm_k"):
                yield f"layers.{i}.attention.{name}.weight", (self.emb_dim // self.num_heads,)


TRANSFORMER = Transformer()


def transformer_file() -> Mapping[str, np.ndarray]:
    """Matrices of linear layers in float8 with a scale for each row, as the real file has them."""
    found = {name: weights.tensor(ID, FILE, name, shape, RULES) for name, shape in TRANSFORMER.others()}
    for layer, shape in TRANSFORMER.linear().items():
        name = f"{layer}.weight"
        found[name], found[name + "_scale"] = weights.to_float8(weights.tensor(ID, FILE, name, shape, RULES))
    return found


def unconditional_lora() -> Mapping[str, tuple[int, int]]:
    """Key -> shape. On every linear layer: the trainer's loader says that the real one is."""
    halves = {}
    for name, (out, into) in TRANSFORMER.linear().items():
        halves[f"diffusion_model.{name}.lora_A.weight"] = RANK, into
        halves[f"diffusion_model.{name}.lora_B.weight"] = out, RANK
    return halves


CHAT = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- for part in message.content %}{{- part.text }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""What Qwen3-VL's own template makes of words without pictures: no system prompt."""
TOKENIZER = {
    **qwen.FILES,
    "tokenizer_config.json": to_json({**json.loads(qwen.FILES["tokenizer_config.json"]), "chat_template": CHAT}),
}

QWEN3_VL_8B = Repo("Qwen/Qwen3-VL-8B-Instruct", weights=(krea2.qwen3_vl("", layers=36, seeing=1),), files=TOKENIZER)
"""As many layers as the real one, of which thirteen are read, the last of them without its norm."""
UNCONDITIONAL = Repo(LORA_ID, tensors=(Tensors(LORA_FILE, unconditional_lora(), "bfloat16", LORA_RULES),))
IDEOGRAM4 = Repo(
    ID,
    weights=(flux2.autoencoder_folder(ID),),
    tensors=(Tensors(FILE, dtype="bfloat16", values=transformer_file),),
)
