"""LoRA files: read and matched to a model before its weights load. `adapter.py` applies them.

Formats are those that the trainer saves: LoRA (`lora_A`/`lora_B`, or `lora_down`/`lora_up` with `alpha`), DoRA (with
`magnitude`) and LoKr (`lokr_w1`, `lokr_w2` or their factors).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_drift.pipelines import lora_formats
from lora_drift.pipelines.errors import LoraError
from lora_drift.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

PARTS = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "alpha": "alpha",
    "magnitude": "magnitude",
    "lokr_w1": "w1",
    "lokr_w2": "w2",
    "lokr_w1_a": "w1_a",
    "lokr_w1_b": "w1_b",
    "lokr_w2_a": "w2_a",
    "lokr_w2_b": "w2_b",
}
OLD_LOKR_PREFIX = "lycoris_"
"""`old_lokr_format: true`: module paths with underscores, for every transformer (toolkit/network_mixins.py)."""
DOTTED = (
    (r"^(double_blocks|single_blocks)_(\d+)_", r"\1.\2."),
    (r"^(distilled_guidance_layer)_(layers)_(\d+)_", r"\1.\2.\3."),
    (r"^(distilled_guidance_layer|final_layer|time_in|guidance_in)_", r"\1."),
    (r"^(double_stream_modulation_img|double_stream_modulation_txt|single_stream_modulation)_", r"\1."),
    (r"(img_attn|txt_attn|img_mlp|txt_mlp|adaLN_modulation)_", r"\1."),
)
AGAIN = "Take the file again from where it was trained or downloaded, or convert it anew."
OTHER_SIZE = "a LoRA for a model of another size; name the model that it was trained for."
"""What to do about a file that is damaged, or for something else."""


def dotted(name: str) -> str:
    """A module of Black Forest Labs' classes (FLUX.2, Chroma) in an old LoKr, whose names have underscores for dots;
    any other name as it is."""
    if "." in name:
        return name
    for pattern, replacement in DOTTED:
        name = re.sub(pattern, replacement, name)
    return name


Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Component -> module path -> weight shape of every Linear and Conv2d."""


Rows = slice | list[int]
"""Of a matrix: some in a row, or these in this order."""


class Target(NamedTuple):
    """Where the change of one key name goes: a module, or some output rows of the key's (fused) matrix."""

    module: str
    rows: Rows | None = None
    """Rows of the *file's* matrix that belong to this module. None: all, or, of several targets, the next ones in order
    (as many as the module's own weight has)."""
    component: str | None = None
    """None: the model's one denoiser, or the one whose file this is."""
    swapped: bool = False
    """The two halves of the file's matrix stand the other way round in this module."""


Targets = Callable[[str], list[Target]]
"""Name of a module in a file -> where its change goes."""


@dataclass(frozen=True)
class LowRank:
    """`scale * up @ down`, float32; with a `magnitude` it is a DoRA.

    Shapes: Linear down [rank, in], up [out, rank]; Conv2d down [rank, in, kh, kw], up [out, rank, 1, 1];
    magnitude [out].
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    """alpha / rank; 1 for files without alpha (the trainer forces alpha = rank for transformers)."""
    magnitude: torch.Tensor | None = None
    rows: Rows | None = None
    """Of a fused matrix: which rows of `up` (and of the product) are this module's. The product is of the whole, as in
    the trainer: GPUs sum matrices of another size in another order."""

    def weight(self) -> torch.Tensor:
        """The change at multiplier 1 and scale 1, in the shape of the weight."""
        import torch

        if self.down.dim() == 2:
            return (self.up @ self.down)[self.rows or slice(None)]
        return torch.nn.functional.conv2d(self.down.permute(1, 0, 2, 3), self.up).permute(1, 0, 2, 3)


@dataclass(frozen=True)
class LoKr:
    """`scale * kron(w1, w2)`, float32, reshaped to the weight. A factored w1 or w2 is multiplied out."""

    w1: torch.Tensor
    w2: torch.Tensor
    scale: float
    """1 when both factors are whole (their saved alpha is meaningless then: toolkit/models/lokr.py)."""
    shape: tuple[int, ...]
    rows: Rows | None = None

    def weight(self) -> torch.Tensor:
        import torch

        w1 = self.w1[..., None, None] if self.w2.dim() == 4 else self.w1
        whole = torch.kron(w1, self.w2.contiguous())
        return (whole if self.rows is None else whole[self.rows]).reshape(self.shape)


def on_device(change: LowRank | LoKr, device: Any) -> LowRank | LoKr:
    """The change with its tensors there."""
    import torch

    values = {f.name: getattr(change, f.name) for f in fields(change)}
    moved: dict[str, Any] = {n: v.to(device) for n, v in values.items() if isinstance(v, torch.Tensor)}
    return replace(change, **moved)


@dataclass(frozen=True)
class Delta:
    """The change of one module."""

    component: str
    module: str
    change: LowRank | LoKr
    name: str = ""
    """In the file. Several modules share one where the file's matrix is fused."""


