"""Records cases at the commit of a checkout, compares them with the goldens of a tag, and finds the commits between."""

import json
import os
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lora_drift.harness.check import goldens
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import Golden, GoldenError
from lora_drift.harness.check.staged import staged
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.tags import Tag
from lora_drift.harness.trainer.recorder import build_environment
from lora_drift.harness.trainer.watch import environments
from lora_drift.harness.trainer.watch.compare import CHANGED, FAILED, Difference, compare
from lora_drift.harness.trainer.watch.environments import Environment
from lora_drift.harness.trainer.watch.history import Commit, History
from lora_drift.harness.trainer.watch.search import Step, search, together

Note = Callable[[str], None]
Recordings = tuple[Golden, ...]
"""Of some cases of a model, at one commit."""


@dataclass(frozen=True)
class Change:
    """What one commit did to a model; or one of several, if those between were not recorded."""

    model: str
    before: Commit
    after: Commit
    between: int
    """Commits after `before` and up to `after`: 1 if it is `after` that did it."""
    differences: list[Difference]
    requirements: list[str]
    """Lines of the trainer's requirements that moved with it."""
    environments: list[str]
    """The folder in which `after` was recorded, and before it that of `before`, if it is another."""


@dataclass
class Outcome:
    tag: Tag
    head: Commit
    commits: int
    """After the tag's, that may change a sample."""
    environment: str
    lacking: list[str]
    """What HEAD's requirements ask for and its environment does not have."""
    requirements: list[str]
    """Lines of the trainer's requirements that are others than at the tag."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Case -> why it was not recorded: it has no golden to be compared with."""
    differences: list[Difference] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    """Changed models whose commits were not searched for, or not yet."""

    @property
    def found(self) -> list[Difference]:
        """What is otherwise than at the tag."""
        return [each for each in self.differences if each.verdict in (CHANGED, FAILED)]


class Recorder:
    """The recorder, at any commit, in the environment that the commit's requirements ask for. What is recorded once
    stays in `scratch`."""

    def __init__(self, history: History, home: Path, scratch: Path, jobs: int, note: Note, *, build: bool) -> None:
        self.history = history
        self._home, self._scratch, self._jobs, self._note, self._build = home, scratch, jobs, note, build
        self._asked: dict[str, tuple[str, ...]] = {}
        self._chosen: dict[tuple[str, ...], Environment] = {}

    def requirements(self, sha: str) -> tuple[str, ...]:
        """The lines of the trainer's requirements at a commit."""
        if sha not in self._asked:
            self._asked[sha] = tuple(build_environment.requirements(self.history.at(sha)))
        return self._asked[sha]

    def moved(self, before: str, after: str) -> list[str]:
        """Those lines that came or went between two commits ("-transformers==4.57.3")."""
        then, now = self.requirements(before), self.requirements(after)
        return [*(f"-{line}" for line in then if line not in now), *(f"+{line}" for line in now if line not in then)]

    def environment(self, sha: str) -> Environment:
        """The one that fits a commit best."""
        lines = self.requirements(sha)
        if lines not in self._chosen:
            chosen = self._chosen[lines] = environments.choose(self._home, lines, build=self._build)
            for lacking in chosen.lacks(lines):
                commit = self.history.commit(sha)
                self._note(f"{commit.version} {commit.short} asks for {lacking}; recorded in {chosen.folder.name}")
        return self._chosen[lines]

    def __call__(self, sha: str, cases: Sequence[Case]) -> dict[str, Golden | str]:
        """Case -> what the trainer rendered, or why it did not."""
        environment = self.environment(sha)
        commit = self.history.commit(sha)
        self._note(f"{commit.version} {commit.short} in {environment.folder.name}: {', '.join(c.id for c in cases)}")
        place = self._scratch / f"{commit.short}-{environment.folder.name}"
        place.mkdir(parents=True, exist_ok=True)
        command = [str(environment.python), "-m", "lora_drift.harness.trainer.recorder", "--jobs", str(self._jobs),
                   "--trainer", str(self.history.at(sha)), "--stage", str(place)]  # fmt: skip
        command += [word for case in cases for word in ("--case", case.id)]
        log = place / "recorder.log"
        with log.open("wb") as stream:
            subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=stream, stderr=stream)
        return {case.id: _result(case, place, sha, log) for case in cases}


def _result(case: Case, place: Path, sha: str, log: Path) -> Golden | str:
    folder = place / "staged" / case.id
    if (folder / "complete").is_file():
        result = json.loads((folder / "result.json").read_text())
        return staged(case, folder, sha, result["environment"], result)
    if (folder / "failed.json").is_file():
        return str(json.loads((folder / "failed.json").read_text())["why"])
    own = sorted(place.glob(f"logs/{case.model}-*.log"), key=lambda file: file.stat().st_mtime)
    lines = [line for file in (log, *own) for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1].strip() if lines else 'the recorder said nothing'} (see {place})"


