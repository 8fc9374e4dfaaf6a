"""More attacks and faults, on a queue in SQLite and in Postgres: hostile requests, and stores that fail."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from lora_drift.server import telemetry, workers
from lora_drift.server.app import create_app
from lora_drift.server.config import Settings
from lora_drift.server.local_postgres import LocalPostgres
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.store import New, Store
from lora_drift.server.supervisor import Dispatcher
from lora_drift.server.telemetry import Metrics

Queues = Callable[[], Path | str]
PROMPT = '{"prompt": "a", "width": 64, "height": 64, "sample_steps": 1}'
LORA = '{"path": "a.safetensors"}'


class Idle:
    """A worker that is given nothing."""

    def __init__(self, *_: Any) -> None:
        self.said: list[dict[str, Any]] = [{"event": "ready"}]

    def send(self, command: str, payload: Any) -> None:
        pass

    def receive(self, timeout: float) -> dict[str, Any] | None:
        time.sleep(0 if self.said else min(timeout, 0.05))
        return self.said.pop(0) if self.said else None

    def stop(self) -> None:
        pass


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, golden_of: Any
) -> Iterator[TestClient]:
    folder, more = tmp_path_factory.mktemp("faults"), {}
    if request.param == "postgres":
        postgres: LocalPostgres = request.getfixturevalue("postgres")
        more["database_url"] = postgres.create("faults")
    (folder / "loras").mkdir()
    (folder / "loras" / "a.safetensors").write_bytes(golden_of("sd15/lora").path("lora").read_bytes())
    settings = Settings(device="cpu", workflows_base_path=folder / "loras", output_base_path=folder / "outputs",
                        **more)  # type: ignore[arg-type]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "WorkerProcess", Idle)
        with TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False) as running:
            yield running


def request_of(**changes: str) -> str:
    fields = {"model": '"sd15"', "loras": f"[{LORA}]", "prompts": f"[{PROMPT}]", **changes}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


BODIES = {
    "no JSON at all": "\x00\x01",
    "a number that is none": request_of(prompts=f"[{PROMPT[:-1]}, \"guidance_scale\": NaN}}]"),
    "an endless number": request_of(prompts=f"[{PROMPT[:-1]}, \"guidance_scale\": 1e999}}]"),
    "a number of 5,000 digits": request_of(prompts=f"[{PROMPT[:-1]}, \"seed\": {'9' * 5000}}}]"),
    "a negative number of steps": request_of(prompts=f"[{PROMPT[:-1]}, \"sample_steps\": -1}}]"),
    "a fraction as a size": request_of(prompts=f"[{PROMPT[:-1]}, \"width\": 64.5}}]"),
    "a list as a model": request_of(model="[]"),
    "an object as prompts": request_of(prompts=PROMPT),
    "no prompt": request_of(prompts="[]"),
    "a LoRA that is named twice, at last by nothing": request_of()[:-1] + ', "loras": []}',
    "a zero in the name of a LoRA": request_of(loras='[{"path": "a\\u0000.safetensors"}]'),
    "half a character in the name of a LoRA": request_of(loras='[{"path": "a\\ud800.safetensors"}]'),
    "a folder as a LoRA": request_of(loras='[{"path": "."}]'),
    "a LoRA of ten kilometres": request_of(loras=f'[{{"path": "{"a" * 4000}.safetensors"}}]'),
    "a hash that is none": request_of(loras='[{"path": "a.safetensors", "sha256": "x"}]'),
    "a webhook at a file": request_of(webhook_url='"file:///etc/passwd"'),
    "a time to live before now": request_of(ttl="-5"),
    "a format that nobody writes": request_of(output_format='"exe"'),
}  # fmt: skip


@pytest.mark.parametrize("what", BODIES)
def test_a_body_is_refused_with(client: TestClient, what: str) -> None:
    answer = client.post("/v1/inference", content=BODIES[what], headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert len(answer.content) < 20_000 and "Traceback" not in answer.text
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "name", ["%00", "a%00b", "..%2f..%2fetc", "%ff%fe", "x" * 65, "'; DROP TABLE requests; --", "%25s"]
)
@pytest.mark.parametrize("call", ["GET /status", "GET /result", "GET /files/x", "DELETE "])
def test_a_request_is_unknown_that_is_called(client: TestClient, name: str, call: str) -> None:
    method, _, what = call.partition(" ")
    answer = client.request(method, f"/v1/requests/{name}{what}")
    assert answer.status_code in (404, 405, 422), answer.text


@pytest.mark.parametrize("text", ["\\u0000", "\\ud800", "'; DROP TABLE requests; --", "%s %(x)s {0}", "\\u202e\\ufeff"])
def test_a_prompt_may_be_any_text_and_comes_back_to_nobody(client: TestClient, text: str) -> None:
    body = request_of(prompts="[" + PROMPT.replace('"a"', f'"{text}"') + "]")
    answer = client.post("/v1/inference", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 422), answer.text
    if answer.status_code == 200:
        status = client.get(answer.json()["status_url"].replace("http://localhost:8000", ""))
        assert status.status_code == 200
        assert client.delete(f"/v1/requests/{answer.json()['request_id']}").status_code in (200, 409)


@pytest.mark.parametrize("key", ["k" * 257, "", "a\tb", "\xe9", "'; DROP TABLE requests; --"])
def test_an_idempotency_key_may_be_odd_and_still_counts_once(client: TestClient, key: str) -> None:
    sent = {
        "content": request_of(),
        "headers": {"Content-Type": "application/json", "Idempotency-Key": key.encode("latin-1")},
    }
    first, second = (client.post("/v1/inference", **sent) for _ in range(2))  # type: ignore[arg-type]
    assert first.status_code == second.status_code and first.status_code in (200, 422), first.text
    if first.status_code == 200:
        assert first.json()["request_id"] == second.json()["request_id"]


# ------------------------------------------------------------------------------------------------- a store that fails


@pytest.mark.parametrize("after", [2, 3, 5, 8, 13, 21])
def test_a_store_that_fails_now_and_then_loses_nothing(new_queue: Queues, after: int) -> None:
    """After each so many commits, one fails."""
    store = Store(new_queue())
    for n in range(4):
        store.add(New(Job(id=f"A{n}", model="A", loras=[], prompts=[], output_folder=""), Secrets()))
    count = [0]

    class Worker(Idle):
        def send(self, command: str, payload: Any) -> None:
            timings = {"total": 1.0, "base_was_loaded": True}
            self.said.append({"event": "done", "outputs": [], "timings": timings, "loaded": []})

    @event.listens_for(store._engine, "commit")
    def fail(_connection: Any) -> None:
        count[0] += 1
        if count[0] % (after + 1) == 0:
            raise OperationalError("", {}, Exception("the connection was lost"))

    dispatcher = Dispatcher(store, Worker, Settings(max_tries=1), Metrics(), lambda _: None, owner="me")
    dispatcher.start()
    deadline = time.monotonic() + 60
    while not all((row := store.get(f"A{n}")) is not None and row.finished for n in range(4)):
        assert time.monotonic() < deadline, dispatcher.problem
        time.sleep(0.05)
    dispatcher.stop()
    rows = [store.get(f"A{n}") for n in range(4)]
    assert [(row.state, row.tries) for row in rows if row] == [("succeeded", 1)] * 4


# ----------------------------------------------------------------------------------------------------------------- logs


@pytest.mark.parametrize(("chosen", "terminal", "text"), [
    ("auto", True, True), ("auto", False, False), ("json", True, False), ("text", False, True)])  # fmt: skip
def test_logs_are_lines_for_people_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, chosen: Any, terminal: bool, text: bool
) -> None:
    stream = StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    name = f"lora_drift_logged.{chosen}.{terminal}"
    telemetry.log_to_stderr(name, Settings(log_format=chosen))
    logging.getLogger(name).info("started", extra={"request_id": "one"})
    line = stream.getvalue()
    assert line.startswith("{") != text and "started" in line and "one" in line
    assert not text or "request_id=one" in line


@pytest.mark.parametrize("debug", [False, True])
def test_debug_logs_each_step_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, debug: bool
) -> None:
    logger = logging.getLogger("lora_drift.server")
    before = logger.level
    telemetry.log_to_stderr(logger.name, Settings(debug=debug))
    monkeypatch.setattr(logger, "propagate", True)

    class Stepping(Idle):
        def send(self, command: str, payload: Any) -> None:
            step = {"event": "progress", "prompt": 0, "prompts": 1, "step": 1, "steps": 2}
            done = {"event": "done", "outputs": [], "timings": {"total": 1.0, "base_was_loaded": True}, "loaded": []}
            self.said += [step, done]

    try:
        store = Store(tmp_path / "queue.sqlite")
        store.add(New(Job(id="one", model="A", loras=[], prompts=[], output_folder=""), Secrets()))
        dispatcher = Dispatcher(store, Stepping, Settings(debug=debug), Metrics(), lambda _: None)
        dispatcher.start()
        deadline = time.monotonic() + 20
        while not store.get("one").finished:  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        dispatcher.stop()
    finally:
        logger.setLevel(before)
    assert ("the worker says" in caplog.messages) == debug
