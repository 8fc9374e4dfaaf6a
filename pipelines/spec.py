"""One table: everything that changes a model's picture. A row is read top to bottom in the order of a render.

The numbers are the trainer's, not the model card's. `docs/models.md` and `GET /v1/models` are generated from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

TRAINER = "ostris/ai-toolkit 0.7.29"


@dataclass(frozen=True)
class Scheduler:
    """A class (of `pipelines.schedulers`, else of Diffusers) and the config *in effect* while the trainer samples."""

    cls: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    """One model id."""

    id: str
    title: str
    kind: Literal["image", "video"]
    family: str
    """Module in `pipelines.families` that renders it."""
    pipeline: str
    """Diffusers pipeline class."""
    base: str
    """Hub id of the base model; `--base` overrides it."""
    components: Mapping[str, str]
    """Component -> hub id, for what the trainer takes from elsewhere."""
    denoiser: Literal["unet", "transformer"]
    """Component that LoRAs change."""
    lora_prefixes: tuple[str, ...]
    """Prefixes under which the trainer saves (or has saved) this model's LoRA keys."""
    lora_names: Literal["diffusers", "kohya", "wan"]
    """Naming of the keys behind the prefix."""
    lora_mode: Literal["merged", "live"]
    """How the trainer applies the LoRA while sampling an unquantised job whose samples share one multiplier."""
    scheduler: Scheduler
    size_divisor: int
    """Width and height after the trainer's floor to 8: floored to this, or refused (`size_rule`)."""
    size_rule: Literal["floor", "refuse"]
    width: int
    height: int
    steps: int
    guidance_scale: float
    """Width to guidance_scale: defaults, as the trainer's UI writes them."""
    guidance: Literal["cfg", "cfg_above_zero", "embedded"]
    """cfg: two passes above 1. cfg_above_zero: two passes above 0, `pos + g (pos - neg)`. embedded: one pass,
    the scale is an input and the negative prompt is ignored."""
    max_sequence_length: int
    num_frames: int = 1
    """Default; 1 for image models."""
    fps: int = 16
    frame_step: int = 1
    """A frame count that is not `frame_step * n + 1` becomes `frames // frame_step * frame_step + 1` (8 -> 9)."""
    quirks: tuple[str, ...] = ()
    """What a stranger would take for a mistake of ours: the trainer does it, so we do."""
    source: tuple[str, ...] = ()
    """Trainer files that this row and its family module follow."""


FLUX_SCHEDULER = Scheduler(
    "FlowMatchEulerDiscreteScheduler",
    {
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
    },
)
ZIMAGE_SCHEDULER = Scheduler(
    "FlowMatchEulerToZero", {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}
)
WAN_SCHEDULER = Scheduler(
    "UniPCMultistepScheduler",
    {
        "flow_shift": 3.0,
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "predict_x0": True,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "timestep_spacing": "linspace",
        "use_flow_sigmas": True,
    },
)


def ddpm(steps_offset: int) -> Scheduler:
    return Scheduler(
        "DDPMScheduler",
        {
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "steps_offset": steps_offset,
            "timestep_spacing": "leading",
        },
    )


LEGACY = ("toolkit/stable_diffusion_model.py", "toolkit/sampler.py", "toolkit/train_tools.py")
"""The trainer's older model class, which renders sd15, sdxl and flux."""

