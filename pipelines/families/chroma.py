"""Chroma. Follows extensions_built_in/diffusion_models/chroma/{chroma_model,pipeline,src/model}.py.

The weights are one file in the original layout, which is renamed here for the stock Diffusers classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.family import nothing_to_refuse
from lora_drift.pipelines.files import tensor_shapes
from lora_drift.pipelines.lora import Shapes, Target, dotted, module_shapes
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import LAYER_BY_LAYER, STEPS, TOKENIZERS, ModelSpec, Quantizes, Scheduler

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Chroma(ModelSpec):
    norm_eps: float
    """Of the norms in the guidance layer (chroma/src/layers.py RMSNorm). Diffusers takes what the dtype resolves, which
    in bfloat16 is 0.0078."""
    padding_read: int
    """Tokens of padding that the denoiser reads behind the words (src/model.py modify_mask_to_attend_padding)."""


ROWS = (
    Chroma(
        id="chroma",
        title="Chroma1 Base",
        kind="image",
        family="chroma",
        pipeline="ChromaPipeline",
        base="lodestones/Chroma1-Base",
        components={
            "text_encoder": "ostris/Flex.1-alpha",
            "tokenizer": "ostris/Flex.1-alpha",
            "vae": "ostris/Flex.1-alpha",
        },
        denoisers={"": "transformer"},
        quantizes=Quantizes(("text_encoder",), reads="exclude"),
        lora_prefixes=("diffusion_model.", "transformer."),
        scheduler=Scheduler(
            "diffusers.FlowMatchEulerDiscreteScheduler",
            {
                "base_image_seq_len": 256,
                "base_shift": 0.5,
                "max_image_seq_len": 4096,
                "max_shift": 1.15,
                "num_train_timesteps": 1000,
                "shift": 3.0,
                "use_dynamic_shifting": True,
            },
        ),
        size_divisor=16,
        width=1024,
        height=1024,
        steps=30,
        guidance_scale=4.0,
        guidance="cfg",
        max_sequence_length=512,
        encoder_attention={"text_encoder": "eager"},
        norm_eps=1e-6,
        padding_read=1,
        quirks=(
            "T5 and VAE come from Flex.1, whatever the Chroma repository holds.",
            "T5 reads its padding like words (no attention mask); the denoiser reads the words and one token of "
            "padding, by a true mask. Stock Diffusers masks T5 and adds its mask of ones and zeros to the attention.",
            "The words are counted in the model's dtype: in bfloat16, an odd number above 256 is rounded to an even "
            "one, and one token more or less is read.",
            "The LoRA's keys are those of the original file (double_blocks, single_blocks). Diffusers' own loader "
            "(0.38, 0.42.1) takes none of them: it warns, and renders the base model.",
        ),
        source=(
            "extensions_built_in/diffusion_models/chroma/chroma_model.py",
            "extensions_built_in/diffusion_models/chroma/pipeline.py",
            "extensions_built_in/diffusion_models/chroma/src/model.py",
        ),
        earlier=(LAYER_BY_LAYER, TOKENIZERS, STEPS),
    ),
)


def load(spec: Chroma, base: str, dtype: Any) -> Any:
    import diffusers
    import transformers

    parts = spec.components
    pipe: Any = getattr(diffusers, spec.pipeline)(
        scheduler=loading.scheduler(spec.scheduler),
        tokenizer=loading.tokenizer(spec, "tokenizer", "T5TokenizerFast", parts["tokenizer"], "tokenizer_2"),
        text_encoder=transformers.T5EncoderModel.from_pretrained(parts["text_encoder"], subfolder="text_encoder_2"),
        vae=diffusers.AutoencoderKL.from_pretrained(parts["vae"], subfolder="vae"),
        transformer=load_denoiser(checkpoint(base), dtype, spec.norm_eps),
    )
    return loading.finished(pipe, spec, dtype)


check = nothing_to_refuse


def render(pipe: Any, spec: Chroma, settings: Settings, **call: Any) -> Media:
    embeds, mask = encode(pipe, spec, settings.prompt)
    negative_embeds, negative_mask = encode(pipe, spec, settings.negative_prompt)
    output = pipe(
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative_embeds,
        negative_prompt_attention_mask=negative_mask,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=spec.pipeline_scale(settings.guidance_scale),
        **call,
    )
    return Media(list(output.images))


def encode(pipe: Any, spec: Chroma, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(embeddings [1, tokens, width], mask [1, tokens] of bool: which of them the denoiser reads)."""
    length = spec.max_sequence_length
    tokens = pipe.tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    device, dtype = pipe._execution_device, pipe.text_encoder.dtype
    embeds = pipe.text_encoder(tokens.input_ids.to(device))[0]
    mask = tokens.attention_mask.to(device, dtype)
    words = int(mask.sum(dim=-1).item())  # in the model's dtype, as src/model.py counts
    mask[:, words : words + spec.padding_read] = 1
    # Boolean: Diffusers would add a mask of numbers to the attention instead of masking with it.
    return embeds, mask.bool()


# ------------------------------------------------------------------------------------------- the original single file


