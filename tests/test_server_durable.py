"""What the server promises when processes die, time passes and models change: on a real socket, with real renders."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import psutil
import pytest
from safetensors.numpy import save

from lora_drift.server.config import Settings
from lora_drift.server.local import ROOT, LocalServer
from lora_drift.server.loras import Downloads
from lora_drift.server.request_plan import Job, LoraFile, Secrets
from lora_drift.server.store import New, Store
from lora_drift.server.supervisor import Dispatcher
from lora_drift.server.telemetry import Metrics

LoraOf = Callable[[str], Path]
Queues = Callable[[], Path | str]
Body = dict[str, Any]
SECRET = "webhook-secret"


def server_of(folder: Path, lora_of: LoraOf, **environment: object) -> LocalServer:
    server = LocalServer(folder, **environment)
    shutil.copy(lora_of("sd15/lora"), folder / "loras" / "sd15.safetensors")
    return server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, lora_of: LoraOf) -> Iterator[LocalServer]:
    """One for all tests that leave it as it is: alive, with nothing in its queue."""
    environment = {"ALLOW_PRIVATE_URLS": True, "MAX_TRIES": 2, "WEBHOOK_FIRST_DELAY": 0.1, "WEBHOOK_SECRET": SECRET}
    with server_of(tmp_path_factory.mktemp("durable"), lora_of, **environment) as running:
        yield running


def body(steps: int = 2, side: int = 64, seed: int = 7, **fields: Any) -> Body:
    prompt = {"prompt": "a fox", "width": side, "height": side, "sample_steps": steps, "seed": seed}
    return {"model": "sd15", "loras": [{"path": "sd15.safetensors"}], "prompts": [prompt], **fields}


LONG = {"steps": 60, "side": 128}
"""Long enough (a second or two) to be caught in the middle."""


def digest(result: dict[str, Any]) -> str:
    assert result["status"] == "succeeded", result
    return result["outputs"]["images"][0]["sha256"]


# ------------------------------------------------------------------------------------------------------------- deaths


def test_a_request_whose_worker_is_killed_ends_with_the_same_bytes(server: LocalServer) -> None:
    undisturbed = digest(server.wait(server.submit(body(**LONG))))
    request_id = server.submit(body(**LONG))
    server.until_rendering(request_id)
    victim = server.worker_pid()
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    assert digest(server.wait(request_id)) == undisturbed
    assert server.get(request_id, "status")["tries"] == 2
    assert server.worker_pid() not in (None, victim)


def test_requests_outlive_a_kill_of_the_server_and_end_with_the_same_bytes(server: LocalServer) -> None:
    undisturbed = digest(server.wait(server.submit(body(**LONG))))
    running = server.submit(body(**LONG))
    waiting = server.submit(body(), **{"Idempotency-Key": "before the kill"})
    server.until_rendering(running)
    orphan = server.worker_pid()
    server.kill()
    server.start(ready=False)
    assert digest(server.wait(running)) == undisturbed
    assert digest(server.wait(waiting)) == digest(server.wait(server.submit(body())))
    assert server.submit(body(), **{"Idempotency-Key": "before the kill"}) == waiting
    assert orphan is not None and not psutil.pid_exists(orphan)
    outputs = server.folder / "outputs"
    assert {path.name for path in outputs.glob(f"*{running}*")} == {f"{running}_output_0.jpg{s}" for s in ("", ".json")}


def deaths(server: LocalServer) -> float:
    """Of workers, since the server started."""
    page = server.http.get("/metrics").text
    return float(re.findall(r"^lora_drift_worker_deaths_total (\S+)", page, re.MULTILINE)[0])


def test_a_request_that_kills_every_worker_fails_and_the_next_is_rendered(server: LocalServer) -> None:
    before = deaths(server)
    poisoned, next_one = server.submit(body(**LONG)), server.submit(body())
    for tries in (1, 2):
        server.until_rendering(poisoned, tries)
        victim = server.worker_pid()
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
    result = server.wait(poisoned)
    assert (result["status"], result["error_code"]) == ("failed", "TRIES_EXHAUSTED")
    assert "died 2 times" in result["error"] and "signal 9" in result["error"]
    digest(server.wait(next_one))
    assert deaths(server) - before == 2


def test_two_servers_do_not_share_a_queue(server: LocalServer) -> None:
    command = [sys.executable, "-m", "lora_drift", "serve", "--mini", "--port", "0"]
    other = subprocess.run(command, cwd=ROOT, env=server.environment, capture_output=True, text=True, timeout=60)
    assert other.returncode != 0
    assert "another server uses" in other.stderr


# ------------------------------------------------------------------------------------------------- LoRAs and webhooks


@contextmanager
def site(answer: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_a_lora_is_downloaded_once_and_asked_after_each_time(server: LocalServer, lora_of: LoraOf) -> None:
    files = {"now": lora_of("sd15/lora")}
    answers: list[int] = []

    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        content = files["now"].read_bytes()
        etag = hashlib.md5(content).hexdigest()
        status = 304 if handler.headers.get("If-None-Match") == etag else 200
        answers.append(status)
        handler.send_response(status)
        handler.send_header("ETag", etag)
        handler.end_headers()
        handler.wfile.write(content if status == 200 else b"")

    with site(answer) as url:
        sent = body(loras=[{"path": f"{url}/lora.safetensors"}])
        first, again = (digest(server.wait(server.submit(sent))) for _ in range(2))
        files["now"] = lora_of("sd15/lora-conv")
        changed = digest(server.wait(server.submit(sent)))
        assert answers == [200, 304, 200]
        known = hashlib.sha256(lora_of("sd15/lora").read_bytes()).hexdigest()
        named = digest(server.wait(server.submit(body(loras=[{"path": f"{url}/gone.safetensors", "sha256": known}]))))
        assert answers == [200, 304, 200], "a file that is here is not asked after when its hash is given"
    assert first == again == named == digest(server.wait(server.submit(body())))
    assert changed != first


def test_downloaded_loras_above_the_budget_go_least_recently_used_first(tmp_path: Path) -> None:
    names = ("/oldest", "/waited for", "/used again", "/newest")
    files = {name: save({"a": np.full(1000, i, np.float32)}) for i, name in enumerate(names)}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    store = Store(tmp_path / "queue.sqlite")
    needed = [LoraFile(label="a", sha256=hashes["/waited for"])]
    store.add(New(Job(id="waits", model="sd15", loras=needed, prompts=[], output_folder=""), Secrets()))
    limits = {"state_path": tmp_path, "lora_cache_gb": 3.5 * len(files["/oldest"]) / 2**30, "allow_private_urls": True}
    downloads = Downloads(Settings(**limits), store)  # type: ignore[arg-type]

    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(files[unquote(handler.path)])

    def kept() -> set[str]:
        return {name for name in names if downloads.path(hashes[name]).exists()}

    with site(answer) as url:

        def get(name: str, wanted: str | None = None) -> None:
            assert asyncio.run(downloads.get(url + quote(name), wanted, None)) == hashes[name]

        for age, name in zip((30, 40, 50), names, strict=False):
            get(name)
            os.utime(downloads.path(hashes[name]), (time.time() - age,) * 2)
        assert kept() == {"/oldest", "/waited for", "/used again"}, "all within the budget"
        get("/used again", hashes["/used again"])
        get("/newest")
    assert kept() == {"/waited for", "/used again", "/newest"}


def test_a_webhook_is_tried_again_until_it_is_delivered(server: LocalServer) -> None:
    calls: list[tuple[dict[str, str], bytes]] = []

    def answer(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        calls.append((dict(handler.headers), content))
        handler.send_response(500 if len(calls) < 3 else 204)
        handler.end_headers()

    with site(answer) as url:
        request_id = server.submit(body(webhook_url=f"{url}/done"))
        result = server.wait(request_id)
        deadline = time.monotonic() + 20
        while len(calls) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
    assert len(calls) == 3, "not again once it was delivered"
    headers, content = calls[-1]
    assert json.loads(content) == result
    # As standardwebhooks.com specifies; the moment is signed, too.
    assert headers["webhook-id"] == request_id and abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    signed = f"{request_id}.{headers['webhook-timestamp']}.".encode() + content
    expected = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_a_webhook_that_does_not_answer_holds_up_no_other(server: LocalServer) -> None:
    called, done = [], threading.Event()

    def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        called.append(handler.path)
        if handler.path == "/hangs":
            done.wait(60)
        handler.send_response(204)
        handler.end_headers()

    with site(answer) as url:
        for path in ("/hangs", "/answers"):
            assert server.http.delete(f"/v1/requests/{server.submit(body(webhook_url=url + path))}").status_code == 200
            deadline = time.monotonic() + 20
            while path not in called and time.monotonic() < deadline:
                time.sleep(0.05)
        done.set()
    assert called == ["/hangs", "/answers"]


# --------------------------------------------------------------------------------------------------- models and order


def test_base_models_stay_loaded_until_the_budget_is_spent(tmp_path: Path, lora_of: LoraOf) -> None:
    server = server_of(tmp_path, lora_of)
    shutil.copy(lora_of("flux/lora"), server.folder / "loras" / "flux.safetensors")
    flux = body(model="flux", loras=[{"path": "flux.safetensors"}])

    def loaded() -> list[bool]:
        """Was its base model loaded already: sd15, flux, sd15, flux."""
        results = [server.wait(server.submit(sent)) for sent in (body(), flux) * 2]
        return [result["metadata"]["timings"]["base_was_loaded"] for result in results]

    with server:
        assert loaded() == [False, False, True, True]
        server.stop()
        server.environment["MEMORY_BUDGET_GB"] = "0.000001"
        server.start()
        assert loaded() == [False] * 4


def test_time_limits_end_requests_and_remove_what_is_old(tmp_path: Path, lora_of: LoraOf) -> None:
    with server_of(tmp_path, lora_of) as server:
        old = server.wait(server.submit(body()))
        files = [Path(image["file_path"]) for image in old["outputs"]["images"]]
        files += [files[0].with_name(f".{files[0].stem}.part.jpg")]  # as a killed worker leaves it
        files[-1].touch()
        server.stop()
        server.environment |= {"INFERENCE_TIMEOUT": "5", "RESULT_TTL": "3"}
        server.start()
        victim = server.worker_pid()
        endless = server.wait(server.submit(body(steps=999, side=512)))
        assert (endless["status"], endless["error_code"]) == ("failed", "TIMEOUT"), endless["error"]
        deadline = time.monotonic() + 60
        while server.worker_pid() in (None, victim) or server.http.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while server.http.get(f"/v1/requests/{endless['request_id']}/status").status_code != 404:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.http.get(f"/v1/requests/{old['request_id']}/result").status_code == 404
        assert not any(file.exists() or file.with_name(file.name + ".json").exists() for file in files)


def queue(store: Store, *models: str) -> list[str]:
    for i, model in enumerate(models):
        job = Job(id=f"{model}{i}", model=model, loras=[], prompts=[], output_folder="")
        store.add(New(job, Secrets()))
    return [f"{model}{i}" for i, model in enumerate(models)]


def claimed(store: Store, loaded: list[str], bound: int) -> list[str]:
    """The order in which a worker that keeps one model would render."""
    order = []
    while (row := store.claim(loaded, bound)) is not None:
        order.append(row.id)
        loaded = [row.base]
    return order


def test_the_queue_is_first_in_first_out_grouped_by_model_within_the_bound(new_queue: Queues) -> None:
    store = Store(new_queue())
    a0, b1, a2, b3, a4, a5 = queue(store, *"ABABAA")
    assert claimed(store, [], 2) == [a0, a2, a4, b1, b3, a5], "b1 and b3 were overtaken twice, and no more"


@pytest.mark.parametrize("bound", [0, 1, 3, 8])
def test_nobody_is_overtaken_more_often_than_the_bound(new_queue: Queues, bound: int) -> None:
    store = Store(new_queue())
    arrived = queue(store, *("ABCAABBCCCABACBA" * 4))
    order = claimed(store, [], bound)
    assert sorted(order) == sorted(arrived), "none lost, none twice"
    for i, request in enumerate(arrived):
        later_first = sum(order.index(other) < order.index(request) for other in arrived[i + 1 :])
        assert later_first <= bound
    switches = sum(a[0] != b[0] for a, b in pairwise(order))
    in_order = sum(a[0] != b[0] for a, b in pairwise(arrived))
    assert switches == in_order if bound == 0 else switches < in_order


class Scripted:
    """A `Worker` of another kind: it says what it is told to say."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages, self.asked, self.stopped = [{"event": "ready"}, *messages], list[str](), False

    def send(self, command: str, payload: Any) -> None:
        self.asked.append(payload["job"]["id"])

    def receive(self, timeout: float) -> dict[str, Any] | None:
        return self.messages.pop(0) if self.messages else None

    def stop(self) -> None:
        self.stopped = True


