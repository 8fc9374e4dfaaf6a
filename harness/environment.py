"""What a picture was rendered with. The recorder and our runs note the same facts, so that they can be compared."""

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "pillow",
    "peft", "ftfy",
)  # fmt: skip


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def same_processor(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Do two environments compute on a CPU with the same kernels? The name alone does not tell: an AMD EPYC may have
    AVX-512 or not."""
    return all(one.get(name) == other.get(name) for name in ("cpu", "cpu_capability"))


def architecture(environment: Mapping[str, Any]) -> str:
    """ "cpu", or a GPU's compute capability, "sm90": the same libraries compute the same bits on it, whatever the
    product is called (an H200 renders an H100's goldens).

    Raises:
        KeyError: an environment of a GPU without its compute capability.
    """
    if "gpu" not in environment:
        return "cpu" if environment["device"] == "cpu" else "cuda"
    if "compute_capability" not in environment and "H100" in environment["gpu"]:
        return "sm90"  # goldens from before the capability was noted: all of them of an H100
    return "sm" + environment["compute_capability"].replace(".", "")


@cache
def facts(device: str, dtype: str) -> dict[str, Any]:
    """Versions, processor, device, dtype and thread count of this process."""
    import torch

    gpu = {}
    if device.startswith("cuda") and torch.cuda.is_available():
        capability = ".".join(map(str, torch.cuda.get_device_capability(0)))
        gpu = {"gpu": torch.cuda.get_device_name(0), "compute_capability": capability}
    return {
        **{name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **gpu,
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }
