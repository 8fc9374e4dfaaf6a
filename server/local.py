"""A server of one's own on a free port, in a process of its own: for tests and benchmarks, on the mini hub."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2 as httpx

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 120.0


class LocalServer:
    """`with LocalServer(folder, API_KEY="x") as server: server.submit(...)`. Keyword arguments are environment."""

    command: Sequence[str] = ("-m", "lora_drift", "serve", "--mini")
    """What Python is to run."""

    def __init__(self, folder: Path, **environment: object) -> None:
        self.folder, self.log = folder, folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PORT": str(self.port),
            "BASE_URL": self.url,
            "DEVICE": "cpu",
            "WORKFLOWS_BASE_PATH": str(folder / "loras"),
            "OUTPUT_BASE_PATH": str(folder / "outputs"),
            **{name: str(value) for name, value in environment.items()},
        }
        (folder / "loras").mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> "LocalServer":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self.http.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, ready: bool = True) -> None:
        """Start, and wait until it answers (and renders, if `ready`)."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.command], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.http.get("/readyz" if ready else "/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"the server did not start; its log ends with:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """End it as an operator would."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            finally:
                self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def worker_pid(self) -> int | None:
        """Its worker, if there is one right now."""
        import psutil

        try:
            for child in psutil.Process(self.pid).children():
                if any("spawn_main" in part for part in child.cmdline()):
                    return child.pid
        except psutil.NoSuchProcess:
            pass
        return None

    # ------------------------------------------------------------------------------------------------- as a client

    def submit(self, body: dict[str, Any], **headers: str) -> str:
        """Queue a request; its id."""
        answer = self.http.post("/v1/inference", json=body, headers=headers)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {answer.text}")
        return answer.json()["request_id"]

    def get(self, request_id: str, what: str = "result") -> dict[str, Any]:
        return self.http.get(f"/v1/requests/{request_id}/{what}").raise_for_status().json()

    def until_rendering(self, request_id: str, tries: int = 1, timeout: float = 120) -> None:
        """Until the first step of a try is done."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.get(request_id, "status")
            if status["progress"] is not None and status["tries"] == tries:
                return
            if status["finished_at"] is not None or time.monotonic() > deadline:
                raise TimeoutError(f"not seen while it was rendered: {status}")
            time.sleep(0.005)

    def wait(self, request_id: str, timeout: float = 300, pause: float = 0.02) -> dict[str, Any]:
        """The result, when it has finished."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = self.get(request_id, "status")
            if status["finished_at"] is not None:
                return self.get(request_id)
            time.sleep(pause)
        raise TimeoutError(f"{status}; the server's log ends with:\n{self.log.read_text()[-3000:]}")
