"""The pytest plugin: every YAML file under a folder named `cases` is a test item.

pytest cases/                       all mini cases of the newest tag, on the CPU
pytest cases/flux --drift-tag TAG   one model, one tag
pytest cases/ -n 2                  two workers; each model is loaded once, by one of them
pytest cases/ -m gpu                the same on CUDA, and the full tier (cases/full) on the real weights
pytest cases/ -m full               the full tier alone
"""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_drift.harness import tags
from lora_drift.harness.check import cases
from lora_drift.harness.check.cases import Case, CaseError
from lora_drift.harness.check.results import PASSING, Result
from lora_drift.pipelines.profiles import PROFILES

BENCH = pytest.StashKey[Any]()
STREAM = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lora-drift", "LoRA drift against the trainer")
    group.addoption("--drift-tag", metavar="TAG", help="trainer version whose goldens count (default: the newest)")
    group.addoption("--drift-device", metavar="DEVICE", help="cpu or cuda (default: cuda with `-m gpu`, else cpu)")
    group.addoption("--drift-dtype", metavar="DTYPE", choices=("float32", "bfloat16"),
                    help="float32 or bfloat16 (default: float32 on the CPU, bfloat16 on a GPU)")  # fmt: skip
    group.addoption("--drift-profile", metavar="PROFILE", default="reference", choices=PROFILES,
                    help="compiled or fast: how far is that from the trainer? (default: %(default)s)")  # fmt: skip
    group.addoption("--drift-require-goldens", action="store_true",
                    help="fail where a GPU or a real model has no golden yet, instead of listing it")  # fmt: skip
    group.addoption("--drift-json", metavar="FILE", type=Path, help="append one JSON object per case, as they finish")
    group.addoption("--drift-no-controls", action="store_true",
                    help="leave the negative controls out (as `lora-drift matrix` does)")  # fmt: skip
    group.addoption("--drift-floor", action="store_true",
                    help="measure the noise floor of this device too: every case twice more, on a GPU also on "
                         "deterministic kernels (`lora-drift gates --results` derives gates from it)")  # fmt: skip
    group.addoption("--drift-out", metavar="DIR", type=Path, default=Path("build/drift"),
                    help="where this run's pictures go (default: %(default)s)")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", "full: needs the real weights")
    if hasattr(config, "workerinput") and _device(config) == "cuda":
        _take_gpu(config.workerinput["workerid"])
    path: Path | None = config.getoption("--drift-json")
    if path is not None and not hasattr(config, "workerinput"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            config.stash[STREAM] = path.open("w", encoding="utf-8")
        except OSError as error:
            raise pytest.UsageError(f"--drift-json {path}: {error.strerror}") from error


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Under `-n auto`, one worker per GPU."""
    if _device(config) != "cuda":
        return None
    import torch

    return torch.cuda.device_count() or None


def _take_gpu(worker: str) -> None:
    """Worker gw<n> sees one GPU only, the n-th of those that this run may use (from the first again, if there are more
    workers than GPUs)."""
    import torch

    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = allowed.split(",") if allowed is not None else [str(n) for n in range(torch.cuda.device_count())]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(worker.removeprefix("gw")) % len(devices)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under `-n N`, give all mini cases of a model to one worker, which then loads the model once.

    (xdist's own `--dist loadgroup` marks groups in node ids, which pytest 9.2 no longer lets it do.)
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByModel(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, _name = nodeid.partition("::")
            folder = Path(path).parent
            return str(folder) if path.endswith(".yaml") and folder.name != "full" else nodeid

        def remove_node(self, node: Any) -> str | None:
            """A case that ended its worker is over; xdist would try it again, until too many workers have ended."""
            units = self.assigned_work[node].values()
            lost = next(((unit, item) for unit in units for item, done in unit.items() if not done), None)
            if lost is None:
                return super().remove_node(node)
            unit, item = lost
            unit[item] = True
            super().remove_node(node)
            return item

    return ByModel(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    if STREAM in config.stash:
        config.stash[STREAM].close()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix == ".yaml" and file_path.parent.parent.name == "cases":
        return CaseFile.from_parent(parent, path=file_path)
    return None


def _device(config: pytest.Config) -> str:
    chosen: str | None = config.getoption("--drift-device")
    if chosen:
        return chosen
    return "cuda" if _asked(config, "gpu") or _asked(config, "full") else "cpu"


def _asked(config: pytest.Config, marker: str) -> bool:
    """Does `-m` name the marker, and not after a `not`?"""
    words = str(config.getoption("markexpr", "")).replace("(", " ").replace(")", " ").split()
    return marker in words and words[max(0, words.index(marker) - 1)] != "not"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the full tier where nobody asked for it (nor for a GPU), and models that the trainer of this tag does
    not know yet."""
    tag = config.getoption("--drift-tag")
    lacking = tags.row(tag).lacks if tag else ()
    with_full = _device(config) != "cpu" or _asked(config, "full")
    found = [i for i in items if isinstance(i, CaseItem)]
    out = [i for i in found if i.case.model in lacking or (i.case.tier == "full" and not with_full)]
    if out:
        items[:] = [i for i in items if i not in out]
        config.hook.pytest_deselected(items=out)


class CaseFile(pytest.File):
    """One case file. A mistake in it is a collection error of that file alone."""

    def collect(self) -> Iterator[pytest.Item]:
        case = cases.load(self.path)
        device, dtype = _device(self.config), self.config.getoption("--drift-dtype")
        profile = self.config.getoption("--drift-profile")
        parts = (device if device != "cpu" else "", dtype, profile if profile != "reference" else "")
        where = "-".join(part for part in parts if part)
        name = f"{case.id}[{where}]" if where else case.id
        item = CaseItem.from_parent(self, name=name, case=case, device=device)
        if device != "cpu" or case.tier == "full":
            item.add_marker("gpu")
        if case.tier == "full":
            item.add_marker("full")
        yield item

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **kwargs: Any) -> Any:
        if isinstance(excinfo.value, CaseError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, *args, **kwargs)


