"""The proof cannot be bent without a word: forged goldens, excuses written by hand, results of another code, controls
taken away."""

import json
import shutil
import subprocess
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from lora_drift.harness.check import cases, goldens, known, results, runner, trusted
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.results import Control, Metric, Result
from lora_drift.harness.check.tolerances import load as tolerances_of
from lora_drift.harness.cli.main import app
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.recorder import again, store

TAG = runner.newest_tag()
CASE = cases.load(cases.CASES / "sd15" / "lora.yaml")

# ---------------------------------------------------------------------------------------------------- forged goldens


@pytest.fixture
def recorded(tmp_path: Path, golden_of: Callable[[str], Golden]) -> tuple[dict[str, Any], dict[str, Path]]:
    """What the recorder has of sd15/lora when it has rendered it again: fields and files."""
    golden = golden_of("sd15/lora")
    files = {}
    (tmp_path / "staged").mkdir()
    for name in golden.artefacts:
        files[name] = tmp_path / "staged" / f"{name}{store.SUFFIXES[name]}"
        files[name].write_bytes(golden.path(name).read_bytes())
    return golden.model_dump(exclude={"artefacts", "seal"}, exclude_unset=True), files


def forge(root: Path, content: dict[str, Any], files: dict[str, Path], scratch: Path) -> None:
    """Store somebody's wrong render as the golden, with hashes and seal as they should be."""
    scratch.mkdir()
    wrong = {name: scratch / path.name for name, path in files.items()}
    for name, path in files.items():
        shutil.copyfile(path, wrong[name])
    picture = np.asarray(Image.open(files["picture"])).copy()
    Image.fromarray(np.roll(picture, 3, axis=0)).save(wrong["picture"])
    latents = load_file(files["latents"])["latents"]
    save_file({"latents": latents * np.float32(1.1)}, wrong["latents"])
    store.write(dict(content), wrong, root)


def test_no_hash_tells_a_forged_golden_and_recording_it_again_does(
    tmp_path: Path, recorded: tuple[dict[str, Any], dict[str, Path]]
) -> None:
    content, files = recorded
    root = tmp_path / "goldens"
    forge(root, content, files, tmp_path / "wrong")
    goldens.load(TAG, CASE, factory.manifest_sha256("sd15"), root=root)  # nothing in it is out of place
    verdict = store.write(dict(content), files, root, dry=True)
    assert set(verdict.removeprefix("CHANGED: ").split(", ")) == {"picture file", "latents file"}
    assert again.judged(verdict, content, files, root) == verdict
    elsewhere = {**content, "environment": {**content["environment"], "cpu": "another"}}
    verdict = store.write(dict(elsewhere), files, root, dry=True)
    assert again.judged(verdict, elsewhere, files, root) == verdict, "no processor explains that much"


def test_another_processors_rounding_is_no_forgery(
    tmp_path: Path, recorded: tuple[dict[str, Any], dict[str, Path]]
) -> None:
    content, files = recorded
    root = tmp_path / "goldens"
    store.write(dict(content), files, root)
    latents = load_file(files["latents"])["latents"]
    save_file({"latents": latents * np.float32(1 + 1e-7)}, files["latents"])
    here = store.write(dict(content), files, root, dry=True)
    assert again.judged(here, content, files, root) == here == "CHANGED: latents file", "the same processor has no say"
    elsewhere = {**content, "environment": {**content["environment"], "cpu": "another"}}
    verdict = store.write(dict(elsewhere), files, root, dry=True)
    assert again.judged(verdict, elsewhere, files, root) == "same within rounding (another processor)"
    other = {**elsewhere, "settings": {**content["settings"], "seed": 1}}
    assert again.judged(verdict, other, files, root) == verdict


def test_a_sample_is_another_each_day_and_all_are_seen() -> None:
    known_cases = cases.load_all()
    chosen = [again.drawn(known_cases, 12, str(date(2027, 1, 1) + timedelta(days=n))) for n in range(240)]
    assert chosen[0] == again.drawn(known_cases, 12, "2027-01-01") != chosen[1]
    assert all(len({case.id for case in day}) == 12 for day in chosen)
    assert {case.id for day in chosen for case in day} == {case.id for case in known_cases}


