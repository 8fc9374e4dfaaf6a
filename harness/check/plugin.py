"""The pytest plugin: case files are test items.

pytest cases/                       all mini cases of the newest tag, on the CPU
pytest cases/flux --drift-tag TAG   one model, one tag
pytest cases/ -n 2                  two workers; each model is loaded once, by one of them
pytest cases/ -m gpu                the same on CUDA (any GPU), and the full tier (cases/full) on the real weights
pytest cases/ -m full               the full tier alone

A case file is a YAML file in a model's folder of the folder that `--drift-cases` or `drift_cases` (pytest.ini) names,
or of any folder `cases`, where it must have the keys of a case.

pytest loads this module at every start, in every project beside which this package is installed. So it imports nothing
of ours but plugin_options.py, and changes nothing (markers, devices, scheduling) before a case is collected; items.py
does that.
"""

import re
import signal
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pytest

from lora_drift.harness.check.plugin_options import device, folder

STREAM = pytest.StashKey[TextIO]()
CHOSEN = pytest.StashKey[int]()
"""How many cases this run has."""
INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended, as of every other command here."""
KEYS = ("schema", "model", "sample")
"""A YAML file in somebody's folder `cases` is ours if it has all of these."""
CASE_ID = re.compile(r"(?:^|/)([^/]+/[^/]+)\.yaml::\1(?:\[|$)")
"""A node id of ours: cases/flux/lora.yaml::flux/lora"""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lora-drift", "LoRA drift against the trainer")
    group.addoption("--drift-cases", metavar="DIR", type=Path,
                    help="folder of case files, MODEL/NAME.yaml (default: the ini option drift_cases)")  # fmt: skip
    group.addoption("--drift-goldens", metavar="DIR", type=Path,
                    help="their goldens (default: the ini option drift_goldens, else goldens/ beside the folder of the "
                         "cases)")  # fmt: skip
    group.addoption("--drift-tag", metavar="TAG", help="trainer version whose goldens count (default: the newest)")
    group.addoption("--drift-device", metavar="DEVICE", help="cpu or cuda (default: cuda with `-m gpu`, else cpu)")
    group.addoption("--drift-dtype", metavar="DTYPE", choices=("float32", "bfloat16"),
                    help="default: bfloat16 where a GPU has goldens of it, else float32")  # fmt: skip
    group.addoption("--drift-profile", metavar="PROFILE", default="reference",
                    help="compiled or fast: how far is that from the trainer? (default: %(default)s)")  # fmt: skip
    group.addoption("--drift-require-goldens", action="store_true",
                    help="fail where a GPU or a real model has no golden yet, instead of listing it")  # fmt: skip
    group.addoption("--drift-json", metavar="FILE", type=Path, help="append one JSON object per case, as they finish")
    group.addoption("--drift-no-controls", action="store_true",
                    help="leave the negative controls out (as `lora-drift matrix` does)")  # fmt: skip
    group.addoption("--drift-floor", action="store_true",
                    help="measure the noise floor of this device too: every case twice more, on a GPU also on "
                         "deterministic kernels (`lora-drift tolerances --results` reads it)")  # fmt: skip
    group.addoption("--drift-out", metavar="DIR", type=Path, default=Path("build/drift"),
                    help="where this run's pictures go (default: %(default)s)")  # fmt: skip
    parser.addini("drift_cases", "folder of case files for lora-drift, relative to this file")
    parser.addini("drift_goldens", "folder of their goldens, relative to this file")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    for option in ("cases", "goldens"):
        home = folder(config, option)
        if home is not None and not home.is_dir():
            raise pytest.UsageError(f"drift_{option}: no such folder: {home}")
    ours = config.invocation_params.dir / "cases"
    if any(Path(argument.partition("::")[0]).parts[:1] == ("cases",) for argument in config.args) and not ours.exists():
        from lora_drift.harness.paths import elsewhere

        raise pytest.UsageError(elsewhere("cases", ours, "--drift-cases DIR --drift-goldens DIR"))
    if device(config) != "cpu" and not config.getoption("collectonly") and _hold_a_case(config):
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError(
                f"cases were asked for on {device(config)}, and torch {torch.__version__} sees no CUDA device: leave "
                "`-m gpu` (`-m full`, `--drift-device`) out to check on the CPU, or install a torch for your GPU"
            )
    config.pluginmanager.register(_Tally(config), "lora-drift-tally")
    path: Path | None = config.getoption("--drift-json")
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            config.stash[STREAM] = path.open("w", encoding="utf-8")
        except OSError as error:
            raise pytest.UsageError(f"--drift-json {path}: {error.strerror}") from error
        config.pluginmanager.register(_Writer(config.stash[STREAM]), "lora-drift-writer")