@dataclass(frozen=True)
class Coverage:
    """How much of the files reached the model."""

    keys: int
    applied: int
    modules: int
    kinds: tuple[str, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    unmatched: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "unmatched": list(self.unmatched[:20])}


@dataclass(frozen=True)
class Lora:
    """LoRA file(s) matched to one model: one, or one per expert."""

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    deltas: tuple[Delta, ...]
    coverage: Coverage
    strengths: Mapping[str, float] = field(default_factory=dict)
    """Component -> what its multiplier is multiplied with; 1 if not named. The trainer has one multiplier for both."""
    experts: tuple[str, ...] = ()
    """For which expert each of `paths` was given; "" for a file by itself."""


def read(
    files: Mapping[str, Path], spec: ModelSpec, shapes: Shapes, targets: Targets, *, allow_partial: bool = False
) -> Lora:
    """Read LoRA files ({"": path}, or expert -> path) and match their keys to the model's modules.

    `targets`: the family's `lora_targets`.

    Raises:
        LoraError: missing, truncated or foreign file; keys that match nothing; wrong shapes; unknown expert.
    """
    deltas: list[Delta] = []
    unmatched: list[str] = []
    total = 0
    with ThreadPoolExecutor() as beside:
        digests = beside.map(_digest, files.values())  # which takes as long as reading
        for expert, path in files.items():
            if expert not in spec.denoisers and not (expert == "" and len(files) == 1):
                wanted = (
                    " and ".join(f"{name}=FILE" for name in spec.denoisers) if len(spec.denoisers) > 1 else "one file"
                )
                raise LoraError(f"{path}: {spec.id} has no expert {expert!r}; give {wanted}")
            found, left, count = _read_one(path, spec, shapes, targets, spec.denoisers.get(expert), allow_partial)
            deltas += found
            unmatched += left
            total += count
    coverage = Coverage(
        keys=total,
        applied=total - len(unmatched),
        modules=len(deltas),
        kinds=tuple(sorted({_kind(d.change) for d in deltas})),
        ranks=tuple(sorted({d.change.down.shape[0] for d in deltas if isinstance(d.change, LowRank)})),
        scales=tuple(sorted({d.change.scale for d in deltas})),
        unmatched=tuple(unmatched),
    )
    return Lora(tuple(files.values()), tuple(digests), tuple(deltas), coverage, experts=tuple(files))


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _kind(change: LowRank | LoKr) -> str:
    return "lokr" if isinstance(change, LoKr) else "lora" if change.magnitude is None else "dora"