def watch(
    tag: Tag, cases: Sequence[Case], recorder: Recorder, save: Callable[[Outcome], None], *, bisect: bool
) -> Outcome:
    """`save` gets what is known after each part, so that an interrupted run leaves that.

    Raises:
        PinError: there is no environment to record in.
        HistoryError: a commit cannot be checked out.
    """
    history = recorder.history
    environment = recorder.environment(history.head)
    lacking = [str(each) for each in environment.lacks(recorder.requirements(history.head))]
    moved = recorder.moved(tag.commit, history.head)
    commits = len(history.shas) - 1
    outcome = Outcome(tag, history.commit(history.head), commits, environment.folder.name, lacking, moved)
    base = _goldens(tag, cases, outcome)
    todo = [case for case in cases if case.id in base]
    now = recorder(history.head, todo) if todo else {}
    for case in todo:
        after = now[case.id]
        outcome.differences.append(
            Difference(case.id, FAILED, why=after) if isinstance(after, str) else compare(case, base[case.id], after)
        )
    outcome.pending = sorted({each.model for each in outcome.differences if each.verdict == CHANGED})
    save(outcome)
    if bisect and commits:
        for change in _searched(outcome, {case.id: case for case in todo}, base, now, recorder):
            outcome.changes = sorted([*outcome.changes, *change], key=partial(_when, history.shas))
            save(outcome)
    return outcome


def _goldens(tag: Tag, cases: Sequence[Case], outcome: Outcome) -> dict[str, Golden]:
    found = {}
    for case in cases:
        try:
            found[case.id] = goldens.load(tag.tag, case, factory.manifest_sha256(case.model, case.extras))
        except GoldenError as error:
            outcome.left_out[case.id] = str(error)
    return found


def representatives(differences: Sequence[Difference], cases: Mapping[str, Case]) -> list[Case]:
    """Of a model's changed cases, one for each kind of stage at which they change: that which changes most."""
    changed = [each for each in differences if each.verdict == CHANGED]
    changed.sort(key=lambda each: -(each.pixel_mean or 0))
    first: dict[str, Case] = {}
    for each in changed:
        first.setdefault(each.place.partition(":")[0], cases[each.case])
    return list(first.values())


def _searched(
    outcome: Outcome, cases: Mapping[str, Case], base: Mapping[str, Golden], now: Mapping[str, Golden | str],
    recorder: Recorder,
) -> Iterator[list[Change]]:  # fmt: skip
    """The changes of a model, one model after the other as they are found."""
    shas = recorder.history.shas
    watched = {
        model: representatives([each for each in outcome.differences if each.model == model], cases)
        for model in outcome.pending
    }
    last = len(shas) - 1  # its samples are HEAD's

    def ends(those: Sequence[Case], at: Mapping[str, Golden | str]) -> Recordings:
        return tuple(golden for case in those if isinstance(golden := at[case.id], Golden))

    def record(index: int, models: Collection[str]) -> dict[str, Recordings | None]:
        made = recorder(shas[index], [case for model in models for case in watched[model]])
        whole = {model: ends(watched[model], made) for model in models}
        return {model: got if len(got) == len(watched[model]) else None for model, got in whole.items()}

    searches = {
        model: search(0, last, ends(those, base), ends(those, now), partial(_same, those))
        for model, those in watched.items()
    }
    for model, steps in together(searches, record):
        # None: many small ones, each of them within rounding.
        steps = steps or [Step(0, last, ends(watched[model], base), ends(watched[model], now))]
        outcome.pending.remove(model)
        yield [_change(model, watched[model], step, recorder) for step in steps]


def _when(shas: Sequence[str], change: Change) -> tuple[int, str]:
    return shas.index(change.after.sha), change.model


def _same(those: Sequence[Case], before: Recordings, after: Recordings) -> bool:
    return not any(compare(*each).verdict == CHANGED for each in zip(those, before, after, strict=True))


def _change(model: str, those: Sequence[Case], step: Step[Recordings], recorder: Recorder) -> Change:
    history = recorder.history
    before, after = history.shas[step.low], history.shas[step.high]
    found = [compare(*each) for each in zip(those, step.before, step.after, strict=True)]
    homes = [recorder.environment(sha).folder.name for sha in (before, after)]
    return Change(
        model,
        history.commit(before),
        history.commit(after),
        step.high - step.low,
        [each for each in found if each.verdict == CHANGED] or found,
        recorder.moved(before, after),
        list(dict.fromkeys(homes)),
    )
