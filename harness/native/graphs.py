"""Graphs of ComfyUI's own nodes, in the form that its API takes: of each model the one that was compared with the
trainer's samples (`records.py`). Where no core node does what the trainer does, a node of the pack in `comfyui/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drift.harness.native import schedule
from lora_drift.harness.native.pack_graphs import Graph, numbered
from lora_drift.harness.native.unmatched import UNMATCHED
from lora_drift.pipelines import MODELS
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import TOOLKITS, ModelSpec, nearest

PACK = "LoraDrift"
"""What the names of the pack's nodes begin with."""
Link = list[Any]


@dataclass(frozen=True)
class Recipe:
    """What of a graph depends on the model."""

    encoders: tuple[str, ...]
    """Parts whose files make the text encoder."""
    kind: str
    """What ComfyUI's CLIP loader calls it."""
    latent: str
    """Node of the empty latents."""
    files: Mapping[str, str]
    """Part -> name that its file has where ComfyUI offers it for download."""
    template: str = "{}"
    """What a prompt is put into, beyond what ComfyUI puts it into."""
    t5_length: int = 0
    """To which T5 pads at least; 0: as ComfyUI does."""
    text: str = "core"
    """"pack": by the pack's node."""
    sampler: str = "euler"
    """"pack": the pack's node."""
    guidance: str = "core"
    """"pack": by the pack's node. Of models whose scale is an input there is nothing to guide."""
    cfg_offset: float = 0.0
    """What is added to the trainer's guidance to get ComfyUI's cfg."""


FLUX_FILES = {
    "clip_l": "clip_l.safetensors",
    "t5xxl": "t5xxl_fp16.safetensors",
    "vae": "ae.safetensors",
}


def _flux(file: str) -> Recipe:
    return Recipe(
        encoders=("clip_l", "t5xxl"),
        kind="flux",
        latent="EmptySD3LatentImage",
        files={"denoiser": file, **FLUX_FILES},
        t5_length=512,
    )


def _zimage(file: str) -> Recipe:
    files = {"denoiser": file, "qwen": "qwen_3_4b.safetensors", "vae": "ae.safetensors"}
    return Recipe(("qwen",), "lumina2", "EmptySD3LatentImage", files, cfg_offset=1.0)


def _klein(size: str, encoder: str) -> Recipe:
    files = {"denoiser": f"flux-2-klein-base-{size}.safetensors", "qwen": encoder, "vae": "flux2-vae.safetensors"}
    return Recipe(("qwen",), "flux2", "EmptyFlux2LatentImage", files)


def _qwen(file: str) -> Recipe:
    files = {"denoiser": file, "qwen": "qwen_2.5_vl_7b.safetensors", "vae": "qwen_image_vae.safetensors"}
    return Recipe(("qwen",), "qwen_image", "EmptySD3LatentImage", files, guidance="pack")


def _sd(encoders: tuple[str, ...], kind: str, name: str) -> Recipe:
    files = {part: f"{name}-{part}.safetensors" for part in ("denoiser", "vae", *encoders)}
    guidance = "pack" if kind == "sdxl" else "core"
    return Recipe(encoders, kind, "EmptyLatentImage", files, sampler="pack", guidance=guidance)


def _wan(latent: str, vae: str, **denoisers: str) -> Recipe:
    files = {**denoisers, "umt5xxl": "umt5_xxl_fp16.safetensors", "vae": vae}
    return Recipe(("umt5xxl",), "wan", latent, files, sampler="pack")


