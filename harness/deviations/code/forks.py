"""A process that has torch, Diffusers and Transformers loaded, and forks for each mutant (Linux).

It reads tasks as lines of JSON and answers each with one. A fork puts the mutated module in the place of the original,
and imports `lora_drift.pipelines` and all that needs it anew (no module there does anything but define, so the original
leaves nothing behind). Forks are taken before torch starts a thread.
"""

import gc
import importlib
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from lora_drift.harness.deviations.code.points import mutated

PACKAGE = "lora_drift.pipelines"
FOLDER = Path(__file__).parents[3] / "pipelines"
MEMORY = 6 * 2**30
"""What a mutant may ask for beyond what the process has, in bytes."""
LOADED_WITH = ("diffusers.", "transformers.")
"""Packages whose modules are loaded only when they are asked for; once in the parent spares every fork that."""
LIBRARIES = (
    "torch", "torchvision", "diffusers", "transformers", "peft", "numpy", "PIL", "pydantic", "yaml", "skimage.metrics",
    "flip_evaluator", "ftfy", "pandas", "pytest", "syrupy", "hypothesis", "rich.console", "typer.testing", "sqlalchemy",
    "lora_drift.harness.minihub.factory",  # before what needs the pipelines: most of it needs none, and is kept
    "lora_drift.harness.check.runner",
)  # fmt: skip
Answer = dict[str, Any]


class Mutated(SourceFileLoader):
    """Loads a module from a syntax tree in memory; its name and file stay those of the original."""

    def __init__(self, name: str, file: Path, code: CodeType) -> None:
        super().__init__(name, str(file))
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code


class Instead:
    """Finds one module before Python finds the original."""

    def __init__(self, name: str, file: Path, number: int) -> None:
        self._name, self._file = name, file
        code = compile(mutated(file.read_text(encoding="utf-8"), number), str(file), "exec", dont_inherit=True)
        self._loader = Mutated(name, file, code)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        folders = [str(self._file.parent)] if self._file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, self._file, loader=self._loader, submodule_search_locations=folders
        )


def install(name: str, file: Path, number: int, package: str = PACKAGE) -> None:
    """From here on `name` is imported with mutant `number` of its file in it.

    What was imported with the original is forgotten, to be imported anew.
    """
    forget(package)
    sys.meta_path.insert(0, Instead(name, file, number))


def forget(package: str = PACKAGE) -> None:
    """Import `package` anew when it is asked for next, and all beside it that may need it: what was finished after its
    first module (a module stands in `sys.modules` behind all that it needs)."""
    root, names = package.partition(".")[0], list(sys.modules)
    first = next((n for n, known in enumerate(names) if f"{known}.".startswith(f"{package}.")), len(names))
    for known in names[first:]:
        if (known.partition(".")[0] == root and known != root) or f"{known}.".startswith(f"{package}."):
            above, _, name = known.rpartition(".")
            vars(sys.modules.get(above, sys.modules[known])).pop(name, None)  # or `from above import name` finds it
            del sys.modules[known]


