"""What one row says about a model: everything that changes its picture.

The rows are at the top of their family's file in `pipelines/families/`. A row is read top to bottom in the order of a
render; its numbers are the trainer's, not the model card's, and those of its newest version; `earlier` says what was
otherwise before. What only one family has stands in a subclass of `ModelSpec` in its file. `lora-drift models` is
generated from the rows; tests/test_rows.py changes every field of every row and looks for what becomes of it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

from lora_drift.pipelines.errors import RequestError

TOOLKITS = ("0.7.19", "0.7.20", "0.7.21", "0.7.23", "0.7.24", "0.7.29")
"""Versions of ostris/ai-toolkit whose samples are recorded for every model, oldest first; the last is the default."""
NEWEST = "0.12.26"
"""What the rows describe. All versions from the first of `TOOLKITS` to this one are reproduced: a row says with which
of them what changed (`ModelSpec.at`)."""
NoiseStream = Literal["torch-2.11", "torch-2.13"]
"""Which noise a seed gives in bfloat16: that of torch <= 2.11, or of >= 2.12 (`lora_drift.pipelines.noise`)."""
NOISE_STREAMS: tuple[NoiseStream, ...] = get_args(NoiseStream)
ResizeOrder = Literal["pillow-12", "pillow-13"]
"""Which pass of a resize goes first: as in Pillow <= 12, or >= 13 (`lora_drift.pipelines.resizing`)."""
RESIZE_ORDERS: tuple[ResizeOrder, ...] = get_args(ResizeOrder)
RESIZE_ORDER: ResizeOrder = "pillow-13"
"""Default: the newest Pillow, which a trainer that is installed today gets: its requirements name no version."""
VaeNoise = Literal["device", "cpu"]
"""Whose generator draws what the trainer's code names none for (samples of a VAE's posterior): that of the device
on which the VAE is, as the trainer does; or the CPU's, as a trainer on a CPU would have."""
VAE_NOISES: tuple[VaeNoise, ...] = get_args(VaeNoise)
Tokenization = Literal["transformers-4.57", "transformers-5.5"]
"""Which transformers a trainer reads prompts with (`lora_drift.pipelines.text`): 4.57.3 up to 0.9.0, 5.5.3 since."""
Guidance = Literal["cfg", "cfg_always", "cfg_above_zero", "cfg_above_one", "cfg_without_text", "embedded"]
GUIDED_ABOVE: Mapping[Guidance, float] = {
    "cfg": 1.0,
    "cfg_always": float("-inf"),
    "cfg_above_zero": 0.0,
    "cfg_above_one": 1.0,
    "cfg_without_text": 1.0,
    "embedded": float("inf"),
}
"""Above which guidance scale there is a second pass."""
Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
"""How Pillow resizes a picture, or torch a tensor."""
Posterior = Literal["mode", "sample"]
"""What is taken of the distribution into which a VAE encodes a control image."""
Attention = Literal["eager", "sdpa", "sdpa_with_mask"]
"""Which attention of transformers an encoder runs on. sdpa_with_mask: SDPA that is handed the causal mask, as in
transformers 4.57; 5 tells it that it is causal, for which GPUs have another kernel."""


def age(version: str) -> tuple[int, ...]:
    """By which versions of the trainer are ordered ("0.10.2" comes after "0.9.14").

    Raises:
        ValueError: it is not numbers with dots between.
    """
    return tuple(int(part) for part in version.split("."))