def _read_one(
    path: Path, spec: ModelSpec, shapes: Shapes, targets: Targets, component: str | None, allow_partial: bool
) -> tuple[list[Delta], list[str], int]:
    tensors = _tensors(path)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    places: dict[str, list[Target]] = {}
    changed: dict[str, str] = {}
    unmatched, unread = [], dict[str, list[str]]()
    # A file for a model with two experts names them in its keys, unless it was given as the file of one.
    experts = len(spec.denoisers) > 1 and not component
    resolve = _resolver(spec, shapes, targets, component or ("" if experts else next(iter(spec.denoisers.values()))))
    taken = {key: lora_formats.split(key, PARTS) for key in tensors}
    # Half of a change is none: where one part is not read, the module is not.
    halved = {part.name: part.unread for part in taken.values() if part.unread}
    for key, tensor in tensors.items():
        name, part, _ = taken[key]
        if name not in places:
            places[name] = resolve(name)
        if not part or not places[name] or name in halved:
            unmatched.append(key)
            unread.setdefault(halved.get(name, ""), []).append(key)
            continue
        module = f"{places[name][0].component}.{places[name][0].module}"
        group = groups.setdefault(name, {})
        if part in group or changed.setdefault(module, name) != name:
            raise LoraError(f"{path}: {module} is changed twice, under two spellings of one key (the second is {key}). "
                            f"{AGAIN}")  # fmt: skip
        group[part] = tensor
    if not groups or (unmatched and not allow_partial):
        raise LoraError(
            f"{path}: {len(tensors) - len(unmatched)} of {len(tensors)} keys belong to {spec.id} ({spec.title}); "
            f"unmatched, for example: {', '.join(unmatched[:3])}. {_why(unmatched, unread, spec)}",
            "allow_partial" if groups else "experts" if experts and set(unread) == {""} else "",
        )
    usual = _usual_scale(path)
    deltas = [
        Delta(target.component or "", target.module, _change(path, name, parts, target, shapes, usual), name)
        for name, parts in sorted(groups.items())
        for target in places[name]
    ]
    return deltas, unmatched, len(tensors)


def _usual_scale(path: Path) -> float:
    """Of pairs without an alpha: alpha / rank, where Diffusers wrote PEFT's config into the file; else 1.

    Raises:
        LoraError: a config of another shape, or with scales that differ from module to module.
    """
    said = metadata(path).get("lora_adapter_metadata")
    if not isinstance(said, dict):
        return 1.0
    values = {key.rpartition(".")[2]: value for key, value in said.items()}
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if any(values.get(field) for field in ("rank_pattern", "alpha_pattern", "use_rslora")):
        raise LoraError(f"{path}: its lora_adapter_metadata has a scale for each module (rank_pattern, alpha_pattern, "
                        "use_rslora), which is not read; save it with the scales multiplied in")  # fmt: skip
    if type(rank) not in (int, float) or type(alpha) not in (int, float) or not rank:
        return 1.0
    scale = float(alpha / rank)
    return scale if math.isfinite(scale) else 1.0


