"""Clients that connect and say little, send slowly, never read, or are many: real sockets, bounded load."""

import asyncio
import os
import re
import selectors
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import trustme
import uvicorn
from pydantic import SecretStr

from lora_drift.server import fetch, loras, workers
from lora_drift.server.app import create_app
from lora_drift.server.config import Settings
from lora_drift.server.connections import Connection
from lora_drift.server.local import ROOT
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.service import DELAY_EVERY, Service
from lora_drift.server.store import New, Store

LoraOf = Callable[[str], Path]


class Stepping:
    """A worker that tells a step every 50 ms, and never ends."""

    def __init__(self) -> None:
        self.ready, self.step, self.busy = False, 0, False

    def send(self, command: str, payload: Any) -> None:
        self.busy = True

    def receive(self, timeout: float) -> dict[str, Any] | None:
        if not self.ready:
            self.ready = True
            return {"event": "ready"}
        time.sleep(min(timeout, 0.05))
        self.step += 1
        return (
            {"event": "progress", "prompt": 0, "prompts": 1, "step": self.step, "steps": 10**6} if self.busy else None
        )

    def stop(self) -> None:
        pass


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Iterator[tuple[int, Service]]:
    """The application behind uvicorn in a thread of this process: its port, and its service."""
    (folder / "loras").mkdir(exist_ok=True)
    settings = Settings(device="cpu", workflows_base_path=folder / "loras", output_base_path=folder / "outputs",
                        max_queue=2000, **more)  # fmt: skip
    monkeypatch.setattr(workers, "WorkerProcess", lambda _: Stepping())
    monkeypatch.setattr(Connection, "limits", settings)
    app = create_app(settings)
    with closing(socket.create_server(("127.0.0.1", 0), backlog=1000)) as listening:
        config = uvicorn.Config(app, http=Connection, log_config=None, ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield listening.getsockname()[1], app.state.service
        finally:
            server.should_exit = True
            thread.join(30)


def connected(port: int, sent: bytes, **options: int) -> socket.socket:
    client = socket.socket()
    for name, value in options.items():
        client.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    client.settimeout(10)
    client.connect(("127.0.0.1", port))
    client.sendall(sent)
    return client


def closed(client: socket.socket, seconds: float) -> bool:
    """Does the server close the connection in that time?"""
    client.settimeout(seconds)
    with suppress(ConnectionError):
        try:
            while client.recv(1 << 16):
                pass
        except TimeoutError:
            return False
    return True


def answer_of(client: socket.socket) -> tuple[int, bytes]:
    """Status and text of what comes, up to the length that it announces."""
    got = b""
    while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < int(
        re.findall(rb"content-length: (\d+)", got)[0]
    ):
        part = client.recv(1 << 16)
        assert part, got
        got += part
    return int(got.split()[1]), got


def healthy(port: int, seconds: float = 5) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=seconds).json() == {"status": "healthy"}


# ----------------------------------------------------------------------------------------------- connections and bodies


def test_half_a_header_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch, header_timeout=0.5) as (port, _):
        halves = [connected(port, sent) for sent in (b"", b"GET /healthz HTTP/1.1\r\nHost: a", b"POST")]
        answered = connected(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for client in [*halves, answered]:
            assert closed(client, 3 if client is not answered else 8)
            client.close()


def test_connections_beyond_the_limit_cost_those_that_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch, header_timeout=60, max_connections=50) as (port, service):
        job = Job(id="one", model="sd15", loras=[], prompts=[], output_folder="")
        service.store.add(New(job, Secrets()))
        listener = connected(port, b"GET /v1/requests/one/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        heard = listener.recv(1 << 16)
        halves = [connected(port, b"GET /healthz HTTP/1.1\r\nHost: a") for _ in range(600)]
        assert all(healthy(port) for _ in range(5))
        assert len(Connection.waiting) <= 51
        assert sum(closed(client, 0.01) for client in halves[:-60]) == 540, "the oldest are closed"
        service.workers.stop()
        while b"event: status" not in heard or b'"in_queue"' not in heard.rpartition(b"event: status")[2]:
            part = listener.recv(1 << 16)
            assert part, "who asked something is served"
            heard += part
        for client in [*halves, listener]:
            client.close()


@pytest.mark.parametrize("path", ["/v1/inference", "/v1/images/edits"])
def test_half_a_body_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    kind = "multipart/form-data; boundary=x" if path.endswith("edits") else "application/json"
    header = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 999\r\n\r\n"
    with serving(tmp_path, monkeypatch, body_timeout=0.5, header_timeout=1) as (port, _):
        client = connected(port, header.encode() + (b"--x" if path.endswith("edits") else b"{"))
        status, answer = answer_of(client)
        assert status == 408 and b"BODY_TIMEOUT" in answer
        assert closed(client, 8)


def test_a_client_that_never_reads_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch, read_timeout=0.5, header_timeout=30) as (port, _):
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client = connected(port, asked * 400, SO_RCVBUF=4096)
        time.sleep(4)
        assert healthy(port)
        assert not [c for c in Connection.waiting if c.transport.get_write_buffer_size()]
        client.settimeout(3)
        with suppress(ConnectionError):
            while client.recv(1 << 20):
                pass
        client.close()


