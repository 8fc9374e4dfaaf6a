"""Krea 2, raw and turbo: single files in their maker's layout, and the text encoder that the trainer takes. To edit
pictures it takes the same, and lets the text encoder see them.

The autoencoder is that of Qwen-Image.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lora_drift.harness.minihub import tokenizers
from lora_drift.harness.minihub.repo import Repo, Tensors, Weights, to_json
from lora_drift.harness.minihub.repos import qwen
from lora_drift.harness.minihub.repos.encoders import WIDTH
from lora_drift.harness.minihub.weights import Rule

RULES: tuple[Rule, ...] = ((r"/last\.linear\.weight$", 1.5), (r"tmlp\.2\.weight$", 2.0))


@dataclass(frozen=True)
class Transformer:
    """Size of a denoiser, in the words of the trainer's `SingleMMDiTConfig`."""

    layers: int
    features: int = 64
    tdim: int = 32
    txtdim: int = WIDTH
    heads: int = 4
    kvheads: int = 2
    multiplier: int = 4
    patch: int = 2
    channels: int = 16
    txtheads: int = 4
    txtkvheads: int = 4
    txtlayers: int = 12

    def config(self) -> dict[str, int]:
        return asdict(self)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of the single file."""
        return dict(self._named())

    def _named(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        h, text, latent = self.features, self.txtdim, self.channels * self.patch**2
        for name, out, into in (
            ("first", h, latent),
            ("tmlp.0", h, self.tdim),
            ("tmlp.2", h, h),
            ("tproj.1", 6 * h, h),
            ("txtmlp.1", h, text),
            ("txtmlp.3", h, h),
            ("last.linear", latent, h),
        ):
            yield f"{name}.weight", (out, into)
            yield f"{name}.bias", (out,)
        yield "txtmlp.0.scale", (text,)
        yield "last.norm.scale", (h,)
        yield "last.modulation.lin", (2, h)
        yield "txtfusion.projector.weight", (1, self.txtlayers)
        for kind in ("layerwise_blocks", "refiner_blocks"):
            for i in range(2):
                yield from self._block(f"txtfusion.{kind}.{i}", text, self.txtheads, self.txtkvheads)
        for i in range(self.layers):
            yield f"blocks.{i}.mod.lin", (6 * h,)
            yield from self._block(f"blocks.{i}", h, self.heads, self.kvheads)

    def _block(self, at: str, width: int, heads: int, kvheads: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        head = width // heads
        hidden = -(-int(2 * width / 3) * self.multiplier // 128) * 128
        for name in ("prenorm", "postnorm"):
            yield f"{at}.{name}.scale", (width,)
        for name in ("qnorm", "knorm"):
            yield f"{at}.attn.qknorm.{name}.scale", (head,)
        for name, out in (
            ("wq", width),
            ("wk", head * kvheads),
            ("wv", head * kvheads),
            ("gate", width),
            ("wo", width),
        ):
            yield f"{at}.attn.{name}.weight", (out, width)
        for name in ("gate", "up"):
            yield f"{at}.mlp.{name}.weight", (hidden, width)
        yield f"{at}.mlp.down.weight", (width, hidden)


# The number of layers differs so that a LoRA of one is refused by the other.
TRANSFORMERS = {"krea2": Transformer(layers=2), "krea2_turbo": Transformer(layers=3)}
TRANSFORMERS |= {f"krea2_o_edit{turbo}": TRANSFORMERS[f"krea2{turbo}"] for turbo in ("", "_turbo")}


def qwen3_vl(folder: str, layers: int, seeing: int = 3) -> Weights:
    """Qwen3-VL. Its vision tower is shown what is to be edited: as in the real one, three of its layers are added to
    what the first three layers of text make, of which the third's input is read. `seeing`: layers of the tower."""
    text: dict[str, Any] = {
        "model_type": "qwen3_vl_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": qwen.token("<|endoftext|>"),
        "eos_token_id": qwen.token("<|im_end|>"),
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 262144,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": qwen.VOCAB,
    }
    vision = {
        "model_type": "qwen3_vl",
        "deepstack_visual_indexes": list(range(seeing)),
        "depth": seeing,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 16,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 32,
        "num_heads": 2,
        "num_position_embeddings": 16,
        "out_hidden_size": WIDTH,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = {
        "model_type": "qwen3_vl",
        "image_token_id": qwen.token("<|image_pad|>"),
        "text_config": text,
        "tie_word_embeddings": True,
        "video_token_id": qwen.token("<|video_pad|>"),
        "vision_config": vision,
        "vision_end_token_id": qwen.token("<|vision_end|>"),
        "vision_start_token_id": qwen.token("<|vision_start|>"),
    }
    return Weights(folder, "transformers.Qwen3VLForConditionalGeneration", config, "bfloat16", shards=2)


IMAGE_PROCESSOR = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": 2,
    "patch_size": 16,
    "processor_class": "Qwen3VLProcessor",
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "temporal_patch_size": 2,
}
VIDEO_PROCESSOR = {
    **IMAGE_PROCESSOR,
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    "video_processor_type": "Qwen3VLVideoProcessor",
}
PROCESSOR = {
    "chat_template.json": to_json({"chat_template": tokenizers.QWEN_VL_CHAT}),
    "preprocessor_config.json": to_json(IMAGE_PROCESSOR),
    "video_preprocessor_config.json": to_json(VIDEO_PROCESSOR),
}

QWEN3_VL_4B = Repo("Qwen/Qwen3-VL-4B-Instruct", weights=(qwen3_vl("", layers=36),), files={**qwen.FILES, **PROCESSOR})
"""As many layers as the real one: the twelve that are read are named by number, the last of them 35."""


def _repo(model: str, repo: str, file: str) -> Repo:
    return Repo(repo, tensors=(Tensors(file, TRANSFORMERS[model].shapes(), "bfloat16", RULES),))


RAW = _repo("krea2", "krea/Krea-2-Raw", "raw.safetensors")
TURBO = _repo("krea2_turbo", "krea/Krea-2-Turbo", "turbo.safetensors")
