"""`lora-drift check --ray`: the same verdicts as here, whatever becomes of the hosts."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_drift.harness import extras
from lora_drift.harness.check import results
from lora_drift.harness.cli import ray_check, session
from lora_drift.harness.cli.main import app
from lora_drift.server.local_ray import LocalRay

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="no ray here: pip install 'lora-drift[ray]'")

CASES = ["sd15/base", "lumina2/base"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalRay]:
    with LocalRay(nodes=2) as running:
        yield running


def check(file: Path, **more: Any) -> int:
    return session.run([], CASES, tag=None, device="cpu", workers="1", json_file=file, report=False, verbose=False,
                       **more)  # fmt: skip


def said(file: Path) -> list[dict[str, Any]]:
    """What results say, but for when, and how long it took."""
    return [result.model_dump(mode="json", exclude={"seconds": True, "made": {"at"}})
            for result in results.merge([file])]  # fmt: skip


def test_a_host_that_dies_changes_no_result_and_a_run_goes_on(
    tmp_path: Path, cluster: LocalRay, capfd: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    assert check(here) == 0
    with ThreadPoolExecutor(1) as apart:
        running = apart.submit(check, there, ray=cluster.address)
        deadline = time.monotonic() + 120
        while not (checking := cluster.processes("ray::check_model")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert checking and not running.done(), "nothing was checked when the hosts died"
        for number in range(2):
            cluster.kill(number)
        assert running.result(timeout=300) == 0
    assert said(here) == said(there) and len(said(there)) == len(CASES)
    # Of a run that was ended early, what is there is kept, and the rest is checked.
    lines = there.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"sd15/' in line]
    there.write_text("".join(kept))
    capfd.readouterr()
    assert check(there, ray=cluster.address) == 0
    out = capfd.readouterr().out
    assert "lumina2: checked" in out and "sd15: checked" not in out
    assert said(here) == said(there) and "".join(kept) in there.read_text()


def test_what_was_made_by_other_code_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "old.jsonl"
    result = results.Result(case="sd15/base", model="sd15", tag="t", tier="mini", device="cpu", dtype="float32",
                            verdict="match")  # fmt: skip
    assert not ray_check._counts(result, "t", "cpu", None), "it does not say which code made it"
    from lora_drift.harness.check import trusted

    result.made = trusted.made()
    assert ray_check._counts(result, "t", "cpu", None) and not ray_check._counts(result, "t", "cuda", None)
    assert not ray_check._counts(result, "another", "cpu", None)
    assert not ray_check._counts(result, "t", "cpu", "bfloat16")
    monkeypatch.setattr(trusted, "code", lambda: "other")
    assert not ray_check._counts(result, "t", "cpu", None)
    assert not file.exists()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = CliRunner().invoke(app, ["check", "--ray", "127.0.0.1:1", "--case", "sd15/base"])
    assert refused.exit_code == 2 and "no Ray cluster at 127.0.0.1:1" in refused.output
    monkeypatch.setattr(extras, "_installed", lambda wanted: wanted.name != "ray")
    refused = CliRunner().invoke(app, ["check", "--ray", "auto", "--case", "sd15/base"])
    assert refused.exit_code == 2 and "--ray needs ray" in refused.output
