"""Base models: hub ids to Diffusers pipelines with the row's scheduler, in the trainer's dtypes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines import text
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.files import tensor_shapes
from lora_drift.pipelines.lora import Shapes, module_shapes
from lora_drift.pipelines.spec import Attention, Earlier, ModelSpec, Scheduler

if TYPE_CHECKING:
    import torch


def scheduler(row: Scheduler) -> Any:
    """A fresh scheduler: some keep state from one render to the next, so no two renders share one."""
    import diffusers

    from lora_drift.pipelines import schedulers

    where = {"diffusers": diffusers, "ours": schedulers}[row.cls.partition(".")[0]]
    return getattr(where, row.name)(**row.config)


def pipeline(spec: ModelSpec, base: str, dtype: torch.dtype, **options: Any) -> Any:
    """Load the stock Diffusers pipeline of `spec` from `base` (hub id or folder; where the family checks it with
    `check_single_file`, a single file, whose configs and tokenizers are those of the usual base).

    Components that the trainer takes from other repositories come from there, unless `base` is a folder that has
    them; `options` may bring some that are loaded already. Every module is cast whole, as the trainer does
    (`from_pretrained` alone keeps some parts in float32).
    """
    import diffusers
    from packaging.version import Version

    # Diffusers renamed the argument in 0.40.
    name_of_dtype = "dtype" if Version(diffusers.__version__) >= Version("0.40.0") else "torch_dtype"
    elsewhere = {
        name: repo for name, repo in spec.components.items() if name not in options and not (Path(base) / name).is_dir()
    }
    components = {name: component(base, name, repo, dtype) for name, repo in elsewhere.items()}
    cls, parts = getattr(diffusers, spec.pipeline), {"scheduler": scheduler(spec.scheduler), **components, **options}
    if file := single_file(base):
        base = spec.base
        pipe = cls.from_single_file(str(file), config=base, **{name_of_dtype: dtype}, **parts)
    else:
        pipe = cls.from_pretrained(base, **{name_of_dtype: dtype}, **parts)
    for name in TOKENIZERS & pipe.components.keys() - options.keys():  # all others come from `tokenizer`
        if getattr(pipe, name) is not None:
            slow = name in spec.slow_tokenizers
            text.as_the_trainer(getattr(pipe, name), spec, elsewhere.get(name, base), name, slow=slow)
    return finished(pipe, spec, dtype)


TOKENIZERS = {"tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4", "processor"}
"""Components that read text."""


def finished(pipe: Any, spec: ModelSpec, dtype: torch.dtype) -> Any:
    """What every pipeline gets that was put together, however its family does that: dtype and attention."""
    from torch import nn

    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            # Past Diffusers' own `to`, which warns of the very cast that the trainer makes.
            nn.Module.to(module, dtype).eval().requires_grad_(False)
        if hasattr(module, "shared") and hasattr(module, "encoder"):
            # T5 and UMT5 read words from `shared`. transformers 5.0 leaves UMT5's second table of them uninitialised.
            module.encoder.embed_tokens = module.shared
    pipe.set_progress_bar_config(disable=True)
    pin_attention_backends(pipe, spec.encoder_attention)
    return pipe


def tokenizer(spec: ModelSpec, name: str, cls: str, repo: str, folder: str = "") -> Any:
    """Component `name`, a tokenizer (or processor) of this class of transformers, from a hub id or folder."""
    import transformers

    made = getattr(transformers, cls).from_pretrained(repo, **({"subfolder": folder} if folder else {}))
    return text.as_the_trainer(made, spec, repo, folder, slow=name in spec.slow_tokenizers)


def pin_attention_backends(pipe: Any, row: Mapping[str, Attention]) -> None:
    """Run the text encoders on the attention of the row; transformers 4 chooses it by itself."""
    import transformers

    if transformers.__version__.startswith("4."):
        return
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    with_mask: Attention = "sdpa_with_mask"
    transformers.AttentionInterface.register(with_mask, sdpa_attention_forward)
    AttentionMaskInterface.register(with_mask, eager_mask)
    for name, attention in row.items():
        # Not `set_attn_implementation`: up to 5.17 it passes over UMT5's stack, and it refuses Gemma 2 on SDPA.
        for part in getattr(pipe, name).modules():
            if hasattr(part, "config"):
                part.config._attn_implementation = attention


NORMS = Earlier(
    before="0.9.1",
    why="In half precision the norms of the autoencoder stayed in it (Diffusers before #13316).",
    fields={"norms_in_float32": False},
)
"""Of Wan and Qwen-Image."""


def normalize(vae: Any, *, in_float32: bool) -> None:
    """Let the norms of Wan's and Qwen-Image's autoencoders go through float32, or stay in the dtype of the model:
    Diffusers does the one from 0.39 on, the other before."""
    from torch.nn import functional

    def forward(norm: Any) -> Any:
        axis = 1 if norm.channel_first else -1

        def normalized(x: torch.Tensor) -> torch.Tensor:
            found = functional.normalize(x.float() if in_float32 else x, dim=axis).to(x.dtype)
            return found * norm.scale * norm.gamma + norm.bias

        return normalized

    for module in vae.modules():
        if type(module).__name__ in ("WanRMS_norm", "QwenImageRMS_norm"):
            module.forward = forward(module)


def component(base: str, name: str, repo: str, dtype: torch.dtype) -> Any:
    """One component from its own repository, in the class that the base's model_index.json names."""
    from diffusers import DiffusionPipeline

    library, cls = DiffusionPipeline.load_config(base)[name]
    options = {} if "okenizer" in cls else {"dtype": dtype}
    return getattr(importlib.import_module(library), cls).from_pretrained(repo, subfolder=name, **options)


