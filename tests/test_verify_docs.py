"""docs/verify.md: its quickstart runs as it is written, and it names every verdict and option."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.jobs.verify import Verdict

TEXT = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")


def test_the_quickstart_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "bin" / "lora-drift"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m lora_drift.harness.cli.main "$@"\n')
    script.chmod(0o755)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    quickstart = TEXT.partition("## Quickstart")[2].partition("\n## ")[0]
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", quickstart, re.DOTALL))
    done = subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 samples: 6 match" in done.stdout and "the pixels are the same, bit for bit" in done.stdout
    assert len(json.loads((tmp_path / "results.json").read_text())["samples"]) == 6
    assert (tmp_path / "report" / "index.html").is_file()


def test_every_verdict_is_explained() -> None:
    assert all(f"| `{verdict}` |" in TEXT for verdict in get_args(Verdict))
