"""Checks a case of the full tier in a process of its own, which loads from the user's own Hugging Face cache.

Hugging Face libraries read their cache folder, and whether they may ask the network, from the environment, once, when
they are imported; in the process that runs mini cases that is the mini hub. And when such a process ends, all the
memory that a real model took is free.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from lora_drift.harness.check import cases, runner, user_cache
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.results import Result
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.paths import IN_CHECKOUT, ROOT


def check(bench: Bench, case: Case, path: Path, out: Path) -> Result:
    """`runner.check`; but what needs no weights (no golden, no tolerance) is reported without starting a process."""
    return runner.check(bench, case, out, partial(_compare, path))


def _compare(path: Path, result: Result, bench: Bench, case: Case, golden: Golden, out: Path) -> None:
    if not bench.floor:  # which is measured where there is no tolerance yet, too
        bench.tolerances(case, golden)
    options = {name: getattr(bench, name) for name in signature(Bench).parameters}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "result.json"
        request = {"case": str(path), "out": str(out), "answer": str(answer), "bench": options}
        env = user_cache.own()
        if IN_CHECKOUT:  # which may be on the path of this process alone
            env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "lora_drift.harness.check.subprocess_check", json.dumps(request, default=str)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        if done.returncode or not answer.is_file():
            tail = " / ".join(done.stdout.splitlines()[-5:])
            raise RuntimeError(f"the process that renders it ended with exit code {done.returncode}: {tail}")
        theirs = Result.model_validate_json(answer.read_text(encoding="utf-8"))
    for name in Result.model_fields:
        setattr(result, name, getattr(theirs, name))


def main(request: dict[str, Any]) -> None:
    """Checks one case here; writes the result to the file `answer`."""
    case, bench = cases.load(Path(request["case"])), Bench(**request["bench"])
    before = user_cache.revisions(case)
    result = runner.check(bench, case, Path(request["out"]))
    if user_cache.revisions(case) != before:  # libraries that may ask the network take a repository's newest commit
        result.verdict, result.message = "error", "the weights were replaced by newer ones while they loaded; run again"
    Path(request["answer"]).write_text(result.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