WAN21 = ("EmptyHunyuanLatentVideo", "wan_2.1_vae.safetensors")
FIRST_FRAME = ("WanImageToVideo", "wan_2.1_vae.safetensors")
RECIPES: dict[str, Recipe] = {
    "flux": _flux("flux1-dev.safetensors"),
    "flex1": _flux("Flex.1-alpha.safetensors"),
    "flux_kontext": _flux("flux1-dev-kontext.safetensors"),
    "flex2": _flux("Flex.2-preview.safetensors"),
    "chroma": Recipe(
        encoders=("t5xxl",),
        kind="chroma",
        latent="EmptySD3LatentImage",
        files={**FLUX_FILES, "denoiser": "Chroma1-Base.safetensors"},
        text="pack",
    ),
    **dict.fromkeys(
        ("flux2", "flux2_diffusers"),
        Recipe(
            encoders=("mistral",),
            kind="flux2",
            latent="EmptyFlux2LatentImage",
            files={
                "denoiser": "flux2-dev.safetensors",
                "mistral": "mistral_3_small_flux2_bf16.safetensors",
                "vae": "flux2-vae.safetensors",
            },
            text="pack",
        ),
    ),
    "flux2_klein_4b": _klein("4b", "qwen_3_4b.safetensors"),
    "flux2_klein_9b": _klein("9b", "qwen_3_8b.safetensors"),
    "zimage": _zimage("z_image_bf16.safetensors"),
    "zimage_turbo": _zimage("z_image_turbo_bf16.safetensors"),
    "zimage_deturbo": _zimage("z_image_de_turbo_v1_bf16.safetensors"),
    "qwen_image": _qwen("qwen_image_bf16.safetensors"),
    "qwen_image_2512": _qwen("qwen_image_2512_bf16.safetensors"),
    "lumina2": Recipe(
        encoders=("gemma",),
        kind="lumina2",
        latent="EmptySD3LatentImage",
        files={
            "denoiser": "lumina_2_model_bf16.safetensors",
            "gemma": "gemma_2_2b_fp16.safetensors",
            "vae": "ae.safetensors",
        },
        template="You are an assistant designed to generate superior images with the superior degree of image-text "
        "alignment based on textual prompts or user prompts. <Prompt Start> {}",
        guidance="pack",
    ),
    "omnigen2": Recipe(
        encoders=("qwen",),
        kind="omnigen2",
        latent="EmptySD3LatentImage",
        files={
            "denoiser": "omnigen2_fp16.safetensors",
            "qwen": "qwen_2.5_vl_fp16.safetensors",
            "vae": "ae.safetensors",
        },
        template="<|im_start|>system\nYou are a helpful assistant that generates high-quality images based on user "
        "instructions.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n",
    ),
    "sd15": _sd(("clip_l",), "stable_diffusion", "sd15"),
    "sdxl": _sd(("clip_l", "clip_g"), "sdxl", "sdxl"),
    "wan21_1b": _wan(*WAN21, denoiser="wan2.1_t2v_1.3B_bf16.safetensors"),
    "wan21_14b": _wan(*WAN21, denoiser="wan2.1_t2v_14B_bf16.safetensors"),
    "wan21_i2v_14b480p": _wan(
        *FIRST_FRAME, denoiser="wan2.1_i2v_480p_14B_fp16.safetensors", clip_vision="clip_vision_h.safetensors"
    ),
    "wan21_i2v_14b": _wan(
        *FIRST_FRAME, denoiser="wan2.1_i2v_720p_14B_fp16.safetensors", clip_vision="clip_vision_h.safetensors"
    ),
    "wan22_14b_t2v": _wan(
        *WAN21,
        high="wan2.2_t2v_high_noise_14B_fp16.safetensors",
        low="wan2.2_t2v_low_noise_14B_fp16.safetensors",
    ),
    "wan22_14b_i2v": _wan(
        "LoraDriftFirstFrame",
        WAN21[1],
        high="wan2.2_i2v_high_noise_14B_fp16.safetensors",
        low="wan2.2_i2v_low_noise_14B_fp16.safetensors",
    ),
    "wan22_5b": _wan("Wan22ImageToVideoLatent", "wan2.2_vae.safetensors", denoiser="wan2.2_ti2v_5B_fp16.safetensors"),
}
SAMPLED = [model for model, recipe in RECIPES.items() if recipe.sampler == "pack"]
GUIDED = [model for model, recipe in RECIPES.items() if recipe.guidance == "pack"]
READ = [model for model, recipe in RECIPES.items() if recipe.text == "pack"]
PATCHED = [model for model in RECIPES if MODELS[model].family in ("flux", "qwen", "zimage", "lumina2")]
BLANK = ["flex2"]
RESIZED = [model for model in RECIPES if MODELS[model].controls != (0, 0)]
EXPERTS = [model for model, recipe in RECIPES.items() if "high" in recipe.files]
"""Models of the pack's nodes."""


class Builder:
    """A graph while it is made: nodes under names, and where what they make is found."""

    def __init__(self) -> None:
        self.nodes: Graph = {}

    def add(self, name: str, kind: str, **inputs: Any) -> Link:
        self.nodes[name] = {"class_type": kind, "inputs": inputs}
        return [name, 0]