def test_a_changed_golden_is_recorded_again() -> None:
    with pytest.raises(ValueError, match="no such revision"):
        again.changed([CASE], TAG, "nowhere")
    assert again.changed([CASE], TAG, "HEAD") == []
    first = subprocess.run(["git", "-C", str(ROOT), "rev-list", "--max-parents=0", "HEAD"],
                                 capture_output=True, text=True)  # fmt: skip
    assert again.changed([CASE], TAG, first.stdout.split()[0]) == [CASE]


# --------------------------------------------------------------------------------------------- excuses written by hand


def drifted(**fields: Any) -> Result:
    """A small drift of sd15/lora, as it was measured here and now."""
    environment = goldens.content(TAG, "sd15/lora")["environment"]  # type: ignore[index]
    limits = tolerances_of("mini", environment, environment)
    values = {"latents_rel_l2": 0.004, "pixel_max": 3.0, "pixel_mean": 0.2}
    metrics = [Metric(name=name, value=value, gate=limits[name].limit) for name, value in values.items()]
    caught = Control(name="seed + 1", pixel_max=120, latents_rel_l2=0.9, pixel_mean=30.0, caught=True)
    made: dict[str, Any] = {
        "case": "sd15/lora", "model": "sd15", "tag": TAG, "tier": "mini", "device": "cpu", "dtype": "float32",
        "verdict": "drift", "message": "outside its tolerance", "metrics": metrics, "controls": [caught],
        "environment": environment, "golden_environment": environment, "made": trusted.made(),
        "provenance": {"seal": goldens.content(TAG, "sd15/lora")["seal"]},  # type: ignore[index]
    }  # fmt: skip
    return Result(**{**made, **fields})


TODAY = date.today()
SOON = TODAY + timedelta(days=30)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "known.yaml"


def listed(file: Path, **edits: Any) -> None:
    """An entry that the command wrote, then edited by hand."""
    known.add([drifted()], "sd15/lora", "why", SOON, file)
    (entry,) = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump([{**entry, **edits}]))
    known.entries.cache_clear()


def test_an_excuse_that_was_measured_counts(file: Path) -> None:
    listed(file)
    assert known.judge(drifted(), TODAY, file).verdict == "known"


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ({"pixel_max": 200.0}, "known add` did not write it"),
        ({"expires": date(2099, 1, 1)}, "known add` did not write it"),
        ({"cause": "nothing to see"}, "known add` did not write it"),
        ({"measured": ""}, "known add` did not write it"),
        ({"golden": "0" * 16}, "known add` did not write it"),
    ],
)
def test_an_excuse_that_was_edited_by_hand_excuses_nothing(file: Path, edits: dict[str, Any], told: str) -> None:
    listed(file, **edits)
    result = known.judge(drifted(), TODAY, file)
    assert result.verdict == "drift"
    assert told in result.message


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ({"pixel_max": 9.0}, "at most 8 can be excused"),
        ({"latents_rel_l2": 0.051}, "at most 0.05 can be excused"),
        ({"expires": TODAY + timedelta(days=181)}, "at most 180 days"),
        ({"golden": "0" * 16}, "measured from another golden"),
    ],
)
def test_a_large_or_lasting_excuse_counts_for_nothing_whoever_wrote_it(
    file: Path, edits: dict[str, Any], told: str
) -> None:
    listed(file, **edits)
    (entry,) = known.entries(file)
    file.write_text(yaml.safe_dump([{**entry.model_dump(), "measured": entry.digest}]))
    known.entries.cache_clear()
    result = known.judge(drifted(), TODAY, file)
    assert (result.verdict, told in result.message) == ("drift", True), result.message


def test_an_excuse_as_large_as_a_mistake_that_must_be_noticed_is_refused(file: Path) -> None:
    small = Control(name="multiplier x 0.9", pixel_max=3, latents_rel_l2=0.02, pixel_mean=0.2, caught=True)
    with pytest.raises(cases.CaseError, match="as large as one of the mistakes"):
        known.add([drifted(controls=[small])], "sd15/lora", "why", SOON, file)
    with pytest.raises(cases.CaseError, match="more than 180 days away"):
        known.add([drifted()], "sd15/lora", "why", TODAY + timedelta(days=181), file)
    assert not file.exists()


