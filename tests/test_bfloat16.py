"""The bfloat16 path, guarded without a GPU: all 32 models render the bits that the trainer rendered on such a CPU."""

from pathlib import Path

import pytest
import torch

from lora_drift.harness import tags
from lora_drift.harness.check import cases, runner
from lora_drift.harness.check.results import PASSING
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.environment import same_processor

MODELS = sorted({case.model for case in cases.load_all()})


@pytest.mark.parametrize("model", MODELS)
def test_a_lora_in_bfloat16_gives_the_trainers_bits(model: str, tmp_path: Path) -> None:
    runner.use_minihub()
    torch.set_num_threads(1)
    bench = Bench("cpu", "bfloat16", tag=tags.newest(), controls=False)  # a tolerance of 0 catches any
    case = cases.load(cases.CASES / model / "lora.yaml")
    theirs = bench.golden(case).environment
    if not same_processor(theirs, bench.environment):
        recorded, here = (f"{e['cpu']} ({e['cpu_capability']})" for e in (theirs, bench.environment))
        pytest.skip(f"recorded on {recorded}: {here} rounds bfloat16 otherwise")
    result = runner.check(bench, case, tmp_path)
    assert result.verdict in PASSING, result.message
