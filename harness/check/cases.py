"""Case files: one YAML file is one picture that the trainer rendered and we must render again.

The field names under `sample:` and `lora.network:` are the trainer's own (`SampleConfig`/`SampleItem` and
`NetworkConfig` in toolkit/config_modules.py), so a case reads like the job file that a user has.
"""

import json
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from lora_drift.harness import tags
from lora_drift.harness.paths import ROOT, elsewhere
from lora_drift.harness.tags import TagError

CASES = ROOT / "cases"
NARROWED = Path(__file__).parent / "narrowed_before.yaml"
ASSETS = CASES / "assets"
Tier = Literal["mini", "full"]
"""On the mini hub, or on the real weights."""


class CaseError(ValueError):
    """A case file is wrong; the message names the file, the field and the remedy."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(_Strict):
    """The trainer's `network:` section (toolkit/config_modules.py, NetworkConfig)."""

    type: Literal["lora", "lokr", "dora"] = "lora"
    linear: PositiveInt = 4
    linear_alpha: float | None = None
    conv: PositiveInt | None = None
    conv_alpha: float | None = None
    lokr_full_rank: bool | None = None
    lokr_factor: int | None = None
    old_lokr_format: bool | None = None
    transformer_only: bool | None = None
    split_multistage_loras: bool | None = None
    network_kwargs: dict[str, Any] | None = None


class Lora(_Strict):
    """A LoRA made while recording, by the trainer's own network class and `save_weights`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="cases of one model share a LoRA by its name")
    network: Network = Network()
    save_dtype: Literal["float16", "bf16", "float32"] = "float16"
    text_encoder: bool = False
    """It changes the text encoders, too (`train.train_text_encoder`; sd15 and sdxl only)."""
    mode: Literal["merged", "live"] = "merged"
    """`live` puts a second sample with another multiplier in the job, which makes the trainer keep the LoRA
    out of the weights (toolkit/models/base_model.py, generate_images: `unique_network_weights`)."""


def _asset(name: str, info: ValidationInfo) -> str:
    home: Path = (info.context or {}).get("assets", ASSETS)
    path = home / name
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in home.iterdir())) if home.is_dir() else "none"
        raise ValueError(f"no such control image in cases/assets: {name} (there are {there})")
    return str(path)


Asset = Annotated[str, AfterValidator(_asset)]
"""Name of a picture in `assets` in the folder of the cases; the value is its path."""
NAMED = re.compile(r"--ctrl_img +([\w.-]+)")


class Sample(_Strict):
    """The trainer's sample item. A field left out takes the trainer's default, not ours."""

    prompt: str
    neg: str = ""
    width: int = 512
    height: int = 512
    seed: int = 0
    guidance_scale: float = 7
    sample_steps: PositiveInt = 20
    network_multiplier: float = 1.0
    guidance_rescale: float = 0.0
    num_frames: PositiveInt = 1
    fps: PositiveInt = 16
    ctrl_img: Asset | None = None
    ctrl_img_1: Asset | None = None
    ctrl_img_2: Asset | None = None
    ctrl_img_3: Asset | None = None
    ctrl_idx: int = 0
    do_cfg_norm: bool = False
    _assets: Path = PrivateAttr(ASSETS)

    @property
    def control(self) -> list[str]:
        """Paths of the numbered control images, or of the single one."""
        numbered = [p for p in (self.ctrl_img_1, self.ctrl_img_2, self.ctrl_img_3) if p is not None]
        return numbered or ([self.ctrl_img] if self.ctrl_img else list(self.located.values()))

    @property
    def located(self) -> dict[str, str]:
        """Name -> path, of the picture in `assets` that the prompt names (`--ctrl_img wide.png`)."""
        return {name: str(self._assets / name) for name in NAMED.findall(self.prompt)}

    @model_validator(mode="after")
    def _names_pictures_that_are_there(self, info: ValidationInfo) -> "Sample":
        self._assets = (info.context or {}).get("assets", ASSETS)
        for name in self.located:
            _asset(name, info)
        return self


class Quantization(_Strict):
    """The trainer's `model:` fields about a quantised base."""

    quantize: bool = False
    quantize_te: bool | None = None
    qtype: str = "qfloat8"
    qtype_te: str = "qfloat8"
    accuracy_recovery_adapter: str | None = None
    exclude: tuple[str, ...] = ()
    """The trainer's `quantize_kwargs.exclude`."""

    @property
    def repositories(self) -> list[str]:
        """Hub id of the accuracy-recovery adapter."""
        adapter = self.qtype.partition("|")[2] or self.accuracy_recovery_adapter
        return ["/".join(adapter.split("/")[:2])] if adapter else []