def build(
    spec: ModelSpec,
    settings: Settings,
    files: Mapping[str, str] | None = None,
    loras: Mapping[str, str] | None = None,
    *,
    dora: bool = False,
) -> Graph:
    """The graph that renders `settings`.

    Args:
        files: part of the model ("denoiser", "t5xxl", "vae", ...) -> file; what is left out has its usual name.
        loras: expert ("" for the whole model) -> name in models/loras.
        dora: they have magnitudes, which no core node reads.

    Raises:
        RequestError: no graph is known that matches.
    """
    recipe = RECIPES.get(spec.id)
    if recipe is None:
        stage, why = UNMATCHED[spec.id]
        raise RequestError(f"{spec.id}: no graph of ComfyUI's nodes is known that matches the trainer ({stage}: {why})")
    if spec.id == "flex2" and settings.control:
        raise RequestError("flex2: with a control image no graph of ComfyUI's nodes is known that matches the trainer")
    if not 0 <= settings.seed < 2**64:
        raise RequestError(f"seed {settings.seed}: ComfyUI takes 0 to 2^64 - 1")
    graph, files = Builder(), {**recipe.files, **(files or {})}
    if dora and spec.id not in PATCHED:
        raise RequestError(f"{spec.id}: ComfyUI would read a DoRA without its magnitudes; render it with the nodes "
                           "that `lora-drift comfy` writes without --native")  # fmt: skip
    patch = dora or spec.family == "lumina2"
    model = _denoiser(graph, spec, settings, files, loras or {}, patch)
    vae = graph.add("vae", "VAELoader", vae_name=files["vae"])
    positive, negative = _texts(graph, recipe, spec, settings, files)
    size: dict[str, Any] = {"width": settings.width, "height": settings.height, "batch_size": 1}
    if spec.kind == "video":
        size["length"] = settings.num_frames
    if recipe.latent == "Wan22ImageToVideoLatent":
        size["vae"] = vae
    if recipe.latent in ("WanImageToVideo", "LoraDriftFirstFrame"):
        given = {"positive": positive, "negative": negative, "vae": vae}
        positive, negative, latent = _first_frame(graph, recipe, spec, settings, files, given)
    else:
        if settings.control:
            positive = _reference(graph, spec, settings, vae, positive)
        latent = graph.add("latent", recipe.latent, **size)
    guider = _guider(graph, recipe, spec, settings, model, positive, negative)
    sampler, sigmas = _steps(graph, recipe, spec, settings)
    sample = graph.add(
        "sample",
        "SamplerCustomAdvanced",
        noise=graph.add("noise", "RandomNoise", noise_seed=settings.seed),
        guider=guider,
        sampler=sampler,
        sigmas=sigmas,
        latent_image=latent,
    )
    picture = graph.add("decode", "VAEDecode", samples=sample, vae=vae)
    if spec.kind == "video":
        video = graph.add("video", "CreateVideo", images=picture, fps=settings.fps)
        graph.add("save", "SaveVideo", video=video, filename_prefix=spec.id, format="auto", codec="auto")
    else:
        graph.add("save", "SaveImage", images=picture, filename_prefix=spec.id)
    return numbered(graph.nodes)


def _denoiser(
    graph: Builder, spec: ModelSpec, settings: Settings, files: Mapping[str, str], loras: Mapping[str, str], patch: bool
) -> Link:
    """`patch`: do LoRAs need the pack's node?"""

    def loaded(name: str, expert: str) -> Link:
        model = graph.add(name, "UNETLoader", unet_name=files[name], weight_dtype="default")
        if expert not in loras:
            return model
        if patch:
            lora = {"lora_name": loras[expert], "strength": settings.multiplier, "like": spec.id}
            return graph.add("lora", "LoraDriftPatch", model=model, **lora)
        lora = {"lora_name": loras[expert], "strength_model": settings.multiplier}
        return graph.add(f"lora {expert}".strip(), "LoraLoaderModelOnly", model=model, **lora)

    if "high" not in files:
        model = loaded("denoiser", "")
        return graph.add("blank", "LoraDriftBlank", model=model, like=spec.id) if spec.id in BLANK else model
    experts = {expert: loaded(expert, expert) for expert in ("high", "low")}
    return graph.add("experts", "LoraDriftExperts", **experts, like=spec.id)


def _steps(graph: Builder, recipe: Recipe, spec: ModelSpec, settings: Settings) -> tuple[Link, Link]:
    """Sampler and sigmas."""
    size = {"steps": settings.steps, "width": settings.width, "height": settings.height}
    if recipe.sampler == "pack":
        sampler = graph.add("sampler", "LoraDriftSampler", like=spec.id, **size)
        return sampler, ["sampler", 1]
    listed = ", ".join(f"{sigma:.9f}" for sigma in schedule.sigmas(spec, **size))
    return graph.add("sampler", "KSamplerSelect", sampler_name=recipe.sampler), graph.add(
        "sigmas", "ManualSigmas", sigmas=listed
    )


def _texts(
    graph: Builder, recipe: Recipe, spec: ModelSpec, settings: Settings, files: Mapping[str, str]
) -> tuple[Link, Link]:
    """Both prompts; of a model whose guidance is an input, the positive one twice, with its guidance."""
    one = len(recipe.encoders) == 1
    named = {f"clip_name{'' if one else i}": files[part] for i, part in enumerate(recipe.encoders, 1)}
    clip = graph.add("encoder", "CLIPLoader" if one else "DualCLIPLoader", **named, type=recipe.kind)
    if recipe.t5_length:
        clip = graph.add("t5", "T5TokenizerOptions", clip=clip, min_padding=0, min_length=recipe.t5_length)

    def read(name: str, text: str) -> Link:
        if recipe.text == "pack":
            return graph.add(name, "LoraDriftText", text=text, clip=clip, like=spec.id)
        return graph.add(name, "CLIPTextEncode", text=recipe.template.format(escaped(text)), clip=clip)

    positive = read("positive", settings.prompt)
    if spec.guidance == "embedded":
        guided = graph.add("guidance", "FluxGuidance", conditioning=positive, guidance=settings.guidance_scale)
        return guided, guided
    return positive, read("negative", settings.negative_prompt)