def _why(unmatched: list[str], unread: Mapping[str, list[str]], spec: ModelSpec) -> str:
    """What the file seems to be, of which these keys are not read."""
    what = next((what for what in unread if what), "")
    if what:
        return f"It is {what}: that is not read."
    if all(lora_formats.TEXT_ENCODER.match(key) for key in unmatched):
        return "They are a LoRA on the text encoder, which is not applied."
    if any(lora_formats.EMBEDDING.match(key) for key in unmatched):
        return "They are trained embeddings, which are not loaded."
    wanted = " or ".join(f'"{prefix}"' for prefix in spec.lora_prefixes)
    whose = lora_formats.looks_like(unmatched)
    of = f" (The keys look like those of {whose}.)" if whose else ""
    return f"Is it a LoRA for another model?{of} The trainer's keys for {spec.id} begin with {wanted}."


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise LoraError(f"{path}: no such LoRA file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise LoraError(_broken(path, error)) from error
    if not tensors:
        raise LoraError(f"{path}: holds no tensors. {AGAIN}")
    # Not an alpha: that of a LoKr with whole factors means nothing, and the trainer saves it as infinity in float16.
    weights = {key: tensor for key, tensor in tensors.items() if not key.endswith("alpha")}
    broken = next((key for key, tensor in weights.items() if not _finite(tensor)), None)
    if broken is not None:
        raise LoraError(_diverged(path, broken))
    return tensors


def _finite(tensor: torch.Tensor) -> bool:
    """In one pass: a NaN becomes the least and the largest."""
    return not tensor.numel() or all(bool(value.isfinite()) for value in tensor.float().aminmax())


def metadata(path: Path) -> dict[str, Any]:
    """What the trainer wrote into a LoRA file beside the tensors: its version, the step, the trigger word, ...

    Raises:
        LoraError: no such file, or not a whole one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            found: dict[str, str] = file.metadata() or {}
    except FileNotFoundError as error:
        raise LoraError(f"{path}: no such LoRA file") from error
    except (SafetensorError, OSError) as error:
        raise LoraError(_broken(path, error)) from error
    return {key: _parsed(value) for key, value in found.items()}


def trainer_of(path: Path) -> str:
    """The version of the trainer that made a LoRA file, as its metadata say; "" where they do not.

    Raises:
        LoraError: no such file, or not a whole one.
    """
    software = metadata(path).get("software")
    version = software.get("version") if isinstance(software, dict) and software.get("name") == "ai-toolkit" else ""
    return version if isinstance(version, str) else ""


def _parsed(value: str) -> Any:
    """Values are strings, most of them JSON."""
    try:
        parsed = json.loads(value)
        json.dumps(parsed, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError):
        return value
    return parsed


def _broken(path: Path, error: Exception) -> str:
    return f"{path}: not a whole safetensors file ({error}). It may be truncated or a web page: fetch it again."


def _diverged(path: Path, what: str) -> str:
    return f"{path}: {what} holds NaN or infinity; the training diverged: take an earlier checkpoint"


def _resolver(spec: ModelSpec, shapes: Shapes, targets: Targets, default: str) -> Targets:
    """Function from a key's name (with prefix) to targets that exist; none when it belongs to no module.

    What is in none of the trainer's spellings is looked up in those of other programs.
    """
    modules = [name for component in spec.denoisers.values() for name in shapes.get(component, {})]
    underscored = {name.replace(".", "_"): name for name in modules}

    @cache
    def others() -> list[tuple[lora_formats.Scheme, dict[str, lora_formats.Modules]]]:
        return lora_formats.tables(spec.family, shapes.get(default, {}))

    encoders = tuple(spec.encoder_prefixes.values())
    encoded = {
        name: Target(module, component=component)
        for prefixes in (tuple(spec.encoder_prefixes), *lora_formats.ENCODERS)
        if len(prefixes) == len(encoders)
        for prefix, component in zip(prefixes, encoders, strict=True)
        for name, module in lora_formats.of_encoder(prefix, shapes.get(component, {}))
    }

    def resolve(name: str) -> list[Target]:
        name = lora_formats.unwrapped(name)
        if name in encoded:
            return [encoded[name]]
        _, modules = ("", ()) if own(name) else lora_formats.looked_up(name, others())
        return own(name) or _stacked([Target(module, component=default) for module in modules], shapes)

    def own(name: str) -> list[Target]:
        prefix = next((p for p in (*spec.lora_prefixes, OLD_LOKR_PREFIX) if name.startswith(p)), None)
        if prefix is None:
            return []
        rest = name[len(prefix) :]
        found = [Target(rest)] if prefix.endswith("_") and rest in underscored else targets(rest)
        if prefix.endswith("_"):  # of the trainer's own names, in which some dots were put back
            found = [t._replace(module=underscored.get(t.module, t.module)) for t in found]
        found = [t._replace(component=t.component or default) for t in found]
        known = all(t.module in shapes.get(t.component or "", {}) for t in found)
        return _stacked(found, shapes) if known else []

    return resolve


def _stacked(targets: list[Target], shapes: Shapes) -> list[Target]:
    """Give each of several targets its rows of the fused matrix: in their order, as many as its own weight has."""
    if any(t.swapped for t in targets):
        (target,) = targets
        count = shapes[target.component or ""][target.module][0]
        return [target._replace(rows=[*range(count // 2, count), *range(count // 2)])]
    if len(targets) < 2 or any(t.rows is not None for t in targets):
        return targets
    ends = list(accumulate(shapes[t.component or ""][t.module][0] for t in targets))
    return [t._replace(rows=slice(a, b)) for t, a, b in zip(targets, [0, *ends], ends, strict=False)]


def _change(
    path: Path, name: str, parts: Mapping[str, torch.Tensor], target: Target, shapes: Shapes, usual: float
) -> LowRank | LoKr:
    shape = shapes[target.component or ""][target.module]

    def made(parts: Mapping[str, torch.Tensor]) -> LowRank | LoKr:
        lokr = any(p.startswith("w") for p in parts)
        return _lokr(path, name, parts, target, shape) if lokr else _low_rank(path, name, parts, target, usual)

    # First without the numbers: factors of a few kB may multiply out to more than there is memory.
    sizes_only = {part: tensor if part == "alpha" else tensor.to("meta").float() for part, tensor in parts.items()}
    try:
        found = tuple(on_device(made(sizes_only), "meta").weight().shape)
    except (RuntimeError, IndexError) as error:  # factors that do not multiply, or not to the weight's size
        sizes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items())
        raise LoraError(f"{path}: {name} has parts of sizes {sizes}, but {target.module} has {shape}: "
                        f"{OTHER_SIZE}") from error  # fmt: skip
    if found != shape:
        raise LoraError(f"{path}: {name} changes a weight of shape {found}, but {target.module} has {shape}: "
                        f"{OTHER_SIZE}")  # fmt: skip
    return made({part: tensor.float() for part, tensor in parts.items()})


def _low_rank(path: Path, name: str, parts: Mapping[str, torch.Tensor], target: Target, usual: float) -> LowRank:
    if "down" not in parts or "up" not in parts:
        raise LoraError(f"{path}: {name} has only {' and '.join(parts)}; the other half of the pair is missing. "
                        f"{AGAIN}")  # fmt: skip
    rank = parts["down"].shape[0] if parts["down"].dim() > 1 else 0
    if rank == 0 or parts["up"].dim() < 2:
        raise LoraError(f"{path}: {name} has shapes {tuple(parts['down'].shape)} and {tuple(parts['up'].shape)}: "
                        f"not a LoRA pair, or {OTHER_SIZE}")  # fmt: skip
    if parts["up"].shape[1] != rank:
        raise LoraError(f"{path}: {name} has rank {rank} in one half and {parts['up'].shape[1]} in the other. {AGAIN}")
    magnitude = parts.get("magnitude")
    if magnitude is not None and target.rows is not None:
        magnitude = magnitude[target.rows]
    scale = _alpha(path, name, parts) / rank if "alpha" in parts else usual
    return LowRank(parts["down"], parts["up"], scale, magnitude, target.rows)


def _alpha(path: Path, name: str, parts: Mapping[str, torch.Tensor]) -> float:
    numbers = parts["alpha"].flatten().tolist()
    if len(numbers) != 1:
        raise LoraError(f"{path}: the alpha of {name} is {len(numbers)} numbers instead of one. {AGAIN}")
    if not math.isfinite(numbers[0]):
        raise LoraError(_diverged(path, f"the alpha of {name}"))
    return float(numbers[0])


def _lokr(path: Path, name: str, parts: Mapping[str, torch.Tensor], target: Target, shape: tuple[int, ...]) -> LoKr:
    def factor(which: str) -> torch.Tensor:
        if which in parts:
            return parts[which]
        if f"{which}_a" not in parts or f"{which}_b" not in parts:
            raise LoraError(f"{path}: {name} lacks lokr_{which}; it has {', '.join(parts)}. {AGAIN}")
        return parts[f"{which}_a"] @ parts[f"{which}_b"]

    w1, w2 = factor("w1"), factor("w2")
    whole = "w1" in parts and "w2" in parts
    if len(shape) == 4 and w2.dim() == 2 and not whole:  # w2 of a convolution is stored flattened
        w2 = w2.reshape(w2.shape[0], -1, *shape[2:])
    rank = next((parts[p].shape[1] for p in ("w1_a", "w2_a") if p in parts), 1)
    scale = 1.0 if whole or "alpha" not in parts else _alpha(path, name, parts) / rank
    return LoKr(w1, w2, scale, shape, target.rows)


def module_shapes(denoiser: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(path, weight shape) of every module that a LoRA can change."""
    from torch import nn

    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, tuple(module.weight.shape)