def nearest(toolkit: str) -> str:
    """The version as which to render what this one made: itself if it is reproduced, else the oldest or the newest that
    is; the default for what is no version."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})+", toolkit) is None:
        return TOOLKITS[-1]
    return min(max(toolkit, TOOLKITS[0], key=age), NEWEST, key=age)


def reproduced(toolkit: str) -> bool:
    """Is this a trainer version whose samples are reproduced?"""
    return nearest(toolkit) == toolkit


def noise_stream_at(toolkit: str) -> NoiseStream:
    """The stream of the torch that this trainer's README installs: 2.7.0 or 2.9.1 up to 0.11.1, then 2.13."""
    return "torch-2.11" if age(toolkit) < age("0.11.2") else "torch-2.13"


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
    """A class and the config *in effect* while the trainer samples."""

    cls: str
    """ "diffusers.NAME" or "ours.NAME" (`schedulers.py`)."""
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The class without where it comes from."""
        return self.cls.partition(".")[2]


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
    spared: tuple[str, ...] = ()
    """Patterns of the denoiser's module names that the trainer's model class never quantises
    (`get_quantization_exclude_modules`)."""
    layer_by_layer: bool = True
    """Do float8 and the uints see each layer by itself? Else what is spared is quantised all the same, as part of what
    holds it."""


@dataclass(frozen=True)
class Earlier:
    """What trainer versions before one did otherwise."""

    before: str
    """The first version that did it as the row says."""
    why: str
    """What changed, where, and what it does to the picture."""
    fields: Mapping[str, Any]
    """The row's fields as they were; "quantizes.spared" is that part of `quantizes`."""


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
    """cfg: two passes above 1. cfg_always: two passes at any scale. cfg_above_zero, cfg_above_one: two passes above
    that, `pos + g (pos - neg)`. cfg_without_text: two passes above 1, of which the second reads no text; the negative
    prompt is ignored. embedded: one pass, the scale is an input and the negative prompt is ignored."""
    max_sequence_length: int | None
    """Text tokens, beyond which a prompt is cut; None where nothing is."""
    components: Mapping[str, str] = field(default_factory=dict)
    """Component -> hub id, for what the trainer takes from elsewhere."""
    encoder_prefixes: Mapping[str, str] = field(default_factory=dict)
    """Prefix under which the trainer saves LoRA keys of a text encoder (`train_text_encoder`) -> that encoder. Module
    paths with underscores for dots follow. Empty where LoRAs on text encoders are not applied."""
    encoder_attention: Mapping[str, Attention] = field(default_factory=dict)
    """Text encoder -> the attention of the trainer's transformers, where other releases choose another. They round
    otherwise: 0.6 % of T5's embeddings in bfloat16."""
    tokenization: Tokenization = "transformers-5.5"
    slow_tokenizers: tuple[str, ...] = ()
    """T5 or Qwen tokenizers that a trainer with transformers 4 loads as its Python class, not from `tokenizer.json`
    (`lora_drift.pipelines.text`). CLIP's always are."""
    lora_mode: Literal["merged", "live"] = "merged"
    """How the trainer applies the LoRA while sampling an unquantised job whose samples share one multiplier."""
    quantizes: Quantizes | None = None
    """None: the trainer ignores the job's `quantize`, except that the LoRA is then live."""
    smallest_side: int = 64
    """Sides below become this (the trainer's rule for every model, as the next)."""
    asked_divisor: int = 8
    """Width and height are floored to this first (see `size_divisor`)."""
    size_rule: Literal["floor", "refuse"] = "floor"
    controls: tuple[int, int] = (0, 0)
    """Fewest and most control images."""
    refuses_control: bool = False
    """The trainer stops at a job's `ctrl_img`. (Of other models without control images it passes over that.)"""
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
    why_ours: str = ""
    """Why the denoising loop or a model class is written out here."""
    requires: tuple[str, ...] = ()
    """Python packages without which this model cannot be rendered as the trainer does ("ftfy"), or of which it needs a
    newer release than the project does ("diffusers>=0.38"); checked before weights load."""
    quirks: tuple[str, ...] = ()
    """What looks like a mistake of ours: the trainer does it, so it is reproduced."""
    source: tuple[str, ...] = ()
    """Trainer files that this row and its family module follow."""
    since: str = TOOLKITS[0]
    """First version that has the model (of those from `TOOLKITS[0]` on)."""
    earlier: tuple[Earlier, ...] = ()
    as_intended: Mapping[str, Any] = field(default_factory=dict)
    """Fields with other values than the trainer's: what they would be without its mistakes (`intended`)."""
    toolkit: str = NEWEST
    """The version that this row describes (see `at`)."""

    @property
    def default_toolkit(self) -> str:
        """The version as which it is rendered if nobody says another: the last of `TOOLKITS`, or `NEWEST` where that
        one lacks the model."""
        return NEWEST if age(self.since) > age(TOOLKITS[-1]) else TOOLKITS[-1]

    @property
    def adapted(self) -> tuple[str, ...]:
        """The components that a LoRA may change."""
        return (*self.denoisers.values(), *self.encoder_prefixes.values())

    @property
    def own(self) -> dict[str, Any]:
        """The fields that only this family has."""
        shared = {f.name for f in fields(ModelSpec)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in shared}

    @property
    def changes(self) -> list[Earlier]:
        """`earlier`, the newest first."""
        return sorted(self.earlier, key=lambda change: age(change.before), reverse=True)

    def guides(self, scale: float) -> bool:
        """Is there a second pass at this guidance scale?"""
        return scale > GUIDED_ABOVE[self.guidance]

    def reads_negative(self, scale: float) -> bool:
        """Does that pass read the negative prompt?"""
        return self.guides(scale) and self.guidance != "cfg_without_text"

    def pipeline_scale(self, scale: float) -> float:
        """The scale that a Diffusers pipeline is told. Where it must not guide, that is one at which none does:
        releases differ in their thresholds."""
        if self.guidance == "embedded" or self.guides(scale):
            return scale
        return 1.0 if self.guidance == "cfg" else 0.0

    def intended(self: "Spec") -> "Spec":
        """The row without the trainer's mistakes; no sample looks like what it renders.

        Raises:
            RequestError: the trainer makes none that is known.
        """
        spec = replace(self, **self.as_intended)
        if spec == self:
            raise RequestError(f"as_intended: trainer {self.toolkit} renders {self.id} as it was meant; leave it out")
        return spec

    def at(self: "Spec", toolkit: str) -> "Spec":
        """The row as it was at another trainer version, not older than `since`."""
        spec = replace(self, toolkit=toolkit)
        for change in self.changes:
            if age(toolkit) < age(change.before):
                spec = replace(spec, **{name: value for name, value in change.fields.items() if "." not in name})
                for name, value in change.fields.items():
                    whole, _, part = name.partition(".")
                    if part:
                        spec = replace(spec, **{whole: _with(getattr(spec, whole), part, value)})
        return spec