def pytest_unconfigure(config: pytest.Config) -> None:
    if STREAM in config.stash:
        config.stash[STREAM].close()


class _Tally:
    """A run in which no case could be compared has verified nothing, and is not green. One that Ctrl-C ended says what
    is known so far."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.compared, self.skipped, self.interrupted = 0, 0, False

    @pytest.hookimpl
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        _count(self.config, [item.nodeid for item in session.items])

    @pytest.hookimpl
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        by_hand = type(excinfo.value) is KeyboardInterrupt or "keyboard-interrupt" in str(excinfo.value)  # of a worker
        if by_hand and _hold_a_case(self.config):
            self.interrupted = True
            self._patience = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would end it without a word

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if getattr(report, "drift", None) is not None:
            self.skipped += report.skipped
            self.compared += not report.skipped

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.skipped and not self.compared and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.interrupted:
            session.exitstatus = INTERRUPTED

    @pytest.hookimpl
    def pytest_unconfigure(self) -> None:
        if self.interrupted:
            signal.signal(signal.SIGINT, self._patience)

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.interrupted:
            file = self.config.getoption("--drift-json")
            chosen = self.config.stash.get(CHOSEN, None)
            of = "" if chosen is None else f" of {chosen}"
            kept = f"their results are in {file}" if file else "--drift-json FILE would have kept their results"
            terminalreporter.write_line(
                f"lora-drift: interrupted: {self.compared + self.skipped}{of} cases were checked; {kept}", red=True
            )
        elif self.skipped and not self.compared:
            terminalreporter.write_line(
                f"lora-drift: nothing was verified. None of {self.skipped} cases has a golden (or weights) for what "
                "was asked for; the reason of each is above. On a GPU, leave --drift-dtype out: in float32 the CPU's "
                "goldens serve every GPU.",
                red=True,
            )


class _Writer:
    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line: str | None = getattr(report, "drift", None)
        if line is not None:
            self.stream.write(line + "\n")
            self.stream.flush()  # a killed run keeps what it had


# -------------------------------------------------------------------------------------------------------- collection


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix != ".yaml" or not _is_case(parent.config, file_path):
        return None
    from lora_drift.harness.check import items

    items.set_up(parent.config)
    return items.CaseFile.from_parent(parent, path=file_path)


def _is_case(config: pytest.Config, file: Path) -> bool:
    """A file in the named folder must be a case, so that a mistake in it is told and not passed over. Any other must
    say that it is one."""
    home = file.parent.parent
    if home.resolve() == folder(config, "cases"):
        return True
    if home.name != "cases":
        return False
    text = file.read_text(encoding="utf-8", errors="replace")
    return all(re.search(rf"^{key}\s*:", text, re.MULTILINE) for key in KEYS)


# ------------------------------------------------------------------------------------------------------------- xdist


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Under `-n auto`, one worker per GPU, if the arguments hold a case (nothing is collected yet)."""
    if device(config) != "cuda" or not _hold_a_case(config):
        return None
    import torch

    return torch.cuda.device_count() or None


def _hold_a_case(config: pytest.Config) -> bool:
    for argument in config.args:
        path = config.invocation_params.dir / argument.partition("::")[0]
        below = chain.from_iterable(path.glob(pattern) for pattern in ("*.yaml", "*/*.yaml", "cases/*/*.yaml"))
        if any(_is_case(config, file) for file in ([path] if path.is_file() else below)):
            return True
    return False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """The first worker has collected, and nothing is given out yet: if it found cases, give them out by model."""
    if _count(node.config, ids):
        from lora_drift.harness.check import scheduling

        scheduling.by_model(node.config)


def _count(config: pytest.Config, ids: Sequence[str]) -> int:
    """How many of these tests are cases; kept for the last line of the run."""
    config.stash[CHOSEN] = sum(".yaml::" in name and CASE_ID.search(name) is not None for name in ids)
    return config.stash[CHOSEN]
