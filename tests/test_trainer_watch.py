"""`lora-drift trainer-watch`, on a short history of a made-up trainer and with a stand-in for the environment's Python:
what it "renders" is a number in the trainer's checkout, plus one of the environment."""

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lora_drift.harness import tags
from lora_drift.harness.check import cases, goldens
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.staged import staged
from lora_drift.harness.cli.main import app
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.recorder import __main__ as recorder
from lora_drift.harness.trainer.recorder import build_environment
from lora_drift.harness.trainer.recorder.pins import PinError
from lora_drift.harness.trainer.watch import environments
from lora_drift.harness.trainer.watch.search import Search, Step, search, together

# ------------------------------------------------------------------------------------------------------------ search


def steps_of(states: Sequence[int | None]) -> tuple[list[tuple[int, int]], list[int]]:
    """(low, high) of each step of a history with these states (None: cannot be recorded); and what was asked for."""
    asked = []
    ends = states[0], states[-1]
    assert ends[0] is not None and ends[1] is not None
    running = search(0, len(states) - 1, ends[0], ends[1], lambda a, b: a == b)
    answer: int | None = None
    try:
        while True:
            asked.append(running.send(answer))
            answer = states[asked[-1]]
    except StopIteration as done:
        return [(step.low, step.high) for step in done.value], asked


def test_every_change_is_found_with_few_recordings() -> None:
    states = [0] * 100 + [1] * 40 + [2] + [3] * 300
    found, asked = steps_of(states)
    assert found == [(99, 100), (139, 140), (140, 141)]
    assert len(asked) < 30


def test_without_a_change_nothing_is_asked_for() -> None:
    assert steps_of([4] * 100) == ([], [])


def test_what_cannot_be_recorded_is_gone_around_and_leaves_a_range_only_at_the_change() -> None:
    assert steps_of([0, 0, None, None, 0, 0, 1, 1])[0] == [(5, 6)]
    assert steps_of([0, 0, None, None, 1, 1, 1, 1])[0] == [(1, 4)]
    found, asked = steps_of([0, *[None] * 500, 1])
    assert found == [(0, 501)] and len(asked) == 12, "it gives up"


def test_searches_share_what_they_ask_for() -> None:
    states = {"a": [0] * 60 + [1] * 4, "b": [0] * 60 + [1] * 4, "c": [7] * 64}
    asked = []

    def record(index: int, keys: Collection[str]) -> dict[str, int | None]:
        asked.append((index, sorted(keys)))
        return {key: states[key][index] for key in keys}

    searches: dict[str, Search[int]] = {
        key: search(0, 63, those[0], those[-1], lambda a, b: a == b) for key, those in states.items()
    }
    found = dict(together(searches, record))
    assert found == {"a": [Step(59, 60, 0, 1)], "b": [Step(59, 60, 0, 1)], "c": []}
    assert all(keys == ["a", "b"] for _, keys in asked) and len(asked) == 6


# ----------------------------------------------------------------------------------------------- a trainer's history

STAND_IN = """#!{python}
import json, pathlib, sys
sys.path.insert(0, {root!r})
words = sys.argv[3:]
given = dict(zip(words[::2], words[1::2]))
names = [value for word, value in zip(words, words[1:]) if word == "--case"]
trainer, home = pathlib.Path(given["--trainer"]), pathlib.Path(sys.argv[0]).parents[2]
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from lora_drift.harness.check.trace import Trace
state = json.loads((trainer / "state.json").read_text())
with open(home / "asked", "a") as log:
    print((trainer / "version.py").read_text().strip(), *names, file=log)
for name in names:
    model = name.split("/")[0]
    out = pathlib.Path(given["--stage"]) / "staged" / name
    out.mkdir(parents=True, exist_ok=True)
    if state.get(model) is None:
        (out / "failed.json").write_text(json.dumps({{"why": "ImportError: no " + model}}))
        continue
    value = state[model] + int((home / "adds").read_text())
    latents = np.full((1, 4, 8, 8), 1 + value, np.float32)
    trace = Trace()
    trace.add("encode/text_encoder#0", np.ones(3))
    trace.add("schedule/sigmas", np.arange(3) + value)
    trace.add("decode/in", latents)
    trace.save(out / "trace.safetensors")
    save_file({{"latents": latents}}, out / "latents.safetensors")
    Image.new("RGB", (16 if value == 99 else 8, 8), (value, 0, 0)).save(out / "picture.png")
    environment = {{"device": "cpu", "dtype": "float32", "cpu": "one", "cpu_capability": "AVX2", "torch": "2.13.0"}}
    (out / "result.json").write_text(json.dumps({{
        "environment": environment, "origin": "generate_images", "short_way": None, "patches": [],
        "settings": {{"lora_mode": None}}, "output": {{"frames": 1}},
    }}))
    (out / "complete").touch()
"""
OLD, NEW = "1" * 40, "2" * 40
"""Commits of Diffusers."""
PINS = "git+https://github.com/huggingface/diffusers@{}\ntransformers=={}\n"


