"""Puts the mini hub in place before any test imports a Hugging Face library (their cache folder freezes at import), and
leaves out the tests that need a ComfyUI where none is given."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # miniature tensors: a second thread only gets in the way

from lora_drift.harness.check import plugin_options, runner

runner.use_minihub()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("comfyui")
    group.addoption("--comfyui", metavar="DIR", type=Path, help="a checkout of ComfyUI, for `-m comfyui`")
    group.addoption(
        "--comfyui-python", metavar="PYTHON", default=sys.executable, help="with ComfyUI's packages and ours"
    )


def pytest_configure(config: pytest.Config) -> None:
    checkout: Path | None = config.getoption("comfyui")
    # pytest takes a folder after a space for one of tests, and reads that one's settings.
    if not config.rootpath.samefile(Path(__file__).parent):
        raise pytest.UsageError("write --comfyui=DIR and --comfyui-python=PYTHON, with =")
    if checkout is not None and not (checkout / "main.py").is_file():
        raise pytest.UsageError(f"--comfyui {checkout}: no checkout of ComfyUI (it has no main.py)")
    if checkout is None and plugin_options.asked(config, "comfyui"):
        raise pytest.UsageError("-m comfyui needs a checkout of ComfyUI: --comfyui=DIR (docs/comfyui.md)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a checkout, what needs one is deselected, and pytest counts it so."""
    if config.getoption("comfyui") is None:
        needing = [item for item in items if item.get_closest_marker("comfyui")]
        items[:] = [item for item in items if item not in needing]
        config.hook.pytest_deselected(items=needing)