def single_file(base: str) -> Path | None:
    """The weights in one file that `base` names: a path, or one inside a repository (ORG/NAME/PATH). None: it names a
    folder or a repository.

    Raises:
        RequestError: there is no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    if not base.endswith(".safetensors") or Path(base).is_dir():
        return None
    if Path(base).is_file():
        return Path(base)
    repo, inside = "/".join(base.split("/")[:2]), "/".join(base.split("/")[2:])
    try:
        return Path(hf_hub_download(repo, inside))
    except (OSError, HFValidationError) as error:
        raise RequestError(f"base {base!r}: no such file here, nor inside a repository of the hub "
                           f"({_reason(repo, error)}).", "base") from error  # fmt: skip


def file_inside(base: str, name: str, spec: ModelSpec) -> Path:
    """The file `name` in a folder or hub repository.

    Raises:
        RequestError: it is not there.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    wanted = f"Give the folder or hub id of a {spec.title} model with the files of {spec.base}"
    try:
        path = Path(base, name) if Path(base).is_dir() else Path(hf_hub_download(base, name))
    except (OSError, HFValidationError) as error:
        raise RequestError(f"base {base!r}: found no {name} there ({error}). {wanted}") from error
    if not path.is_file():
        raise RequestError(f"base {base!r}: found no {name} there. {wanted}")
    return path


def check_single_file(spec: ModelSpec, file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a file that holds another model, before its weights are read.

    Args:
        shapes: of the weights that the file must have.

    Raises:
        RequestError: it lacks one, or has it in another shape.
    """
    from safetensors import SafetensorError

    try:
        found = tensor_shapes(file)
    except (SafetensorError, OSError) as error:
        raise RequestError(f"base {str(file)!r}: not a whole safetensors file ({error}).", "base") from error
    for name, shape in shapes.items():
        if found.get(name) != list(shape):
            has = f"of shape {tuple(found[name])}" if name in found else "not there"
            raise RequestError(f"base {str(file)!r} is no {spec.title} in one file: its {name} should be of shape "
                               f"{shape}, but is {has}.", "base")  # fmt: skip


def denoiser_shapes(spec: ModelSpec, base: str) -> Shapes:
    """Weight shapes of the denoisers' Linear and Conv2d modules, from their configs alone (no weights).

    Raises:
        RequestError: `base` has no such component.
    """
    import diffusers
    import torch

    _check_kind(spec, base)
    shapes = {}
    for component in spec.denoisers.values():
        config = _config(spec, base, component)
        cls = getattr(diffusers, config["_class_name"])  # imports much, of which some cannot bear the meta device
        with torch.device("meta"):
            shapes[component] = dict(module_shapes(cls.from_config(config)))
    return shapes


def encoder_shapes(spec: ModelSpec, base: str) -> Shapes:
    """The same of the text encoders that a LoRA can change.

    Raises:
        RequestError: `base` has no such component.
    """
    import torch
    import transformers

    shapes = {}
    for component in spec.encoder_prefixes.values():
        config = _config(spec, base, component)
        cls = getattr(transformers, config.get("architectures", ["CLIPTextModel"])[0])
        with torch.device("meta"):
            shapes[component] = dict(module_shapes(cls(cls.config_class.from_dict(config))))
    return shapes


def _config(spec: ModelSpec, base: str, component: str) -> dict[str, Any]:
    """The config of one component."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    repo, name = spec.components.get(component, base), f"{component}/config.json"
    try:
        path = Path(repo, name) if Path(repo).is_dir() else Path(hf_hub_download(repo, name))
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, HFValidationError) as error:
        raise RequestError(
            f"base {repo!r}: found no {name} there ({_reason(repo, error)}). It takes a {spec.title} model in the "
            f"layout of {spec.base}.", "base"
        ) from error  # fmt: skip
    except ValueError as error:
        raise RequestError(f"base {repo!r}: {name} is not whole ({error}); fetch it again.", "base") from error


def _reason(repo: str, error: Exception) -> str:
    from huggingface_hub.errors import HFValidationError

    if Path(repo).is_file():
        return "it is a single file; convert it to that layout"
    if Path(repo).is_dir():
        return "no such file in that folder"
    if isinstance(error, HFValidationError):
        return "neither a folder that is here nor a hub id"
    return str(error).strip().partition("\n")[0]


def _check_kind(spec: ModelSpec, base: str) -> None:
    """Refuse a base whose model_index.json names another pipeline: an SDXL model for sd15, say."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        is_folder = Path(base).is_dir()
        local = Path(base, "model_index.json") if is_folder else try_to_load_from_cache(base, "model_index.json")
    except HFValidationError:  # neither a folder nor a hub id: said when its files are looked for
        return
    if base == spec.base or not isinstance(local, str | Path) or not Path(local).is_file():
        return
    found = json.loads(Path(local).read_text(encoding="utf-8")).get("_class_name")
    if spec.pipeline != "ours" and found != spec.pipeline:
        raise RequestError(f"base {base!r} is a {found}, but {spec.id} renders with a {spec.pipeline}: it takes a "
                           f"model of the kind of {spec.base}.", "base")  # fmt: skip


def revision(repo: str) -> str | None:
    """Commit of a hub repository (also of a file inside one) in the local cache; None of a folder, of a file, or of an
    unknown repository."""
    from huggingface_hub import constants

    repo = "/".join(repo.split("/")[:2]) if repo.endswith(".safetensors") else repo
    ref = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None
