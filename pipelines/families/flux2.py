"""FLUX.2 dev and klein. Follows extensions_built_in/diffusion_models/flux2 (flux2_model.py, src/pipeline.py,
src/sampling.py).

The trainer loads single files into network classes of its own; here they are converted to Diffusers' classes, which
differ in where they round (flux2_rounding.py). What else differs from the stock pipelines is the schedule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_drift.pipelines import images, loading
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.files import tensor_shapes
from lora_drift.pipelines.lora import Shapes, Target, dotted, module_shapes
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import LAYER_BY_LAYER, STEPS, TOKENIZERS, Earlier, ModelSpec, Quantizes, Scheduler


@dataclass(frozen=True, kw_only=True)
class Flux2(ModelSpec):
    """A plain row loads Diffusers' folders; one of `Flux2Files` the trainer's single files."""

    text_encoder_class: str
    tokenizer_class: str
    """Of transformers."""
    padding_side: Literal["left", "right"] | None
    """None: as the tokenizer's files say."""
    encoder_layers: tuple[int, ...]
    """Whose hidden states are the prompt's embeddings."""
    base_image_seq_len: int
    base_shift: float
    max_image_seq_len: int
    max_shift: float
    """The schedule is shifted by e^mu, where mu is linear in latent tokens: base_shift at base_image_seq_len, max_shift
    at max_image_seq_len."""
    smallest_reference_side: int
    longest_reference_ratio: int
    """What reference pictures the trainer takes: pixels a side, and how many times as long as wide."""
    reference_dtype: Literal["bfloat16", "float32"]
    """To which latents of reference pictures are rounded, whatever the model's dtype."""


@dataclass(frozen=True, kw_only=True)
class Flux2Files(Flux2):
    transformer_file: str
    vae_file: str
    """Names of the single files."""