def git(folder: Path, *args: str) -> str:
    identity = ("-c", "user.name=A Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *identity, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Trainer:
    """A checkout whose commits say what it "renders" of each model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shas: list[str] = []
        folder.mkdir()
        git(folder, "init", "--quiet", "--initial-branch", "main")

    def commit(self, message: str, *, pins: str | None = None, **state: int | None) -> str:
        number = len(self.shas)
        files = {"state.json": json.dumps(state), "version.py": f'VERSION = "9.0.{number}"\n'}
        for name, content in (files | ({"requirements.txt": pins} if pins else {})).items():
            (self.folder / name).write_text(content)
        git(self.folder, "add", "--all")
        git(self.folder, "commit", "--quiet", "--message", message)
        self.shas.append(git(self.folder, "rev-parse", "HEAD"))
        return self.shas[-1]


class Watch:
    """The command, on this trainer, with these environments and a tag whose goldens the trainer's first commit made."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trainer, self.home, self.out = Trainer(tmp_path / "trainer"), tmp_path / "homes", tmp_path / "out"
        self._monkeypatch = monkeypatch
        self.scratch = tmp_path / "scratch"

    def environment(self, name: str, diffusers: str, transformers: str = "5.5.3", adds: int = 0) -> Path:
        folder = self.home / name
        python = folder / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(STAND_IN.format(python=sys.executable, root=str(ROOT)))
        python.chmod(0o755)
        site = folder / "venv" / "lib" / "python3.11" / "site-packages" / f"transformers-{transformers}.dist-info"
        site.mkdir(parents=True)
        (site / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {transformers}\n")
        (folder / "diffusers").mkdir()
        git(folder / "diffusers", "init", "--quiet")
        (folder / "diffusers" / ".git" / "HEAD").write_text(diffusers + "\n")
        (folder / "adds").write_text(str(adds))
        return folder

    def asked(self, name: str) -> list[str]:
        return (self.home / name / "asked").read_text().splitlines()

    def tag(self, home: Path) -> None:
        """Make v9 the tag of the first commit, whose goldens are what it "renders" in that environment."""
        row = {"tag": "v9", "version": "9.0.0", "commit": self.trainer.shas[0], "diffusers": OLD,
               "transformers": "5.5.3", "lock": "torch-2.13"}  # fmt: skip
        self._monkeypatch.setattr(tags, "all_rows", lambda: [tags.Tag.model_validate(row)])
        made = self.scratch.parent / "goldens"
        git(self.trainer.folder, "checkout", "--quiet", self.trainer.shas[0])

        def load(tag: str, case: Case, *_: Any) -> Any:
            folder = made / "staged" / case.id
            if not (folder / "complete").is_file():
                raise goldens.Missing(f"no golden of {case.id}")
            result = json.loads((folder / "result.json").read_text())
            return staged(case, folder, tag, result["environment"], result)

        chosen = [word for case in ("sd15/base", "flux/base", "flux/lora") for word in ("--case", case)]
        python = str(home / "venv" / "bin" / "python")
        command = [python, "-m", "recorder", "--trainer", str(self.trainer.folder), "--stage", str(made), *chosen]
        subprocess.run(command, check=True)
        git(self.trainer.folder, "checkout", "--quiet", "main")
        self._monkeypatch.setattr(goldens, "load", load)

    def __call__(self, *args: str) -> Result:
        files = ["--json", str(self.out / "found.json"), "--report", str(self.out / "page.md")]
        given = ["--trainer", str(self.trainer.folder), "--environments", str(self.home), "--from", "v9"]
        cases_ = [] if "--case" in args else ["--case", "sd15/base", "--case", "flux/base", "--case", "flux/lora"]
        return CliRunner().invoke(
            app, ["trainer-watch", *given, "--scratch", str(self.scratch), *files, *cases_, *args]
        )

    @property
    def found(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.out / "found.json").read_text())
        return told

    @property
    def page(self) -> str:
        return (self.out / "page.md").read_text()

    def named(self) -> list[tuple[str, int]]:
        """(model, the commit that is named), in the order of commits."""
        shas = self.trainer.shas
        return sorted(
            ((change["model"], shas.index(change["after"]["sha"])) for change in self.found["changes"]),
            key=lambda one: one[::-1],
        )


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(tmp_path, monkeypatch)


def plain(watch: Watch, states: Sequence[dict[str, int | None]]) -> None:
    """Commits with these states, of which nothing moves requirements, and one environment."""
    home = watch.environment("only", OLD)
    for number, state in enumerate(states):
        watch.trainer.commit(f"number {number}", pins=PINS.format(OLD, "5.5.3"), **state)
    watch.tag(home)


def test_each_change_is_named_with_its_stage_and_size_and_the_checkout_stays_as_it_was(watch: Watch) -> None:
    states = [{"sd15": 0, "flux": 0}] * 3 + [{"sd15": 0, "flux": 9}] * 4 + [{"sd15": 5, "flux": 20}] * 3
    plain(watch, [dict(state) for state in states])
    done = watch()
    assert done.exit_code == 1, done.output
    assert watch.named() == [("flux", 3), ("flux", 7), ("sd15", 7)]
    shas = watch.trainer.shas
    assert git(watch.trainer.folder, "rev-parse", "HEAD") == shas[-1]
    assert git(watch.trainer.folder, "status", "--porcelain") == ""
    sections = watch.page.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections] == [
        f"The trainer's samples changed with {shas[3][:8]} (9.0.3)",
        f"The trainer's samples changed with {shas[7][:8]} (9.0.7)",
    ]
    assert "number 7" in sections[1] and f"commit/{shas[7]}" in sections[1]
    assert "| `flux/base` | schedule: sigmas | max 11, mean 3.67 of 255; latents 1.1 |" in sections[1]
    assert "`sd15/base`" in sections[1] and "`sd15/base`" not in sections[0]
    assert "flux/base                          changed   schedule: sigmas: max 20" in done.stdout
    assert f"9.0.3 {shas[3][:8]}: number 3" in done.stdout


