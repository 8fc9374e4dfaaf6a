"""FLUX.2 dev and klein. Follows extensions_built_in/diffusion_models/flux2 (flux2_model.py, src/pipeline.py,
src/sampling.py).

The trainer loads single files into network classes of its own; here they are converted to Diffusers' classes, which
differ in where they round (models/flux2.py). What else differs from the stock pipelines is the schedule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import images, loading, text
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.files import tensor_shapes
from lora_drift.pipelines.lora import Shapes, Target, module_shapes
from lora_drift.pipelines.models.flux2 import round_as_the_trainer
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    pass

Sizes = Mapping[str, Sequence[int]]
"""Tensor name -> shape of a single file."""


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    import diffusers
    from torch import nn

    transformer, vae = (_folders if spec.extra["layout"] == "folders" else _files)(spec, base)
    encoder, tokenizer = _text_encoder(spec, dtype)
    for module in (transformer, vae, encoder):
        nn.Module.to(module, dtype)  # past Diffusers' own `to`, which warns of the very cast that the trainer makes
        module.eval().requires_grad_(False)
    pipe = getattr(diffusers, spec.pipeline)(
        scheduler=loading.scheduler(spec.scheduler),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    round_as_the_trainer(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check(_spec: ModelSpec, _base: str, settings: Settings) -> None:
    """Refuse a reference picture that the trainer refuses too (src/sampling.py `cap_min_pixels`)."""
    for path in settings.control:
        width, height = images.rgb(path).size
        if min(width, height) < 64 or max(width, height) > 8 * min(width, height):
            raise RequestError(f"control image {path}: it is {width}x{height}; FLUX.2 takes pictures of at least 64 "
                               "pixels a side, at most 8 times as long as wide")  # fmt: skip


def render(pipe: Any, settings: Settings, **call: Any) -> Media:
    references = [images.rgb(path) for path in settings.control]  # cropped to multiples of 16, as the trainer does
    call["prompt_embeds"], _ = pipe.encode_prompt(settings.prompt)
    # klein only: dev takes the scale as an input and no negative prompt. Asked of the class, because the property of an
    # instance fails, and so seems absent, until the pipeline was called once.
    if hasattr(type(pipe), "do_classifier_free_guidance"):
        call["negative_prompt_embeds"], _ = pipe.encode_prompt(settings.negative_prompt)
    tokens = (settings.width // 16) * (settings.height // 16)
    output = pipe(
        image=references or None,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        sigmas=schedule(settings.steps, tokens),
        guidance_scale=settings.guidance_scale,
        **call,
    )
    return Media(list(output.images))


def schedule(steps: int, tokens: int) -> list[float]:
    """Sigmas of src/sampling.py `get_schedule`, without the last 0: evenly spaced, then shifted by exp(mu), which is
    linear in the number of latent tokens (0.5 at 256, 1.15 at 4096). Stock Diffusers fits mu to the steps as well."""
    import torch

    slope = (1.15 - 0.5) / (4096 - 256)
    shift = math.exp(slope * tokens + (0.5 - slope * 256))
    even = torch.linspace(1, 0, steps + 1)[:-1]
    return (shift / (shift + (1 / even - 1))).tolist()


def lora_targets(name: str) -> list[Target]:
    """Module names of the trainer's own network class -> Diffusers', which has q, k and v apart."""
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
    ):
        name = re.sub(rf"(^|(?<=\.)){re.escape(old)}(?=$|\d)", new, name)
    if name.endswith("img_attn.qkv"):
        return [Target(name.replace("img_attn.qkv", f"attn.to_{part}")) for part in "qkv"]
    if name.endswith("txt_attn.qkv"):
        return [Target(name.replace("txt_attn.qkv", f"attn.add_{part}_proj")) for part in "qkv"]
    return [Target(name)]


def denoiser_shapes(spec: ModelSpec, base: str) -> Shapes:
    """Weight shapes of the transformer's modules, from the head of the single file (or the folder's config)."""
    if spec.extra["layout"] == "folders":
        return loading.denoiser_shapes(spec, base)
    import torch
    from diffusers import Flux2Transformer2DModel

    with torch.device("meta"):
        model: Any = Flux2Transformer2DModel(
            **_transformer_config(tensor_shapes(_file(base, spec.extra["transformer"], spec)))
        )
    return {"transformer": dict(module_shapes(model))}


# Loading -----------------------------------------------------------------------------------------------------------


def _folders(_spec: ModelSpec, base: str) -> tuple[Any, Any]:
    """Transformer and autoencoder from Diffusers folders, in the files' dtypes."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    return (
        Flux2Transformer2DModel.from_pretrained(base, subfolder="transformer"),
        AutoencoderKLFlux2.from_pretrained(base, subfolder="vae"),
    )


def _files(spec: ModelSpec, base: str) -> tuple[Any, Any]:
    """Transformer and autoencoder from the single files that the trainer loads."""
    import torch
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from diffusers.loaders.single_file_utils import (
        convert_flux2_transformer_checkpoint_to_diffusers,
        convert_ldm_vae_checkpoint,
    )
    from safetensors.torch import load_file

    path = _file(base, spec.extra["transformer"], spec)
    with torch.device("meta"):
        transformer: Any = Flux2Transformer2DModel(**_transformer_config(tensor_shapes(path)))
    tensors = convert_flux2_transformer_checkpoint_to_diffusers(load_file(path))
    transformer.load_state_dict(tensors, assign=True)

    # Next to the transformer, or in a repository of its own (klein).
    beside = Path(base).is_dir() and (Path(base) / spec.extra["vae"]).is_file()
    path = _file(base if beside else spec.components.get("vae", base), spec.extra["vae"], spec)
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


def _text_encoder(spec: ModelSpec, dtype: Any) -> tuple[Any, Any]:
    """From a repository of its own, also where the base model's folders hold one."""
    import transformers

    repo = spec.components["text_encoder"]
    encoder = getattr(transformers, spec.extra["text_encoder"]).from_pretrained(repo, dtype=dtype)
    if spec.extra["text_encoder"] == "Qwen3ForCausalLM":
        tokenizer = transformers.Qwen2Tokenizer.from_pretrained(repo)
        return encoder, text.as_the_trainer(tokenizer, spec, repo, slow="tokenizer" in spec.slow_tokenizers)
    processor = text.as_the_trainer(transformers.AutoProcessor.from_pretrained(repo), spec, repo)
    processor.tokenizer.padding_side = "left"  # the default of the class that transformers 4 chooses
    return encoder, processor


def _file(base: str, name: str, spec: ModelSpec) -> Path:
    """`name` in a folder or hub repository.

    Raises:
        RequestError: it is not there.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        path = Path(base, name) if Path(base).is_dir() else Path(hf_hub_download(base, name))
    except (OSError, HFValidationError) as error:
        raise RequestError(f"base {base!r}: found no {name} there ({error}). {_wanted(spec)}") from error
    if not path.is_file():
        raise RequestError(f"base {base!r}: found no {name} there. {_wanted(spec)}")
    return path


def _wanted(spec: ModelSpec) -> str:
    return f"Give the folder or hub id of a {spec.title} model with the files of {spec.base}"


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
