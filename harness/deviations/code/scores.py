"""What mutants of the code came to: the table in the terminal, reports/code-mutation.{json,md}, and whether a run is
worse than what is committed there."""

import json
from collections.abc import Iterable, Sequence
from math import comb
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_drift.harness.deviations.code.argued import ARGUED, NOT_HERE
from lora_drift.harness.deviations.code.run import Outcome
from lora_drift.harness.paths import ROOT

REPORT = ROOT / "reports" / "code-mutation"
CHANCE = 0.01
"""A run is worse than the committed scores when they would make it so bad less often than this."""
BEFORE = (
    "Before this was a habit, an independent sample of 184 decidable mutants had it that the cases alone notice "
    "77.7 %, three quarters of those by a crash, and with unit tests 94.6 %."
)


class Score(BaseModel):
    """Counts of the mutants of a file, or of all."""

    mutants: int = 0
    distance: int = 0
    crash: int = 0
    survived: int = 0
    """The cases run it and do not notice; argued ones left out."""
    unreached: int = 0
    """No case runs it; argued ones left out."""
    argued: int = 0
    tests: int = 0
    """Of those that the cases did not notice."""
    untried: int = 0
    """Of those, not tried with unit tests (the run was ended)."""

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> "Score":
        score = cls()
        for o in outcomes:
            score.mutants += 1
            name = "argued" if reason(o) else o.cases
            setattr(score, name, getattr(score, name) + 1)
            score.tests += o.tests == "killed"
            score.untried += name in ("survived", "unreached") and o.tests == ""
        return score

    @property
    def noticed(self) -> tuple[int, int]:
        """By the cases alone: how many, of how many that a case runs and that make a difference."""
        return self.distance + self.crash, self.distance + self.crash + self.survived

    @property
    def with_tests(self) -> tuple[int, int]:
        """The same with unit tests, of all that make a difference; what was not tried with them counts as unnoticed."""
        return self.distance + self.crash + self.tests, self.mutants - self.argued


def reason(outcome: Outcome) -> str:
    """Why nobody could notice a mutant that nothing noticed; empty: it should be noticed."""
    if outcome.killed:
        return ""
    return NOT_HERE.get(outcome.file, "") or ARGUED.get(outcome.file, {}).get(outcome.key, "")


def by_file(outcomes: Iterable[Outcome]) -> dict[str, Score]:
    grouped: dict[str, list[Outcome]] = {}
    for o in outcomes:
        grouped.setdefault(o.file, []).append(o)
    return {file: Score.of(of) for file, of in sorted(grouped.items())}


def committed(report: Path = REPORT) -> dict[str, Score]:
    """The scores that the repository has, by file; `all` is the sum."""
    path = report.with_suffix(".json")
    if not path.is_file():
        return {}
    return {
        file: Score.model_validate(row) for file, row in json.loads(path.read_text(encoding="utf-8"))["files"].items()
    }


def worse(outcomes: Sequence[Outcome], before: dict[str, Score]) -> list[str]:
    """Where a run is below the committed scores by more than chance, in words."""
    found = []
    for file, score in {"all": Score.of(outcomes), **by_file(outcomes)}.items():
        if file not in before:
            continue
        for what, (hit, of), (hit_before, of_before) in (
            ("the cases alone", score.noticed, before[file].noticed),
            ("cases and unit tests", score.with_tests, before[file].with_tests),
        ):
            # One more hit and one more miss than were seen: a score of 100 % is no promise about the next mutant.
            share = (hit_before + 1) / (of_before + 2)
            if of and _at_most(hit, of, share) < CHANCE:
                found.append(f"{file}: {what} notice {hit} of {of}; committed are {hit_before} of {of_before}")
    return found


def _at_most(hit: int, of: int, share: float) -> float:
    """How likely at most `hit` of `of` are noticed, when each is with probability `share`."""
    return sum(comb(of, n) * share**n * (1 - share) ** (of - n) for n in range(hit + 1))


