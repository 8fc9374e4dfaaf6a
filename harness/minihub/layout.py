"""Tensor names and shapes of each component, read from the real model classes once (`read_layouts.py`).

Real checkpoints were saved with the key names of that generation; newer libraries rename keys while loading
(transformers 5 drops CLIP's `text_model.`), so the names are kept as data and never derived at build time.

In a file, `blocks.{0-47}.norm.weight` stands for the tensors of 48 blocks that have one shape.
"""

import importlib
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from lora_drift.harness.minihub.repo import Weights

LAYOUTS = Path(__file__).parent / "layouts"
NUMBER, RANGE = re.compile(r"(?<=\.)\d+(?=\.)"), re.compile(r"\{(\d+)-(\d+)\}")
"""Parts of a tensor's name: which block, and from which to which."""

OURS = {"OmniGen2Transformer2DModel": "lora_drift.pipelines.families.omnigen2_transformer"}
"""Classes that Diffusers does not have. (That the trainer's class has the same tensors shows when a golden matches.)"""


def config_key(weights: Weights) -> str:
    """Identifies class + config: equal components share one layout."""
    digest = sha256(f"{weights.cls}\n{weights.config_json()}".encode()).hexdigest()
    return f"{weights.cls.split('.')[1]}-{digest[:8]}"


def load(weights: Weights) -> dict[str, list[int]]:
    """Tensor name -> shape of one component.

    Raises:
        FileNotFoundError: the class or config changed and the layout was not read again.
    """
    path = LAYOUTS / f"{config_key(weights)}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no layout {path.name} for {weights.folder or weights.cls}: run "
            "`python -m lora_drift.harness.minihub.read_layouts` in"
            " the trainer's environment (transformers 4.57) and commit the new file"
        )
    shapes = {name: shape for folded, shape in json.loads(path.read_text()).items() for name in unfolded(folded)}
    return {name: [int(n) for n in shape.split("x") if n] for name, shape in sorted(shapes.items())}


def folded(shapes: dict[str, str]) -> dict[str, str]:
    """Names that differ in nothing but the numbers of blocks as one, where all of these blocks have it in one shape."""
    alike: dict[tuple[str, str], list[list[int]]] = {}
    for name, shape in shapes.items():
        alike.setdefault((NUMBER.sub("#", name), shape), []).append([int(n) for n in NUMBER.findall(name)])
    found = {}
    for (name, shape), numbers in alike.items():
        ranges = [range(min(column), max(column) + 1) for column in zip(*numbers, strict=True)]
        whole = prod(map(len, ranges)) == len(numbers)
        for one in [ranges] if whole else [[range(n, n + 1) for n in row] for row in numbers]:
            texts = (f"{{{r[0]}-{r[-1]}}}" if len(r) > 1 else str(r[0]) for r in one)
            found[re.sub("#", lambda _, texts=texts: next(texts), name)] = shape  # type: ignore[misc]
    return dict(sorted(found.items()))


def unfolded(name: str) -> Iterator[str]:
    """The names that `folded` made one of."""
    for numbers in product(*(range(int(first), int(last) + 1) for first, last in RANGE.findall(name))):
        texts = map(str, numbers)
        yield RANGE.sub(lambda _, texts=texts: next(texts), name)  # type: ignore[misc]


def read_from_class(weights: Weights) -> dict[str, str]:
    import torch

    library, name = weights.cls.split(".")
    if library == "stable_diffusion":
        library = "diffusers.pipelines.stable_diffusion.safety_checker"
    if library == "ltx2":
        library = "diffusers.pipelines.ltx2"
    cls: Any = getattr(importlib.import_module(OURS.get(name, library)), name)
    with torch.device("meta"):
        if weights.is_diffusers:
            model = cls.from_config(json.loads(weights.config_json()))
        else:
            model = cls(cls.config_class.from_dict(json.loads(weights.config_json())))
    tensors = model.state_dict()
    for tied in getattr(model, "_tied_weights_keys", None) or ():
        shared = next((k for k, v in tensors.items() if k != tied and v is tensors.get(tied)), None)
        if getattr(model.config, "tie_word_embeddings", False) or shared is not None:
            tensors.pop(tied, None)
    if name.endswith("5EncoderModel"):
        tensors.pop("encoder.embed_tokens.weight", None)
    if name == "Qwen2_5_VLForConditionalGeneration":
        # Checkpoints keep the names from before the language model got a prefix of its own (`model.visual`,
        # `model.language_model` in the class, which maps them while loading and saving).
        tensors = {re.sub(r"^model\.(visual|language_model)", _old_name, key): v for key, v in tensors.items()}
    return {key: "x".join(map(str, value.shape)) for key, value in sorted(tensors.items())}


def _old_name(match: re.Match[str]) -> str:
    return "visual" if match[1] == "visual" else "model"
