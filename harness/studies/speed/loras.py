"""LoRA files for the benchmark: made up where the trainer made none, and another one to switch to."""

from collections.abc import Mapping
from pathlib import Path

from lora_drift.pipelines.lora import Shapes
from lora_drift.pipelines.spec import ModelSpec


def random_lora(spec: ModelSpec, shapes: Shapes, rank: int, path: Path) -> Path:
    """A LoRA on every Linear of the denoiser's blocks, its change about 0.6 of the weights' size."""
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(1), {}
    for modules in shapes.values():
        for name, shape in modules.items():
            if len(shape) != 2 or not ("blocks." in name or name.startswith("layers.")):
                continue
            prefix = spec.lora_prefixes[-1]
            key = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
            down, up = ("lora_down", "lora_up") if prefix.endswith("_") else ("lora_A", "lora_B")
            drawn = torch.randn(rank, shape[1], generator=generator) / shape[1] ** 0.5
            tensors[f"{key}.{down}.weight"] = drawn.half()
            tensors[f"{key}.{up}.weight"] = (torch.randn(shape[0], rank, generator=generator) * 0.6 / rank**0.5).half()
    save_file(tensors, path)
    return path


def negated(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """The same LoRA with the opposite effect, as other files."""
    from safetensors.torch import load_file, save_file

    made = {}
    for role, path in files.items():
        tensors = load_file(path)
        ups = {n: -t for n, t in tensors.items() if "lora_B" in n or "lora_up" in n}
        made[role] = folder / f"negated-{path.name}"
        save_file({**tensors, **ups}, made[role])
    return made