def test_nothing_changed_is_zero_and_no_section(watch: Watch) -> None:
    plain(watch, [{"sd15": 3, "flux": 1}] * 5)
    done = watch()
    assert done.exit_code == 0, done.output
    assert "3 cases: 3 same" in done.stdout and "\n## " not in watch.page
    assert len(watch.asked("only")) == 2, "the golden, and HEAD"


def test_commits_that_cannot_be_recorded_leave_a_range(watch: Watch) -> None:
    values: list[int | None] = [0, 0, None, None, 6, 6, 6]
    plain(watch, [{"sd15": value, "flux": 0} for value in values])
    assert watch().exit_code == 1
    [change] = watch.found["changes"]
    shas = watch.trainer.shas
    assert (change["before"]["sha"], change["after"]["sha"], change["between"]) == (shas[1], shas[4], 3)
    assert f"between {shas[1][:8]} and {shas[4][:8]}" in watch.page and "One of 3 commits" in watch.page


def test_commits_of_the_user_interface_alone_are_not_recorded(watch: Watch) -> None:
    plain(watch, [{"sd15": 0, "flux": 0}, {"sd15": 1, "flux": 0}])
    (watch.trainer.folder / "ui").mkdir()
    for number in range(4):
        (watch.trainer.folder / "ui" / "page.tsx").write_text(str(number))
        git(watch.trainer.folder, "add", "--all")
        git(watch.trainer.folder, "commit", "--quiet", "--message", "a page")
    assert watch().exit_code == 1
    assert watch.named() == [("sd15", 1)]
    assert len(watch.asked("only")) == 2, "the golden, and HEAD"


