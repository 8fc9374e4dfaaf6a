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


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_kind(environment: Mapping[str, Any]) -> str:
    """ "cpu", "h100", "rtx-4090": within a kind of device the same libraries compute the same."""
    words = environment.get("gpu", environment["device"]).lower().replace("nvidia", "").replace("geforce", "").split()
    return "-".join(words[: 2 if words[0] == "rtx" else 1])


@cache
def facts(device: str, dtype: str) -> dict[str, Any]:
    """Versions, processor, device, dtype and thread count of this process."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name(0)} if device.startswith("cuda") and torch.cuda.is_available() else {}
    return {
        **{name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **gpu,
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }
