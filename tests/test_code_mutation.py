"""Mutation of the code: where a module can be mutated, what a fork makes of a mutant, and what scores say."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_drift.harness.check import runner
from lora_drift.harness.cli.main import app
from lora_drift.harness.deviations.code import forks, run, scores
from lora_drift.harness.deviations.code.argued import ARGUED, NOT_HERE
from lora_drift.harness.deviations.code.forks import Answer
from lora_drift.harness.deviations.code.points import Point, mutated, points
from lora_drift.harness.deviations.code.run import Group, Outcome, Ran
from lora_drift.harness.deviations.code.scores import Score
from lora_drift.harness.paths import ROOT

TOY = '''
"""A toy."""
from typing import Callable

Levels = Callable[[int], int]
GAMMA = 2


def brightness(level: int = 3) -> int:
    """Of a level."""
    if level < 0:
        raise ValueError("a level below 0")
    note = {"was": level}
    note["seen"] = 1
    left = 10
    while left > 0:
        left -= 1
    names = ["dark", "bright"]
    return names.index("bright") * GAMMA * level + left
'''
GOLDEN = 6


def found(source: str, key: str) -> Point:
    matching = [p for p in points(source) if p.key == key]
    assert len(matching) == 1, [p.key for p in points(source)]
    return matching[0]


# ------------------------------------------------------------------------------------------------------------ points


def test_what_is_only_said_or_typed_is_left_out() -> None:
    keys = [p.key for p in points(TOY)]
    assert not [k for k in keys if "toy" in k.lower() or "argument" in k or "Callable" in k or "int ->" in k]
    assert "GAMMA: 2 -> 3" in keys and "brightness: 3 -> 4" in keys


@pytest.mark.parametrize(
    ("before", "kind", "after"),
    [
        ("f(a < b)", "comparison", "f(a <= b)"),
        ("f(a // b)", "arithmetic", "f(a / b)"),
        ("f(a and b)", "boolean", "f(a or b)"),
        ("f(not a)", "not", "f(a)"),
        ("f(-a)", "sign", "f(a)"),
        ("f(0.5)", "sign", "f(-0.5)"),
        ("f('rgb')", "string", "f('')"),
        ("f(True)", "constant", "f(False)"),
        ("a[1:n]", "slice", "a[:n]"),
        ("f(a, b)", "arguments swapped", "f(b, a)"),
        ("f(a, key=b)", "argument removed", "f(a)"),
        ("a if b else c", "branch deleted", "c"),
        ("if a:\n    b()", "branch deleted", "if False:\n    b()"),
        ("if a:\n    b()", "not", "if not a:\n    b()"),
        ("f(a)", "statement removed", "pass"),
        ("a = 1\na = b", "statement removed", "a = 1\npass"),
    ],
)
def test_one_change_of_each_kind(before: str, kind: str, after: str) -> None:
    import ast

    made = [ast.unparse(mutated(before, p.number)) for p in points(before) if p.kind == kind]
    assert after in made


@pytest.mark.parametrize(
    "source",
    ["import a", "assert a == 1", "x: int = y", "a = 1", "x = row(why='it was', id=x)", "@cache(1)\ndef f(): pass"],
)
def test_no_such_change(source: str) -> None:
    kinds = {p.kind for p in points(source)} - {"constant"}
    assert not kinds & {"comparison", "string"}
    assert not any(
        "why" in p.key or "cache" in p.key or ("statement" in p.kind and "=" in p.before) for p in points(source)
    )


@pytest.mark.parametrize("file", ["resizing.py", "images.py", "shared_patch.py"])
def test_every_mutant_of_a_file_is_another_program(file: str) -> None:
    source = (ROOT / "pipelines" / file).read_text(encoding="utf-8")
    original = compile(source, file, "exec", dont_inherit=True)
    for point in points(source):
        code = compile(mutated(source, point.number), file, "exec", dont_inherit=True)
        assert code != original, point


def test_a_place_in_a_row_says_whose_row() -> None:
    assert {p.row for p in points('A = Row(id="a", steps=3)\nB = replace(A, id="b", steps=4)') if "3" in p.before} == {
        "a"
    }


# ------------------------------------------------------------------------------------------------------------- forks


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    file = tmp_path / "a_toy_to_mutate.py"
    file.write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop(file.stem, None)


@pytest.fixture
def judged(toy: Path) -> Callable[[str], Answer]:
    """The verdict on a mutant of the toy: by its number against the golden one."""

    def judge(key: str) -> Answer:
        def work() -> Answer:
            forks.install(toy.stem, toy, found(TOY, key).number, toy.stem)
            import a_toy_to_mutate

            distance = abs(a_toy_to_mutate.brightness() - GOLDEN)
            return {"verdict": "distance" if distance else "survived"}

        return forks.in_fork(work, 2)

    return judge


@pytest.mark.parametrize("imported", [False, True])
def test_a_mutant_takes_the_place_of_its_module_in_the_fork_alone(
    imported: bool, judged: Callable[[str], Answer]
) -> None:
    if imported:
        import a_toy_to_mutate as _  # noqa: F401
    assert judged("GAMMA: 2 -> 3") == {"verdict": "distance"}
    assert judged("brightness: note['seen'] = 1 -> pass") == {"verdict": "survived"}
    assert "ValueError: a level below 0" in judged("brightness: level < 0 -> not level < 0")["died"]
    import a_toy_to_mutate

    assert a_toy_to_mutate.brightness() == GOLDEN


def test_a_mutant_that_does_not_come_back_is_ended(judged: Callable[[str], Answer]) -> None:
    started = time.process_time()
    assert judged("brightness: left -= 1 -> pass") == {"died": "took more than 2 s"}
    assert time.process_time() - started < 2  # the fork's time is not ours


def test_a_fork_that_dies_says_how() -> None:
    import os
    import signal

    def end_itself() -> Answer:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    assert forks.in_fork(end_itself, 2) == {"died": "ended by SIGTERM"}
    assert forks.in_fork(lambda: sys.exit("no") or {}, 2)["died"].startswith("SystemExit: no")


def test_lines_that_run_are_seen_by_file(toy: Path) -> None:
    lines = forks.Lines(toy.parent)
    with lines.watching():
        import a_toy_to_mutate

        assert {6, 9} <= set(lines.take()[toy.name])
        a_toy_to_mutate.brightness()
    body = TOY.splitlines()
    ran = {body[n - 1].strip() for n in lines.take()[toy.name]}
    assert 'note = {"was": level}' in ran and not any("raise" in line for line in ran)


@pytest.mark.slow
def test_cases_and_unit_tests_judge_mutants_of_the_pipelines() -> None:
    file = "families/sd.py"
    source = (run.FOLDER / file).read_text(encoding="utf-8")
    case = [f"{runner.newest_tag()}:sd15/base"]
    with run.forking() as process:

        def judge(key: str) -> Answer:
            return process.ask(
                "judge_cases", 60, file=file, number=found(source, key).number, cases=case, out="build/toy"
            )

        assert judge("render: num_inference_steps=settings.steps -> pipe(without it)")["verdict"] == "distance"
        other = "load: spec.pipeline == 'StableDiffusionPipeline' -> spec.pipeline != 'StableDiffusionPipeline'"
        assert judge(other)["verdict"] == "crash"
        assert judge("load: 'requires_safety_checker' -> ''") == {"verdict": "survived"}  # Diffusers warns, no more
        number = found(
            source, "render: guidance_scale=spec.pipeline_scale(settings.guidance_scale) -> pipe(without it)"
        )
        tests = ["tests/test_families.py::test_all_that_a_request_says_reaches_stable_diffusion"]
        noticed = process.ask("judge_tests", 60, file=file, number=number.number, tests=tests)
        assert noticed["verdict"] == "tests" and noticed["by"].startswith(tests[0])


# --------------------------------------------------------------------------------------------- which cases and mutants


def test_mutants_are_drawn_by_seed_and_file_each_once() -> None:
    source = (run.FOLDER / "settings.py").read_text(encoding="utf-8")
    first = [p.number for p in run.drawn(source, "settings.py", 30, "1")]
    assert first == [p.number for p in run.drawn(source, "settings.py", 30, "1")]
    assert first[:12] == [p.number for p in run.drawn(source, "settings.py", 12, "1")]
    assert first != [p.number for p in run.drawn(source, "settings.py", 30, "2")]
    assert len(set(first)) == 30
    assert len(run.drawn(TOY, "toy.py", 10_000, "1")) == len(points(TOY))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cases of `group` ask."""
    fields = {"other": {"steps: 3", "seed: 2"}, "same": {"steps: 3"}}
    monkeypatch.setattr(run, "asked", lambda case: frozenset(fields.get(case, ())))