def test_a_model_that_is_not_recorded_any_more_is_told_with_its_reason(watch: Watch) -> None:
    plain(watch, [{"sd15": 0, "flux": 0}, {"sd15": None, "flux": 0}])
    done = watch()
    assert done.exit_code == 1
    assert "## The trainer's samples of sd15 cannot be recorded any more" in watch.page
    assert "- `sd15/base`: ImportError: no sd15" in watch.page
    assert "failed    ImportError: no sd15" in done.stdout


def test_without_bisection_the_change_is_told_without_its_commit(watch: Watch) -> None:
    plain(watch, [{"sd15": 0, "flux": 0}, {"sd15": 1, "flux": 0}, {"sd15": 1, "flux": 0}])
    done = watch("--no-bisect")
    assert done.exit_code == 1 and watch.found["changes"] == []
    assert "## The trainer's samples of sd15 changed since v9" in watch.page
    assert "commits not searched for: sd15" in done.stdout


def test_another_size_is_told_where_there_is_no_distance(watch: Watch) -> None:
    plain(watch, [{"sd15": 0, "flux": 0}, {"sd15": 99, "flux": 0}])
    assert watch().exit_code == 1 and watch.named() == [("sd15", 1)]
    assert "| 1 x 8 x 8 (frames, height, width) became 1 x 8 x 16 |" in watch.page


def test_a_change_without_a_commit_is_that_of_the_environment(watch: Watch) -> None:
    plain(watch, [{"sd15": 0, "flux": 0}])
    (watch.home / "only" / "adds").write_text("3")
    assert watch().exit_code == 1 and watch.found["changes"] == []
    assert "No commit since then touches what its Python reads: it is the environment." in watch.page


def moves(watch: Watch) -> list[str]:
    """A history in which the second commit moves Diffusers, and nothing else changes a picture."""
    home = watch.environment("old", OLD)
    shas = [watch.trainer.commit("one", pins=PINS.format(OLD, "5.5.3"), sd15=0, flux=0)]
    shas += [watch.trainer.commit(word, pins=PINS.format(NEW, "5.5.3"), sd15=0, flux=0) for word in ("two", "three")]
    watch.tag(home)
    return shas


def test_a_commit_that_moves_diffusers_is_named_with_what_it_moves(watch: Watch) -> None:
    shas = moves(watch)
    watch.environment("new", NEW, adds=4)
    assert watch().exit_code == 1
    assert watch.named() == [("flux", 1), ("sd15", 1)]
    assert watch.found["environment"] == "new" and watch.found["lacking"] == []
    pinned = "git+https://github.com/huggingface/diffusers@"
    assert f"It moves requirements: `-{pinned}{OLD}`, `+{pinned}{NEW}`" in watch.page
    assert "Recorded in `old` before it, in `new` after it." in watch.page
    assert f"changed with {shas[1][:8]}" in watch.page


def test_without_its_environment_it_says_what_is_otherwise(watch: Watch) -> None:
    shas = moves(watch)
    done = watch()
    assert done.exit_code == 0
    asks = f"diffusers@{NEW} (here {OLD})"
    assert f"9.0.2 {shas[2][:8]} asks for git+https://github.com/huggingface/{asks}; recorded in old" in done.stderr
    assert f"HEAD asks for git+https://github.com/huggingface/{asks}" in watch.page


# ------------------------------------------------------------------------------------------------------------ errors


def refused(done: Result) -> str:
    assert done.exit_code == 2, done.output
    return done.stderr.strip().splitlines()[-1]