def _with(whole: Any, part: str, value: Any) -> Any:
    """A mapping or a dataclass with another value for a part."""
    return {**whole, part: value} if isinstance(whole, Mapping) else replace(whole, **{part: value})


Spec = TypeVar("Spec", bound=ModelSpec)

DEFAULTS = ("width", "height", "steps", "guidance_scale", "num_frames", "fps")
"""Fields that a request says itself, or takes from the row."""
INFORMS = ("id", "title", "since", "why_ours", "requires", "quirks", "source", "earlier", "as_intended",
           "toolkit")  # fmt: skip
"""Fields that change no picture: names, words for the reader, which trainer and packages have the model, and what `at`
makes other rows from. Of every other field something becomes (tests/test_rows.py)."""

TOKENIZERS = Earlier(
    before="0.9.1",
    why="Prompts were read with transformers 4.57 (and ftfy): some signs made other tokens (docs/text.md).",
    fields={"tokenization": "transformers-4.57"},
)
STEPS = Earlier(before="0.9.0", why="The trainer's UI offered 25 steps.", fields={"steps": 25})
LAYER_BY_LAYER = Earlier(
    before="0.10.24",
    why="float8 and the uints also quantised what was to be left alone, with whatever held it "
    "(toolkit/util/quantize.py).",
    fields={"quantizes.layer_by_layer": False},
)
"""Of most rows."""


def clip_with_mask(*encoders: str) -> Earlier:
    """These text encoders are CLIP's."""
    return Earlier(
        before="0.9.1",
        why="CLIP's attention was handed the causal mask, as in transformers 4.57: another kernel on GPUs.",
        fields={f"encoder_attention.{name}": "sdpa_with_mask" for name in encoders},
    )


LEGACY = ("toolkit/stable_diffusion_model.py", "toolkit/sampler.py", "toolkit/train_tools.py")
"""The trainer's older model class, which renders sd15, sdxl, flux, flex1 and lumina2."""