def test_bodies_that_are_held_at_once_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = (
        "POST /v1/inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    )
    with serving(tmp_path, monkeypatch, max_bodies_mb=1) as (port, _):
        first = connected(port, header.format(800_000).encode() + b" " * 799_000)
        time.sleep(0.5)
        second = connected(port, header.format(800_000).encode() + b" " * 700_000)
        status, answer = answer_of(second)
        assert status == 503 and b"retry-after" in answer.lower()
        first.sendall(b" " * 998 + b"{}")
        assert answer_of(first)[0] == 422
        third = connected(port, header.format(800_000).encode() + b" " * 799_998 + b"{}")
        assert answer_of(third)[0] == 422, "what was answered is held no longer"
        for client in (first, second, third):
            client.close()


# ----------------------------------------------------------------------------------------------------------- event loop


def test_a_lora_is_hashed_again_only_when_it_was_touched(
    tmp_path: Path, lora_of: LoraOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, inspect = [0], loras.inspect

    def counted(file: Path) -> str:
        read[0] += 1
        return inspect(file)

    monkeypatch.setattr(loras, "inspect", counted)
    file = tmp_path / "a.safetensors"
    shutil.copy(lora_of("sd15/lora"), file)
    loras.local(tmp_path, file.name)
    loras.local(tmp_path, file.name)
    assert read == [2], "a file that changed a moment ago may change again within a tick of its clock"
    monkeypatch.setattr(loras, "SETTLED", -1)
    first = [loras.local(tmp_path, file.name)[1] for _ in range(3)]
    assert read == [3] and len(set(first)) == 1
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)  # in place: the same inode and size
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert loras.local(tmp_path, file.name)[1] != first[0], "its mtime was set back"


class Ticks:
    """What a loop does: how late it comes to what is due, and how much of that was work of its own."""

    def __init__(self) -> None:
        self.late, self.worked, self.thread = list[float](), list[float](), 0

    async def watch(self) -> None:
        self.thread = threading.get_ident()
        while True:
            due, before = time.monotonic() + DELAY_EVERY, time.thread_time()
            await asyncio.sleep(DELAY_EVERY)
            self.late.append(time.monotonic() - due)
            self.worked.append(time.thread_time() - before)


def test_the_event_loop_is_free_while_many_listen_look_up_and_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_of: LoraOf
) -> None:
    """500 listeners (half of them never read), 30 slow look-ups, 1,000 in the queue.

    A busy machine is late by itself. What is the server's own is: its work between two answers, and that nothing that
    waits for a disk or for a name server is done where all others wait, too.
    """
    ticks, waited = Ticks(), list[tuple[str, int]]()
    measure = Service._measure_delay

    async def measured(service: Service) -> None:
        service.spawn(ticks.watch())
        await measure(service)

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **more: Any) -> Any:
            waited.append((name, threading.get_ident()))
            return call(*args, **more)

        return called

    def slow(_host: str, _port: int) -> list[str]:
        time.sleep(4)
        return ["10.0.0.1"]

    monkeypatch.setattr(Service, "_measure_delay", measured)
    monkeypatch.setattr(fetch, "look_up", noted("look_up", slow))
    monkeypatch.setattr(loras, "inspect", noted("inspect", loras.inspect))
    for name in ("_reading", "_writing"):
        monkeypatch.setattr(Store, name, noted(name, getattr(Store, name)))
    with serving(tmp_path, monkeypatch) as (port, service):
        shutil.copy(lora_of("sd15/lora"), tmp_path / "loras" / "a.safetensors")
        for n in range(1000):
            service.store.add(New(Job(id=f"r{n}", model="sd15", loras=[], prompts=[], output_folder=""), Secrets()))
        service.wake()
        asked = b"GET /v1/requests/r0/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        listeners = [connected(port, asked) for _ in range(500)]
        heard, over = selectors.DefaultSelector(), threading.Event()
        for client in listeners[::2]:
            client.setblocking(False)
            heard.register(client, selectors.EVENT_READ)

        def listen() -> None:
            while not over.is_set():
                for key, _ in heard.select(0.1):
                    with suppress(OSError):
                        key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                time.sleep(0.05)

        def post(n: int) -> int:
            sent = {"model": "flux_kontext", "loras": [{"path": "a.safetensors"}],
                    "prompts": [{"prompt": "a", "ctrl_img": f"https://slow{n}.example/a.png"}]}  # fmt: skip
            return others.post("/v1/inference", json=sent).status_code

        listener = threading.Thread(target=listen)
        listener.start()
        deadline = time.monotonic() + 60
        while service.streams < 500:
            assert time.monotonic() < deadline, service.streams
            time.sleep(0.1)
        time.sleep(1)
        first, before = len(ticks.late), len(waited)
        others = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, verify=False)
        with ThreadPoolExecutor(30) as pool, httpx.Client(base_url=others.base_url, timeout=30, verify=False) as me:
            posts = [pool.submit(post, n) for n in range(30)]
            began, count = time.monotonic(), 0
            while time.monotonic() - began < 4:
                assert me.get("/healthz").status_code == 200
                assert me.get(f"/v1/requests/r{count % 1000}/status").status_code == 200
                assert me.delete(f"/v1/requests/r{999 - count}").status_code == 200
                count += 1
                time.sleep(0.02)
            assert {answer.result() for answer in posts} == {400}
        over.set()
        listener.join()
        late, worked = (sorted(values[first:]) for values in (ticks.late, ticks.worked))
        for client in listeners:
            client.close()
    at = int(0.99 * len(late))
    print(
        f"{count} rounds asked, {len(late)} ticks, p99: late {late[at] * 1000:.0f} ms, own work {worked[at] * 1000:.0f}"
    )
    assert worked[at] <= 0.1, f"p99 of the event loop's own work is {worked[at]:.3f} s"
    assert {"look_up", "inspect", "_reading", "_writing"} == {name for name, _ in waited[before:]}
    there = {name for name, thread in waited[before:] if thread == ticks.thread}
    assert not there, f"on the event loop: {there}"


