"""Runs cases in an environment, in a process of its own, and says of each what came of it.

A golden run is `pytest cases/... --drift-json`, as everywhere; one of stock Diffusers is `stock_diffusers.py`. Both
append a line as each case ends, so that whatever kills the process, what was measured before is kept.
"""

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lora_drift.harness.check.cases import CASES
from lora_drift.harness.check.results import PASSING, Result
from lora_drift.harness.paths import ROOT
from lora_drift.harness.studies.matrix.environment import Combination, Environment

Status = Literal["green", "drift", "crash", "lacks", "not installable"]
Mode = Literal["golden", "plain"]
PATIENCE = 900.0
"""Seconds without a finished case after which a process counts as hung."""


class Outcome(BaseModel):
    """What came of one case in one combination."""

    model_config = ConfigDict(extra="forbid")

    combination: Combination
    case: str
    status: Status
    message: str = ""
    boundary: str | None = None
    """The first traced stage that differs."""
    error: float | None = None
    """How far, relative; None: of another shape, or not known."""
    pixel_max: float | None = None
    pixel_mean: float | None = None
    settings: str = ""
    """Golden: what was rendered, in words."""
    seconds: float = 0.0
    pictures: str | None = None
    """Stock Diffusers: folder of picture and trace."""
    script: str | None = None
    """Stock Diffusers: the call, to paste."""

    @property
    def model(self) -> str:
        return self.case.split("/")[0]


def run(
    environment: Environment,
    combination: Combination,
    case_ids: list[str],
    *,
    tag: str,
    mode: Mode,
    keep: Path,
    stop: Event | None = None,
) -> Iterator[Outcome]:
    """One outcome a case, as they end. `keep`: where pictures go.

    A process that dies takes the case that it was at with it; the rest goes on in another. One that dies before its
    first case is not asked about that model again, and after two such models not at all.

    Raises:
        Stopped: `stop` was set.
    """
    left, barren = list(case_ids), 0
    while left:
        seen: set[str] = set()
        with tempfile.TemporaryDirectory() as scratch:
            process = _Process(environment, left, tag=tag, mode=mode, keep=keep, scratch=Path(scratch))
            for line in process.lines(stop or Event()):
                outcome = _golden(line, combination) if mode == "golden" else _plain(line, combination, keep)
                seen.add(outcome.case)
                yield outcome
        left = [case_id for case_id in left if case_id not in seen]
        if not left:
            return
        barren = 0 if seen else barren + 1
        lost = left if barren == 2 else [c for c in left if not seen and c.split("/")[0] == left[0].split("/")[0]]
        for case_id in lost or left[:1]:
            yield Outcome(combination=combination, case=case_id, status="crash", message=process.last_words)
        left = [case_id for case_id in left if case_id not in (lost or left[:1])]


class Stopped(Exception):
    """The run was told to end."""


class _Process:
    def __init__(
        self, environment: Environment, case_ids: list[str], *, tag: str, mode: Mode, keep: Path, scratch: Path
    ) -> None:
        if mode == "golden":
            self.file = scratch / "results.jsonl"
            files = [str(CASES / f"{case_id}.yaml") for case_id in case_ids]
            arguments = ["pytest", "-p", "lora_drift.harness.check.plugin", "-p", "no:cacheprovider", "-q",
                         "--disable-warnings", *files,
                         "--drift-json", str(self.file), "--drift-no-controls", "--drift-tag", tag,
                         "--drift-device", "cpu", "--drift-out", str(keep)]  # fmt: skip
        else:
            self.file = keep / "results.jsonl"
            self.file.unlink(missing_ok=True)
            arguments = ["lora_drift.harness.studies.stock_diffusers", str(keep), tag, *case_ids]
        self.command = [str(environment.python), "-m", *arguments]
        # Plugins that happen to be installed cost seconds at each start.
        self.variables = {**environment.variables(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self.log = scratch / "log"
        self.last_words = ""

    def lines(self, stop: Event) -> Iterator[dict[str, Any]]:
        """Results as they are written, until the process ends."""
        with self.log.open("w", encoding="utf-8") as log:
            process = subprocess.Popen(self.command, cwd=ROOT, env=self.variables, stdout=log, stderr=log)
        read, latest, hung = 0, time.monotonic(), False
        try:
            running = True
            while running:
                running = process.poll() is None  # asked before reading, so that nothing is written after the last look
                text = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
                complete = text[: text.rfind("\n") + 1].splitlines()
                for line in complete[read:]:
                    yield json.loads(line)
                latest = time.monotonic() if len(complete) > read else latest
                read = len(complete)
                if stop.is_set():
                    raise Stopped
                if running and time.monotonic() - latest > PATIENCE:
                    hung, running = True, False
                elif running:
                    time.sleep(0.2)
        finally:
            process.kill()
            code = process.wait()
        self.last_words = f"no case ended within {PATIENCE:.0f} s" if hung else self._end(code)

    def _end(self, code: int) -> str:
        name = signal.Signals(-code).name if code < 0 and os.name != "nt" else f"exit code {code}"
        tail = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        said = next((line for line in reversed(tail) if "Error" in line), next(reversed([t for t in tail if t]), ""))
        return f"the process ended ({name}): {said[:300]}"


def _golden(line: dict[str, Any], combination: Combination) -> Outcome:
    result = Result.model_validate(line)
    status: Status = "green" if result.verdict in PASSING else "drift" if result.verdict == "drift" else "crash"
    if result.message.startswith("Unsupported: "):  # the table's row rules it out
        status = "lacks"
    values = {m.name: m.value for m in result.metrics}
    first = result.first_divergence
    return Outcome(
        combination=combination,
        case=result.case,
        status=status,
        message="" if result.verdict == "match" else result.message,
        boundary=first.boundary if first and status != "green" else None,
        error=first.error if first and status != "green" else None,
        pixel_max=values.get("pixel_max"),
        pixel_mean=values.get("pixel_mean"),
        settings=_in_words(result.settings) if result.settings else "",
        seconds=result.seconds,
    )


def _in_words(settings: dict[str, Any]) -> str:
    frames = f", {settings['num_frames']} frames" if settings["num_frames"] > 1 else ""
    lora = f", LoRA {settings['lora_mode']} at {settings['multiplier']:g}" if settings["lora_mode"] else ""
    return (f"{settings['width']}x{settings['height']}{frames}, {settings['steps']} steps, guidance "
            f"{settings['guidance_scale']:g}, seed {settings['seed']}{lora}")  # fmt: skip


LACKING = re.compile(r"(Unsupported|NoStockScript): |AttributeError: module diffusers\S* has no attribute ")
"""Messages of a release that has not the classes that a model needs."""


def _plain(line: dict[str, Any], combination: Combination, keep: Path) -> Outcome:
    message = line.pop("message")
    status: Status = "lacks" if LACKING.match(message) else "crash" if message else "green"
    pictures = str(keep) if status == "green" else None
    return Outcome(combination=combination, status=status, message=message, pictures=pictures, **line)
