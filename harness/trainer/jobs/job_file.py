"""The sections of a job file that touch sampling, with the trainer's own default for every field that is left out.

The names are the trainer's (toolkit/config_modules.py). Fields that are not here stay in `model_extra`, and
`reader.py` says of each what becomes of it.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

DTYPES = {
    **dict.fromkeys(("float", "fp32", "single", "float32"), "float32"),
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp16", "half", "float16"), "float16"),
}
"""The trainer's spellings (toolkit/train_tools.py get_torch_dtype)."""


def _dtype(value: object) -> object:
    return DTYPES.get(value, value) if isinstance(value, str) else value


def _trained_dtype(value: object) -> object:
    if not isinstance(value, str) or value not in DTYPES:
        raise ValueError(f"{value!r} is no dtype of a job; use {', '.join(DTYPES)}")
    return DTYPES[value]


def _multiplier(value: object) -> object:
    """What is no number counts as 1 (SampleItem)."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return 1.0
    return value


Dtype = Annotated[str, BeforeValidator(_dtype)]


class Section(BaseModel):
    """A mapping of the job file; unknown fields are kept, and one that is null is as one that is left out."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value is not None} if type(values) is dict else values


class SampleItem(Section):
    """One entry of `samples:`; None takes the value of `sample:`."""

    prompt: str | None = None
    width: int | None = None
    height: int | None = None
    neg: str | bool | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    sample_steps: PositiveInt | None = None
    num_frames: PositiveInt | None = None
    fps: PositiveInt | None = None
    network_multiplier: Annotated[float | None, BeforeValidator(_multiplier)] = None
    ctrl_img: str | None = None
    ctrl_idx: int = 0
    ctrl_img_1: str | None = None
    ctrl_img_2: str | None = None
    ctrl_img_3: str | None = None


class Sampling(Section):
    """`sample:`"""

    sampler: str = "ddpm"
    width: int = 512
    height: int = 512
    neg: str | bool = False
    """Anything but a text is none."""
    seed: int = 0
    """-1 draws one, before the flags of a prompt are read (GenerateImageConfig)."""
    walk_seed: bool = False
    guidance_scale: float = 7
    sample_steps: PositiveInt = 20
    network_multiplier: Annotated[float, BeforeValidator(_multiplier)] = 1.0
    guidance_rescale: float = 0.0
    format: str = "jpg"
    """Whatever it says, several frames become an animated WebP (SampleConfig)."""
    num_frames: PositiveInt = 1
    fps: PositiveInt = 16
    do_cfg_norm: bool = False
    prompts: list[str] = Field(default_factory=list)
    samples: list[SampleItem] | None = None

    @property
    def items(self) -> list[SampleItem]:
        """What is rendered at each sampling event, in order: `samples`, or the older `prompts`."""
        listed = self.samples if self.samples is not None else [SampleItem(prompt=p) for p in self.prompts]
        return [item for item in listed if item.prompt is not None]


class Model(Section):
    """`model:`"""

    name_or_path: str = ""
    arch: str | None = None
    """None: as older flags (is_flux, ...) say, which stay in `model_extra`."""
    quantize: bool = False
    quantize_te: bool | None = None
    """None: as `quantize`."""
    qtype: str = "qfloat8"
    """`TYPE|FILE` also names an accuracy-recovery adapter. Read if something is quantised."""
    qtype_te: str = "qfloat8"
    accuracy_recovery_adapter: str | None = None
    quantize_kwargs: dict[str, Any] = Field(default_factory=dict)
    low_vram: bool = False
    layer_offloading: bool | None = None
    """None: as `auto_memory`, its older name."""
    auto_memory: bool = False
    te_name_or_path: str | None = None
    extras_name_or_path: str | None = None
    te_dtype: Dtype | None = None
    vae_dtype: Dtype | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def offloads(self) -> bool:
        return self.auto_memory if self.layer_offloading is None else self.layer_offloading


class Ema(Section):
    """`train.ema_config:`. The file holds the averaged weights, and the trainer samples with them."""

    use_ema: bool = False


class Train(Section):
    """`train:`"""

    steps: int = 1000
    dtype: Annotated[str, BeforeValidator(_trained_dtype)] = "float32"
    ema_config: Ema | None = None
    train_text_encoder: bool = False
    unload_text_encoder: bool = False
    cache_text_embeddings: bool = False


class Network(Section):
    """`network:`"""

    type: str = "lora"
    pretrained_lora_path: str | None = None


class Save(Section):
    """`save:`"""

    dtype: Dtype = "float16"


class Dataset(Section):
    """One of `datasets:`; nothing else of it touches samples."""

    cache_text_embeddings: bool = False


class Process(Section):
    """`config.process[0]:`"""

    type: str
    trigger_word: str | None = None
    model: Model
    sample: Sampling | None = None
    """None: it does not sample."""
    first_sample: Sampling | None = None
    train: Train = Train()
    network: Network | None = None
    save: Save = Save()
    datasets: list[Dataset] | None = None

    @property
    def caches_prompts(self) -> bool:
        """Prompts are encoded once, before the trigger word is put in (SDTrainer.py cache_sample_prompts)."""
        cached = any(dataset.cache_text_embeddings for dataset in self.datasets or ())
        return self.train.unload_text_encoder or self.train.cache_text_embeddings or cached


class Config(Section):
    """`config:`. Of the processes one is read (`reader.py`), so the others may be of any kind."""

    name: str = Field(min_length=1)
    process: list[dict[str, Any]] = Field(min_length=1)


class JobFile(Section):
    """The whole file."""

    job: str
    config: Config
