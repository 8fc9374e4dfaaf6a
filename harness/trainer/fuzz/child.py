"""A module of `fuzz` that runs in the trainer's environment, kept running."""

import json
import os
import subprocess
from pathlib import Path
from typing import IO, Any

from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT


class TrainerError(RuntimeError):
    """The trainer's process cannot be started, or ended."""


class Child:
    """A module of ours that runs in the trainer's environment, and answers a line of JSON with another."""

    def __init__(self, module: str, python: Path, checkout: Path, errors: int | IO[bytes]) -> None:
        env = os.environ | {
            "HF_HOME": str(factory.default_home()),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(checkout.resolve()), str(ROOT)]),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [str(python), "-m", f"lora_drift.harness.trainer.fuzz.{module}"]
        self._process = subprocess.Popen(command, cwd=checkout, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=errors, text=True)  # fmt: skip
        self.greeting = self._line()
        if not self.greeting:
            raise TrainerError(f"{python} cannot import the trainer at {checkout}; build its environment: "
                               "python -m lora_drift.harness.trainer.recorder env --help")  # fmt: skip

    def ask(self, request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._line()
        if not line:
            raise TrainerError(f"the trainer's process ended ({self._process.wait()})")
        return json.loads(line)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
