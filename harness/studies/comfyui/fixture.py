"""A custom node for ComfyUI that lets it load miniatures. Test-only: `record.py` puts it into a folder of its own.

ComfyUI recognises models by their real sizes, and has special tokens by their real numbers. A file that
`checkpoints.py` wrote says in its metadata which model it is and how large; what is patched here follows that. Sizes
and vocabularies only: a number computed otherwise than in an unpatched ComfyUI would make the records worthless.
"""

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.ldm.chroma.model as chroma
import comfy.ldm.lumina.model
import comfy.ldm.modules.diffusionmodules.model as kl
import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.model_base
import comfy.model_detection
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.text_encoders.flux
import comfy.text_encoders.llama as llama
import comfy.text_encoders.qwen_image
import comfy.text_encoders.qwen_vl
import comfy.utils
import folder_paths
import numpy as np
import safetensors
import torch
import transformers
from aiohttp import web

SIZES: dict[str, dict[str, Any]] = {"denoiser": {}, "text": {}, "vae": {}, "vision": {}}
"""Of the files that were read last."""


def replaced(owner: Any, name: Any = "__init__") -> Any:
    """Decorator: the function takes the place of owner.name, and gets what was there as its first argument."""

    def decorate(function: Any) -> Any:
        original = getattr(owner, name)
        setattr(owner, name, functools.wraps(original)(lambda *args, **kwargs: function(original, *args, **kwargs)))

    return decorate


