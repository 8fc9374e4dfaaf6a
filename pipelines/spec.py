"""What one row of the table of models says: everything that changes a model's picture.

The rows are in `pipelines/table/`, a module per family. A row is read top to bottom in the order of a render; its
numbers are the trainer's, not the model card's, and those of its newest version; `earlier` says what was otherwise
before. `lora-drift models` is generated from the rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

TOOLKITS = ("0.7.19", "0.7.20", "0.7.21", "0.7.23", "0.7.24", "0.7.29")
"""Versions of ostris/ai-toolkit whose samples are reproduced, oldest first."""
NoiseStream = Literal["torch-2.11", "torch-2.13"]
"""Which noise a seed gives in bfloat16: that of torch <= 2.11, or of >= 2.12 (`lora_drift.pipelines.noise`)."""
NOISE_STREAMS: tuple[NoiseStream, ...] = get_args(NoiseStream)
NOISE_STREAM: NoiseStream = "torch-2.11"
"""Default: the noise of torch 2.7.0, which every supported trainer's README installs (their Docker image: 2.9.1)."""
ResizeOrder = Literal["pillow-12", "pillow-13"]
"""Which pass of a resize goes first: as in Pillow <= 12, or >= 13 (`lora_drift.pipelines.resizing`)."""
RESIZE_ORDERS: tuple[ResizeOrder, ...] = get_args(ResizeOrder)
RESIZE_ORDER: ResizeOrder = "pillow-13"
"""Default: the newest Pillow, which a trainer that is installed today gets: its requirements name no version."""
Tokenization = Literal["transformers-4.57", "transformers-5.5"]
"""Which transformers a trainer reads prompts with (`lora_drift.pipelines.text`): 4.57.3 up to 0.9.0, 5.5.3 since."""
Guidance = Literal["cfg", "cfg_above_zero", "cfg_above_one", "embedded"]
GUIDED_ABOVE: Mapping[Guidance, float] = {
    "cfg": 1.0,
    "cfg_above_zero": 0.0,
    "cfg_above_one": 1.0,
    "embedded": float("inf"),
}
"""Above which guidance scale the negative prompt is read."""


def noise_stream_of(torch_version: str) -> NoiseStream:
    """The stream that this torch itself draws."""
    from packaging.version import Version

    return "torch-2.11" if Version(torch_version) < Version("2.12") else "torch-2.13"


def resize_order_of(pillow_version: str) -> ResizeOrder:
    """The order that this Pillow itself has."""
    from packaging.version import Version

    return "pillow-12" if Version(pillow_version) < Version("13") else "pillow-13"


@dataclass(frozen=True)
class Scheduler:
    """A class (of `schedulers.py`, else of Diffusers) and the config *in effect* while the trainer samples."""

    cls: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Quantizes:
    """How the trainer quantises a model, if a job asks for it (`lora_drift.pipelines.quantize`)."""

    encoders: tuple[str, ...] = ("text_encoder",)
    """Components of `quantize_te`."""
    encoder_qtype: Literal["qtype", "qtype_te"] = "qtype"
    """Which of the job's fields says how they are quantised. For most it is the denoiser's."""
    reads: Literal["adapter", "exclude", "neither"] = "adapter"
    """What else of the job's is read here: an accuracy-recovery adapter, or names to exclude."""
    by_default: tuple[bool, bool] = (True, True)
    """`quantize` and `quantize_te`, as the trainer's UI writes them for a new job (with qfloat8)."""


@dataclass(frozen=True)
class Earlier:
    """What trainer versions before one did otherwise."""

    before: str
    """Member of `TOOLKITS`."""
    why: str
    """What changed, where, and what it does to the picture."""
    fields: Mapping[str, Any]
    """The row's fields as they were."""