# -------------------------------------------------------------------------------------------------------- reverse proxy


KEY = {"X-API-Key": "the-api-key"}
RECIPE = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "server.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_recipe_brings_tls_limits_and_the_clients_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if nginx is None:
        pytest.skip("no nginx on the PATH (apt-get install nginx): the recipe was not run")
    (recipe,) = RECIPE
    authority = trustme.CA()
    certificate = authority.issue_cert("gpu.example")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "gpu.pem"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        outside = probe.getsockname()[1]
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with serving(tmp_path, monkeypatch, api_key=SecretStr(KEY["X-API-Key"]), base_url="https://gpu.example") as (
        port,
        service,
    ):
        text = recipe.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace(
            "listen 443", f"listen 127.0.0.1:{outside}"
        )
        text = re.sub(r"/etc/ssl/gpu.example.(pem|key)", str(tmp_path / "gpu.pem"), text)
        places = "".join(
            f"{what}_temp_path {tmp_path}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = text.replace("http {", f"http {{ access_log off; {places}", 1)
        (tmp_path / "nginx.conf").write_text(f"daemon off; pid {tmp_path}/pid; error_log stderr;\n{text}")
        proxy = subprocess.Popen([nginx, "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
        try:
            sni = {"sni_hostname": "gpu.example"}
            client = httpx.Client(
                base_url=f"https://127.0.0.1:{outside}", verify=trusted, headers={"Host": "gpu.example"}
            )
            deadline = time.monotonic() + 20
            while True:
                try:
                    assert client.get("/healthz", extensions=sni).status_code == 200
                    break
                except httpx.ConnectError:
                    assert proxy.poll() is None and time.monotonic() < deadline
                    time.sleep(0.1)
            assert client.get("/v1/models/sd15", extensions=sni).status_code == 401
            assert client.get("/v1/models/sd15", headers=KEY, extensions=sni).json()["id"] == "sd15"
            large = client.post("/v1/inference", content=b" " * (65 << 20), headers=KEY, extensions=sni)
            assert large.status_code == 413 and "nginx" in large.text
            seen = list[str]()
            monkeypatch.setattr(service, "prepare", lambda _row, address: seen.append(address))
            service.store.add(New(Job(id="one", model="sd15", loras=[], prompts=[], output_folder=""), Secrets()))
            service.wake()
            with client.stream("GET", "/v1/requests/one/events", headers=KEY, extensions=sni) as stream:
                began, steps = time.monotonic(), 0
                for line in stream.iter_lines():
                    steps += line.startswith("data: ")
                    if steps == 3:
                        break
            assert time.monotonic() - began < 10, "events were held back"
            answer = client.post("/v1/inference", json={
                "model": "sd15", "loras": [{"path": "https://192.0.2.1/a"}], "prompts": [{"prompt": "a"}],
            }, headers={**KEY, "X-Forwarded-For": "10.1.1.1"}, extensions=sni)  # fmt: skip
            assert answer.status_code == 200 and answer.json()["status_url"].startswith("https://gpu.example/")
            assert seen == ["127.0.0.1"], "not what the client says of itself"
            codes = [client.get("/healthz", extensions=sni).status_code for _ in range(300)]
            assert codes.count(503) > 20 and codes[0] == 200, "the limit of requests"
        finally:
            proxy.terminate()
            proxy.wait(10)
