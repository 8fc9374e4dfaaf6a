"""`lora-drift matrix`: every combination, every case, once; what was measured before is not measured again."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from lora_drift.harness.check import goldens
from lora_drift.harness.check.cases import Case
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.studies.matrix import MatrixError, checkouts, environment, folder, run_cases
from lora_drift.harness.studies.matrix.environment import FROM_GIT, Combination, NotInstallable
from lora_drift.harness.studies.matrix.run_cases import Mode, Outcome
from lora_drift.pipelines import MODELS

MATTERS = ("pipelines/*.py", "harness/*.py", "harness/check/*.py",
           "harness/check/*.json", "harness/minihub/**/*.py",
           "cases/known.yaml")  # fmt: skip
"""Files of the project that every result depends on, besides the model's row, family, cases and goldens."""
APART = ("harness/check/noise_floor.py", "harness/check/verified_by.py")
"""Of those, what no result depends on."""
PLAIN = "harness/studies/stock_diffusers.py"
Note = Callable[[int, int, str], None]
"""Called as (cases done, cases in all, what ended last)."""


class Stored(BaseModel):
    """A line of the store."""

    model_config = ConfigDict(extra="forbid")

    key: str
    outcome: Outcome


class Store:
    """Outcomes of all runs, a JSON line each, by a hash of all that they depend on."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines and not path.read_text(encoding="utf-8").endswith("\n"):  # a killed run's last line
            lines.pop()
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        found = [Stored.model_validate_json(line) for line in lines]
        self.known = {line.key: line.outcome for line in found}

    def add(self, key: str, outcome: Outcome) -> None:
        with self._lock:
            self.known[key] = outcome
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(Stored(key=key, outcome=outcome).model_dump_json() + "\n")


@cache
def _source(mode: Mode) -> str:
    """Hash of the project's files that every result depends on."""
    matters = (*MATTERS, PLAIN) if mode == "plain" else MATTERS
    return _hash({path for pattern in matters for path in ROOT.glob(pattern)} - {ROOT / name for name in APART})


@cache
def _family(model: str) -> str:
    """Hash of the model's row and of its family's file and those beside it."""
    home, family = ROOT / "pipelines" / "families", MODELS[model].family
    files = {home / f"{family}.py", *home.glob(f"{family}_*.py")}
    return sha256(repr(MODELS[model]).encode()).hexdigest() + _hash(files)


def _hash(paths: set[Path]) -> str:
    digest = sha256()
    for path in sorted(paths):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def key_of(case: Case, combination: Combination, tag: str, mode: Mode, checkout: Path | None) -> str:
    """Changes when anything does that the outcome depends on."""
    golden = goldens.content(tag, case.id)
    recorded = golden and golden["seal"]
    parts: list[Any] = [
        mode, tag, case.id, case.sha256, recorded, factory.manifest_sha256(case.model, case.extras), _source(mode),
        _family(case.model), combination.model_dump_json(), environment.borrowed_versions(),
    ]  # fmt: skip
    if combination.diffusers.startswith(FROM_GIT) and checkout is not None:
        parts.append(checkouts.resolve(checkout, combination.diffusers.removeprefix(FROM_GIT)))
    return sha256(repr(parts).encode()).hexdigest()[:24]


class Matrix:
    """The cases of one trainer version on some combinations."""

    def __init__(self, cases: list[Case], combinations: list[Combination], *, tag: str, mode: Mode = "golden",
                 checkout: Path | None = None) -> None:  # fmt: skip
        self.cases, self.combinations = cases, combinations
        self.tag, self.mode, self.checkout = tag, mode, checkout
        # Once, so that a file that changes while the matrix runs cannot part results from their cases.
        self.keys = {(case.id, c): key_of(case, c, tag, mode, checkout) for c in combinations for case in cases}
        self.store = Store(folder() / f"{mode}.jsonl")
        self._stop = threading.Event()
        self.refused: dict[Combination, str] = {}
        """Combinations that cannot be installed -> why."""

    def key(self, case: Case, combination: Combination) -> str:
        return self.keys[case.id, combination]

    def run(self, workers: int, note: Note) -> list[Outcome]:
        """Run what is not stored, `workers` combinations at a time; returns every outcome, in order of combinations."""
        todo = {
            combination: [case for case in self.cases if self.key(case, combination) not in self.store.known]
            for combination in self.combinations
        }
        total = len(self.cases) * len(self.combinations)
        done = [total - sum(map(len, todo.values()))]
        lock = threading.Lock()

        def count(cases: int, what: str) -> None:
            with lock:
                done[0] += cases
                note(done[0], total, what)

        count(0, f"{done[0]} of {total} cases are known from before")
        with self._alone(), _ended_by_sigterm(), ThreadPoolExecutor(workers) as pool:
            try:
                for future in [pool.submit(self._one, c, todo[c], count) for c in self.combinations if todo[c]]:
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return list(self._all())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two runs at a time would measure the same twice and write over each other's pictures."""
        try:
            with FileLock(self.store.path.with_suffix(".lock"), timeout=0):
                yield
        except Timeout as error:
            raise MatrixError(
                f"another `lora-drift matrix` is using {self.store.path.parent}: wait until it has ended, or set "
                "LORA_DRIFT_CACHE to another folder"
            ) from error

    def _one(self, combination: Combination, cases: list[Case], count: Callable[[int, str], None]) -> None:
        try:
            count(0, f"{combination.name}: environment")
            ready = environment.build(combination, self.checkout)
        except NotInstallable as error:
            self.refused[combination] = str(error)
            count(len(cases), f"{combination.name}: not installable")
            return
        keys = {case.id: self.key(case, combination) for case in cases}
        place = sha256(repr((self.mode, self.tag, _source(self.mode), combination)).encode()).hexdigest()[:12]
        keep = folder() / "pictures" / place
        for outcome in run_cases.run(
            ready, combination, list(keys), tag=self.tag, mode=self.mode, keep=keep, stop=self._stop
        ):
            self.store.add(keys[outcome.case], outcome)
            count(1, f"{combination.name}: {outcome.case} {outcome.status}")

    def _all(self) -> Iterator[Outcome]:
        for combination in self.combinations:
            for case in self.cases:
                if combination in self.refused:
                    message = self.refused[combination]
                    yield Outcome(combination=combination, case=case.id, status="not installable", message=message)
                else:
                    yield self.store.known[self.key(case, combination)]


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, and with it the processes that it started."""

    def end(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