def test_a_worker_that_lost_its_device_is_replaced_and_the_request_rendered(tmp_path: Path) -> None:
    """As after a fatal CUDA error. Queue and worker are what the dispatcher knows of them: the seam for others."""
    store = Store(tmp_path / "queue.sqlite")
    (request_id,) = queue(store, "A")
    lost = Scripted({"event": "broken", "error": "CUDA error: an illegal memory access"})
    timings = {"total": 1.0, "base_was_loaded": False}
    sound = Scripted({"event": "done", "outputs": [], "timings": timings, "loaded": ["A"]})
    workers, ended = iter([lost, sound]), threading.Event()

    def changed(request_id: str) -> None:
        row = store.get(request_id)
        if row is not None and row.finished:
            ended.set()

    dispatcher = Dispatcher(store, lambda: next(workers), Settings(), Metrics(), changed)
    dispatcher.start()
    assert ended.wait(30)
    dispatcher.stop()
    row = store.get(request_id)
    assert row is not None and (row.state, row.tries) == ("succeeded", 2)
    assert lost.asked == sound.asked == [request_id] and lost.stopped and sound.stopped


def test_what_is_wrong_with_the_device_or_the_weights_is_said(tmp_path: Path, lora_of: LoraOf) -> None:
    server = server_of(tmp_path, lora_of, DEVICE="cuda:99")
    try:
        server.start(ready=False)
        deadline = time.monotonic() + 60
        while "cuda:99" not in (said := server.http.get("/readyz")).text:
            assert time.monotonic() < deadline, said.text
            time.sleep(0.1)
        assert said.status_code == 503
        server.stop()
        (tmp_path / "empty").mkdir()
        server.environment |= {"DEVICE": "cpu", "MODEL_CACHE_DIR": str(tmp_path / "empty")}
        server.start()
        result = server.wait(server.submit(body()))
        assert (result["status"], result["error_code"]) == ("failed", "REQUEST_INVALID"), result
        assert "stable-diffusion" in result["error"]
    finally:
        server.stop()