_ROWS = (
    ModelSpec(
        id="sd15",
        title="Stable Diffusion 1.5",
        kind="image",
        family="sd",
        pipeline="StableDiffusionPipeline",
        base="stable-diffusion-v1-5/stable-diffusion-v1-5",
        components={},
        denoiser="unet",
        lora_prefixes=("lora_unet_",),
        lora_names="kohya",
        lora_mode="merged",
        scheduler=ddpm(steps_offset=1),
        size_divisor=8,
        size_rule="floor",
        width=512,
        height=512,
        steps=25,
        guidance_scale=6.0,
        guidance="cfg",
        max_sequence_length=77,
        quirks=(
            "The trainer asks for steps_offset 0, but hands its scheduler to the constructor of "
            "StableDiffusionPipeline, which rewrites it to 1: every timestep is one later.",
            "DDPM draws fresh noise in every step but the last, from the same CPU generator.",
        ),
        source=LEGACY,
    ),
    ModelSpec(
        id="sdxl",
        title="Stable Diffusion XL",
        kind="image",
        family="sd",
        pipeline="StableDiffusionXLPipeline",
        base="stabilityai/stable-diffusion-xl-base-1.0",
        components={},
        denoiser="unet",
        lora_prefixes=("lora_unet_",),
        lora_names="kohya",
        lora_mode="merged",
        scheduler=ddpm(steps_offset=0),
        size_divisor=8,
        size_rule="floor",
        width=1024,
        height=1024,
        steps=25,
        guidance_scale=6.0,
        guidance="cfg",
        max_sequence_length=77,
        quirks=(
            "An empty negative prompt is encoded like any other; stock Diffusers would zero its embeddings.",
            "A negative prompt given by the flag --n reaches the first text encoder only; the second keeps the one "
            "from the sample's `neg` field. --p2 and --n2 are parsed and then overwritten.",
            "No watermark, whatever is installed.",
        ),
        source=(*LEGACY, "toolkit/config_modules.py"),
    ),
    ModelSpec(
        id="flux",
        title="FLUX.1 dev",
        kind="image",
        family="flux",
        pipeline="FluxPipeline",
        base="black-forest-labs/FLUX.1-dev",
        components={},
        denoiser="transformer",
        lora_prefixes=("transformer.",),
        lora_names="diffusers",
        lora_mode="merged",
        scheduler=FLUX_SCHEDULER,
        size_divisor=16,
        size_rule="floor",
        width=1024,
        height=1024,
        steps=25,
        guidance_scale=4.0,
        guidance="embedded",
        max_sequence_length=512,
        quirks=("The negative prompt is encoded and then ignored.",),
        source=LEGACY,
    ),
    ModelSpec(
        id="zimage_turbo",
        title="Z-Image Turbo",
        kind="image",
        family="zimage",
        pipeline="ZImagePipeline",
        base="Tongyi-MAI/Z-Image-Turbo",
        components={},
        denoiser="transformer",
        lora_prefixes=("diffusion_model.", "transformer."),
        lora_names="diffusers",
        lora_mode="merged",
        scheduler=ZIMAGE_SCHEDULER,
        size_divisor=32,
        size_rule="floor",
        width=1024,
        height=1024,
        steps=8,
        guidance_scale=1.0,
        guidance="cfg_above_zero",
        max_sequence_length=512,
        quirks=(
            "Guidance g means pos + g (pos - neg), and runs for every g > 0: the default of 1 is a conventional 2.",
            "Sigmas run from 1 to 0 before the shift, so that the last step changes nothing: n steps are n - 1. "
            "Newer Diffusers releases lay out n real steps (see pipelines/schedulers.py).",
            "The size is floored to 32, although the model could do 16.",
            "The training adapter of the UI's default job is merged for training and subtracted again for sampling; "
            "what remains is one rounding of the weights (nothing in float32).",
        ),
        source=("extensions_built_in/diffusion_models/z_image/z_image.py",),
    ),
    ModelSpec(
        id="wan21_1b",
        title="Wan 2.1 T2V 1.3B",
        kind="video",
        family="wan",
        pipeline="WanPipeline",
        base="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        components={"text_encoder": "ai-toolkit/umt5_xxl_encoder", "tokenizer": "ai-toolkit/umt5_xxl_encoder"},
        denoiser="transformer",
        lora_prefixes=("diffusion_model.", "transformer."),
        lora_names="wan",
        lora_mode="merged",
        scheduler=WAN_SCHEDULER,
        size_divisor=16,
        size_rule="refuse",
        width=1024,
        height=1024,
        steps=25,
        guidance_scale=4.0,
        guidance="cfg",
        max_sequence_length=512,
        num_frames=41,
        fps=16,
        frame_step=4,
        quirks=(
            "Trainer versions before 0.11 sample Wan with UniPC; the saved flow_shift of other Wan repositories "
            "(5.0) is not used.",
            "A size that is not a multiple of 16 stops the trainer; here it is refused before anything loads.",
            "The frames are saved as a lossy animated WebP by the trainer; the golden holds them losslessly.",
        ),
        source=("toolkit/models/wan21/wan21.py", "toolkit/models/wan21/wan_lora_convert.py"),
    ),
)

MODELS: Mapping[str, ModelSpec] = {row.id: row for row in _ROWS}