class Training(_Strict):
    """Record this case at the end of a real training (`run.py`) instead of from a made LoRA."""

    steps: PositiveInt = 3
    lr: float = 1e-2
    seed: int = 42
    resolution: PositiveInt = 128


class Case(_Strict):
    """One case. `id` comes from the path: "<model>/<file stem>", or "full/<model>" for the one on the real weights."""

    schema_: Literal[1] = Field(alias="schema")
    id: str = Field(pattern=r"^([a-z0-9_.]+/[a-z0-9][a-z0-9-]*|full/[a-z0-9_.]+)$")
    tier: Tier
    about: str
    lora: Lora | None = None
    training: Training | None = None
    trigger_word: str | None = None
    base: str | None = None
    """Another base model than the trainer's default (`model.name_or_path`): a hub id, or ORG/NAME/FILE of a file inside
    a repository, of which the trainer is told where it lies."""
    quantization: Quantization | None = None
    trainer_model: dict[str, Any] = Field(default_factory=dict)
    """Extra `model:` settings of the trainer's job that must not change the picture (an assistant LoRA, ...)."""
    sample: Sample
    controls: tuple[str, ...] = ()
    """Names of the negative controls to render (negative_controls.py); none named: all. For cases that take seconds
    a render and whose siblings render all."""

    @model_validator(mode="after")
    def _multiplier_needs_lora(self) -> "Case":
        if self.lora is None and self.sample.network_multiplier != 1.0:
            raise ValueError("sample.network_multiplier is set but there is no lora: section; remove one or add one")
        if self.training is not None and self.lora is None:
            raise ValueError("training: needs a lora: section (the network that is trained)")
        if self.quantization and self.quantization.quantize and self.lora and self.lora.mode != "live":
            raise ValueError("lora.mode: live, where quantization.quantize is set (the trainer cannot merge there)")
        return self

    @property
    def model(self) -> str:
        folder, name = self.id.split("/")
        return name if self.tier == "full" else folder

    @property
    def extras(self) -> list[str]:
        """Hub ids of what it loads besides its model's own repositories."""
        return [
            *(["/".join(self.base.split("/")[:2])] if self.base else []),
            *(self.quantization.repositories if self.quantization else []),
        ]

    @property
    def job_name(self) -> str:
        """Name of the trainer's job; the LoRA is saved under it, and `[name]` in a prompt becomes it."""
        return self.lora.name if self.lora else "base"

    @property
    def sha256(self) -> str:
        """Hash of what the case proves: all but `about` (new fields change nothing)."""
        before = bool(self.controls) and narrowed_before().get(self.id) == self.controls
        left_out = {"about", "controls"} if before else {"about"}
        content = self.model_dump(mode="json", exclude=left_out, exclude_defaults=True, by_alias=True)
        for name, value in content["sample"].items():
            if name.startswith("ctrl_img"):  # the picture counts, not where it lies
                content["sample"][name] = sha256(Path(value).read_bytes()).hexdigest()
        for name, path in self.sample.located.items():
            content["sample"][name] = sha256(Path(path).read_bytes()).hexdigest()
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def narrowed_before() -> dict[str, tuple[str, ...]]:
    """Case -> controls, of those that named some before `controls` belonged to the hash: their goldens, which nobody
    edits, hold the hash without. Nothing is ever added."""
    found = yaml.safe_load(NARROWED.read_text(encoding="utf-8"))
    return {case: tuple(controls) for case, controls in found.items()}