def _guider(
    graph: Builder, recipe: Recipe, spec: ModelSpec, settings: Settings, model: Link, positive: Link, negative: Link
) -> Link:
    if spec.guidance == "embedded":
        return graph.add("guider", "BasicGuider", model=model, conditioning=positive)
    guides = spec.guides(settings.guidance_scale)
    if recipe.guidance == "pack" and guides:
        rescale = settings.guidance_rescale
        model = graph.add("guidance", "LoraDriftGuidance", model=model, like=spec.id, rescale=rescale)
    cfg = settings.guidance_scale + recipe.cfg_offset if guides else 1.0
    return graph.add("guider", "CFGGuider", model=model, positive=positive, negative=negative, cfg=cfg)


def _resized(graph: Builder, spec: ModelSpec, settings: Settings) -> Link:
    """The control image in the size in which the model sees it; and behind it, as CLIP does."""
    image = graph.add("picture", "LoadImage", image=Path(settings.control[0]).name)
    size = {"width": settings.asked_width, "height": settings.asked_height}
    return graph.add("resized", "LoraDriftResize", image=image, like=spec.id, **size)


def _reference(graph: Builder, spec: ModelSpec, settings: Settings, vae: Link, positive: Link) -> Link:
    encoded = graph.add("reference", "VAEEncode", pixels=_resized(graph, spec, settings), vae=vae)
    return graph.add("shown", "ReferenceLatent", conditioning=positive, latent=encoded)


def _first_frame(
    graph: Builder,
    recipe: Recipe,
    spec: ModelSpec,
    settings: Settings,
    files: Mapping[str, str],
    given: Mapping[str, Link],
) -> tuple[Link, Link, Link]:
    """Both conditionings with the first frame, and the latents of the video. `given`: positive, negative, vae."""
    more: dict[str, Any] = {**given, "start_image": _resized(graph, spec, settings), "length": settings.num_frames}
    if recipe.latent == "WanImageToVideo":
        vision = graph.add("vision", "CLIPVisionLoader", clip_name=files["clip_vision"])
        seen = graph.add("seen", "CLIPVisionEncode", clip_vision=vision, image=["resized", 1], crop="none")
        more |= {"clip_vision_output": seen, "width": settings.width, "height": settings.height, "batch_size": 1}
    else:
        more |= {"noise_seed": settings.seed}
    graph.add("latent", recipe.latent, **more)
    return ["latent", 0], ["latent", 1], ["latent", 2]


def escaped(prompt: str) -> str:
    """So that ComfyUI reads parentheses as such and not as weights."""
    return prompt.replace("(", "\\(").replace(")", "\\)")


def nodes_of_pack(graph: Graph) -> list[str]:
    """Classes that are not ComfyUI's own."""
    return sorted({node["class_type"] for node in graph.values() if node["class_type"].startswith(PACK)})


SAMPLING = ("scheduler", "guidance", "guidance_offset", "padding_side", "clip_resize", "size_divisor")
"""Fields of a row by which its graph is not another's."""


def check_trainer(spec: ModelSpec, toolkit: str) -> None:
    """Refuse a trainer version that samples this model otherwise than the one whose samples the graph was held to.

    Raises:
        RequestError: says which, and what of it.
    """
    theirs = spec_of(spec.id, nearest(toolkit)) if toolkit else spec
    other = [name for name in SAMPLING if getattr(theirs, name, None) != getattr(spec, name, None)]
    if other:
        raise RequestError(f"{spec.id}: the LoRA was made by ai-toolkit {toolkit}, whose samples have another "
                           f"{', '.join(other)} than those of {TOOLKITS[-1]}, of which the graph is; render it with "
                           "the nodes that `lora-drift comfy` writes without --native")  # fmt: skip


def files_of(graph: Graph) -> dict[str, str]:
    """File of a model -> folder below models/ in which ComfyUI looks for it."""
    folders = {"unet_name": "diffusion_models", "clip_name": "text_encoders", "clip_name1": "text_encoders",
               "clip_name2": "text_encoders", "vae_name": "vae"}  # fmt: skip
    found = {}
    for node in graph.values():
        for name, value in node["inputs"].items():
            if name in folders:
                found[value] = "clip_vision" if node["class_type"] == "CLIPVisionLoader" else folders[name]
    return found