def group(**cases: tuple[float, list[int]]) -> Group:
    ran = {name: Ran(verdict="match", seconds=s, lines={"a.py": lines}) for name, (s, lines) in cases.items()}
    return Group(code="", imported={"a.py": [1, 2]}, found=ran)


def point(first: int, last: int, row: str = "") -> Point:
    return Point(0, "constant", "1", "2", first, (first, last), (first, last), "f", row, 1)


def test_the_cases_of_a_mutant_run_its_line_the_quickest_first_then_what_runs_other_lines(asked: None) -> None:
    models = {
        "a": group(quick=(1.0, [5]), same=(1.1, [5]), more=(2.0, [5, 6, 7])),
        "b": group(other=(1.5, [5])),
        "c": group(elsewhere=(0.1, [9])),
    }
    assert run.chosen(point(5, 5), "a.py", models) == ["quick", "more", "other", "same"]
    assert run.chosen(point(20, 21), "a.py", models) == []
    assert run.chosen(point(5, 5), "a.py", models, most=1) == ["quick"]


def test_a_mutant_of_a_row_is_tried_on_its_model(asked: None) -> None:
    models = {"a": group(quick=(1.0, [5])), "b": group(slow=(2.0, [5]))}
    assert run.chosen(point(1, 1, row="b"), "a.py", models) == ["slow"]
    assert set(run.chosen(point(1, 1), "a.py", models)) == {"quick", "slow"}