FLUX2_SCHEDULER = Scheduler(
    # The sigmas come from `schedule` and are final.
    "ours.FlowMatchEulerInModelDtype",
    {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
)
COMMON: dict[str, Any] = {
    "kind": "image",
    "family": "flux2",
    "denoisers": {"": "transformer"},
    "lora_prefixes": ("diffusion_model.", "transformer."),
    "scheduler": FLUX2_SCHEDULER,
    "size_divisor": 16,
    "width": 1024,
    "height": 1024,
    "steps": 30,
    "guidance_scale": 4.0,
    "max_sequence_length": 512,
    "controls": (0, 3),
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "smallest_reference_side": 64,
    "longest_reference_ratio": 8,
    "reference_dtype": "bfloat16",
}
EARLIER = (LAYER_BY_LAYER, TOKENIZERS, STEPS)
QUIRKS = (
    "Sigmas are shifted by a mu that is linear in the number of latent tokens, reference pictures not counted; stock "
    "Diffusers uses one fitted to the number of steps as well.",
    "Reference pictures are used at their own size (at most 1024 x 1024 pixels), centre-cropped to multiples of 16.",
    "Their latents are rounded to bfloat16 in every dtype.",
    "The autoencoder's activation is x * sigmoid(x), rounded twice.",
)
SOURCE = tuple(
    f"extensions_built_in/diffusion_models/flux2/{name}"
    for name in ("flux2_model.py", "src/pipeline.py", "src/sampling.py", "src/model.py", "src/autoencoder.py")
)


def klein(size: str, encoder: str) -> Flux2Files:
    """FLUX.2 klein base, 4B or 9B: the autoencoder and the text encoder come from elsewhere."""
    return Flux2Files(
        id=f"flux2_klein_{size.lower()}",
        title=f"FLUX.2 klein base {size}",
        since="0.7.20",
        pipeline="Flux2KleinPipeline",
        base=f"black-forest-labs/FLUX.2-klein-base-{size}",
        components={"text_encoder": encoder, "vae": "ai-toolkit/flux2_vae"},
        quantizes=Quantizes(encoder_qtype="qtype_te"),
        guidance="cfg",
        slow_tokenizers=("tokenizer",),
        transformer_file=f"flux-2-klein-base-{size.lower()}.safetensors",
        vae_file="ae.safetensors",
        text_encoder_class="Qwen3ForCausalLM",
        tokenizer_class="Qwen2Tokenizer",
        padding_side=None,
        encoder_layers=(9, 18, 27),
        quirks=QUIRKS,
        source=(*SOURCE, "extensions_built_in/diffusion_models/flux2/flux2_klein_model.py"),
        earlier=(
            *EARLIER,
            Earlier(
                before="0.8.2",
                why="The text encoder was quantised as `qtype` says, not `qtype_te`.",
                fields={"quantizes.encoder_qtype": "qtype"},
            ),
        ),
        **COMMON,
    )


DEV: dict[str, Any] = {
    "title": "FLUX.2 dev",
    "pipeline": "Flux2Pipeline",
    "base": "black-forest-labs/FLUX.2-dev",
    "components": {"text_encoder": "mistralai/Mistral-Small-3.1-24B-Instruct-2503"},  # the trainer's, from elsewhere
    "quantizes": Quantizes(),
    "guidance": "embedded",
    "text_encoder_class": "Mistral3ForConditionalGeneration",
    "tokenizer_class": "AutoProcessor",
    "padding_side": None,
    "encoder_layers": (10, 20, 30),
    "source": SOURCE,
    "earlier": (
        *EARLIER,
        Earlier(
            before="0.9.1",
            why="Prompts were padded on the left, as the tokenizer class that transformers 4.57 chose does by itself.",
            fields={"padding_side": "left"},
        ),
    ),
    **COMMON,
}
DEV_QUIRKS = (
    "The negative prompt is encoded and then ignored.",
    "The text encoder is Mistral Small 3.1, not the one in the folder text_encoder (3.2).",
    *QUIRKS,
)
FOLDERS = "The trainer has no such model: these are flux2's Diffusers folders, held to flux2's samples."

ROWS: tuple[Flux2, ...] = (
    klein("4B", "Qwen/Qwen3-4B"),
    klein("9B", "Qwen/Qwen3-8B"),
    Flux2Files(
        id="flux2", transformer_file="flux2-dev.safetensors", vae_file="ae.safetensors", quirks=DEV_QUIRKS, **DEV
    ),
    Flux2(id="flux2_diffusers", quirks=(*DEV_QUIRKS, FOLDERS), **DEV),
)


Sizes = Mapping[str, Sequence[int]]
"""Tensor name -> shape of a single file."""


def load(spec: Flux2, base: str, dtype: Any) -> Any:
    import diffusers

    from lora_drift.pipelines.families.flux2_rounding import round_like_the_trainers_network

    transformer, vae = _files(spec, base) if isinstance(spec, Flux2Files) else _folders(base)
    encoder, tokenizer = _text_encoder(spec, dtype)
    pipe = getattr(diffusers, spec.pipeline)(
        scheduler=loading.scheduler(spec.scheduler),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    loading.finished(pipe, spec, dtype)
    round_like_the_trainers_network(pipe, spec.reference_dtype)
    return pipe


def check(spec: Flux2, _base: str, settings: Settings) -> None:
    """Refuse a reference picture that the trainer refuses too (src/sampling.py `cap_min_pixels`)."""
    for path in settings.control:
        width, height = images.rgb(path).size
        least, ratio = spec.smallest_reference_side, spec.longest_reference_ratio
        if min(width, height) < least or max(width, height) > ratio * min(width, height):
            raise RequestError(f"control image {path}: it is {width}x{height}; FLUX.2 takes pictures of at least "
                               f"{least} pixels a side, at most {ratio} times as long as wide")  # fmt: skip


def render(pipe: Any, spec: Flux2, settings: Settings, **call: Any) -> Media:
    references = [images.rgb(path) for path in settings.control]  # cropped to multiples of 16, as the trainer does
    encoding = {"max_sequence_length": spec.max_sequence_length, "text_encoder_out_layers": spec.encoder_layers}
    call["prompt_embeds"], _ = pipe.encode_prompt(settings.prompt, **encoding)
    if spec.guidance != "embedded":  # dev takes the scale as an input, and no negative prompt
        call["negative_prompt_embeds"], _ = pipe.encode_prompt(settings.negative_prompt, **encoding)
    tokens = (settings.width // 16) * (settings.height // 16)
    output = pipe(
        image=references or None,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        sigmas=schedule(spec, settings.steps, tokens),
        guidance_scale=spec.pipeline_scale(settings.guidance_scale),
        **call,
    )
    return Media(list(output.images))


def schedule(spec: Flux2, steps: int, tokens: int) -> list[float]:
    """Sigmas of src/sampling.py `get_schedule`, without the last 0: evenly spaced, then shifted by exp(mu), which is
    linear in the number of latent tokens. Stock Diffusers fits mu to the steps as well."""
    import torch

    slope = (spec.max_shift - spec.base_shift) / (spec.max_image_seq_len - spec.base_image_seq_len)
    shift = math.exp(slope * tokens + (spec.base_shift - slope * spec.base_image_seq_len))
    even = torch.linspace(1, 0, steps + 1)[:-1]
    return (shift / (shift + (1 / even - 1))).tolist()


# ------------------------------------------------------------------------------------------------------------ loading


def _folders(base: str) -> tuple[Any, Any]:
    """Transformer and autoencoder from Diffusers folders, in the files' dtypes."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    return (
        Flux2Transformer2DModel.from_pretrained(base, subfolder="transformer"),
        AutoencoderKLFlux2.from_pretrained(base, subfolder="vae"),
    )


def _files(spec: Flux2Files, base: str) -> tuple[Any, Any]:
    """Transformer and autoencoder from the single files that the trainer loads."""
    import torch
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from diffusers.loaders.single_file_utils import (
        convert_flux2_transformer_checkpoint_to_diffusers,
        convert_ldm_vae_checkpoint,
    )
    from safetensors.torch import load_file

    path = loading.file_inside(base, spec.transformer_file, spec)
    with torch.device("meta"):
        transformer: Any = Flux2Transformer2DModel(**_transformer_config(tensor_shapes(path)))
    tensors = convert_flux2_transformer_checkpoint_to_diffusers(load_file(path))
    transformer.load_state_dict(tensors, assign=True)

    # Next to the transformer, or in a repository of its own (klein).
    beside = Path(base).is_dir() and (Path(base) / spec.vae_file).is_file()
    path = loading.file_inside(base if beside else spec.components.get("vae", base), spec.vae_file, spec)
    vae: Any = AutoencoderKLFlux2(**_vae_config(tensor_shapes(path)))
    tensors = {}
    for name, tensor in load_file(path).items():
        module, _, kind = name.rpartition(".")
        tensors[f"{_LDM_NAMES.get(module, module)}.{kind}"] = tensor
    statistics = {name: tensor for name, tensor in tensors.items() if name.startswith("bn.")}
    vae.load_state_dict(statistics | convert_ldm_vae_checkpoint(tensors, vae.config))
    return transformer, vae


_LDM_NAMES = {"encoder.quant_conv": "quant_conv", "decoder.post_quant_conv": "post_quant_conv"}
"""FLUX.2 keeps these two inside the halves; Diffusers' converter knows them outside."""


def _text_encoder(spec: Flux2, dtype: Any) -> tuple[Any, Any]:
    """From a repository of its own, also where the base model's folders hold one."""
    import transformers

    repo = spec.components["text_encoder"]
    encoder = getattr(transformers, spec.text_encoder_class).from_pretrained(repo, dtype=dtype)
    tokenizer = loading.tokenizer(spec, "tokenizer", spec.tokenizer_class, repo)
    if spec.padding_side is not None:
        getattr(tokenizer, "tokenizer", tokenizer).padding_side = spec.padding_side
    return encoder, tokenizer


def _count(sizes: Sizes, pattern: str) -> int:
    """How many different numbers stand where `pattern` has its group."""
    return len({found[1] for name in sizes if (found := re.match(pattern, name))})


def _transformer_config(sizes: Sizes) -> dict[str, Any]:
    """Diffusers' config of a single file. The trainer has these numbers in its code (src/model.py, *Params)."""
    hidden, channels = sizes["img_in.weight"]
    head = sizes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    return {
        "in_channels": channels,
        "num_layers": _count(sizes, r"double_blocks\.(\d+)\."),
        "num_single_layers": _count(sizes, r"single_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": sizes["txt_in.weight"][1],
        "timestep_guidance_channels": sizes["time_in.in_layer.weight"][1],
        "mlp_ratio": sizes["double_blocks.0.img_mlp.2.weight"][1] / hidden,
        "axes_dims_rope": [head // 4] * 4,
        "guidance_embeds": "guidance_in.in_layer.weight" in sizes,
    }


def _vae_config(sizes: Sizes) -> dict[str, Any]:
    """Diffusers' config of an `ae.safetensors` (src/autoencoder.py, AutoEncoderParams)."""
    levels = _count(sizes, r"encoder\.down\.(\d+)\.")
    return {
        "block_out_channels": [sizes[f"encoder.down.{i}.block.0.conv2.weight"][0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(sizes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": sizes["decoder.conv_in.weight"][1],
    }


def denoiser_shapes(spec: Flux2, base: str) -> Shapes:
    """Weight shapes of the transformer's modules, from the head of the single file (or the folder's config)."""
    if not isinstance(spec, Flux2Files):
        return loading.denoiser_shapes(spec, base)
    import torch
    from diffusers import Flux2Transformer2DModel

    with torch.device("meta"):
        model: Any = Flux2Transformer2DModel(
            **_transformer_config(tensor_shapes(loading.file_inside(base, spec.transformer_file, spec)))
        )
    return {"transformer": dict(module_shapes(model))}


# --------------------------------------------------------------------------------------------------------------- LoRA


def lora_targets(name: str) -> list[Target]:
    """Module names of the trainer's own network class -> Diffusers', which has q, k and v apart."""
    name = dotted(name)
    for old, new in (
        ("double_blocks.", "transformer_blocks."),
        ("single_blocks.", "single_transformer_blocks."),
        ("linear1", "attn.to_qkv_mlp_proj"),
        ("linear2", "attn.to_out"),
        ("img_attn.proj", "attn.to_out.0"),
        ("txt_attn.proj", "attn.to_add_out"),
        ("img_mlp.0", "ff.linear_in"),
        ("img_mlp.2", "ff.linear_out"),
        ("txt_mlp.0", "ff_context.linear_in"),
        ("txt_mlp.2", "ff_context.linear_out"),
        # Outside the blocks, which a LoRA changes with `transformer_only: false`.
        ("img_in", "x_embedder"),
        ("txt_in", "context_embedder"),
        ("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1"),
        ("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2"),
        ("guidance_in.in_layer", "time_guidance_embed.guidance_embedder.linear_1"),
        ("guidance_in.out_layer", "time_guidance_embed.guidance_embedder.linear_2"),
        ("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
        ("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
        ("single_stream_modulation.lin", "single_stream_modulation.linear"),
        ("final_layer.linear", "proj_out"),
    ):
        name = re.sub(rf"(^|(?<=\.)){re.escape(old)}(?=$|\d)", new, name)
    if name == "final_layer.adaLN_modulation.1":  # shift and scale; Diffusers has scale and shift
        return [Target("norm_out.linear", swapped=True)]
    if name.endswith("img_attn.qkv"):
        return [Target(name.replace("img_attn.qkv", f"attn.to_{part}")) for part in "qkv"]
    if name.endswith("txt_attn.qkv"):
        return [Target(name.replace("txt_attn.qkv", f"attn.add_{part}_proj")) for part in "qkv"]
    return [Target(name)]
