"""A case file as a pytest item; plugin.py brings this in once it has found one."""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_drift.harness import extras, tags
from lora_drift.harness.check import cases, plugin_options
from lora_drift.harness.check.cases import Case, CaseError
from lora_drift.harness.check.results import PASSING, Result
from lora_drift.pipelines.profiles import PROFILES

BENCHES = pytest.StashKey[dict[str, Any]]()
"""dtype -> what renders in it."""
NAME = "lora-drift-items"
MARKERS = {"gpu": "needs a CUDA device", "full": "needs the real weights"}


def set_up(config: pytest.Config) -> None:
    """Once a run: our markers, our hooks, and of a worker its GPU."""
    if config.pluginmanager.has_plugin(NAME):
        return
    config.pluginmanager.register(_Hooks(), NAME)
    registered = {line.partition(":")[0].partition("(")[0].strip() for line in config.getini("markers")}
    for marker in MARKERS.keys() - registered:
        config.addinivalue_line("markers", f"{marker}: {MARKERS[marker]}")
    if hasattr(config, "workerinput") and plugin_options.device(config) == "cuda":
        _take_gpu(config.workerinput["workerid"])


def _take_gpu(worker: str) -> None:
    """Worker gw<n> sees one GPU only, the n-th of those that this run may use (from the first again, if there are more
    workers than GPUs)."""
    import torch

    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = allowed.split(",") if allowed is not None else [str(n) for n in range(torch.cuda.device_count())]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(worker.removeprefix("gw")) % len(devices)]


class _Hooks:
    @pytest.hookimpl
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves out the full tier where nobody asked for it (nor for a GPU), and models that the trainer of this tag
        does not know yet."""
        tag = config.getoption("--drift-tag")
        lacking = tags.row(tag).lacks if tag else ()
        with_full = plugin_options.device(config) != "cpu" or plugin_options.asked(config, "full")
        found = [i for i in items if isinstance(i, CaseItem)]
        out = {i for i in found if i.case.model in lacking or (i.case.tier == "full" and not with_full)}
        if out:
            items[:] = [i for i in items if i not in out]
            config.hook.pytest_deselected(items=sorted(out, key=lambda i: i.nodeid))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
        """Carry the whole result in the report: it survives the way from an xdist worker to the controller."""
        outcome = yield
        if call.when == "call" and isinstance(item, CaseItem) and item.result is not None:
            outcome.get_result().drift = item.result.model_dump_json()


class CaseFile(pytest.File):
    """One case file. A mistake in it is a collection error of that file alone."""

    def collect(self) -> Iterator[pytest.Item]:
        profile = self.config.getoption("--drift-profile")
        if profile not in PROFILES:
            raise CaseError(f"--drift-profile {profile}: use {', '.join(PROFILES[:-1])} or {PROFILES[-1]}")
        if lacking := extras.lacking("check"):
            raise CaseError(f"checking a case {lacking}")
        case = cases.load(self.path)
        if case.model in tags.row(self.config.getoption("--drift-tag") or tags.newest()).lacks:
            return
        device, dtype = plugin_options.device(self.config), self.config.getoption("--drift-dtype")
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
        bench = self._bench()
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

    def _bench(self) -> Any:
        """What renders; the same for all cases of a folder, so that a model is loaded once."""
        from lora_drift.harness.check import runner

        home = self.path.resolve().parents[1]
        goldens = plugin_options.folder(self.config, "goldens") or home.parent / "goldens"
        tag = self.config.getoption("--drift-tag") or tags.newest()
        dtype = self.config.getoption("--drift-dtype") or runner.dtype_of(self.device, tag, self.case, goldens)
        benches = self.config.stash.setdefault(BENCHES, {})
        bench = benches.get(dtype)
        if bench is None or (bench.goldens, bench.known) != (goldens, home / "known.yaml"):
            bench = benches[dtype] = runner.Bench(
                self.device,
                dtype,
                tag=tag,
                controls=not self.config.getoption("--drift-no-controls"),
                floor=self.config.getoption("--drift-floor"),
                profile=self.config.getoption("--drift-profile"),
                goldens=goldens,
                known=home / "known.yaml",
            )
        return bench

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **kwargs: Any) -> Any:
        if isinstance(excinfo.value, DriftFailure):
            result: Result = excinfo.value.args[0]
            return f"{result.verdict}: {result.case} at {result.tag}: {result.message}"
        return super().repr_failure(excinfo, *args, **kwargs)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name