def module_of(file: str, package: str = PACKAGE) -> str:
    """`families/wan.py` -> `lora_drift.pipelines.families.wan`"""
    parts = Path(file).with_suffix("").parts
    return ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def in_fork(work: Callable[[], Answer], seconds: float) -> Answer:
    """What `work` returns, done in a fork that may use `seconds` of a processor, and four times that of a clock.

    A fork that dies or does not come back answers {"died": why}. Whatever it started ends with it.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(work, writer, seconds)
    os.close(writer)
    try:
        answer = _read(reader, 4 * seconds)
    finally:
        os.close(reader)
        _end(child)
    _, status = os.waitpid(child, 0)
    if answer:
        return json.loads(answer)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    slow = number in (signal.SIGXCPU, signal.SIGKILL)
    return {"died": f"took more than {seconds:.0f} s" if slow else f"ended by {signal.Signals(number).name}" if number
            else f"exit {os.waitstatus_to_exitcode(status)}"}  # fmt: skip


def _work(work: Callable[[], Answer], writer: int, seconds: float) -> None:
    """The child: never returns."""
    try:
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        spent = time.process_time()  # of the parent; the limit counts from the fork on, but the clock may not
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds + spent) + 1, int(seconds + spent) + 5))
        has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, has + MEMORY))
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001  the answer carries it; SystemExit of a mutant is one, too
            last = traceback.extract_tb(error.__traceback__)[-1]
            answer = {"died": f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"[:300]}
        with os.fdopen(writer, "w", encoding="utf-8") as out:
            out.write(json.dumps(answer))
    finally:
        os._exit(0)


def _read(reader: int, seconds: float) -> bytes:
    """All that the child writes until it closes; nothing when that takes too long."""
    parts: list[bytes] = []
    until = time.monotonic() + seconds
    while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(reader, 2**20)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return b""


def _end(child: int) -> None:
    """The child and what it started; each may be gone already."""
    for kill, number in ((os.killpg, child), (os.kill, child)):
        try:
            kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue


# ---------------------------------------------------------------------------------------------------------- the work


class Lines:
    """Which lines of the files in `folder` run, by file, since `take` was last called."""

    def __init__(self, folder: Path) -> None:
        self._prefixes = {str(folder) + os.sep, str(folder.resolve()) + os.sep}
        self._files: dict[str, Callable[..., Any] | None] = {}
        self.seen: dict[str, set[int]] = {}

    def __call__(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        if name not in self._files:
            prefix = next((p for p in self._prefixes if name.startswith(p)), None)
            self._files[name] = self._in_file(name.removeprefix(prefix)) if prefix else None
        return self._files[name]

    def _in_file(self, file: str) -> Callable[..., Any]:
        def line(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
            if event == "line":
                self.seen.setdefault(file, set()).add(frame.f_lineno)
            return line

        return line

    def take(self) -> dict[str, list[int]]:
        taken, self.seen = {file: sorted(lines) for file, lines in self.seen.items()}, {}
        return taken

    @contextmanager
    def watching(self) -> Iterator[None]:
        before = sys.gettrace()
        threading.settrace(self)
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)
            threading.settrace(before)


def lines_of_cases(cases: list[str], out: str) -> Answer:
    """Which lines each case of a model runs, at import, while loading and after; and its verdict without a mutant."""
    forget()
    lines, found = Lines(FOLDER), {}
    loaded: dict[int, tuple[Any, dict[str, list[int]]]] = {}
    with lines.watching():
        check = _Checking(out)
        imported = lines.take()
        for case in cases:
            started = time.process_time()
            base = check.base(case)
            if id(base) not in loaded:
                _ = base.pipe, base.shapes
                loaded[id(base)] = base, lines.take()
            verdict, message, _ = check(case)
            ran = {file: set(of) for file, of in lines.take().items()}
            for file, of in loaded[id(base)][1].items():
                ran.setdefault(file, set()).update(of)
            found[case] = {"verdict": verdict, "message": message, "seconds": round(time.process_time() - started, 2),
                           "lines": {file: sorted(of) for file, of in ran.items()}}  # fmt: skip
    modules = [name for name in sys.modules if name.startswith(LOADED_WITH)]
    return {"imported": imported, "found": found, "modules": modules}


def lines_of_tests(files: list[str]) -> Answer:
    """The same of the unit tests in `files`."""
    import pytest

    forget()
    lines, found = Lines(FOLDER), dict[str, Answer]()

    class Watch:
        def __init__(self) -> None:
            self.imported: dict[str, list[int]] = {}

        def pytest_collection_finish(self) -> None:
            self.imported = lines.take()

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
            started = time.process_time()
            found[item.nodeid] = {"verdict": "match"}
            result = yield
            found[item.nodeid] |= {"lines": lines.take(), "seconds": time.process_time() - started}
            return result

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.outcome != "passed":
                found[report.nodeid]["verdict"] = report.outcome

    watch = Watch()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with lines.watching():
        pytest.main([*PYTEST, *files], plugins=[watch])
    return {"imported": watch.imported, "found": found, "modules": []}


PYTEST = ("-q", "-p", "lora_drift.harness.check.plugin", "-p", "syrupy", "-p", "no:cacheprovider",
          "-m", "not slow and not gpu and not comfyui")  # fmt: skip
"""Of all plugins those that the tests need: what is installed otherwise takes longer to load than most tests to run."""


def judge_cases(file: str, number: int, cases: list[str], out: str) -> Answer:
    """The first of `cases` that does not match with a mutant, and how."""
    install(module_of(file), FOLDER / file, number)
    check = None
    for case in cases:
        try:
            check = check or _Checking(out)
            verdict, message, shown = check(case)
        except Exception as error:  # noqa: BLE001  a mutant may break what the check itself needs: that is noticed
            verdict, message, shown = "error", f"{type(error).__name__}: {error}", {}
        if verdict != "match":
            by = "distance" if verdict == "drift" else "crash"
            return {"verdict": by, "by": case, "message": message[:300], **shown}
    return {"verdict": "survived"}


def judge_tests(file: str, number: int, tests: list[str]) -> Answer:
    """The first of `tests` (node ids) that fails with a mutant."""
    import pytest

    install(module_of(file), FOLDER / file, number)
    failed: list[str] = []

    class First:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failed.append(report.nodeid)

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    code = pytest.main([*PYTEST, "-x", *tests], plugins=[First()])
    if code == pytest.ExitCode.OK:
        return {"verdict": "survived"}
    return {"verdict": "tests", "by": failed[0] if failed else tests[0].partition("::")[0]}


class _Checking:
    """Checks a case, named TAG:CASE, without its negative controls -> verdict, message, distances."""

    def __init__(self, out: str) -> None:
        from lora_drift.harness.check import runner
        from lora_drift.harness.hf_logging import quiet

        runner.use_minihub()
        quiet()
        self._out = Path(out)
        self._benches: dict[str, Any] = {}

    def _at(self, name: str) -> tuple[Any, Any]:
        from lora_drift.harness.check import cases, runner

        tag, _, case = name.partition(":")
        if tag not in self._benches:
            self._benches[tag] = runner.Bench(tag=tag, controls=False)
        return self._benches[tag], cases.load(cases.CASES / f"{case}.yaml")

    def __call__(self, name: str) -> tuple[str, str, Answer]:
        from lora_drift.harness.check import runner

        bench, case = self._at(name)
        result = runner.check(bench, case, self._out)
        return result.verdict, result.message, {m.name: m.value for m in result.metrics if m.gate is not None}

    def base(self, name: str) -> Any:
        """The model that the case is rendered on; loaded when it is asked for its parts."""
        bench, case = self._at(name)
        return bench.pipeline(case, bench.golden(case)).base


def load(modules: list[str]) -> Answer:
    """Import what forks would otherwise import each for itself."""
    loaded = 0
    for name in modules:
        if name not in sys.modules and importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
            loaded += 1
    from transformers import conversion_mapping

    conversion_mapping.get_checkpoint_conversion_mapping("clip")  # a thousand regular expressions, which it keeps
    gc.collect()
    gc.freeze()
    return {"loaded": loaded}


WORK: dict[str, Callable[..., Answer]] = {
    work.__name__: work for work in (lines_of_cases, lines_of_tests, judge_cases, judge_tests)
}


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    load(list(LIBRARIES))
    for line in sys.stdin:
        task = json.loads(line)
        do, seconds = task.pop("do"), task.pop("seconds", 0.0)
        answer = load(**task) if do == "load" else in_fork(partial(WORK[do], **task), seconds)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