def checkpoint(base: str) -> Path:
    """The single file of a hub id ("owner/Name": Name.safetensors), or a path to one, or one inside a repository.

    "lodestones/Chroma/v28" is the trainer's shorthand for a development checkpoint (chroma_model.py).

    Raises:
        RequestError: there is none.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    if shorthand := re.fullmatch(r"lodestones/Chroma/v(\d+)", base):
        base = f"lodestones/Chroma/chroma-unlocked-v{shorthand[1]}.safetensors"
    if file := loading.single_file(base):
        return file
    try:
        return Path(hf_hub_download(base, f"{base.split('/')[-1]}.safetensors"))
    except (OSError, HFValidationError) as error:
        raise RequestError(
            f"base {base!r}: no Chroma weights there ({error}). Give the path of a .safetensors file in Chroma's "
            "original layout, or a hub id such as lodestones/Chroma1-Base"
        ) from error


def denoiser_shapes(_spec: Chroma, base: str) -> Shapes:
    """Weight shapes in Diffusers' names, from the header of the file (no weights are read)."""
    import torch
    from diffusers import ChromaTransformer2DModel

    with torch.device("meta"):
        model: Any = ChromaTransformer2DModel(**sizes(tensor_shapes(checkpoint(base))))
    return {"transformer": dict(module_shapes(model))}


def sizes(shapes: dict[str, list[int]]) -> dict[str, Any]:
    """The denoiser's config, from the shapes of the file's tensors.

    Raises:
        RequestError: not Chroma's original layout.
    """

    def count(pattern: str) -> int:
        return len({m[0] for name in shapes if (m := re.match(rf"{pattern}\.\d+\.", name))})

    try:
        width, channels = shapes["img_in.weight"]
        (head,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
        hidden, guidance = shapes["distilled_guidance_layer.in_proj.weight"]
        text = shapes["txt_in.weight"][1]
    except KeyError as error:
        raise RequestError(f"the base has no tensor {error}: not a Chroma file in the original layout") from error
    return {
        "in_channels": channels,
        "num_layers": count("double_blocks"),
        "num_single_layers": count("single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": text,
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),
        "approximator_num_channels": guidance,
        "approximator_hidden_dim": hidden,
        "approximator_layers": count(r"distilled_guidance_layer\.layers"),
    }


def load_denoiser(path: Path, dtype: Any, norm_eps: float) -> Any:
    """The denoiser with the weights of the file."""
    from accelerate import init_empty_weights
    from diffusers import ChromaTransformer2DModel
    from safetensors.torch import load_file

    tensors = load_file(path)
    with init_empty_weights():  # leaves buffers, which are computed and not in the file, as they are
        model: Any = ChromaTransformer2DModel(**sizes({name: list(tensor.shape) for name, tensor in tensors.items()}))
    rows = {name: len(tensor) for name, tensor in model.state_dict().items()}
    renamed: dict[str, torch.Tensor] = {}
    for name in list(tensors):
        module, _, kind = name.rpartition(".")
        names = [f"{target.module}.{'weight' if kind == 'scale' else kind}" for target in lora_targets(module)]
        parts = tensors.pop(name).to(dtype).split([rows[n] for n in names])
        renamed |= {n: part.clone() for n, part in zip(names, parts, strict=True)}
    model.load_state_dict(renamed, assign=True)
    for norm in model.distilled_guidance_layer.norms:
        norm.eps = norm_eps
    return model


# --------------------------------------------------------------------------------------------------------------- LoRA

RENAMED = (
    (r"^double_blocks", "transformer_blocks"),
    (r"^single_blocks", "single_transformer_blocks"),
    (r"img_attn\.norm\.([qk]).*", r"attn.norm_\1"),
    (r"txt_attn\.norm\.([qk]).*", r"attn.norm_added_\1"),
    (r"(single.*)\.norm\.([qk]).*", r"\1.attn.norm_\2"),
    (r"img_attn\.proj$", "attn.to_out.0"),
    (r"txt_attn\.proj$", "attn.to_add_out"),
    (r"img_mlp\.0$", "ff.net.0.proj"),
    (r"img_mlp\.2$", "ff.net.2"),
    (r"txt_mlp\.0$", "ff_context.net.0.proj"),
    (r"txt_mlp\.2$", "ff_context.net.2"),
    (r"linear2$", "proj_out"),
    (r"^final_layer\.linear$", "proj_out"),
    (r"^img_in$", "x_embedder"),
    (r"^txt_in$", "context_embedder"),
    (r"in_layer$", "linear_1"),
    (r"out_layer$", "linear_2"),
)
"""Original module names -> Diffusers'."""
FUSED = (
    (r"img_attn\.qkv$", ("attn.to_q", "attn.to_k", "attn.to_v")),
    (r"txt_attn\.qkv$", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    (r"linear1$", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
)
"""Original matrix -> the Diffusers modules that hold its rows, from the first to the last."""


def lora_targets(name: str) -> list[Target]:
    """Original module name -> Diffusers' module, or several, which share its rows in this order."""
    name = dotted(name)
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    for pattern, parts in FUSED:
        if re.search(pattern, name):
            return [Target(re.sub(pattern, part, name)) for part in parts]
    return [Target(name)]