def test_the_committed_excuses_are_as_they_were_measured() -> None:
    for entry in known.entries():
        seals = {content["seal"][:16] for folder in goldens.GOLDENS.glob(f"{entry.tag}*")
                 if (content := goldens.content(folder.name, entry.case)) is not None}  # fmt: skip
        assert entry.measured == entry.digest, entry.case
        assert entry.golden in seals, entry.case
        assert entry.expires - TODAY <= known.LONGEST, entry.case


# ------------------------------------------------------------------------------------------------------ results files


def report(tmp_path: Path, *found: Result) -> tuple[int, str]:
    results.write(tmp_path / "r.jsonl", list(found))
    done = CliRunner().invoke(app, ["report", str(tmp_path / "r.jsonl"), "-o", str(tmp_path / "out")])
    return done.exit_code, done.output


def test_results_of_this_code_make_a_report(tmp_path: Path) -> None:
    code, said = report(tmp_path, drifted())
    assert code == 0, said
    assert (tmp_path / "out" / "index.html").is_file()


def tampered() -> dict[str, Result]:
    result = drifted()
    zero = [metric.model_copy(update={"gate": 1e9}) for metric in result.metrics]
    small = [metric.model_copy(update={"value": 0.0}) for metric in result.metrics]
    blind = [Control(name="seed + 1", pixel_max=0, latents_rel_l2=0, pixel_mean=0, caught=True)]
    made = trusted.made()
    return {
        "its verdict is match, and its numbers make it drift": drifted(verdict="match"),
        "its verdict is known, and its numbers make it drift": drifted(verdict="known"),
        "the tolerance of its latents_rel_l2 was 1000000000.0": drifted(verdict="match", metrics=zero),
        "its pixel_mean is missing": drifted(verdict="match", metrics=small[:2]),
        "its verdict is match, and nothing was measured": drifted(verdict="match", metrics=[]),
        "is within every tolerance": drifted(verdict="match", metrics=small, controls=blind),
        "it does not say which code made it": drifted(made=None),
        "it is of another state of the code": drifted(made=made.model_copy(update={"code": "0" * 16})),
        "its golden was recorded anew since": drifted(provenance={"seal": "another"}),
    }


@pytest.mark.parametrize("told", list(tampered()))
def test_a_stale_or_edited_results_file_makes_no_report_and_no_excuse(told: str, tmp_path: Path) -> None:
    code, said = report(tmp_path, drifted(), tampered()[told].model_copy(update={"device": "cuda"}))
    assert (code, told in " ".join(said.split())) == (2, True), said
    assert "Check it again: lora-drift check --case sd15/lora" in " ".join(said.split())
    assert not (tmp_path / "out").exists()
    results.write(tmp_path / "r.jsonl", [tampered()[told]])
    listing = ["known", "add", "sd15/lora", "--cause", "why", "--expires", str(SOON), "--results",
               str(tmp_path / "r.jsonl")]  # fmt: skip
    assert CliRunner().invoke(app, listing).exit_code == 2


def test_a_result_says_when_where_and_of_which_commit_it_is() -> None:
    made = json.loads(drifted().model_dump_json())["made"]
    assert set(made) == {"code", "commit", "at", "machine"}
    assert made["at"].startswith("20") and made["machine"]


# ---------------------------------------------------------------------------------------------------- fewer controls


def test_naming_fewer_controls_makes_a_golden_stale() -> None:
    hub = factory.manifest_sha256("sd15")
    goldens.load(TAG, CASE, hub)
    with pytest.raises(goldens.Stale, match="another version of the case file"):
        goldens.load(TAG, CASE.model_copy(update={"controls": ("seed + 1",)}), hub)


def test_so_it_is_for_a_case_that_named_some_before_that_counted() -> None:
    named = {case.id: case for case in cases.of_both_tiers() if case.controls}
    before = cases.narrowed_before()
    for name in set(named) & set(before):
        fewer = named[name].model_copy(update={"controls": ("seed + 1",) if before[name] != ("seed + 1",) else ()})
        assert fewer.sha256 != named[name].sha256 or not fewer.controls, name
    assert set(before) <= {case.id for case in cases.of_both_tiers()}, "its golden is recorded anew: take it out there"
