"""Krea 2. Follows extensions_built_in/diffusion_models/krea2 of the trainer."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import images, loading
from lora_drift.pipelines.family import nothing_to_refuse
from lora_drift.pipelines.files import tensor_shapes
from lora_drift.pipelines.lora import Shapes, Target, module_shapes
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import Earlier, Filter, ModelSpec, Posterior, Quantizes, Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch


@dataclass(frozen=True, kw_only=True)
class Krea2(ModelSpec):
    transformer_file: str
    """In the repository: the trainer reads the single file, in its maker's layout."""
    encoder_layers: tuple[int, ...]
    """Outputs of the text encoder's layers that are read, side by side."""
    system_prompt_tokens: int
    """So many tokens of the system prompt are left out of what the encoder made."""
    base_image_seq_len: int
    base_shift: float
    max_image_seq_len: int
    max_shift: float
    """mu is linear in the number of latent tokens: `base_shift` and `max_shift` at those."""
    guidance_offset: float
    """What is taken off the guidance scale, of which the rest is `pos + g (pos - neg)`."""


@dataclass(frozen=True, kw_only=True)
class Krea2Edit(Krea2):
    """Reference pictures, which the text encoder sees and the denoiser reads behind the picture."""

    seen_area: int
    """Pixels of what the text encoder sees of each, at most."""
    seen_side: int
    """... and of a side, at least."""
    seen_filter: Filter
    """With antialiasing."""
    reference_area: int | None
    """Pixels of what the denoiser reads of each, at most. None: as many as the picture has, be it more or fewer."""
    reference_filter: Filter
    """Without antialiasing."""
    control_posterior: Posterior
    references_apart: bool
    """Do they read each other only? Then they are the same at each step, and computed once."""


VAE, ENCODER = "Qwen/Qwen-Image", "Qwen/Qwen3-VL-4B-Instruct"
SYSTEM_PROMPT = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
END = "<|im_end|>\n<|im_start|>assistant\n"
PICTURE_TOKEN = "<|image_pad|>"

