"""Which models a GPU has room for: computed from the sizes that the hub names, beside what was measured."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from lora_drift.harness.machine import doctor, downloads
from lora_drift.pipelines import MODELS, RequestError

BESIDE = {"image": 2.6, "edit": 2.6, "video": 6.0}
"""GB at the peak beside all weights in bfloat16; tests/test_fits.py compares with the models that were measured."""
BESIDE_ONE = 1.0
"""The same beside the largest component alone, with model offload: from two models, neither of them for videos."""
BYTES = 2
"""Of a parameter in bfloat16."""
WORKERS = 8


@dataclass(frozen=True)
class Need:
    """What a model takes. Memory is in GB (10^9 bytes), at the default size, in bfloat16 with a merged LoRA."""

    model: str
    parts: tuple[downloads.Part, ...]
    weights: float
    largest: float
    """Of the components."""
    problem: str = ""
    """Why the hub did not say; then there are no sizes."""

    @property
    def measured(self) -> float | None:
        return doctor.peaks().get(self.model)

    @property
    def computed(self) -> float:
        return self.weights + BESIDE[MODELS[self.model].kind]

    @property
    def computed_offloaded(self) -> float:
        return self.largest + BESIDE_ONE

    def way(self, memory: float) -> str:
        """How it fits: "whole", "model offload", or "" (it does not)."""
        if (self.measured or self.computed) <= memory:
            return "whole"
        return "model offload" if self.computed_offloaded <= memory else ""


def needs(models: Iterable[str]) -> list[Need]:
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(need, models))


def need(model: str) -> Need:
    try:
        found = tuple(downloads.parts(model))
    except RequestError as error:
        return Need(model, (), 0, 0, str(error))
    components: dict[tuple[str, str], float] = {}
    for part in found:
        for file in part.files:
            if file.path.endswith(".safetensors"):
                key = (part.repo, str(PurePosixPath(file.path).parent))
                components[key] = components.get(key, 0) + _parameters(part.repo, file.path) * BYTES / 1e9
    return Need(model, found, sum(components.values()), max(components.values()))


def _parameters(repo: str, path: str) -> int:
    """As the file's header says, which is all of it that is fetched: float32 files are loaded as bfloat16, too."""
    from huggingface_hub import HfApi

    return sum(HfApi().parse_safetensors_file_metadata(repo, path).parameter_count.values())
