"""Ideogram 4. Follows extensions_built_in/diffusion_models/ideogram4 of the trainer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lora_drift.pipelines import loading, lora
from lora_drift.pipelines.adapter import underneath
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.families.ideogram4_captions import digested
from lora_drift.pipelines.families.ideogram4_latents import MEAN, STD
from lora_drift.pipelines.family import nothing_to_refuse
from lora_drift.pipelines.files import tensor_shapes
from lora_drift.pipelines.lora import Shapes, Target, module_shapes
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import LAYER_BY_LAYER, Earlier, ModelSpec, Quantizes, Scheduler

if TYPE_CHECKING:
    from pathlib import Path

    import torch


@dataclass(frozen=True, kw_only=True)
class Ideogram4(ModelSpec):
    transformer_file: str
    """In the repository, under its maker's names; or in parts, where an index lies beside it."""
    encoder_layers: tuple[int, ...]
    """Layers of the text encoder whose outputs are read, their numbers in turns."""
    digests_captions: bool
    """Are captions in JSON brought to the model's form?"""
    unconditional_lora: str
    """File of the component `unconditional_lora`: a LoRA that is on in the pass without text only; "" for none."""
    schedule: Literal["logit-normal", "even"]
    schedule_mu: float
    """Mean of the logarithm of the sigmas' odds for a picture of `schedule_pixels`; one that is larger by a factor has
    half the logarithm of that more."""
    schedule_std: float
    schedule_pixels: int


ENCODER = "Qwen/Qwen3-VL-8B-Instruct"
LOGSNR = (-15.0, 18.0)
"""Between these the logit-normal schedule is held."""

