"""docs/server.md: its quickstart runs as it is written, and it names every setting and call."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lora_drift.server.app import app
from lora_drift.server.config import Settings
from lora_drift.server.local import ROOT

TEXT = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A folder with `lora-drift` for the PATH, whichever way the project is installed."""
    script = tmp_path / "bin" / "lora-drift"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m lora_drift.harness.cli.main "$@"\n')
    script.chmod(0o755)
    return script.parent


def test_the_quickstart_runs_as_it_is_written(
    tmp_path: Path, command: Path, lora_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loras").mkdir()
    shutil.copy(lora_of("sd15/lora"), tmp_path / "loras" / "my_lora.safetensors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quickstart = TEXT.partition("## Quickstart")[2].partition("\n## ")[0]
    script = "\n".join(re.findall(r"```sh\n(.*?)```", quickstart, re.DOTALL)).replace("8000", str(port))
    monkeypatch.setenv("PATH", str(command), prepend=":")
    monkeypatch.setenv("PORT", str(port))
    try:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", f"{script}\nkill %1\nwait"],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(tmp_path):
                process.kill()
    assert '"status":"succeeded"' in done.stdout, done.stdout + done.stderr
    pictures = sorted(path.suffix for path in (tmp_path / "outputs").glob("*_output_0.*") if path.suffix != ".json")
    assert pictures == [".jpg", ".png"]


def test_every_setting_and_every_call_is_documented() -> None:
    for name in Settings.model_fields:
        assert f"`{name.upper()}`" in TEXT, name
    for path in app.openapi()["paths"]:
        assert path.replace("request_id", "id").removeprefix("/v1/images") in TEXT, path