def left(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """What neither a case nor a unit test notices, and nobody has argued away."""
    return [o for o in outcomes if o.tests == "survived" and not reason(o)]


def _percent(pair: tuple[int, int]) -> str:
    return f"{pair[0] / pair[1]:.0%}" if pair[1] else ""


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    return [
        (file, *map(str, (s.mutants, s.mutants - s.unreached, s.distance, s.crash, s.survived)), _percent(s.noticed),
         str(s.tests), str(s.argued),
         str(s.with_tests[1] - s.with_tests[0] - s.untried), str(s.untried), _percent(s.with_tests))
        for file, s in {**by_file(outcomes), "all": Score.of(outcomes)}.items()
    ]  # fmt: skip


COLUMNS = ("file", "mutants", "run by a case", "by distance", "by crash", "not by a case", "cases alone",
           "by unit tests", "argued", "left", "not tried", "with unit tests")  # fmt: skip


def show(outcomes: Sequence[Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS, box=None)
    for row in _rows(outcomes):
        table.add_row(*row)
    console = Console(width=140)
    console.print(table)
    if unnoticed := left(outcomes):
        console.print("\nNoticed by nothing:", *map(_line, unnoticed), sep="\n  ", markup=False, soft_wrap=True)


def _line(o: Outcome) -> str:
    how = "no case runs it" if o.cases == "unreached" else "tried on " + ", ".join(o.tried)
    return f"{o.file}:{o.line} {o.key} ({o.kind}; {how})"


def write(outcomes: Sequence[Outcome], seed: str, out: Path = REPORT) -> Path:
    """The committed record of a run over all files; returns the path of the Markdown."""
    out.with_suffix(".json").write_text(_json(outcomes, seed), encoding="utf-8")
    out.with_suffix(".md").write_text(_markdown(outcomes, seed), encoding="utf-8")
    return out.with_suffix(".md")


def _json(outcomes: Sequence[Outcome], seed: str) -> str:
    scores = {**by_file(outcomes), "all": Score.of(outcomes)}
    lines = [f' "{file}": {json.dumps(score.model_dump(exclude_defaults=True))}' for file, score in scores.items()]
    return f'{{"seed": {json.dumps(seed)}, "files": {{\n' + ",\n".join(lines) + "\n}}\n"


def _markdown(outcomes: Sequence[Outcome], seed: str) -> str:
    total = Score.of(outcomes)
    hit, of = total.noticed
    table = [f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    table += [f"| {' | '.join(row)} |" for row in _rows(outcomes)]
    fates: list[dict[str, Any]] = [_fate(o) for o in outcomes if not o.killed]
    rows = ["| place | change | cases | what became of it |", "|---|---|---|---|"]
    rows += ["| " + " | ".join(fate.values()) + " |" for fate in sorted(fates, key=lambda f: f["place"])]
    return "\n\n".join((
        f"# Mutation of the code, seed {seed}",
        f"{total.mutants} random one-point mutants of `pipelines/`. Of {of} that a case runs and that make a "
        f"difference, the cases alone notice {hit} ({_percent((hit, of))}), {total.distance} of these by a distance, "
        f"a size or a setting and {total.crash} by an error. With unit tests {total.with_tests[0]} of "
        f"{total.with_tests[1]} are noticed ({_percent(total.with_tests)}); {total.argued} make no difference, with "
        "the argument below.",
        BEFORE,
        "A mutant is tried on at most five cases that run its line at the newest tag, and two of these at the oldest, "
        "then on the unit tests that run it, but for those that take minutes (`ELSEWHERE` in run.py), one of which may "
        "notice what is left. CONTRIBUTING.md says what to do with a survivor.",
        *([f"{total.untried} mutants that the cases did not notice are not tried with unit tests yet and count as "
           f"unnoticed; of {total.with_tests[1] - total.noticed[0] - total.untried} that were tried, {total.tests} "
           "are noticed (`lora-drift mutate-code --resume` goes on)."] if total.untried else []),
        "\n".join(table),
        "## What nothing noticed",
        "\n".join(rows),
    )) + "\n"  # fmt: skip


def _fate(o: Outcome) -> dict[str, str]:
    became = reason(o) or ("not tried with unit tests" if o.tests == "" else "**left**")
    return {
        "place": f"{o.file}:{o.line}",
        "change": "`" + o.key.replace("|", "\\|").replace("`", "'") + "`",
        "cases": "not run" if o.cases == "unreached" else "run",
        "became": became.replace("|", "\\|"),
    }