ROWS: tuple[Ideogram4, ...] = (
    Ideogram4(
        id="ideogram4",
        title="Ideogram 4",
        kind="image",
        family="ideogram4",
        pipeline="ours",
        base="ideogram-ai/ideogram-4-fp8",
        transformer_file="transformer/diffusion_pytorch_model.safetensors",
        denoisers={"": "transformer"},
        components={
            "text_encoder": ENCODER,
            "tokenizer": ENCODER,
            "unconditional_lora": "ostris/ideogram_4_unconditional_lora",
        },
        unconditional_lora="ideogram_4_unconditional_lora_r16.safetensors",
        quantizes=Quantizes(encoder_qtype="qtype_te"),
        lora_prefixes=("diffusion_model.", "transformer."),
        scheduler=Scheduler(
            "ours.FlowMatchEulerUpwards",
            {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
        ),
        size_divisor=16,
        width=1024,
        height=1024,
        steps=30,
        guidance_scale=4.0,
        guidance="cfg_without_text",
        max_sequence_length=3072,
        encoder_layers=(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35),
        digests_captions=True,
        schedule="logit-normal",
        schedule_mu=0.0,
        schedule_std=1.75,
        schedule_pixels=512 * 512,
        why_ours="Stock Diffusers has a second network for the pass without text; the trainer puts a LoRA into the one "
        "that it has.",
        requires=("diffusers>=0.39", "transformers>=5"),
        quirks=(
            "The negative prompt is not read: the second pass sees no text at all, and a LoRA of its own "
            "(ostris/ideogram_4_unconditional_lora, which the trainer's UI writes into the job) is on in it.",
            "That LoRA is for the base model; a user's LoRA is on in both passes.",
            "Noise is drawn channel by channel, where stock Diffusers draws it token by token: the same seed gives "
            "other noise there.",
            "Sigmas spread by 1.75, where stock Diffusers has 1.5; guidance is the same at every step.",
            "Captions in JSON are brought to the model's form, in which fields have an order; stock Diffusers takes "
            "them as they are.",
            "Mean and spread of the latents are numbers in the code, not those of the autoencoder's file.",
        ),
        source=(
            *(
                f"extensions_built_in/diffusion_models/ideogram4/{name}.py"
                for name in ("ideogram4", "src/pipeline", "src/transformer", "src/vae", "src/latent_norm")
            ),
            "toolkit/ideogram_caption.py",
        ),
        since="0.10.0",
        earlier=(
            LAYER_BY_LAYER,
            Earlier(
                before="0.10.14",
                why="Sigmas were spaced evenly, at every size.",
                fields={"schedule": "even"},
            ),
            Earlier(
                before="0.10.13",
                why="There was no LoRA for the pass without text.",
                fields={"unconditional_lora": ""},
            ),
            Earlier(
                before="0.10.12",
                why="The second pass read the negative prompt, at every guidance scale but 1; captions in JSON were "
                "taken as they are.",
                fields={"guidance": "cfg_always", "digests_captions": False},
            ),
            Earlier(before="0.10.1", why="Of a prompt 512 tokens were read.", fields={"max_sequence_length": 512}),
        ),
    ),
)


def load(spec: Ideogram4, base: str, dtype: Any) -> Any:
    import diffusers
    import transformers

    from lora_drift.pipelines.families.flux2_rounding import round_like_the_trainers_autoencoder

    class Ideogram4Pipeline(diffusers.DiffusionPipeline):  # a bag of parts, moved together
        model_cpu_offload_seq = "text_encoder->transformer->vae"
        unconditional: Sequence[tuple[Any, Any]] = ()
        """Layers and their changes in the pass without text."""

        def __init__(self, transformer: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(
                transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
            )

    encoder = transformers.Qwen3VLModel.from_pretrained(spec.components["text_encoder"], dtype=dtype)
    encoder.visual = None  # it is never shown a picture
    rotary = encoder.language_model.rotary_emb
    frequencies = rotary.inv_freq
    pipe = Ideogram4Pipeline(
        transformer=_transformer(_files(spec, base), dtype),
        vae=diffusers.AutoencoderKLFlux2.from_pretrained(base, subfolder="vae", torch_dtype=dtype),
        text_encoder=encoder,
        tokenizer=loading.tokenizer(spec, "tokenizer", "Qwen2TokenizerFast", spec.components["tokenizer"]),
        scheduler=loading.scheduler(spec.scheduler),
    )
    if spec.unconditional_lora:
        file = loading.file_inside(spec.components["unconditional_lora"], spec.unconditional_lora, spec)
        shapes = {"transformer": dict(module_shapes(pipe.transformer))}
        deltas = lora.read({"": file}, spec, shapes, lora_targets).deltas
        pipe.unconditional = [(pipe.transformer.get_submodule(delta.module), delta.change) for delta in deltas]
    round_like_the_trainers_autoencoder(pipe.vae)
    loading.finished(pipe, spec, dtype)
    rotary.inv_freq = frequencies  # of the encoder the trainer casts weights only
    return pipe


check = nothing_to_refuse


def render(pipe: Any, spec: Ideogram4, settings: Settings, *, generator: Any, callback_on_step_end: Any) -> Media:
    import torch
    from diffusers.image_processor import VaeImageProcessor

    from lora_drift.pipelines import noise

    device, dtype, scale = pipe._execution_device, pipe.transformer.dtype, settings.guidance_scale
    prompt = encode(pipe, spec, settings.prompt)
    negative = None
    if spec.guides(scale) and scale != 1:
        negative = encode(pipe, spec, settings.negative_prompt) if spec.reads_negative(scale) else prompt[:, :0]
    rows, columns = settings.height // 16, settings.width // 16
    drawn = noise.draw((1, len(MEAN), rows, columns), generator, torch.float32, device)
    sigmas = schedule(spec, settings.steps, settings.width * settings.height)
    pipe.scheduler.set_timesteps(sigmas=sigmas, device=device)
    # In the sequence that the denoiser reads: zeros for the words, then the picture's rows.
    words = prompt.shape[1]
    latents = torch.zeros(1, words + rows * columns, len(MEAN), device=device)
    latents[:, words:] = drawn.flatten(2).transpose(1, 2) * sigmas[0]
    for step, t in enumerate(pipe.scheduler.timesteps):

        def predict(prompt: torch.Tensor, t: torch.Tensor = t, latents: torch.Tensor = latents) -> torch.Tensor:
            """Of the picture's tokens; the model's time goes from 0, noise, to 1."""
            picture = latents[:, words:]
            before = picture.new_zeros(1, prompt.shape[1], picture.shape[2])
            behind = prompt.new_zeros(1, picture.shape[1], prompt.shape[2])
            prediction: torch.Tensor = pipe.transformer(
                hidden_states=torch.cat([before, picture], dim=1).to(dtype),
                timestep=t.expand(1).to(dtype),
                encoder_hidden_states=torch.cat([prompt, behind], dim=1),
                **layout(prompt.shape[1], rows, columns, device),
                return_dict=False,
            )[0]
            return prediction[:, prompt.shape[1] :].float()

        prediction = predict(prompt)
        if negative is not None:
            with ExitStack() as hooks:
                for layer, change in pipe.unconditional:
                    hooks.callback(underneath(layer, change, dtype).remove)
                other = predict(negative)
            prediction = other + scale * (prediction - other)
        whole = torch.zeros_like(latents)
        whole[:, words:] = prediction
        latents = pipe.scheduler.step(whole, t, latents, return_dict=False)[0]
        callback_on_step_end(pipe, step, t, {})

    mean, std = (torch.tensor(values, device=device).to(dtype) for values in (MEAN, STD))
    patches = (latents[:, words:].to(dtype) * std + mean).unflatten(2, (2, 2, -1)).unflatten(1, (rows, columns))
    # [1, rows, columns, 2, 2, channels] -> the two rows and two columns of a patch, in the picture
    unpacked = patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    decoded = pipe.vae.decode(unpacked, return_dict=False)[0]
    return Media(list(VaeImageProcessor(vae_scale_factor=16).postprocess(decoded.float(), output_type="pil")))


def encode(pipe: Any, spec: Ideogram4, prompt: str) -> torch.Tensor:
    """[1, tokens, layers * width] of a chat with this one message, without padding."""
    import torch

    text = digested(prompt) if spec.digests_captions else prompt
    message = {"role": "user", "content": [{"type": "text", "text": text}]}
    chat = pipe.tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    cut = {"truncation": True, "max_length": spec.max_sequence_length}
    ids = pipe.tokenizer([chat], add_special_tokens=False, return_tensors="pt", **cut).input_ids
    layers, outputs = pipe.text_encoder.language_model.layers, dict[int, torch.Tensor]()

    def keep(number: int) -> Any:
        """The last one's is read before the norm that follows, which `output_hidden_states` has in it."""

        def hook(_layer: Any, _inputs: Any, output: Any) -> None:
            outputs[number] = output

        return hook

    with ExitStack() as hooks:
        for number in spec.encoder_layers:
            hooks.callback(layers[number].register_forward_hook(keep(number)).remove)
        pipe.text_encoder(ids.to(pipe._execution_device), attention_mask=torch.ones_like(ids), use_cache=False)
    read = torch.stack([outputs[number] for number in spec.encoder_layers], dim=-1)
    return read.flatten(2).to(pipe.transformer.dtype)


def layout(words: int, rows: int, columns: int, device: Any) -> dict[str, torch.Tensor]:
    """What each token of a sequence is, where it lies, and that all of them see each other."""
    import torch
    from diffusers.models.transformers import transformer_ideogram4 as model

    places = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
    text = torch.arange(words).unsqueeze(1).expand(-1, 3)
    kinds = torch.tensor([model.LLM_TOKEN_INDICATOR] * words + [model.OUTPUT_IMAGE_INDICATOR] * (rows * columns))
    positions = torch.cat([text, places + model.IMAGE_POSITION_OFFSET])
    tensors = {"position_ids": positions, "segment_ids": torch.ones_like(kinds), "indicator": kinds}
    return {name: tensor.unsqueeze(0).to(device) for name, tensor in tensors.items()}


def schedule(spec: Ideogram4, steps: int, pixels: int) -> list[float]:
    """Sigmas without the last 0."""
    import torch

    if spec.schedule == "even":
        return torch.linspace(1.0, 0.001, steps).tolist()
    mean = spec.schedule_mu + 0.5 * math.log(pixels / spec.schedule_pixels)
    quantiles = torch.special.ndtri(torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64))
    least, most = (1 / (1 + math.exp(0.5 * bound)) for bound in reversed(LOGSNR))
    times = (1 - torch.special.expit(mean + spec.schedule_std * quantiles)).clamp(least, most)
    return (1 - times).flip(0)[:-1].float().tolist()


# ------------------------------------------------------------------------------------------------------------ loading


def _files(spec: Ideogram4, base: str) -> list[Path]:
    """The file of the denoiser, or its parts, where an index lies beside it."""
    try:
        index = loading.file_inside(base, f"{spec.transformer_file}.index.json", spec)
    except RequestError:
        return [loading.file_inside(base, spec.transformer_file, spec)]
    folder = spec.transformer_file.rpartition("/")[0]
    parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return [loading.file_inside(base, f"{folder}/{part}", spec) for part in sorted(parts)]


def _transformer(files: list[Path], dtype: torch.dtype) -> Any:
    """Diffusers' network with the weights of these files, whose matrices may be in float8, with a scale a row."""
    from safetensors.torch import load_file
    from torch.nn import functional

    transformer: Any = _on_meta(_sizes(files))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    scales = {name.removesuffix("_scale"): tensors.pop(name) for name in list(tensors) if name.endswith("weight_scale")}
    for name, scale in scales.items():
        tensors[name] = (tensors[name].float() * scale.float().unsqueeze(1)).to(dtype)
    transformer.load_state_dict(dict(_renamed(tensors)), assign=True)
    # Not among the weights. Cast with them (`finished`), as the trainer does: in half precision they are rounded.
    rotary = transformer.rotary_emb
    rotary.inv_freq = type(rotary)(rotary.head_dim, transformer.config.rope_theta, rotary.mrope_section).inv_freq
    for module in transformer.modules():
        if type(module).__name__ == "RMSNorm":  # Diffusers' rounds twice in half precision, torch's once
            module.forward = lambda x, norm=module: functional.rms_norm(x, norm.dim, norm.weight, norm.eps)
    return transformer


def _renamed(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights under Diffusers' names, which has q, k and v apart."""
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        targets = lora_targets(module)
        for target, piece in zip(targets, tensor.chunk(len(targets)), strict=True):
            yield f"{target.module}.{part}", piece


def _sizes(files: list[Path]) -> dict[str, list[int]]:
    return {name: size for file in files for name, size in tensor_shapes(file).items()}


def _on_meta(sizes: Mapping[str, Sequence[int]]) -> Any:
    """Diffusers' network for weights of these sizes, without them. The trainer has its size in its code."""
    import diffusers
    import torch

    head = sizes["layers.0.attention.norm_q.weight"][0]
    axes = (3 * head // 32, 5 * head // 64, 5 * head // 64)
    with torch.device("meta"):
        return diffusers.Ideogram4Transformer2DModel(
            in_channels=sizes["input_proj.weight"][1],
            num_layers=len({found[1] for name in sizes if (found := re.match(r"layers\.(\d+)\.", name))}),
            attention_head_dim=head,
            num_attention_heads=sizes["input_proj.weight"][0] // head,
            intermediate_size=sizes["layers.0.feed_forward.w1.weight"][0],
            adaln_dim=sizes["adaln_proj.weight"][0],
            llm_features_dim=sizes["llm_cond_proj.weight"][1],
            mrope_section=axes,
        )


def denoiser_shapes(spec: Ideogram4, base: str) -> Shapes:
    """Weight shapes of the transformer's modules, from the heads of its files."""
    return {"transformer": dict(module_shapes(_on_meta(_sizes(_files(spec, base)))))}


# --------------------------------------------------------------------------------------------------------------- LoRA


def lora_targets(name: str) -> list[Target]:
    """Module names of the trainer's own network class -> Diffusers', which has q, k and v apart."""
    if name.endswith("attention.qkv"):
        return [Target(name.removesuffix("qkv") + f"to_{part}") for part in "qkv"]
    return [Target(re.sub(r"attention\.o$", "attention.to_out.0", name))]