class DriftFailure(Exception):
    """The verdict of a case is not a passing one."""


class CaseItem(pytest.Item):
    def __init__(self, *, case: Case, device: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.case, self.device = case, device
        self.result: Result | None = None

    def runtest(self) -> None:
        from lora_drift.harness.check import runner, subprocess_check

        runner.use_minihub()
        bench = self.config.stash.get(BENCH, None)
        if bench is None:
            options = {
                "dtype": self.config.getoption("--drift-dtype"),
                "tag": self.config.getoption("--drift-tag"),
                "controls": not self.config.getoption("--drift-no-controls"),
                "floor": self.config.getoption("--drift-floor"),
                "profile": self.config.getoption("--drift-profile"),
            }
            bench = self.config.stash[BENCH] = runner.Bench(self.device, **options)
        out = self.config.getoption("--drift-out").resolve()
        if self.case.tier == "full":
            self.result = subprocess_check.check(bench, self.case, self.path, out)
        else:
            self.result = runner.check(bench, self.case, out)
        if self.result.verdict == "error" and not runner.usable(self.device):
            lost = f"{self.case.id}: {self.result.message}; the GPU refuses this process from here on"
            if "PYTEST_XDIST_WORKER" in os.environ:  # xdist reports the case as crashed and starts another worker
                os.write(2, f"{lost}\n".encode())
                os._exit(1)
            pytest.exit(f"{lost}. With `-n 1` the run goes on in a new process.", returncode=1)
        measured = {m.name: m.value for m in self.result.metrics if m.gate is not None}
        self.user_properties += [("drift_verdict", self.result.verdict), ("drift_metrics", json.dumps(measured))]
        optional = self.device != "cpu" or self.case.tier == "full"
        if self.result.verdict == "missing" and optional and not self.config.getoption("--drift-require-goldens"):
            reason = self.result.message
            pytest.skip(reason if reason.startswith("weights missing") else f"not recorded: {reason}")
        if self.result.verdict not in PASSING:
            raise DriftFailure(self.result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **kwargs: Any) -> Any:
        if isinstance(excinfo.value, DriftFailure):
            result: Result = excinfo.value.args[0]
            return f"{result.verdict}: {result.case} at {result.tag}: {result.message}"
        return super().repr_failure(excinfo, *args, **kwargs)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Carry the whole result in the report: it survives the way from an xdist worker to the controller."""
    outcome = yield
    if call.when == "call" and isinstance(item, CaseItem) and item.result is not None:
        outcome.get_result().drift = item.result.model_dump_json()


class _Writer:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line: str | None = getattr(report, "drift", None)
        if line is not None and STREAM in self.config.stash:
            stream = self.config.stash[STREAM]
            stream.write(line + "\n")
            stream.flush()  # a killed run keeps what it had


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(_Writer(session.config), "lora-drift-writer")
