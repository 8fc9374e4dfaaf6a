"""Mutants of the code, drawn at random, and what notices each: first the cases, then the unit tests."""

import fnmatch
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lora_drift.harness import tags
from lora_drift.harness.check import cases, runner
from lora_drift.harness.deviations.code.points import Point, points
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines.files import lines_of

FOLDER = ROOT / "pipelines"
LINES = ROOT / "build" / "code-mutation-lines.json"
PICTURES = ROOT / "build" / "code-mutation"
MOST_CASES, AT_OLDEST = 5, 2
"""Of a mutant at the newest tag, and how many of these are tried at the oldest, too."""
TEST_SECONDS = 12.0
"""Of unit tests, for each mutant."""
ELSEWHERE = (
    "catalogue", "cli*", "comfyui", "completeness", "coverage", "diagnos*", "downloads", "field*", "fits", "full",
    "fuzz", "gpu", "in_comfyui", "install", "jobs", "lora", "matrix", "minihub", "native*", "no_traceback",
    "plugin_guest", "profiles", "replay", "rows", "server*", "site", "speed", "tags", "threads", "trace",
    "trainer_defaults", "variations",
)  # fmt: skip
"""Test files that import the pipelines and are about something else, or take minutes."""


class CodeMutationError(RuntimeError):
    """No mutant can be judged here; the message says why."""


class Outcome(BaseModel):
    """One mutant."""

    model_config = ConfigDict(extra="forbid")

    file: str
    """In pipelines/, e.g. `families/wan.py`."""
    code: str
    """Hash of that file: what was found of another state of it says nothing."""
    number: int
    """Of the file's mutants (`points.points`)."""
    key: str
    kind: str
    line: int
    row: str = ""
    cases: Literal["distance", "crash", "survived", "unreached"]
    """Noticed by a distance, a size or a setting; by an error; not noticed; or none runs its line."""
    tests: Literal["killed", "survived", ""] = ""
    """What unit tests made of it where the cases did not notice; empty: not asked, or not yet."""
    by: str = ""
    """The case (TAG:CASE), or the unit test, that noticed."""
    message: str = ""
    tried: list[str] = []
    """Cases that did not notice."""
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        return self.cases in ("distance", "crash") or self.tests == "killed"


class Ran(BaseModel):
    """What a case or a unit test runs."""

    verdict: str
    message: str = ""
    seconds: float = 0.0
    lines: dict[str, list[int]] = {}


class Group(BaseModel):
    """The cases of a model, or the tests of a file, watched in one process."""

    code: str
    imported: dict[str, list[int]]
    """Lines that run when the modules are imported, which all of them do."""
    found: dict[str, Ran]
    modules: list[str] = []


class Forks:
    """The process of `forks.py`, and what it is asked."""

    def __init__(self) -> None:
        home = runner.use_minihub()
        said = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HOME": str(home), "HF_HUB_OFFLINE": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false",
                **{f"{name}_VERBOSITY": "error" for name in ("TRANSFORMERS", "DIFFUSERS", "HF_HUB")}}  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lora_drift.harness.deviations.code.forks"], cwd=ROOT, env={**os.environ, **said},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def ask(self, do: str, seconds: float = 0.0, **task: object) -> dict[str, Any]:
        """Raises: CodeMutationError: the process is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, "seconds": seconds, **task}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise CodeMutationError(f"the process that forks ended ({self._process.wait()}) when asked to {do}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def forking() -> Iterator[Forks]:
    """Raises: CodeMutationError: this is no Linux."""
    if not sys.platform.startswith("linux"):
        raise CodeMutationError("mutants of the code are rendered in forks, which needs Linux")
    forks = Forks()
    try:
        yield forks
    finally:
        forks.close()


# -------------------------------------------------------------------------------------------------- what runs a line


def code_of(*files: Path) -> str:
    """Hash of what is in them."""
    return sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


class Watching:
    """What each case and unit test runs; kept in build/, and watched again where something changed."""

    def __init__(self, forks: Forks, progress: Callable[[str], object]) -> None:
        self._forks, self._progress = forks, progress
        self._code = code_of(*sorted(FOLDER.rglob("*.py")))
        self._kept = json.loads(LINES.read_text(encoding="utf-8")) if LINES.is_file() else {}

    def cases(self) -> dict[str, Group]:
        """Model -> its cases at the newest tag that has it.

        Raises:
            CodeMutationError: a case does not match without a mutant, so it cannot judge one.
        """
        by_model: dict[str, list[str]] = {}
        for case in cases.load_all():
            by_model.setdefault(case.model, []).append(case.id)
        found = {}
        for model, ids in by_model.items():
            tag = tags.newest_of([model])
            state = f"{tag} {code_of(*(cases.CASES / f'{case}.yaml' for case in ids))}"
            names = [f"{tag}:{case}" for case in ids]
            found[model] = self._group(model, state, "lines_of_cases", 300, cases=names, out=str(PICTURES))
            for name, ran in found[model].found.items():
                if ran.verdict != "match":
                    raise CodeMutationError(f"{name} does not match without any mutant ({ran.message}); mend it first")
        return found

    def tests(self) -> dict[str, Group]:
        """Test file -> its unit tests."""
        return {file.name: self._group(file.name, code_of(file), "lines_of_tests", 600, files=[f"tests/{file.name}"])
                for file in test_files()}  # fmt: skip

    def _group(self, name: str, state: str, do: str, seconds: float, **task: object) -> Group:
        if self._kept.get(name, {}).get("code") != f"{self._code} {state}":
            self._progress(f"watching {name}")
            answer = self._forks.ask(do, seconds, **task)
            if "died" in answer:
                raise CodeMutationError(f"{name} could not be watched: {answer['died']}")
            self._kept[name] = {"code": f"{self._code} {state}", **answer}
            LINES.parent.mkdir(exist_ok=True)
            LINES.write_text(json.dumps(self._kept, separators=(",", ":")), encoding="utf-8")
        return Group.model_validate(self._kept[name])


def test_files() -> list[Path]:
    """The unit tests of the pipelines."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [file for file in files if "lora_drift.pipelines" in file.read_text(encoding="utf-8")
            and not any(fnmatch.fnmatch(file.stem, f"test_{name}") for name in ELSEWHERE)]  # fmt: skip