@replaced(comfy.utils, "load_torch_file")
def _(original: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
    if str(path).endswith(".safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            sizes = json.loads((file.metadata() or {}).get("miniature", "{}"))
        for part, size in sizes.items():
            if part == "text":  # several files make one text encoder
                for field, values in size.items():
                    SIZES["text"].setdefault(field, {}).update(values)
            else:
                SIZES[part] = size
    return original(path, *args, **kwargs)


MODULATIONS = 344
TABLES = {
    "flux": comfy.utils.flux_to_diffusers,
    "unet": comfy.utils.unet_to_diffusers,
    "z_image": comfy.utils.z_image_to_diffusers,
}


comfy.clip_vision.load_torch_file = comfy.utils.load_torch_file  # it has a name of its own for it


def rename(state_dict: Any, table: Any) -> Any:
    """In place, from Diffusers' names to ComfyUI's. An entry is a name, or (name, (axis, first row, rows), change)."""
    joined: dict[str, list[Any]] = {}
    for name, target in table.items():
        if name not in state_dict:
            continue
        tensor = state_dict.pop(name)
        new, *more = (target,) if isinstance(target, str) else target
        place = more[0] if more else None
        change = more[1] if len(more) > 1 else lambda same: same
        joined.setdefault(new, []).append((place[1] if place else 0, change(tensor)))
    for name, parts in joined.items():
        state_dict[name] = torch.cat([tensor for _, tensor in sorted(parts, key=lambda part: part[0])])


@replaced(comfy.model_detection, "model_config_from_unet")
def _(original: Any, state_dict: Any, prefix: Any, *args: Any, **kwargs: Any) -> Any:
    size = SIZES["denoiser"]
    config = size.get("config", {})
    if "table" in size:
        counts = {
            "depth": comfy.model_detection.count_blocks(state_dict, "transformer_blocks.{}."),
            "depth_single_blocks": comfy.model_detection.count_blocks(state_dict, "single_transformer_blocks.{}."),
        }
        if "x_embedder.bias" in state_dict:
            counts["hidden_size"] = state_dict["x_embedder.bias"].shape[0]
        rename(state_dict, TABLES[size["table"]]({**counts, **config}))
    if "modulations" in size:  # stands as a number in the code: 344 of the real model
        forward = chroma.Chroma.forward_orig
        counted = tuple(size["modulations"] if value == MODULATIONS else value for value in forward.__code__.co_consts)
        forward.__code__ = forward.__code__.replace(co_consts=counted)
    found = comfy.model_detection.detect_unet_config(state_dict, prefix) or {}
    model = getattr(comfy.supported_models, size["class"])({**found, **config})
    model.unet_config.update(config)  # some classes have numbers of their own
    return model


@replaced(torch.nn.GroupNorm)
def _(original: Any, self: Any, num_groups: Any, num_channels: Any, *args: Any, **kwargs: Any) -> Any:
    groups = SIZES["vae"].get("groups") or SIZES["denoiser"].get("groups") or num_groups
    original(self, groups if num_groups == 32 else num_groups, num_channels, *args, **kwargs)


@replaced(comfy.ldm.lumina.model, "TimestepEmbedder")
def _(original: Any, hidden_size: Any, *args: Any, output_size: Any = None, **kwargs: Any) -> Any:
    hidden_size, output_size = SIZES["denoiser"].get("time_embedder", (hidden_size, output_size))
    return original(hidden_size, *args, output_size=output_size, **kwargs)


@replaced(comfy.ldm.wan.model.MLPProj)
def _(original: Any, self: Any, width: Any, *args: Any, **kwargs: Any) -> Any:
    original(self, SIZES["denoiser"].get("seen") or width, *args, **kwargs)


@replaced(comfy.clip_vision.ClipVisionModel)
def _(original: Any, self: Any, config: Any) -> Any:
    path = Path(folder_paths.get_temp_directory()) / "clip_vision.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**json.loads(Path(config).read_text()), **SIZES["vision"]}))
    original(self, path)


@replaced(comfy.model_base, "Timestep")
def _(original: Any, dim: Any) -> Any:
    return original(SIZES["denoiser"].get("size_embedding", dim))


for part in (kl.Encoder, kl.Decoder, comfy.ldm.wan.vae.WanVAE, comfy.ldm.wan.vae2_2.WanVAE):

    @replaced(part)
    def _(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        original(self, *args, **{**kwargs, **SIZES["vae"].get("config", {})})


@replaced(comfy.sd.VAE)
def _(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    denoiser, SIZES["denoiser"] = SIZES["denoiser"], {}
    try:
        original(self, *args, **kwargs)
    finally:
        SIZES["denoiser"], SIZES["vae"] = denoiser, {}


@replaced(comfy.sd, "detect_te_model")
def _(original: Any, state_dict: Any) -> Any:
    names = SIZES["text"].get("model", {})
    for marker, name in names.items():
        if marker in state_dict:
            return getattr(comfy.sd.TEModel, name)
    return original(state_dict)


@replaced(comfy.sd.CLIP)
def _(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    text = SIZES["text"]
    if text:
        for cls, attributes in text.get("attributes", {}).items():
            for name, value in attributes.items():
                setattr(getattr(llama, cls), name, value)
        configs = {f"{name}_model_config": config for name, config in text["configs"].items()}
        kwargs["model_options"] = {**kwargs.get("model_options", {}), **configs}
    try:
        original(self, *args, **kwargs)
    finally:
        SIZES["text"] = {}


@replaced(comfy.text_encoders.flux, "load_mistral_tokenizer")
def _(original: Any, data: Any) -> Any:
    return {} if data is None else original(data)  # a miniature's comes from a folder


class Tokenizer:
    """A miniature's tokenizer, whose special tokens have the numbers of the real one's."""

    def __init__(self, folder: str, cls: str, numbers: dict[str, int]) -> None:
        self.inner = getattr(transformers, cls).from_pretrained(folder)
        self.numbers = {int(ours): real for ours, real in numbers.items()}

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        found = self.inner(text, **kwargs)
        return {"input_ids": [self.numbers.get(number, number) for number in found["input_ids"]]}

    def get_vocab(self) -> Any:
        return {word: self.numbers.get(number, number) for word, number in self.inner.get_vocab().items()}


@replaced(comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer)
def _(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    seen = dict(SIZES["text"].get("vision", {}))
    blocks = seen.pop("fullatt_block_indexes", None)
    original(self, *args, **{**kwargs, **seen})
    self.fullatt_block_indexes = blocks or self.fullatt_block_indexes


@replaced(comfy.text_encoders.qwen_image.QwenImageTEModel, "encode_token_weights")
def _(original: Any, self: Any, tokens: Any, template_end: Any = -1) -> Any:
    # Of the real vocabulary, the words before the prompt are 34 tokens, which the trainer cuts off by their number.
    return original(self, tokens, 34 if template_end == -1 else template_end)


@replaced(comfy.sd1_clip.SDTokenizer)
def _(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    ours = SIZES["text"].get("tokenizers", {}).get(kwargs.get("embedding_key", "clip_l"))
    if ours:

        class Miniature:
            @staticmethod
            def from_pretrained(*_args: Any, **_kwargs: Any) -> Any:
                return Tokenizer(**ours)

        kwargs["tokenizer_class"] = Miniature
    original(self, *args, **kwargs)


@importlib.import_module("server").PromptServer.instance.routes.get("/fixture/packages")
async def packages(request: Any) -> Any:
    return web.json_response({module.__name__: module.__version__ for module in (torch, transformers, np)})


class SaveArrays:
    """Saves what SaveImage would round down: pixels rounded as the trainer rounds them, and latents as the VAE
    gets them."""

    @classmethod
    def INPUT_TYPES(cls) -> Any:
        return {"required": {"images": ("IMAGE",), "latent": ("LATENT",), "name": ("STRING",)}}

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = "fixture"

    def save(self, images: Any, latent: Any, name: Any) -> Any:
        pixels = (images.cpu().float().numpy() * 255).round().clip(0, 255).astype(np.uint8)
        latents = latent["samples"].cpu().float().numpy()
        np.savez(Path(folder_paths.get_output_directory()) / name, pixels=pixels, latents=latents)
        return {"ui": {"arrays": [name]}}


NODE_CLASS_MAPPINGS = {"FixtureSaveArrays": SaveArrays}
