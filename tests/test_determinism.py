"""The same request gives the same bytes in every process, whatever its surroundings and whatever it rendered before."""

import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256

from lora_drift.harness.check import cases
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.paths import ROOT

RENDER = """
import sys
from hashlib import sha256
from lora_drift.harness.check import runner
runner.use_minihub()
from lora_drift.harness.check import cases, goldens
from lora_drift.harness.minihub import factory
bench = runner.Bench()
for name in sys.argv[1:]:
    case = cases.load(cases.CASES / f"{name}.yaml")
    golden = goldens.load(runner.newest_tag(), case, factory.manifest_sha256(case.model, case.extras))
    frames = bench.render(bench.pipeline(case, golden), bench.settings(case)).frames
    print(name, sha256(frames.tobytes()).hexdigest())
"""
SURROUNDINGS = {"PYTHONHASHSEED": "77", "TZ": "Pacific/Kiritimati", "LC_ALL": "C"}
ORDERS = ["sd15/lora", "flux/lora"], ["flux/lora", "sd15/lora", "sd15/lora"]


def test_a_picture_depends_on_its_request_alone(golden_of: Callable[[str], Golden]) -> None:
    here, there = ORDERS
    elsewhere = subprocess.Popen([sys.executable, "-c", RENDER, *there], cwd=ROOT, env=os.environ | SURROUNDINGS,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    bench, seen = Bench(), {}
    for name in here:
        case = cases.load(cases.CASES / f"{name}.yaml")
        frames = bench.render(bench.pipeline(case, golden_of(name)), bench.settings(case)).frames
        seen[name] = sha256(frames.tobytes()).hexdigest()
    lines = elsewhere.communicate(timeout=300)[0].splitlines()
    assert [line.split() for line in lines] == [[name, seen[name]] for name in there]