RAW = Krea2(
    id="krea2",
    title="Krea 2",
    kind="image",
    family="krea2",
    pipeline="Krea2Pipeline",
    base="krea/Krea-2-Raw",
    transformer_file="raw.safetensors",
    denoisers={"": "transformer"},
    components={"text_encoder": ENCODER, "tokenizer": ENCODER, "vae": VAE},
    quantizes=Quantizes(
        encoder_qtype="qtype_te",
        spared=("img_in", "time_embed*", "time_mod_proj*", "txt_in*", "text_fusion.projector", "final_layer*"),
    ),
    lora_prefixes=("diffusion_model.", "transformer."),
    scheduler=Scheduler(
        "diffusers.FlowMatchEulerDiscreteScheduler",
        {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
    ),
    size_divisor=16,
    width=1024,
    height=1024,
    steps=30,
    guidance_scale=4.0,
    guidance="cfg",
    guidance_offset=1.0,
    max_sequence_length=512,
    encoder_layers=(2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35),
    system_prompt_tokens=34,
    base_image_seq_len=256,
    base_shift=0.5,
    max_image_seq_len=6400,
    max_shift=1.15,
    why_ours="Stock Diffusers rounds the latents to the dtype of the model after each step; the trainer keeps them in "
    "float32.",
    requires=("diffusers>=0.42",),
    quirks=(
        "Guidance g is the conventional one: the trainer takes 1 off, as Krea2Pipeline adds g times the difference to "
        "the positive.",
    ),
    source=tuple(
        f"extensions_built_in/diffusion_models/krea2/{name}"
        for name in ("krea2.py", "src/pipeline.py", "src/text_encoder.py", "src/mmdit.py")
    ),
    since="0.10.17",
    earlier=(
        Earlier(
            before="0.10.21",
            why="Guidance g meant pos + g (pos - neg), and ran for every g > 0.",
            fields={"guidance": "cfg_above_zero", "guidance_offset": 0.0},
        ),
        Earlier(
            before="0.10.24",
            why="Embedders and the last layer were quantised like all others.",
            fields={"quantizes.spared": ()},
        ),
    ),
)

TURBO = replace(
    RAW,
    id="krea2_turbo",
    title="Krea 2 Turbo",
    base="krea/Krea-2-Turbo",
    transformer_file="turbo.safetensors",
    steps=9,
    guidance_scale=1.0,
    quirks=(
        *RAW.quirks,
        "The shift follows the size, as for the raw model; stock Diffusers has mu 1.15 for Turbo.",
        "The training adapter of the UI's default job is merged for training and subtracted again for sampling; "
        "what remains is one rounding of the weights (nothing in float32).",
    ),
    earlier=(
        *RAW.earlier,
        Earlier(before="0.10.21", why="The trainer's UI offered 8 steps.", fields={"steps": 8}),
    ),
)


def editing(row: Krea2, id: str, title: str, steps: int) -> Krea2Edit:
    """The same weights, to which a job of `krea2:o_edit` or `krea2:o_edit_turbo` shows pictures."""
    shared = {f.name: getattr(row, f.name) for f in fields(row)}
    changed = {
        "id": id,
        "title": title,
        "kind": "edit",
        "steps": steps,
        "controls": (0, 3),
        "pipeline": "ours",
        "why_ours": "Diffusers has neither a pipeline nor a transformer that shows Krea 2 reference pictures.",
        "quirks": (
            *row.quirks,
            "A picture given as `ctrl_img` is seen twice by the text encoder (ctrl_img_1 defaults to it), once by the "
            "model; with another picture as `ctrl_img_1`, the text encoder sees both, the model `ctrl_img` only.",
            "References are samples of the VAE's posterior. The trainer names no generator for them and draws them "
            "before the noise: on the CPU a reference changes the noise, too.",
            "References read each other only, and are computed in the first pass alone (`kv_cache`). That is no "
            "shortcut to the same picture, but what the LoRA was trained with; a job without it is refused.",
            "With references a prompt is never cut; without, at 512 tokens.",
        ),
        "since": "0.10.20",
        "earlier": (
            *RAW.earlier,
            Earlier(
                before="0.10.22",
                why="In the UI's job references were not apart, but read the prompt and the picture, too; and none was "
                "enlarged to the picture's area, but all kept at a megapixel at most.",
                fields={"references_apart": False, "reference_area": 1024 * 1024},
            ),
        ),
    }
    return Krea2Edit(
        **{**shared, **changed},
        seen_area=384 * 384,
        seen_side=28,
        seen_filter="bicubic",
        reference_area=None,
        reference_filter="bilinear",
        control_posterior="sample",
        references_apart=True,
    )


ROWS: tuple[Krea2, ...] = (
    RAW,
    TURBO,
    editing(RAW, "krea2_o_edit", "Krea 2, editing", RAW.steps),
    editing(TURBO, "krea2_o_edit_turbo", "Krea 2 Turbo, editing", 8),
)


def load(spec: Krea2, base: str, dtype: Any) -> Any:
    import diffusers
    import transformers
    from diffusers import AutoencoderKLQwenImage
    from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers
    from safetensors.torch import load_file

    file = loading.file_inside(base, spec.transformer_file, spec)
    transformer: Any = _on_meta(spec, tensor_shapes(file))
    transformer.load_state_dict(convert_krea2_transformer_checkpoint_to_diffusers(load_file(file)), assign=True)
    encoder = transformers.Qwen3VLModel.from_pretrained(spec.components["text_encoder"], dtype=dtype)
    if not isinstance(spec, Krea2Edit):
        encoder.visual = None  # it is never shown a picture
    # Of Diffusers' pipeline the parts and helpers are taken for editing, too.
    pipe = getattr(diffusers, RAW.pipeline if isinstance(spec, Krea2Edit) else spec.pipeline)(
        scheduler=loading.scheduler(spec.scheduler),
        vae=AutoencoderKLQwenImage.from_pretrained(spec.components["vae"], subfolder="vae", torch_dtype=dtype),
        text_encoder=encoder,
        tokenizer=loading.tokenizer(spec, "tokenizer", "Qwen2TokenizerFast", spec.components["tokenizer"]),
        transformer=transformer,
    )
    loading.normalize(pipe.vae, in_float32=True)
    if isinstance(spec, Krea2Edit):
        pipe.eye = transformers.AutoImageProcessor.from_pretrained(spec.components["text_encoder"])
    return loading.finished(pipe, spec, dtype)


check = nothing_to_refuse


def render(pipe: Any, spec: Krea2, settings: Settings, *, generator: Any, callback_on_step_end: Any) -> Media:
    import torch

    from lora_drift.pipelines import noise

    device, dtype = pipe._execution_device, pipe.transformer.dtype
    guides = spec.guides(settings.guidance_scale)
    texts = [settings.prompt, settings.negative_prompt] if guides else [settings.prompt]
    seen, references = [], None
    if isinstance(spec, Krea2Edit):
        seen = [_seen(pipe, spec, path) for path in settings.shown or settings.control]
        # Before the noise: their posterior is sampled from the same stream.
        encoded = [_reference(pipe, spec, path, settings, generator) for path in settings.control]
        references = _packed(pipe, encoded) if encoded else None
    prompts = [encode(pipe, spec, text, seen) for text in texts]
    rows, columns = settings.height // 16, settings.width // 16
    latents = noise.draw((1, 16, 2 * rows, 2 * columns), generator, torch.float32, device)
    latents = pipe._pack_latents(latents, 1, 16, 2 * rows, 2 * columns)

    pipe.scheduler.set_timesteps(sigmas=schedule(spec, settings.steps, rows * columns), device=device)
    kept: Any = [] if isinstance(spec, Krea2Edit) and spec.references_apart else None
    for step, t in enumerate(pipe.scheduler.timesteps):

        def predict(prompt: torch.Tensor, t: torch.Tensor = t, latents: torch.Tensor = latents) -> torch.Tensor:
            tokens, beside = latents.to(dtype), dict[str, Any]()
            places = pipe.prepare_position_ids(prompt.shape[1], rows, columns, device)
            if references is not None:
                beside["kept"] = kept
                if not kept:
                    tokens, places = torch.cat([tokens, references[0]], dim=1), torch.cat([places, references[1]])
                    beside["references"] = len(references[1])
            prediction: torch.Tensor = pipe.transformer(
                hidden_states=tokens,
                encoder_hidden_states=prompt,
                timestep=(t / 1000).expand(1).to(dtype),
                position_ids=places,
                return_dict=False,
                **beside,
            )[0]
            return prediction

        prediction = predict(prompts[0])
        if guides:
            # pos + (g - 1) (pos - neg), in this order of roundings
            scale = settings.guidance_scale - spec.guidance_offset
            prediction = prediction + scale * (prediction - predict(prompts[1]))
        latents = pipe.scheduler.step(prediction.float(), t, latents, return_dict=False)[0]
        callback_on_step_end(pipe, step, t, {})

    unpacked = pipe._unpack_latents(latents, settings.height, settings.width).to(dtype)
    mean, std = _statistics(pipe)
    decoded = pipe.vae.decode(unpacked * std + mean, return_dict=False)[0][:, :, 0]
    return Media(list(pipe.image_processor.postprocess(decoded.float(), output_type="pil")))


def encode(pipe: Any, spec: Krea2, prompt: str, seen: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    """[1, tokens, layers, width] of the prompt's own tokens and those that end its turn, without padding.

    Args:
        seen: pictures, [3, height, width] from 0 to 1, of which the user's turn shows numbered tokens first.
    """
    import torch

    assert spec.max_sequence_length is not None
    longest, looks = spec.max_sequence_length + spec.system_prompt_tokens, {}
    cut: dict[str, Any] = {"truncation": True, "max_length": longest}
    if seen:
        looks = dict(pipe.eye(images=list(seen), do_rescale=False, return_tensors="pt").to(pipe._execution_device))
        looks["pixel_values"] = looks["pixel_values"].to(pipe.transformer.dtype)
        counts = (looks["image_grid_thw"].prod(dim=1) // pipe.eye.merge_size**2).tolist()
        pictures = (
            f"Picture {number}: <|vision_start|>{PICTURE_TOKEN * count}<|vision_end|>"
            for number, count in enumerate(counts, 1)
        )
        prompt, cut = "".join(pictures) + prompt, {}
    tokens = pipe.tokenizer([SYSTEM_PROMPT + prompt], return_tensors="pt", **cut)
    end = pipe.tokenizer([END], return_tensors="pt")
    ids = torch.cat([tokens.input_ids, end.input_ids], dim=1).to(pipe._execution_device)
    if seen:
        looks["mm_token_type_ids"] = (ids == pipe.text_encoder.config.image_token_id).int()
    output = pipe.text_encoder(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **looks)
    states = torch.stack([output.hidden_states[layer] for layer in spec.encoder_layers], dim=2)
    kept: torch.Tensor = states[:, spec.system_prompt_tokens :].to(pipe.transformer.dtype)
    return kept


def schedule(spec: Krea2, steps: int, tokens: int) -> list[float]:
    """Sigmas without the last 0: evenly spaced, then shifted by exp(mu)."""
    import torch

    slope = (spec.max_shift - spec.base_shift) / (spec.max_image_seq_len - spec.base_image_seq_len)
    shift = math.exp(slope * tokens + (spec.base_shift - slope * spec.base_image_seq_len))
    even = torch.linspace(1, 0, steps + 1)[:-1]
    return (shift / (shift + (1 / even - 1))).tolist()


def _statistics(pipe: Any) -> Iterator[torch.Tensor]:
    """Mean and standard deviation of latents, [1, channels, 1, 1, 1]."""
    import torch

    for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std):
        yield torch.tensor(values, device=pipe._execution_device).to(pipe.transformer.dtype).view(1, -1, 1, 1, 1)


# ------------------------------------------------------------------------------------------------- reference pictures


def _opened(pipe: Any, path: str) -> torch.Tensor:
    """[1, 3, height, width] from 0 to 1, in the model's dtype."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(images.rgb(path))).permute(2, 0, 1)[None].float() / 255
    return pixels.to(pipe._execution_device, pipe.transformer.dtype)


def _seen(pipe: Any, spec: Krea2Edit, path: str) -> torch.Tensor:
    """What the text encoder sees, [3, height, width] from 0 to 1 in float32: shrunk if it is large, never enlarged but
    to the smallest side (`_prep_vlm_images`)."""
    from torch.nn import functional

    image = _opened(pipe, path).float()
    height, width = image.shape[2:]
    scale = min(1.0, math.sqrt(spec.seen_area / (height * width)))
    size = max(round(height * scale), spec.seen_side), max(round(width * scale), spec.seen_side)
    if size != (height, width):
        image = functional.interpolate(image, size=size, mode=spec.seen_filter, antialias=True).clamp(0, 1)
    return image[0]


def _reference(pipe: Any, spec: Krea2Edit, path: str, settings: Settings, generator: Any) -> torch.Tensor:
    """Latents [1, channels, 1, height, width] of a reference that keeps its proportions, but for sides that are
    rounded to `size_divisor` (`_encode_ref_latents`)."""
    from torch.nn import functional

    from lora_drift.pipelines import noise

    image = _opened(pipe, path)
    height, width = reference_size(spec, image.shape[2], image.shape[3], settings.height * settings.width)
    if (height, width) != tuple(image.shape[2:]):
        image = functional.interpolate(image, size=(height, width), mode=spec.reference_filter)
    posterior = pipe.vae.encode((image * 2 - 1)[:, :, None]).latent_dist
    mean, std = _statistics(pipe)
    latents: torch.Tensor = (noise.posterior(posterior, spec.control_posterior, generator) - mean) * (1.0 / std)
    return latents


def reference_size(spec: Krea2Edit, height: int, width: int, picture: int) -> tuple[int, int]:
    """Height and width, in pixels, in which the denoiser reads a reference beside a picture of so many pixels."""
    area, ratio = spec.reference_area or picture, height / width
    tall, wide = float(height), float(width)
    if spec.reference_area is None or height * width > area:
        tall = math.sqrt(area * ratio)
        wide = tall / ratio
    step = spec.size_divisor
    return max(step, round(tall / step) * step), max(step, round(wide / step) * step)


def _packed(pipe: Any, references: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """[1, tokens, channels] of all references, and [tokens, 3] where they are: each in a frame of its own."""
    import torch

    tokens, places = [], []
    for frame, latents in enumerate(references, 1):
        _, channels, _, height, width = latents.shape
        tokens.append(pipe._pack_latents(latents, 1, channels, height, width))
        place = pipe.prepare_position_ids(0, height // 2, width // 2, latents.device)
        place[:, 0] = frame
        places.append(place)
    return torch.cat(tokens, dim=1), torch.cat(places)


# ------------------------------------------------------------------------------------------------------------ loading


def _on_meta(spec: Krea2, sizes: Mapping[str, Sequence[int]]) -> Any:
    """Diffusers' network for a single file, without weights. The trainer has its size in its code (`krea2.py`)."""
    import torch
    from diffusers import Krea2Transformer2DModel

    cls: Any = Krea2Transformer2DModel
    if isinstance(spec, Krea2Edit):
        from lora_drift.pipelines.families.krea2_transformer import Krea2ReferenceTransformer

        cls = Krea2ReferenceTransformer

    def heads(at: str) -> tuple[int, int, int]:
        """Width of a head, and how many there are of queries and of keys."""
        head = sizes[f"{at}.attn.qknorm.qnorm.scale"][0]
        return head, sizes[f"{at}.attn.wq.weight"][0] // head, sizes[f"{at}.attn.wk.weight"][0] // head

    head, queries, keys = heads("blocks.0")
    _, text_queries, text_keys = heads("txtfusion.refiner_blocks.0")
    with torch.device("meta"):
        return cls(
            in_channels=sizes["first.weight"][1],
            num_layers=_count(sizes, r"blocks\.(\d+)\."),
            attention_head_dim=head,
            num_attention_heads=queries,
            num_key_value_heads=keys,
            intermediate_size=sizes["blocks.0.mlp.up.weight"][0],
            timestep_embed_dim=sizes["tmlp.0.weight"][1],
            text_hidden_dim=sizes["txtmlp.1.weight"][1],
            num_text_layers=sizes["txtfusion.projector.weight"][1],
            text_num_attention_heads=text_queries,
            text_num_key_value_heads=text_keys,
            text_intermediate_size=sizes["txtfusion.refiner_blocks.0.mlp.up.weight"][0],
            num_layerwise_text_blocks=_count(sizes, r"txtfusion\.layerwise_blocks\.(\d+)\."),
            num_refiner_text_blocks=_count(sizes, r"txtfusion\.refiner_blocks\.(\d+)\."),
            axes_dims_rope=(head - 12 * (head // 16), 6 * (head // 16), 6 * (head // 16)),
        )


def _count(sizes: Mapping[str, Any], pattern: str) -> int:
    """How many different numbers stand where `pattern` has its group."""
    return len({found[1] for name in sizes if (found := re.match(pattern, name))})


def denoiser_shapes(spec: Krea2, base: str) -> Shapes:
    """Weight shapes of the transformer's modules, from the head of the single file."""
    sizes = tensor_shapes(loading.file_inside(base, spec.transformer_file, spec))
    return {"transformer": dict(module_shapes(_on_meta(spec, sizes)))}


# --------------------------------------------------------------------------------------------------------------- LoRA


def lora_targets(name: str) -> list[Target]:
    """Module names of the trainer's own network class -> Diffusers'."""
    for old, new in (
        (r"^blocks\.", "transformer_blocks."),
        (r"^txtfusion\.", "text_fusion."),
        (r"\.attn\.w([qkv])$", r".attn.to_\1"),
        (r"\.attn\.wo$", ".attn.to_out.0"),
        (r"\.attn\.gate$", ".attn.to_gate"),
        (r"\.mlp\.", ".ff."),
        # Outside the blocks, which a LoRA changes with `transformer_only: false`.
        (r"^first$", "img_in"),
        (r"^tmlp\.0$", "time_embed.linear_1"),
        (r"^tmlp\.2$", "time_embed.linear_2"),
        (r"^tproj\.1$", "time_mod_proj"),
        (r"^txtmlp\.1$", "txt_in.linear_1"),
        (r"^txtmlp\.3$", "txt_in.linear_2"),
        (r"^last\.linear$", "final_layer.linear"),
    ):
        name = re.sub(old, new, name)
    return [Target(name)]
