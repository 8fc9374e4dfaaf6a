"""What this machine has for rendering: for `lora-drift doctor` and for bug reports. Never the token's value."""

import json
import os
import platform
from pathlib import Path
from typing import Any

from lora_drift.harness import extras, paths
from lora_drift.harness.environment import PACKAGES, cpu, version_of
from lora_drift.harness.machine import downloads
from lora_drift.pipelines import MODELS

PEAKS = Path(__file__).with_name("peaks.json")
"""Model -> GB of GPU memory at the peak of a measured picture (docs/performance.md); written with the catalogue."""
ALSO = ("lora-drift", "huggingface_hub", "typer", "pytest", "fastapi")


def examine() -> dict[str, Any]:
    """Everything, JSON-safe. Sizes are in bytes."""
    from huggingface_hub import constants, get_token

    cache = downloads.cache_folder()
    gpus = _gpus()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {name: found for name in (*ALSO, *PACKAGES) if (found := version_of(name))},
        "extras": {name: extras.lacking(name) or "installed" for name in ("check", "server")},
        "checkout": str(paths.ROOT) if paths.IN_CHECKOUT else None,
        "cpu": {"name": cpu(), "cores": os.cpu_count(), "memory": _memory()},
        "gpus": gpus,
        "cache": {"folder": str(cache), "exists": cache.is_dir(), "free": downloads.free_space()},
        "hub": {"endpoint": constants.ENDPOINT, "offline": constants.HF_HUB_OFFLINE, "token": get_token() is not None},
        "models_in_cache": [model for model in MODELS if downloads.is_cached(model)],
        "fits": {gpu["device"]: [m for m, peak in peaks().items() if peak * 1e9 <= gpu["memory"]] for gpu in gpus},
    }


def peaks() -> dict[str, float]:
    """Of the models that were measured: the least first."""
    found: dict[str, float] = json.loads(PEAKS.read_text(encoding="utf-8"))
    return dict(sorted(found.items(), key=lambda item: item[1]))


def problems(found: dict[str, Any]) -> list[str]:
    """What stands in the way of rendering at full size here, each with what helps."""
    said = []
    if not found["gpus"]:
        said.append("no GPU that torch can use: --device cpu works, but real models are slow there (--mini is not)")
    if not found["hub"]["token"]:
        said.append("no token: gated models (FLUX.1 dev, say) need `hf auth login`")
    if found["hub"]["offline"]:
        said.append("HF_HUB_OFFLINE is set: only what is in the cache can be rendered")
    if not os.access(next(f for f in (Path(found["cache"]["folder"]), *Path(found["cache"]["folder"]).parents)
                          if f.exists()), os.W_OK):  # fmt: skip
        said.append(f"{found['cache']['folder']} cannot be written: set HF_HOME to a folder that can")
    return said


def _memory() -> int | None:
    """Bytes of main memory, where the system tells."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows has no sysconf, others not these names
        return None


def _gpus() -> list[dict[str, Any]]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append({
            "device": f"cuda:{index}", "name": gpu.name, "memory": gpu.total_memory,
            "capability": f"{gpu.major}.{gpu.minor}", "cuda": torch.version.cuda,
        })  # fmt: skip
    return found