def reaching(point: Point, file: str, groups: Mapping[str, Group]) -> dict[str, tuple[str, Ran]]:
    """Name -> (group, what it runs) of all that runs the place."""

    def runs(lines: Sequence[int] | set[int], span: tuple[int, int]) -> bool:
        return any(span[0] <= line <= span[1] for line in lines)

    found: dict[str, tuple[str, Ran]] = {}
    known = {line for g in groups.values() for of in (g.imported, *(r.lines for r in g.found.values()))
             for line in of.get(file, ())}  # fmt: skip
    span = point.lines if runs(known, point.lines) else point.statement
    for name, group in groups.items():
        at_import = runs(group.imported.get(file, ()), span)
        found |= {case: (name, ran) for case, ran in group.found.items()
                  if ran.verdict == "match" and (at_import or runs(ran.lines.get(file, ()), span))}  # fmt: skip
    return found


def chosen(point: Point, file: str, models: Mapping[str, Group], most: int = MOST_CASES) -> list[str]:
    """The cases that judge a mutant, of a row's mutant those of its model: the quickest; then each time the one that
    runs most lines of the file that those before did not, for its seconds, then that asks most that those did not."""
    left = reaching(point, file, models)
    if point.row and point.row in models:
        left = {case: (model, ran) for case, (model, ran) in left.items() if model == point.row}
    seen: set[int] = set()
    heard: set[str] = set()
    order: list[str] = []

    def worth(case: str) -> tuple[float, float]:
        ran = left[case][1]
        lines, said = len(set(ran.lines.get(file, ())) - seen), len(asked(case) - heard)
        return lines / (1 + ran.seconds), said / (1 + ran.seconds)

    while left and len(order) < most:
        best = (
            max(left, key=worth)
            if order
            else min(left, key=lambda c: (not left[c][1].lines.get(file), left[c][1].seconds))
        )
        seen |= set(left.pop(best)[1].lines.get(file, ()))
        heard |= asked(best)
        order.append(best)
    return order


@cache
def asked(name: str) -> frozenset[str]:
    """What the case TAG:CASE asks, a field each, and of which model."""
    case = name.partition(":")[2]
    lines = (cases.CASES / f"{case}.yaml").read_text(encoding="utf-8").splitlines()
    return frozenset(line.strip() for line in lines if not line.startswith("about:"))


def at_oldest(names: Sequence[str]) -> list[str]:
    """The same cases at the oldest tag, where they match there (the committed results say so)."""
    oldest = tags.names()[0]
    summary = json.loads((ROOT / "reports" / oldest / "summary.json").read_text(encoding="utf-8"))
    matching = {case["case"] for case in summary["cases"] if case["verdict"] == "match"}
    ids = [name.partition(":")[2] for name in names]
    return [f"{oldest}:{case}" for case in ids if case in matching]


def testing(point: Point, file: str, tests: Mapping[str, Group]) -> list[str]:
    """Unit tests that run the place, those that do more than import it first, the quickest first, as many as fit."""
    found = reaching(point, file, tests)
    order = sorted(found, key=lambda test: (not found[test][1].lines.get(file), found[test][1].seconds))
    fitting, spent = [], 0.0
    for test in order:
        spent += found[test][1].seconds
        if spent > TEST_SECONDS:
            break
        fitting.append(test)
    return fitting


# -------------------------------------------------------------------------------------------------------- the mutants