@dataclass(frozen=True)
class ModelSpec:
    """One model id."""

    id: str
    title: str
    kind: Literal["image", "edit", "video"]
    family: str
    """Module in `lora_drift.pipelines.families` that renders it."""
    pipeline: str
    """Diffusers pipeline class, or "ours" where Diffusers has none that can be made to match (see `why_ours`)."""
    base: str
    """Hub id of the base model; `--base` overrides it."""
    denoisers: Mapping[str, str]
    """What LoRAs change. One expert: {"": component}. Two: {"high": component, "low": component}."""
    lora_prefixes: tuple[str, ...]
    """Prefixes under which the trainer saves (or has saved) this model's LoRA keys. One that ends in "_" is followed by
    module paths with underscores for dots."""
    scheduler: Scheduler
    size_divisor: int
    """Width and height after the trainer's floor to 8: floored to this, or refused (`size_rule`)."""
    width: int
    height: int
    steps: int
    guidance_scale: float
    """Width to guidance_scale: defaults, as the trainer's UI writes them."""
    guidance: Guidance
    """cfg: two passes above 1. cfg_above_zero, cfg_above_one: two passes above that, `pos + g (pos - neg)`. embedded:
    one pass, the scale is an input and the negative prompt is ignored."""
    max_sequence_length: int
    """Text tokens, where the family's code takes it from here."""
    components: Mapping[str, str] = field(default_factory=dict)
    """Component -> hub id, for what the trainer takes from elsewhere."""
    tokenization: Tokenization = "transformers-4.57"
    slow_tokenizers: tuple[str, ...] = ()
    """T5 or Qwen tokenizers that the trainer loads as transformers 4's Python class, not from `tokenizer.json`
    (`lora_drift.pipelines.text`). CLIP's always are."""
    lora_mode: Literal["merged", "live"] = "merged"
    """How the trainer applies the LoRA while sampling an unquantised job whose samples share one multiplier."""
    quantizes: Quantizes | None = None
    """None: the trainer ignores the job's `quantize`, except that the LoRA is then live."""
    size_rule: Literal["floor", "refuse"] = "floor"
    controls: tuple[int, int] = (0, 0)
    """Fewest and most control images."""
    num_frames: int = 1
    """Default; 1 for image models."""
    fps: int = 16
    frame_step: int = 1
    """A frame count that is not `frame_step * n + 1` becomes `frames // frame_step * frame_step + 1` (8 -> 9)."""
    frames_floored: bool = False
    """... or, if this is set, the next smaller `frame_step * n + 1` (16 -> 9)."""
    fewest_steps: int = 1
    most_steps: int = 1000
    """The trainer fails beyond this: UniPC, for example, no longer tells the first two (rounded) timesteps apart."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Numbers that only this family has; its module says what they mean."""
    why_ours: str = ""
    """Why the denoising loop or a model class is written out here."""
    requires: tuple[str, ...] = ()
    """Python packages that this model needs besides those of the project, or newer than the project does
    ("diffusers>=0.38"); checked before weights load."""
    quirks: tuple[str, ...] = ()
    """What looks like a mistake of ours: the trainer does it, so it is reproduced."""
    source: tuple[str, ...] = ()
    """Trainer files that this row and its family module follow."""
    since: str = TOOLKITS[0]
    """First of `TOOLKITS` that has the model."""
    earlier: tuple[Earlier, ...] = ()
    toolkit: str = TOOLKITS[-1]
    """The version that this row describes (see `at`)."""

    def at(self, toolkit: str) -> "ModelSpec":
        """The row as it was at another trainer version (a member of `TOOLKITS`, not older than `since`)."""
        age = TOOLKITS.index
        spec = replace(self, toolkit=toolkit)
        for change in self.earlier:
            if age(toolkit) < age(change.before):
                spec = replace(spec, **change.fields)
        return spec


LEGACY = ("toolkit/stable_diffusion_model.py", "toolkit/sampler.py", "toolkit/train_tools.py")
"""The trainer's older model class, which renders sd15, sdxl, flux, flex1 and lumina2."""
