"""docs/diagnose.md: its run is what it says."""

import re
import subprocess
import sys
from pathlib import Path

from lora_drift.harness.paths import ROOT

TEXT = (ROOT / "docs" / "diagnose.md").read_text(encoding="utf-8")


def test_the_run_prints_what_the_page_shows(tmp_path: Path) -> None:
    (script,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    command = f'lora-drift() {{ PYTHONPATH="{ROOT}" "{sys.executable}" -m lora_drift.harness.cli.main "$@"; }}\n'
    done = subprocess.run(["bash", "-e", "-c", command + script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shown.rstrip("\n") in done.stdout
