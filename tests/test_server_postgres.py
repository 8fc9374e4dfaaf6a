"""The queue in Postgres: what it has beyond the tests of the store, which run over both (fixture `new_queue`)."""

import queue
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from lora_drift.server import databases, migrations
from lora_drift.server.config import Settings
from lora_drift.server.databases import StoreError
from lora_drift.server.local import LocalServer
from lora_drift.server.local_postgres import LocalPostgres, binaries
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.store import New, Row, Store
from lora_drift.server.supervisor import Dispatcher
from lora_drift.server.telemetry import Metrics

Queues = Callable[[], Path | str]


@pytest.fixture
def url(postgres: LocalPostgres) -> str:
    return postgres.create(f"p{random.randrange(10**12)}")


@pytest.fixture
def own() -> Iterator[LocalPostgres]:
    """One that a test may kill."""
    if binaries() is None:
        pytest.skip("no postgres here (apt-get install postgresql): it was not killed")
    with LocalPostgres() as running:
        yield running


def add(store: Store, *names: str) -> None:
    for name in names:
        store.add(New(Job(id=name, model=name[0], loras=[], prompts=[], output_folder=""), Secrets()))


# --------------------------------------------------------------------------------------------------------- many at once


@pytest.mark.parametrize("bound", [0, 3])
def test_many_who_claim_at_once_get_each_request_once_and_overtake_nobody_too_often(url: str, bound: int) -> None:
    stores = [Store(url) for _ in range(6)]
    draw = random.Random(bound)
    names = [f"{draw.choice('ABC')}{n}" for n in range(90)]
    add(stores[0], *names)
    got: queue.Queue[tuple[str, int]] = queue.Queue()

    def claim_all(number: int) -> None:
        loaded: list[str] = []
        while (row := stores[number].claim(loaded, bound, owner=str(number))) is not None:
            got.put((row.id, row.overtaken))
            loaded = [row.base]
            assert stores[number].finish(row.id, "succeeded", owner=str(number)) is not None

    threads = [threading.Thread(target=claim_all, args=(n,)) for n in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    claimed = [got.get_nowait() for _ in range(got.qsize())]
    assert sorted(name for name, _ in claimed) == sorted(names), "none lost, none twice"
    assert max(overtaken for _, overtaken in claimed) <= bound


def test_who_is_being_changed_elsewhere_holds_up_nobody(url: str) -> None:
    store = Store(url)
    add(store, "A0", "A1")
    with Session(Store(url)._engine) as other, other.begin():
        other.scalar(select(Row).where(Row.id == "A0").with_for_update())
        assert store.claim([], 8, owner="me").id == "A1"  # type: ignore[union-attr]
    assert store.claim([], 8, owner="me").id == "A0"  # type: ignore[union-attr]


def test_a_cancel_and_a_claim_at_the_same_moment_have_one_winner(url: str) -> None:
    one, two = Store(url), Store(url)
    names = [f"A{n}" for n in range(60)]
    add(one, *names)
    canceling = threading.Thread(target=lambda: [one.cancel(name) for name in names])
    canceling.start()
    claimed = []
    while (row := two.claim([], 8, owner="me")) is not None:
        claimed.append(row.id)
    canceling.join()
    for name in names:
        row = one.get(name)
        assert row is not None
        in_flight = row.state == "in_progress" and (row.cancel or name in claimed)
        assert in_flight if name in claimed else (row.state, row.error_code) == ("canceled", "CANCELED")


def test_what_an_owner_had_who_died_is_given_to_another(new_queue: Queues) -> None:
    store = Store(new_queue())
    add(store, "A0", "A1", "A2")
    for owner in ("dies", "lives", "dies"):
        assert store.claim([], 8, owner=owner) is not None
    assert store.recover(3, living=["lives"]) == []
    assert [store.get(name).state for name in ("A0", "A1", "A2")] == [  # type: ignore[union-attr]
        "in_queue", "in_progress", "in_queue"]  # fmt: skip
    assert store.claim([], 8, owner="lives").tries == 2  # type: ignore[union-attr]
    store.release("lives")
    assert [store.get(name).state for name in ("A0", "A1")] == ["in_queue", "in_queue"]  # type: ignore[union-attr]
    assert store.get("A1").tries == 0, "no try of the request's"  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------------------------------- layout


def test_a_new_database_has_the_newest_layout_and_one_of_a_later_release_is_left_alone(url: str) -> None:
    store = Store(url)
    with store._engine.begin() as connection:
        assert connection.scalar(text("SELECT version FROM layout")) == migrations.NEWEST
        connection.execute(text("UPDATE layout SET version = version + 1"))
    with pytest.raises(StoreError, match="of a later release") as told:
        Store(url)
    assert "\n" not in str(told.value) and "postgres@" not in str(told.value)


def test_a_step_is_taken_once_and_as_a_whole(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(url).close()

    def add_column(connection: Any) -> None:
        connection.exec_driver_sql("ALTER TABLE requests ADD COLUMN fresh INTEGER NOT NULL DEFAULT 7")

    def fail(connection: Any) -> None:
        add_column(connection)
        raise RuntimeError("in the middle")

    steps, newest = migrations.STEPS, migrations.NEWEST
    monkeypatch.setattr(migrations, "NEWEST", newest + 1)
    monkeypatch.setattr(migrations, "STEPS", (*steps, fail))
    with pytest.raises(RuntimeError):
        Store(url)
    monkeypatch.setattr(migrations, "STEPS", (*steps, add_column))
    for _ in range(2):
        store = Store(url)
    with store._engine.connect() as connection:
        assert connection.scalar(text("SELECT version FROM layout")) == newest + 1
        assert connection.scalar(text("SELECT count(*) FROM information_schema.columns WHERE column_name = 'fresh'"))


@pytest.mark.parametrize("given", ["mysql://host/name", "no url at all", "postgresql://"])
def test_a_wrong_url_is_said_in_a_sentence(given: str) -> None:
    settings = Settings(database_url=given, output_base_path=Path("/nonexistent"))  # type: ignore[arg-type]
    with pytest.raises((StoreError, OperationalError)) as told:
        Store(settings.queue)
    assert "DATABASE_URL" in str(told.value) or given == "postgresql://"


# ------------------------------------------------------------------------------------------------------ heard by others


def heard(told: "queue.Queue[dict[str, Any]]", event: str, timeout: float = 20) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    while True:
        said = told.get(timeout=max(0.01, deadline - time.monotonic()))
        if said["event"] == event:
            return said


def test_processes_hear_of_each_other(url: str) -> None:
    here, there = Store(url), Store(url)
    told: queue.Queue[dict[str, Any]] = queue.Queue()
    listener = here.listener(told.put)
    listener.start()
    add(there, "A0")
    assert heard(told, "queued")["id"] == "A0"
    there.claim([], 8, owner="me")
    assert heard(told, "changed")["id"] == "A0"
    there.tell_progress("A0", {"step": 3, "steps": 5})
    assert heard(told, "progress") == {"event": "progress", "id": "A0", "step": 3, "steps": 5}
    there.cancel("A0")
    assert heard(told, "cancel")["id"] == "A0"
    there.finish("A0", "canceled", owner="me")
    assert heard(told, "changed")["id"] == "A0"
    listener.stop()


def test_there_is_one_server_for_a_database(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Store(url).listener(lambda _: None, alone=True)
    monkeypatch.setattr(databases, "TAKEOVER", 0.3)
    with pytest.raises(StoreError, match="another server uses the database"):
        Store(url).listener(lambda _: None, alone=True)
    first.start()
    first.stop()
    second = Store(url).listener(lambda _: None, alone=True)
    second.start()
    second.stop()


# ------------------------------------------------------------------------------------------------------------- it dies


class Slow:
    """A worker that takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.said, self.due, self.rendered = seconds, [{"event": "ready"}], 0.0, 0

    def send(self, command: str, payload: Any) -> None:
        if command == "render":
            self.due = time.monotonic() + self.seconds
            self.rendered += 1

    def receive(self, timeout: float) -> dict[str, Any] | None:
        if self.due and time.monotonic() > self.due:
            self.due = 0.0
            return {"event": "done", "outputs": [], "timings": {"total": 1.0, "base_was_loaded": True}, "loaded": []}
        time.sleep(0 if self.said else min(timeout, 0.05))
        return self.said.pop(0) if self.said else None

    def stop(self) -> None:
        pass


def test_a_database_that_is_killed_costs_no_render_and_no_worker(own: LocalPostgres) -> None:
    store = Store(own.url)
    names = [f"A{n}" for n in range(4)]
    add(store, *names)
    worker = Slow(1.0)
    workers = iter([worker])
    told: queue.Queue[dict[str, Any]] = queue.Queue()
    listener = Store(own.url).listener(told.put)
    listener.start()
    dispatcher = Dispatcher(store, lambda: next(workers), Settings(), Metrics(), lambda _: None, owner="me")
    dispatcher.start()
    for _ in range(2):
        deadline = time.monotonic() + 20
        while not worker.due:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        own.kill()
        time.sleep(1.5)
        own.start()
        heard(told, "missed")
    deadline = time.monotonic() + 30
    while not all((row := store.get(name)) is not None and row.finished for name in names):
        assert time.monotonic() < deadline, dispatcher.problem
        time.sleep(0.05)
    dispatcher.stop()
    listener.stop()
    rows = [store.get(name) for name in names]
    assert [(row.state, row.tries) for row in rows if row] == [("succeeded", 1)] * 4 and worker.rendered == 4


def test_a_claim_of_which_the_answer_was_lost_is_given_back(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(url)
    add(store, "A0")
    claim, lost = store.claim, [0]

    def claim_and_lose(*args: Any, **more: Any) -> Row | None:
        row = claim(*args, **more)
        if row is not None and not lost[0]:
            lost[0] += 1
            raise OperationalError("", {}, Exception("the connection was lost"))
        return row

    monkeypatch.setattr(store, "claim", claim_and_lose)
    dispatcher = Dispatcher(store, lambda: Slow(0.05), Settings(), Metrics(), lambda _: None, owner="me")
    dispatcher.start()
    deadline = time.monotonic() + 20
    while not store.get("A0").finished:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    dispatcher.stop()
    assert lost == [1] and store.get("A0").tries == 1  # type: ignore[union-attr]


def test_the_server_keeps_its_queue_there(tmp_path: Path, own: LocalPostgres, lora_of: Callable[[str], Path]) -> None:
    """Killed, it and the database, in the middle of a render: the same bytes."""
    prompt = {"prompt": "a fox", "width": 128, "height": 128, "sample_steps": 60, "seed": 7}
    body = {"model": "sd15", "loras": [{"path": "sd15.safetensors"}], "prompts": [prompt]}
    with LocalServer(tmp_path, DATABASE_URL=own.url) as server:
        shutil.copy(lora_of("sd15/lora"), tmp_path / "loras" / "sd15.safetensors")
        undisturbed = server.wait(server.submit(body))
        request_id = server.submit(body)
        server.until_rendering(request_id)
        server.kill()
        own.kill()
        own.start()
        server.start()
        result = server.wait(request_id)
        assert result["status"] == "succeeded", result
        assert result["outputs"]["images"][0]["sha256"] == undisturbed["outputs"]["images"][0]["sha256"]
        own.kill()
        answer = server.http.get(f"/v1/requests/{request_id}/status")
        assert answer.status_code == 503 and "socket" not in answer.text
        assert server.http.get("/healthz").status_code == 200
        own.start()
        deadline = time.monotonic() + 20
        while server.http.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.get(request_id, "status")["status"] == "succeeded"
    assert not list((tmp_path / "outputs" / ".server").glob("queue.sqlite*"))