def load(path: Path) -> Case:
    """Read one case file.

    Raises:
        CaseError: not YAML, an unknown or wrong field, or a path that does not match `model:` and `tier:`.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CaseError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise CaseError(f"{path}: a case is a YAML mapping with `schema: 1`, `model:`, `tier:` and `sample:`")
    model = data.pop("model", None)
    full = path.parent.name == "full"
    if model != (path.stem if full else path.parent.name):
        named = f"of its file, `{path.stem}`" if full else f"of its folder, `{path.parent.name}`"
        raise CaseError(f"{path}: `model: {model}` must equal the name {named}")
    if full != (data.get("tier") == "full"):
        raise CaseError(f"{path}: `tier: full` belongs to the cases in cases/full, and they to it")
    if "id" in data:
        raise CaseError(f"{path}: `id` comes from the file name; remove the field")
    try:
        return Case.model_validate(
            {**data, "id": f"{path.parent.name}/{path.stem}"}, context={"assets": path.resolve().parents[1] / "assets"}
        )
    except ValidationError as error:
        lines = [_explain(e["loc"], e["msg"], e["type"]) for e in error.errors()]
        raise CaseError(f"{path}: " + "; ".join(lines)) from error


_SECTIONS: dict[str, type[BaseModel]] = {
    "sample": Sample,
    "lora": Lora,
    "network": Network,
    "training": Training,
    "quantization": Quantization,
}


def _explain(loc: tuple[int | str, ...], message: str, kind: str) -> str:
    field = ".".join(map(str, loc)) or "case"
    if kind == "extra_forbidden":
        section = next((_SECTIONS[str(name)] for name in reversed(loc[:-1]) if str(name) in _SECTIONS), Case)
        names = sorted(f.alias or n for n, f in section.model_fields.items())
        return f"unknown field `{field}` (known here: {', '.join(names)})"
    return f"`{field}`: {message}"


def files(root: Path = CASES, tier: Tier = "mini") -> Iterator[Path]:
    """The case files of one tier.

    Raises:
        CaseError: there is no such folder.
    """
    if not root.is_dir():
        raise CaseError(elsewhere("cases", root, "--cases DIR --goldens DIR"))
    yield from (p for p in sorted(root.glob("*/*.yaml")) if (p.parent.name == "full") == (tier == "full"))


def load_all(root: Path = CASES, tier: Tier = "mini") -> list[Case]:
    return [load(path) for path in files(root, tier)]


def known(tag: str, tier: Tier = "mini") -> list[Case]:
    """The cases whose models the trainer of `tag` has."""
    lacking = tags.row(tag).lacks
    return [case for case in load_all(tier=tier) if case.model not in lacking]


def of_both_tiers(root: Path = CASES) -> list[Case]:
    return [*load_all(root), *load_all(root, "full")]


def choose(known: Sequence[Case], models: Sequence[str] = (), ids: Sequence[str] = (), *, tag: str) -> list[Case]:
    """Those of `known` that a request names, as far as the trainer of `tag` has their models.

    `ids` are whole ("flux/lora"), or what follows the model ("lora": that case of every model). Without any, all of
    the mini tier; the full tier is always named.

    Raises:
        CaseError: there is no such model or case, or no case is of both `models` and `ids`.
        TagError: the trainer of `tag` knows none of the models.
    """
    names = {case.id for case in known} | {_short(case) for case in known}
    unknown = [i for i in ids if i not in names] + [m for m in models if m not in {c.model for c in known}]
    if unknown:
        raise CaseError(no_such(unknown, known))
    chosen = [
        case
        for case in known
        if (case.id in ids or _short(case) in ids if ids else case.tier == "mini")
        and (not models or case.model in models)
    ]
    if not chosen:
        raise CaseError(f"no case belongs to both --model {' '.join(models)} and --case {' '.join(ids)}")
    lacking = tags.row(tag).lacks
    there_yet = [case for case in chosen if case.model not in lacking]
    if not there_yet:
        raise TagError(f"the trainer of {tag} does not know {', '.join(sorted({c.model for c in chosen}))} yet")
    return there_yet


def no_such(unknown: Sequence[str], known: Sequence[Case]) -> str:
    """What to say of ids and models that there are not: what was meant, and the cases of the models that they name."""
    models, ids = sorted({case.model for case in known}), sorted(case.id for case in known)
    near = [
        get_close_matches(name, ids, 1, cutoff=0.8) if "/" in name else get_close_matches(name, models, 1)
        for name in unknown
    ]
    meant = [found for one in near for found in one if found not in unknown]
    named = {name.partition("/")[0] for name in unknown} & set(models)
    there = [i for i in ids if i.partition("/")[0] in named] or [f"the models {', '.join(models)}"]
    asked = f" (did you mean {' or '.join(meant)}?)" if meant else ""
    return f"no such case or model: {', '.join(unknown)}{asked}; there are {', '.join(there)}"


def _short(case: Case) -> str:
    return case.id.split("/")[1] if case.tier == "mini" else case.id