def test_unit_tests_that_do_more_than_import_come_first_and_only_as_many_as_fit() -> None:
    tests = {"test_x.py": group(only=(0.1, []), long=(run.TEST_SECONDS - 1, [1]), short=(0.5, [2]))}
    assert run.testing(point(1, 2), "a.py", tests) == ["short", "long", "only"]
    tests["test_x.py"].found["short"].seconds = 5
    assert run.testing(point(1, 2), "a.py", tests) == ["short"]


# ------------------------------------------------------------------------------------------------------------- scores


def outcome(cases: str, tests: str = "", key: str = "k", file: str = "a.py", number: int = 0) -> Outcome:
    return Outcome.model_validate({"file": file, "code": "", "number": number, "key": key, "kind": "not", "line": 1,
                                   "cases": cases, "tests": tests})  # fmt: skip


def test_scores_leave_out_what_is_argued_and_tell_apart_what_no_case_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARGUED, "a.py", {"same": "it is the same."})
    outcomes = [
        outcome("distance"),
        outcome("crash"),
        outcome("survived", "killed"),
        outcome("survived", "survived"),
        outcome("survived", "survived", key="same"),
        outcome("unreached", "survived"),
        outcome("unreached"),  # not tried yet, so that it counts for the cases alone
        outcome("unreached", "killed"),
    ]
    score = Score.of(outcomes)
    assert score.noticed == (2, 4) and score.untried == 1
    assert score.with_tests == (4, 7)
    assert [o.cases for o in scores.left(outcomes)] == ["survived", "unreached"]
    assert scores.reason(outcome("distance", key="same")) == ""  # what is noticed is no equivalent


def test_a_run_is_worse_when_chance_does_not_explain_it() -> None:
    before = {"all": Score(mutants=100, distance=95, survived=5, tests=5)}
    assert not scores.worse([outcome("distance")] * 19 + [outcome("survived", "killed")], before)
    worse = scores.worse([outcome("distance")] * 10 + [outcome("survived", "survived")] * 10, before)
    assert len(worse) == 2 and "10 of 20" in worse[0] and "95 of 100" in worse[0]
    assert not scores.worse([outcome("survived")], {})


def test_the_record_says_what_became_of_each_that_nothing_noticed(tmp_path: Path) -> None:
    outcomes = [outcome("distance"), outcome("unreached", "survived", key="f: a | b -> a & b"),
                outcome("survived", "killed").model_copy(update={"by": "tests/test_x.py::test_y"})]  # fmt: skip
    text = scores.write(outcomes, "7", tmp_path / "code-mutation").read_text(encoding="utf-8")
    assert "| a.py:1 | `f: a \\| b -> a & b` | not run | **left** |" in text
    assert text.count("| a.py:1 |") == 1, "what a unit test notices is counted only"
    assert scores.committed(tmp_path / "code-mutation") == {"a.py": Score.of(outcomes), "all": Score.of(outcomes)}


def test_outcomes_of_another_state_of_the_file_are_not_continued(tmp_path: Path) -> None:
    now = run.code_of(run.FOLDER / "noise.py")
    kept = [outcome("crash", file="noise.py", number=n).model_copy(update={"code": code}) for n, code in
            ((1, now), (2, "older"), (1, now))]  # fmt: skip
    kept[2].cases = "distance"
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f"{o.model_dump_json()}\n" for o in kept) + '{"file": "noi', encoding="utf-8")
    assert [(o.number, o.cases) for o in run.read(log)] == [(1, "distance")]


def test_every_argument_is_about_a_mutant_that_there_is() -> None:
    for file, arguments in ARGUED.items():
        there = {p.key for p in points((run.FOLDER / file).read_text(encoding="utf-8"))}
        assert not arguments.keys() - there, file
    assert NOT_HERE.keys() <= set(run.files())


def test_the_committed_scores_add_up() -> None:
    before = scores.committed()
    whole = before.pop("all")
    assert set(before) == {f for f in run.files() if points((run.FOLDER / f).read_text(encoding="utf-8"))}
    for field in Score.model_fields:
        assert getattr(whole, field) == sum(getattr(score, field) for score in before.values())


def test_a_file_that_is_not_there_is_refused() -> None:
    result = CliRunner().invoke(app, ["mutate-code", "--file", "nowhere.py"])
    assert result.exit_code == 2 and "no nowhere.py in pipelines/" in result.stderr