def test_what_is_no_clean_checkout_is_refused(watch: Watch, tmp_path: Path) -> None:
    plain(watch, [{"sd15": 0, "flux": 0}] * 2)
    assert "is not a git checkout" in refused(watch("--trainer", str(tmp_path)))
    (watch.trainer.folder / "run.py").write_text("mine")
    assert "trainer checkout is not clean: ?? run.py" in refused(watch())


def test_a_history_without_the_tag_is_refused_with_the_remedy(watch: Watch) -> None:
    plain(watch, [{"sd15": 0, "flux": 0}] * 3)
    first = watch.trainer.shas[0]
    git(watch.trainer.folder, "checkout", "--quiet", "--orphan", "other")
    git(watch.trainer.folder, "commit", "--quiet", "--message", "other")
    assert f"does not come after {first[:8]}, the commit of v9: check out a newer one" in refused(watch())
    git(watch.trainer.folder, "branch", "--quiet", "-D", "main")
    git(watch.trainer.folder, "reflog", "expire", "--expire=now", "--all")
    git(watch.trainer.folder, "gc", "--quiet", "--prune=now")
    assert f"does not have {first}" in (message := refused(watch())) and "fetch --unshallow" in message
    assert "unknown tag 'v8'" in refused(watch("--from", "v8"))


def test_without_an_environment_it_says_how_to_get_one(watch: Watch, tmp_path: Path) -> None:
    plain(watch, [{"sd15": 0, "flux": 0}] * 2)
    message = refused(watch("--environments", str(tmp_path / "none")))
    assert "no environment of the trainer in" in message and "--build builds it (needs uv)" in message


def test_a_run_in_which_nothing_was_recorded_is_no_good_news(watch: Watch) -> None:
    plain(watch, [{"sd15": 0, "flux": 0}, {"sd15": None, "flux": None}])
    assert "nothing was recorded to be compared with v9" in (message := refused(watch()))
    assert "ImportError: no sd15" in message or "ImportError: no flux" in message
    assert "no golden of chroma/base" in refused(watch("--case", "chroma/base"))


# ------------------------------------------------------------------------------------------------------ environments