def drawn(source: str, file: str, count: int, seed: str) -> list[Point]:
    """`count` mutants of a file, at random: a kind first, so that a file of numbers is not all about numbers."""
    draw, by_kind = random.Random(f"{seed} {file}"), dict[str, list[Point]]()
    for point in points(source):
        by_kind.setdefault(point.kind, []).append(point)
    found: list[Point] = []
    while by_kind and len(found) < count:
        kind = draw.choice(sorted(by_kind))
        found.append(by_kind[kind].pop(draw.randrange(len(by_kind[kind]))))
        if not by_kind[kind]:
            del by_kind[kind]
    return found


def files() -> list[str]:
    """All that can be mutated, e.g. `families/wan.py`."""
    return sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.py"))


def read(path: Path) -> list[Outcome]:
    """Outcomes that an earlier run left behind, each mutant's last, of files as they are now."""
    if not path.is_file():
        return []
    whole = [Outcome.model_validate_json(line) for line in lines_of(path) if line.endswith("}")]
    now = {file: code_of(FOLDER / file) for file in files()}
    last = {(o.file, o.number): o for o in whole if now.get(o.file) == o.code}
    return list(last.values())


def run(
    only_files: Sequence[str],
    mutants: int,
    seed: str,
    out: Path,
    *,
    resume: bool,
    progress: Callable[[int, int, str], object],
) -> list[Outcome]:
    """`mutants` of each file, a mutant of each file in turn; every outcome is appended to `out` as it comes.

    With `resume`, outcomes that `out` holds already stay; what survived is tried with the unit tests again.

    Raises:
        CodeMutationError: no such file, not on Linux, or a case does not match as it is.
    """
    unknown = sorted(set(only_files) - set(files()))
    if unknown:
        raise CodeMutationError(f"no {', '.join(unknown)} in pipelines/ (write families/wan.py)")
    if not resume:
        out.unlink(missing_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    before = {(o.file, o.number): o for o in read(out)}
    per_file = {file: drawn((FOLDER / file).read_text(encoding="utf-8"), file, mutants, seed)
                for file in only_files or files()}  # fmt: skip
    turns = [(file, points[n]) for n in range(mutants) for file, points in per_file.items() if n < len(points)]

    def keep(outcome: Outcome) -> None:
        before[outcome.file, outcome.number] = outcome
        with out.open("a", encoding="utf-8") as stream:
            stream.write(outcome.model_dump_json() + "\n")

    with forking() as forks:
        watching = Watching(forks, lambda what: progress(0, len(turns), what))
        models = watching.cases()
        forks.ask("load", modules=sorted({name for group in models.values() for name in group.modules}))
        for done, (file, point) in enumerate(turns, 1):
            if (file, point.number) not in before:
                keep(_by_cases(forks, file, point, models))
            progress(done, len(turns), file)
        unnoticed = [(file, point) for file, point in turns if not before[file, point.number].killed]
        unnoticed.sort(key=lambda at: before[at[0], at[1].number].cases != "survived")  # the worst first: silent ones
        tests = watching.tests()
        for done, (file, point) in enumerate(unnoticed, 1):
            keep(_by_tests(forks, file, point, tests, before[file, point.number]))
            progress(done, len(unnoticed), f"{file} by unit tests")
    return [before[file, point.number] for file, point in turns]


def _by_tests(forks: Forks, file: str, point: Point, tests: Mapping[str, Group], outcome: Outcome) -> Outcome:
    testers = testing(point, file, tests)
    if not testers:
        return outcome.model_copy(update={"tests": "survived"})
    spent = sum(tests[name.partition("::")[0].rpartition("/")[2]].found[name].seconds for name in testers)
    answer = forks.ask("judge_tests", 20 + 3 * spent, file=file, number=point.number, tests=testers)
    died = answer.get("died", "")
    noticed = bool(died) or answer["verdict"] == "tests"
    return outcome.model_copy(update={"tests": "killed" if noticed else "survived", "by": answer.get("by", ""),
                                      "message": died})  # fmt: skip


def _by_cases(forks: Forks, file: str, point: Point, models: Mapping[str, Group]) -> Outcome:
    started, order = time.perf_counter(), chosen(point, file, models)
    outcome = Outcome(file=file, code=code_of(FOLDER / file), number=point.number, key=point.key, kind=point.kind,
                      line=point.line, row=point.row, cases="unreached")  # fmt: skip
    if not order:
        return outcome
    order += at_oldest(order)[:AT_OLDEST]
    ran = {case: ran for group in models.values() for case, ran in group.found.items()}
    spent = sum(ran[case].seconds for case in order if case in ran)
    answer = forks.ask("judge_cases", 15 + 3 * spent, file=file, number=point.number, cases=order,
                       out=str(PICTURES))  # fmt: skip
    verdict = "crash" if "died" in answer else answer["verdict"]
    return outcome.model_copy(update={
        "cases": verdict,
        "by": answer.get("by", ""),
        "message": answer.get("died") or answer.get("message", ""),
        "tried": order if verdict == "survived" else [],
        "seconds": round(time.perf_counter() - started, 2),
    })  # fmt: skip
