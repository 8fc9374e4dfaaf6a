"""What the server keeps on the disk: layouts of earlier releases, damage, clocks that are set, and who may read it."""

import os
import re
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest
from sqlalchemy import inspect

from lora_drift.server import migrations
from lora_drift.server.config import Settings
from lora_drift.server.databases import StoreError
from lora_drift.server.local import ROOT
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.service import Service
from lora_drift.server.store import Base, New, Store
from lora_drift.server.telemetry import Metrics

STATES = sorted((ROOT / "tests" / "server_states").glob("*.sql"))


def job(name: str) -> Job:
    return Job(id=name, model="sd15", loras=[], prompts=[], output_folder="")


def columns(store: Store) -> dict[str, set[str]]:
    found = inspect(store._engine)
    return {table: {column["name"] for column in found.get_columns(table)} for table in found.get_table_names()}


# -------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("dump", STATES, ids=lambda path: path.stem)
def test_the_state_of_every_earlier_release_is_taken_up(tmp_path: Path, dump: Path) -> None:
    path = tmp_path / "queue.sqlite"
    with sqlite3.connect(path) as before:
        before.executescript(dump.read_text())
    before.close()
    store = Store(path)
    assert columns(store) == {table.name: set(table.columns.keys()) for table in Base.metadata.sorted_tables}
    assert [row.id for row in store.recover(3)] == []
    states = {name: store.get(name).state for name in ("done", "started", "waits", "hooked")}  # type: ignore[union-attr]
    assert states == {"done": "succeeded", "started": "in_queue", "waits": "in_queue", "hooked": "canceled"}
    assert store.with_key("key", "print").id == "waits"  # type: ignore[union-attr]
    assert [row.id for row in store.webhooks_due()] == ["hooked"]
    assert store.download("u" * 64).etag == "etag"  # type: ignore[union-attr]
    store.add(New(job("new"), Secrets()))
    claimed = [row.id for _ in range(3) if (row := store.claim([], 0)) is not None]
    assert claimed == ["started", "waits", "new"]
    assert store.get("waits").base == job("waits").base  # type: ignore[union-attr]
    store.close()
    Store(path).close()  # and once more


def test_every_layout_that_a_step_starts_from_is_tried() -> None:
    assert [path.stem for path in STATES] == [str(version) for version in range(1, migrations.NEWEST)]


def test_a_new_state_has_the_newest_layout(tmp_path: Path) -> None:
    Store(tmp_path / "queue.sqlite").close()
    with sqlite3.connect(tmp_path / "queue.sqlite") as opened:
        assert opened.execute("PRAGMA user_version").fetchone() == (migrations.NEWEST,)


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "queue.sqlite"
    with sqlite3.connect(path) as before:
        before.executescript(STATES[0].read_text())
    before.close()

    def fail(_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS[:1], fail))
    with pytest.raises(RuntimeError):
        Store(path)
    monkeypatch.undo()
    store = Store(path)
    assert store.get("done") is not None
    store.close()


# --------------------------------------------------------------------------------------------------------------- damage


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _overwrite(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


def _scratch(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8000)


def _from_later(path: Path) -> None:
    with sqlite3.connect(path) as opened:
        opened.execute(f"PRAGMA user_version = {migrations.NEWEST + 1}")
    opened.close()


@pytest.mark.parametrize("damage", [_cut, _overwrite, _scratch, _from_later])
def test_a_state_that_cannot_be_used_is_said_and_left_alone(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    path = tmp_path / "queue.sqlite"
    store = Store(path)
    for n in range(50):
        store.add(New(job(f"r{n}"), Secrets()))
    store.close()
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"move queue\.sqlite\* out of .* and start again") as told:
        Store(path)
    assert "\n" not in str(told.value) and str(path) in str(told.value)
    assert path.read_bytes() == before


def test_serve_says_it_in_one_sentence(tmp_path: Path) -> None:
    state = tmp_path / "outputs" / ".server"
    state.mkdir(parents=True)
    (state / "queue.sqlite").write_bytes(b"no database at all" * 1000)
    done = subprocess.run(
        [sys.executable, "-m", "lora_drift", "serve", "--mini", "--port", "0", "--output", str(tmp_path / "outputs")],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "is damaged" in done.stderr and "start again" in done.stderr


# --------------------------------------------------------------------------------------------------------------- clocks


def test_a_clock_that_is_set_moves_no_moment_while_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "queue.sqlite")
    row = store.add(New(job("one"), Secrets(), ttl=60))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3 * 86400)
    store.claim([], 0)
    finished = store.finish("one", "succeeded", timings={"total": 1.0, "base_was_loaded": True})
    assert finished is not None and finished.started_at is not None and finished.finished_at is not None
    assert row.created_at <= finished.started_at <= finished.finished_at < row.created_at + 60
    monkeypatch.setattr(time, "time", lambda: now + 3 * 86400)
    store.add(New(job("two"), Secrets(), ttl=60))
    assert store.expire() == [] and store.finished(store.now() - 3600) == set()
    metrics = Metrics()
    metrics.note_end(finished)
    assert not re.search(r"_sum\S* -", metrics.page().decode())


def test_a_clock_that_was_set_back_between_two_starts_goes_on_from_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "queue.sqlite")
    row = store.add(New(job("one"), Secrets()))
    store.note_time()
    store.close()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    again = Store(tmp_path / "queue.sqlite")
    started = again.claim([], 0)
    assert started is not None and started.started_at is not None and started.started_at >= row.created_at


def test_results_are_not_removed_at_once_where_the_clock_was_set_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(output_base_path=tmp_path, device="cpu")
    settings.state.mkdir()
    store = Store(settings.state / "queue.sqlite")
    store.add(New(job("one"), Secrets()))
    store.claim([], 0)
    store.finish("one", "succeeded", outputs=[], timings=None)
    store.close()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3 * 86400)

    async def tidied(later: float) -> bool:
        service = Service(settings)
        clock = service.store.clock.now
        service.store.now = lambda: clock() + later
        service._tidy_up()
        kept = service.store.get("one") is not None
        service.store.close()
        return kept

    assert anyio.run(tidied, 0.0), "at once"
    assert not anyio.run(tidied, 2 * 86400.0), "and not for ever"


# --------------------------------------------------------------------------------------------------------- who may read


def test_durability_is_a_setting(tmp_path: Path) -> None:
    for settings, number in ((Settings(), 1), (Settings(synchronous="FULL"), 2)):
        store = Store(tmp_path / f"{number}.sqlite", settings.synchronous)
        with store._engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == number
        store.close()


def test_files_of_the_server_are_its_users_alone(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, anyio
os.umask(0o022)
from lora_drift.server import command, render_process
from lora_drift.server.config import Settings
from lora_drift.server.service import running
folder = pathlib.Path({str(tmp_path / "outputs")!r})
assert command.keep_to_oneself is render_process.keep_to_oneself
command.keep_to_oneself()
async def start():
    async with running(Settings(output_base_path=folder, device="cpu")):
        (folder / "picture.jpg").touch()
anyio.run(start)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    outputs = tmp_path / "outputs"
    for path in (outputs, *outputs.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
