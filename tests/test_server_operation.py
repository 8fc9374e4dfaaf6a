"""What an operator does to a server, and what must not be blamed on the clients: stops, full disks, slow downloads."""

import errno
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from lora_drift.pipelines import RequestError
from lora_drift.server import fetch, render_process
from lora_drift.server.app import create_app
from lora_drift.server.config import Settings
from lora_drift.server.local import LocalServer
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.store import New, Row, Store
from lora_drift.server.supervisor import Dispatcher
from lora_drift.server.telemetry import Metrics

LoraOf = Callable[[str], Path]


def body(steps: int = 2, side: int = 64) -> dict[str, Any]:
    prompt = {"prompt": "a fox", "width": side, "height": side, "sample_steps": steps, "seed": 7}
    return {"model": "sd15", "loras": [{"path": "sd15.safetensors"}], "prompts": [prompt]}


class Scripted:
    """A worker that answers each render as it is told, or not at all."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers, self.said, self.asked, self.stopped = list(answers), [{"event": "ready"}], list[Any](), False

    def send(self, command: str, payload: Any) -> None:
        self.asked.append(command)
        if command == "render" and self.answers:
            self.said.append(self.answers.pop(0))

    def receive(self, timeout: float) -> dict[str, Any] | None:
        if not self.said:
            time.sleep(min(timeout, 0.01))
        return self.said.pop(0) if self.said else None

    def stop(self) -> None:
        self.stopped = True


DONE = {"event": "done", "outputs": [], "timings": {"total": 1.0, "base_was_loaded": True}, "loaded": ["A"]}


class Watched:
    """A queue of one request, rendered by scripted workers."""

    def __init__(self, folder: Path, *workers: Scripted, storage: Callable[[], str | None] = lambda: None,
                 **more: Any) -> None:  # fmt: skip
        self.store = Store(folder / "queue.sqlite")
        self.store.add(New(Job(id="one", model="A", loras=[], prompts=[], output_folder=""), Secrets()))
        self.workers, self.settings, self.storage = iter(workers), Settings(**more), storage
        self.start()

    def start(self) -> None:
        self.dispatcher = Dispatcher(self.store, lambda: next(self.workers), self.settings, Metrics(), lambda _: None,
                                     self.storage)  # fmt: skip
        self.dispatcher.start()

    def until(self, holds: Callable[[Row], bool], timeout: float = 20) -> Row:
        deadline = time.monotonic() + timeout
        while (row := self.store.get("one")) is None or not holds(row):
            assert time.monotonic() < deadline, (row and (row.state, row.tries, row.error), self.dispatcher.problem)
            time.sleep(0.01)
        return row


# ---------------------------------------------------------------------------------------------------------------- stops


def test_a_stop_that_was_asked_for_is_no_try_of_a_request(tmp_path: Path) -> None:
    watched = Watched(tmp_path, *(Scripted() for _ in range(4)), Scripted(DONE), max_tries=2)
    for _ in range(4):
        watched.until(lambda row: row.state == "in_progress")
        watched.dispatcher.stop()
        row = watched.until(lambda row: True)
        assert (row.state, row.tries) == ("in_queue", 0)
        assert watched.store.recover(2) == []
        watched.start()
    row = watched.until(lambda row: row.finished)
    assert (row.state, row.tries) == ("succeeded", 1)
    watched.dispatcher.stop()


def test_a_stop_while_a_cancel_is_under_way_keeps_the_cancel(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Scripted())
    watched.until(lambda row: row.state == "in_progress")
    watched.store.cancel("one")
    watched.dispatcher.stop()
    assert watched.until(lambda row: True).state == "canceled"


def test_a_graceful_stop_of_the_whole_group_is_no_death(tmp_path: Path, lora_of: LoraOf) -> None:
    """As systemd stops a service: every process gets the signal."""
    with LocalServer(tmp_path, MAX_TRIES=1) as server:
        shutil.copy(lora_of("sd15/lora"), tmp_path / "loras" / "sd15.safetensors")
        request_id = server.submit(body(steps=200, side=128))
        server.until_rendering(request_id)
        worker = server.worker_pid()
        assert worker is not None
        os.kill(worker, signal.SIGTERM)
        time.sleep(0.3)
        server.stop()
        server.start()
        result = server.wait(request_id)
        assert result["status"] == "succeeded", result["error"]
        assert server.get(request_id, "status")["tries"] == 1


# -------------------------------------------------------------------------------------------------------------- cancels


def test_a_cancel_works_in_phases_in_which_nobody_asks(tmp_path: Path) -> None:
    """A load, an encoder, a decoder: the worker says nothing, and is ended when its time is up."""
    deaf, next_one = Scripted(), Scripted(DONE)
    watched = Watched(tmp_path, deaf, next_one, cancel_grace=0.2)
    watched.until(lambda row: row.state == "in_progress")
    began = time.monotonic()
    watched.store.cancel("one")
    watched.dispatcher.wake()
    row = watched.until(lambda row: row.finished)
    assert (row.state, row.error_code) == ("canceled", "CANCELED") and time.monotonic() - began < 5
    watched.store.add(New(Job(id="two", model="A", loras=[], prompts=[], output_folder=""), Secrets()))
    watched.dispatcher.wake()
    watched.until(lambda _: watched.store.get("two").state == "succeeded")  # type: ignore[union-attr]
    watched.dispatcher.stop()
    assert deaf.stopped and deaf.asked == ["render", "cancel"]


# ---------------------------------------------------------------------------------------------------------------- disks


def test_a_disk_that_takes_nothing_lets_the_queue_wait(tmp_path: Path) -> None:
    full, trouble = {"event": "unsaved", "error": "outputs cannot be written"}, ["OUTPUT_BASE_PATH cannot be written"]
    worker = Scripted(full, DONE)
    watched = Watched(tmp_path, worker, storage=lambda: trouble[0] if trouble else None, max_tries=1)
    time.sleep(0.5)
    assert watched.dispatcher.problem == trouble[0] and watched.until(lambda row: True).state == "in_queue"
    assert worker.asked == [], "it was rendered though it could not be saved"
    trouble.clear()
    deadline = time.monotonic() + 20
    while watched.dispatcher.problem != full["error"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert watched.until(lambda row: True).state == "in_queue"
    row = watched.until(lambda row: row.finished)
    assert (row.state, row.tries) == ("succeeded", 1)
    watched.dispatcher.stop()


def test_a_queue_that_cannot_be_written_costs_no_request_its_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, finish = [0], Store.finish

    def finish_or_fail(*args: Any, **how: Any) -> Row | None:
        failures[0] += 1
        if failures[0] <= 2:
            raise OperationalError("", {}, sqlite_full)
        return finish(*args, **how)

    sqlite_full = Exception("database or disk is full")
    monkeypatch.setattr(Store, "finish", finish_or_fail)
    watched = Watched(tmp_path, *(Scripted(DONE) for _ in range(3)), max_tries=1)
    row = watched.until(lambda row: row.finished, 30)
    assert (row.state, row.tries, failures) == ("succeeded", 1, [3])
    watched.dispatcher.stop()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_what_a_disk_says_is_no_mistake_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def save(*_: Any) -> dict[str, Any]:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise RequestError("output x.jpg: could not be written") from error

    monkeypatch.setattr(render_process, "_save", save)
    job: Any = SimpleNamespace(output_folder=str(tmp_path))
    with pytest.raises(render_process.Unsaved, match=os.strerror(number)):
        render_process._saved(None, job, 0)  # type: ignore[arg-type]


def test_outputs_wait_for_their_folder_and_readyz_says_so(tmp_path: Path, lora_of: LoraOf) -> None:
    with LocalServer(tmp_path, STATE_PATH=tmp_path / "state", MAX_TRIES=1) as server:
        shutil.copy(lora_of("sd15/lora"), tmp_path / "loras" / "sd15.safetensors")
        request_id = server.submit(body(steps=60, side=128))
        server.until_rendering(request_id)
        outputs = tmp_path / "outputs"
        outputs.rename(tmp_path / "elsewhere")
        outputs.write_text("no folder")
        deadline = time.monotonic() + 60
        while (said := server.http.get("/readyz")).status_code != 503:
            assert time.monotonic() < deadline, server.get(request_id)
            time.sleep(0.1)
        assert "OUTPUT_BASE_PATH" in said.json()["problem"]
        assert server.get(request_id, "status")["status"] == "in_queue"
        later = server.submit(body())
        outputs.unlink()
        (tmp_path / "elsewhere").rename(outputs)
        for waited in (request_id, later):
            result = server.wait(waited)
            assert result["status"] == "succeeded", result
        assert server.get(request_id, "status")["tries"] == 1
        assert server.http.get("/readyz").status_code == 200


@pytest.fixture
def running(tmp_path: Path, lora_of: LoraOf) -> Iterator[TestClient]:
    (tmp_path / "loras").mkdir()
    shutil.copy(lora_of("sd15/lora"), tmp_path / "loras" / "sd15.safetensors")
    settings = Settings(device="cpu", workflows_base_path=tmp_path / "loras", output_base_path=tmp_path / "outputs",
                        allow_private_urls=True, max_queue=100)  # fmt: skip
    with TestClient(create_app(settings), "http://localhost") as client:
        yield client


def test_a_request_that_cannot_be_kept_is_answered_with_503(
    running: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OperationalError("", {}, Exception("database or disk is full"))

    with monkeypatch.context() as patched:
        patched.setattr(Store, "add", full)
        answer = running.post("/v1/inference", json=body())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "STORAGE_UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0 and answer.json()["error"]["type"] == "server_error"

    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lora_drift.server.controls.keep", no_room)
    sent = {**body(), "model": "flux_kontext", "prompts": [{"prompt": "a", "ctrl_img": "aaaa"}]}
    answer = running.post("/v1/inference", json=sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "STORAGE_UNAVAILABLE")


def test_a_full_queue_says_when_to_come_again(running: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "waiting", lambda _: 100)
    answer = running.post("/v1/inference", json=body())
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "QUEUE_FULL")
    assert int(answer.headers["Retry-After"]) > 0


# ------------------------------------------------------------------------------------------------------------ downloads


@contextmanager
def site(content: bytes) -> Iterator[tuple[str, list[str], list[str]]]:
    """A web server: /slow... trickles for ever, the rest is the content. Its URL, who came, and who left."""
    came, left, over = list[str](), list[str](), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append(self.path)
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):
                while self.path.startswith("/slow") and not over.wait(0.05):
                    self.wfile.write(b"x")
                self.wfile.write(content)
                return
            left.append(self.path)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}", came, left
        over.set()
        http.shutdown()


def waited_for(holds: Callable[[], bool], timeout: float = 10) -> bool:
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def asked(client: TestClient, url: str) -> str:
    answer = client.post("/v1/inference", json={**body(), "loras": [{"path": url}]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def test_downloads_that_trickle_hold_up_no_other_client(
    running: TestClient, lora_of: LoraOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = running.app.state.service  # type: ignore[attr-defined]
    with site(lora_of("sd15/lora").read_bytes()) as (url, came, left):
        slow = [asked(running, f"{url}/slow{i}") for i in range(12)]
        assert waited_for(lambda: len(came) == 2), "a client's share"
        monkeypatch.setattr(running._transport, "client", ("192.0.2.7", 1))
        good = asked(running, f"{url}/good")
        assert waited_for(lambda: bool(service.store.get(good).ready)), "held up by those that trickle"
        assert len(came) == 3
        for request_id in reversed(slow):
            assert running.delete(f"/v1/requests/{request_id}").json()["status"] == "canceled"
        assert waited_for(lambda: len(left) == 2, 5), "canceled, and still downloaded"
        assert len(came) == 3 and not list((service.settings.state / "loras").glob("*.part"))


def test_a_download_below_the_least_rate_is_given_up(running: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SLOW_FOR", 0.3)
    with site(b"") as (url, _, left):
        request_id = asked(running, f"{url}/slow")
        assert waited_for(lambda: running.get(f"/v1/requests/{request_id}/status").json()["status"] == "failed")
        result = running.get(f"/v1/requests/{request_id}/result").json()
        assert result["error_code"] == "LORA_DOWNLOAD_FAILED" and "slower than 50 kB/s" in result["error"]
        assert waited_for(lambda: left == ["/slow"])


def test_a_download_waits_for_the_disk(running: TestClient, lora_of: LoraOf, monkeypatch: pytest.MonkeyPatch) -> None:
    tries, mkstemp = [0], tempfile.mkstemp

    def full_once(*args: Any, **how: Any) -> Any:
        tries[0] += 1
        if tries[0] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return mkstemp(*args, **how)

    monkeypatch.setattr(tempfile, "mkstemp", full_once)
    with site(lora_of("sd15/lora").read_bytes()) as (url, _, _):
        request_id = asked(running, f"{url}/good")
        store = running.app.state.service.store  # type: ignore[attr-defined]
        assert waited_for(lambda: bool(store.get(request_id).ready)), store.get(request_id).error
    assert tries == [2]