def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in uv's place that writes down what it was asked; returns that file."""
    (tmp_path / "bin").mkdir()
    venv = 'mkdir -p "$4/bin" && touch "$4/bin/python"'
    script = f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\nif [ "$1" = venv ]; then {venv}; fi\n'
    (tmp_path / "bin" / "uv").write_text(script)
    (tmp_path / "bin" / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    return tmp_path / "asked"


def test_what_no_environment_fits_is_built_from_the_nearest_lock_and_what_that_lacks(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_uv(tmp_path, monkeypatch)
    source = tmp_path / "diffusers"
    source.mkdir()
    git(source, "init", "--quiet")
    git(source, "commit", "--quiet", "--allow-empty", "--message", "one")
    commit = git(source, "rev-parse", "HEAD")
    monkeypatch.setattr(build_environment, "DIFFUSERS", str(source))
    watch.environment("old", OLD)
    lines = [f"git+https://github.com/huggingface/diffusers.git@{commit}", "transformers==5.5.3", "k-diffusion",
             "brand-new-package==1.2"]  # fmt: skip
    made = environments.choose(watch.home, lines, build=True)
    assert made.diffusers == commit
    assert made.folder.name.startswith(f"{commit[:8]}-torch-2.13-transformers-5.5-k-diffusion-")
    said = asked.read_text().splitlines()
    assert f"{build_environment.LOCKS}/torch-2.13-transformers-5.5-k-diffusion.txt" in said[1]
    assert said[2].endswith(" brand-new-package==1.2"), "what the lock does not have, and nothing else"


def test_an_environment_whose_other_versions_differ_will_do(watch: Watch) -> None:
    watch.environment("a", OLD, "5.5.3")
    watch.environment("b", NEW, "4.57.3")
    lines = PINS.format(NEW, "4.57.3").split()
    assert environments.choose(watch.home, lines, build=False).folder.name == "b"
    assert environments.choose(watch.home, PINS.format(OLD, "5.5.3").split(), build=False).folder.name == "a"
    there = environments.choose(watch.home, [*lines, "torch"], build=False)
    assert [str(each) for each in there.lacks([*lines, "torch"])] == ["torch (here none)"]


def test_a_build_that_fails_leaves_the_best_that_is_there(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Path:
        raise PinError("no network")

    monkeypatch.setattr(build_environment, "build", build)
    lines = PINS.format(NEW, "5.5.3").split()
    with pytest.raises(PinError, match="no network"):
        environments.choose(watch.home, lines, build=True)
    watch.environment("old", OLD)
    assert environments.choose(watch.home, lines, build=True).folder.name == "old"


# ----------------------------------------------------------------------------------------- the recorder, without tag


def test_what_is_staged_is_not_recorded_again_and_what_failed_not_tried_again(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.trainer.commit("one", sd15=0)
    asked: list[list[str]] = []

    def run_groups(todo: list[list[Case]], args: Any, work: Path, prints: dict[str, str]) -> list[Path]:
        asked.append(sorted(case.id for group in todo for case in group))
        for case in (case for group in todo for case in group):
            folder = work / "staged" / case.id
            folder.mkdir(parents=True)
            said = {"fingerprint": prints[case.id], "why": "ImportError"}
            (folder / ("failed.json" if case.model == "flux" else "result.json")).write_text(json.dumps(said))
            if case.model != "flux":
                (folder / "complete").touch()
        return []

    monkeypatch.setattr(recorder, "run_groups", run_groups)
    words = ["recorder", "--trainer", str(watch.trainer.folder), "--stage", str(tmp_path / "stage")]

    def record(*ids: str) -> int:
        monkeypatch.setattr(sys, "argv", [*words, *(word for case in ids for word in ("--case", case))])
        return recorder.main()

    assert record("sd15/base") == 0
    assert record("sd15/base", "flux/base") == 1, "one failed"
    assert record("sd15/base", "flux/base") == 1
    assert asked == [["sd15/base"], ["flux/base"], []]
    watch.trainer.commit("two", sd15=1)
    assert record("sd15/base", "flux/base") == 1
    assert asked[-1] == ["flux/base", "sd15/base"], "another commit is another picture"


def test_a_case_that_fails_leaves_its_reason_and_the_next_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_drift.harness.trainer.recorder import offline, record_group

    def record(case: Case, folder: Path, out: Path, where: Any) -> None:
        if case.id == "sd15/base":
            raise KeyError("no such arch")
        out.mkdir(parents=True)
        (out / "result.json").write_text("{}")

    monkeypatch.setattr(record_group, "record", record)
    monkeypatch.setattr(offline, "as_online", lambda: None)
    request = {"cases": ["sd15/base", "sd15/lora"], "folder": str(tmp_path), "out": str(tmp_path / "staged"),
               "fingerprints": {"sd15/base": "a", "sd15/lora": "b"}, "device": "cpu", "dtype": "float32",
               "version": "0.12.26"}  # fmt: skip
    with pytest.raises(KeyError):
        record_group.main(request)
    record_group.main(request | {"keep_going": True})
    failed = json.loads((tmp_path / "staged" / "sd15" / "base" / "failed.json").read_text())
    assert failed == {"fingerprint": "a", "why": "KeyError: 'no such arch'"}
    assert (tmp_path / "staged" / "sd15" / "lora" / "complete").is_file()


def test_every_case_that_is_no_training_is_watched_unless_some_are_named(watch: Watch) -> None:
    plain(watch, [{"sd15": 0, "flux": 0}] * 2)
    trained = [case.id for case in cases.load_all() if case.model == "flux" and case.training is not None]
    assert trained
    given = ["trainer-watch", "--trainer", str(watch.trainer.folder), "--environments", str(watch.home), "--from", "v9"]
    done = CliRunner().invoke(app, [*given, "--scratch", str(watch.scratch), "--model", "flux"])
    assert done.exit_code == 0, done.output
    left = [case.id for case in cases.load_all() if case.model == "flux" and case.id not in trained]
    assert f"2 cases: 2 same; {len(left) - 2} left out, without a golden at v9" in done.stdout
