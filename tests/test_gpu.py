"""What only a GPU shows: `pytest tests/test_gpu.py` on a GPU runner."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_drift.harness.check import results
from lora_drift.harness.paths import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FAULTS = {
    "out of memory": "torch.empty(2**42, device='cuda')",
    "an index out of bounds": "torch.zeros(1, device='cuda')[torch.tensor([7], device='cuda')].item()",
}
"""The second ends everything that the process has on the GPU."""

BREAK = """
import torch
from lora_drift.harness.check import runner

render = runner.Bench.render

def broken(pipeline, settings):
    if pipeline.lora is None:
        {fault}
    return render(pipeline, settings)

runner.Bench.render = staticmethod(broken)
"""


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_of_the_gpu_ends_its_case_and_not_the_run(fault: str, tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text(BREAK.format(fault=FAULTS[fault]))
    file = tmp_path / "results.jsonl"
    cases = [str(ROOT / "cases" / "sd15" / f"{name}.yaml") for name in ("base", "lora")]
    command = [sys.executable, "-m", "pytest", *cases, "-m", "gpu", "-n", "1", "-p", "breaks", "-p", "no:cacheprovider"]
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*command, "--drift-no-controls", f"--drift-json={file}", f"--drift-out={tmp_path}"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    found = {result.case: result.verdict for result in results.read(file)}
    assert done.returncode == 1 and "sd15/base" in done.stdout + done.stderr, done.stdout + done.stderr
    assert found.pop("sd15/lora") in ("match", "missing"), done.stdout  # "missing": no golden for this kind of GPU yet
    assert found in ({"sd15/base": "error"}, {})  # a lost process cannot write its result; xdist reports the crash
