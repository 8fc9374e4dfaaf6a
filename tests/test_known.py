"""A known drift is renamed, never widened: only while it is unexpired, and only up to its recorded size."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from lora_drift.harness.check import known, trusted
from lora_drift.harness.check.cases import CaseError
from lora_drift.harness.check.results import Metric, Result, Verdict
from lora_drift.harness.cli.main import app

EXPIRY = date.today() + timedelta(days=90)
ENTRY: dict[str, Any] = {
    "case": "flux/lora",
    "cause": "the scheduler of release X",
    "pixel_max": 5,
    "latents_rel_l2": 0.01,
    "expires": EXPIRY,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "known.yaml"


def written(entry: dict[str, Any]) -> dict[str, Any]:
    """As `known.add` leaves it, with its digest; an entry that cannot be read, as it is."""
    try:
        return {**entry, "measured": known.Known(**entry).digest}
    except ValidationError:
        return entry


def judged(
    file: Path,
    *entries: dict[str, Any],
    pixel_max: float = 4,
    latents_rel_l2: float = 0.009,
    today: date = EXPIRY,
    **fields: Any,
) -> Result:
    file.write_text(yaml.safe_dump([written(entry) for entry in entries]))
    metrics = [Metric(name="pixel_max", value=pixel_max), Metric(name="latents_rel_l2", value=latents_rel_l2)]
    result = Result(**{
        "case": "flux/lora", "model": "flux", "tag": "v1", "tier": "mini", "device": "cpu", "dtype": "float32",
        "verdict": "drift", "message": "outside its tolerance", "metrics": metrics, **fields,
    })  # fmt: skip
    return known.judge(result, today, file)


def test_a_listed_drift_is_known_until_the_end_of_its_last_day(file: Path) -> None:
    result = judged(file, ENTRY)
    assert result.verdict == "known"
    assert result.message == f"the scheduler of release X (known until {EXPIRY}; outside its tolerance)"


def test_after_that_day_it_is_drift_again_and_says_so(file: Path) -> None:
    result = judged(file, ENTRY, today=EXPIRY + timedelta(days=1))
    assert result.verdict == "drift"
    assert f"expired on {EXPIRY}: the scheduler of release X" in result.message


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ({"pixel_max": 5.5, "latents_rel_l2": 0.011}, "known"),
        ({"pixel_max": 6}, "drift"),
        ({"latents_rel_l2": 0.0111}, "drift"),
    ],
)
def test_a_drift_larger_than_recorded_is_a_new_one(file: Path, measured: dict[str, float], verdict: Verdict) -> None:
    result = judged(file, ENTRY, **measured)  # type: ignore[arg-type]
    assert result.verdict == verdict
    assert (result.message == "outside its tolerance") == (verdict == "drift")


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        ({"case": "flux/base"}, "drift"),
        ({"tag": "v2"}, "drift"),
        ({"tag": "v1"}, "known"),
        ({"device": "cuda"}, "drift"),
        ({"device": "cpu"}, "known"),
    ],
)
def test_an_entry_counts_for_its_case_tag_and_device(file: Path, entry: dict[str, str], verdict: Verdict) -> None:
    assert judged(file, {**ENTRY, **entry}).verdict == verdict


@pytest.mark.parametrize("verdict", ["match", "missing", "stale", "corrupt", "error"])
def test_no_other_verdict_is_renamed(file: Path, verdict: Verdict) -> None:
    assert judged(file, ENTRY, verdict=verdict).verdict == verdict


def test_a_drift_of_shape_has_no_size_and_is_never_known(file: Path) -> None:
    assert judged(file, ENTRY, metrics=[]).verdict == "drift"


def test_an_expired_entry_does_not_hide_a_valid_one(file: Path) -> None:
    expired = {**ENTRY, "expires": date(2020, 1, 1), "cause": "an old one"}
    assert judged(file, expired, ENTRY).verdict == "known"


def test_no_file_means_no_known_drifts(file: Path) -> None:
    assert known.entries(file) == []


@pytest.mark.parametrize("entry", [{"expired": EXPIRY}, {"expires": "soon"}, {"pixel_max": None}])
def test_a_mistake_in_the_file_is_named(file: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(CaseError, match=next(iter(entry))) as error:
        judged(file, {**ENTRY, **entry})
    assert str(file) in str(error.value)


def test_the_committed_entries_can_be_read() -> None:
    assert all(entry.cause for entry in known.entries())


def drifted(**fields: Any) -> Result:
    metrics = [Metric(name="pixel_max", value=7), Metric(name="latents_rel_l2", value=0.005)]
    return Result(**{
        "case": "flux/lora", "model": "flux", "tag": "v1", "tier": "mini", "device": "cpu", "dtype": "float32",
        "verdict": "drift", "message": "outside its tolerance", "metrics": metrics, **fields,
    })  # fmt: skip


def test_an_entry_is_added_with_its_measured_size_and_then_counts(file: Path) -> None:
    cause = 'a "quoted": cause # with *YAML* &all\nover it'
    added = known.add([drifted()], "flux/lora", cause, EXPIRY, file)
    assert (added.pixel_max, added.latents_rel_l2, added.tag, added.device) == (7, 0.005, "v1", "cpu")
    result = known.judge(drifted(), EXPIRY, file)
    assert result.verdict == "known"
    assert result.excuse is not None and (result.excuse.cause, result.excuse.expires) == (cause, EXPIRY)
    known.add([drifted(case="sd15/base")], "sd15/base", "another", EXPIRY, file)
    assert [entry.case for entry in known.entries(file)] == ["flux/lora", "sd15/base"]


@pytest.mark.parametrize(
    ("result", "cause", "expires", "message"),
    [
        (drifted(case="flux/base"), "c", EXPIRY, "not among these results"),
        (drifted(verdict="match"), "c", EXPIRY, "flux/lora: match; only a drift"),
        (drifted(metrics=[]), "c", EXPIRY, "only a drift whose size was measured"),
        (drifted(), " ", EXPIRY, "--cause is empty"),
        (drifted(), "c", date(2020, 1, 1), "--expires 2020-01-01 has passed"),
    ],
)
def test_what_cannot_be_excused_is_refused(file: Path, result: Result, cause: str, expires: date, message: str) -> None:
    with pytest.raises(CaseError, match=message):
        known.add([result], "flux/lora", cause, expires, file)
    assert not file.exists()


def test_a_case_is_not_listed_twice(file: Path) -> None:
    known.add([drifted()], "flux/lora", "why", EXPIRY, file)
    with pytest.raises(CaseError, match="already lists flux/lora"):
        known.add([drifted()], "flux/lora", "why", EXPIRY, file)


def test_an_entry_that_is_no_longer_needed_is_noticed(file: Path) -> None:
    result = judged(file, ENTRY, verdict="match")
    assert result.verdict == "match" and result.excuse is not None


def test_the_command_takes_the_size_from_results(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "KNOWN", file)
    shard = tmp_path / "r.jsonl"
    shard.write_text(drifted().model_dump_json() + "\n")
    monkeypatch.setattr(trusted, "check", lambda found: None)  # test_tampering.py has what it refuses
    command = ["known", "add", "flux/lora", "--cause", "release X", "--expires", str(EXPIRY), "--results", str(shard)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"flux/lora is a known drift of up to 7/255 until {EXPIRY}" in done.output
    again = CliRunner().invoke(app, [*command[:3], "--cause", "x", "--expires", "soon", "--results", str(shard)])
    assert again.exit_code == 2
