"""Starts the worker process, feeds it, and starts another when it dies.

The dispatcher sees the queue and the worker through two small interfaces, so that either may one day be elsewhere.
"""

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Collection
from multiprocessing import connection
from typing import Any, Protocol

from lora_drift.server.config import Settings
from lora_drift.server.render_process import WorkerSettings, main
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.schemas import State
from lora_drift.server.store import Row
from lora_drift.server.telemetry import Metrics

log = logging.getLogger("lora_drift.server.supervisor")

LONGEST_PAUSE = 30.0
"""Seconds between starts of a worker that keeps dying before it is ready."""


class Queue(Protocol):
    """Of the queue, what rendering needs."""

    def recover(self, max_tries: int) -> list[Row]: ...
    def claim(self, loaded: Collection[str], fairness_bound: int) -> Row | None: ...
    def cancel_wanted(self, request_id: str) -> bool: ...
    def requeue(self, request_id: str, *, count_try: bool = True) -> None: ...
    def finish(
        self,
        request_id: str,
        state: State,
        *,
        code: str | None = None,
        error: str | None = None,
        outputs: list[dict[str, Any]] | None = None,
        timings: dict[str, Any] | None = None,
    ) -> Row | None: ...


class WorkerDied(Exception):
    """Says what is known of the cause."""


class Worker(Protocol):
    """One that renders. `messages` are those of `lora_drift.server.render_process`."""

    def send(self, command: str, payload: Any) -> None: ...
    def receive(self, timeout: float) -> dict[str, Any] | None: ...
    def stop(self) -> None: ...


class WorkerProcess:
    """A `Worker` on this machine."""

    def __init__(self, settings: WorkerSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(theirs, settings), name="worker", daemon=True)
        self._process.start()
        theirs.close()  # or this end would never see the other one close

    def send(self, command: str, payload: Any) -> None:
        try:
            self._pipe.send((command, payload))
        except OSError as error:
            raise WorkerDied(self._how_it_died()) from error

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next message, or None when there was none in time.

        Raises:
            WorkerDied: and everything that it had said was received.
        """
        try:
            if connection.wait([self._pipe, self._process.sentinel], timeout) == [self._process.sentinel]:
                raise WorkerDied(self._how_it_died())
            return self._pipe.recv() if self._pipe.poll() else None
        except (EOFError, OSError) as error:
            raise WorkerDied(self._how_it_died()) from error

    def _how_it_died(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        return f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


class Dispatcher(threading.Thread):
    """Takes requests from the queue, one at a time, to a worker, whatever becomes of it."""

    def __init__(
        self,
        queue: Queue,
        start_worker: Callable[[], Worker],
        settings: Settings,
        metrics: Metrics,
        changed: Callable[[str], None],
    ) -> None:
        super().__init__(name="dispatcher", daemon=True)
        self._queue, self._start_worker, self._settings = queue, start_worker, settings
        self._metrics, self._changed = metrics, changed
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._worker: Worker | None = None
        self._loaded: list[str] = []
        self.problem: str | None = "the worker is starting"
        """Why nothing can be rendered right now."""
        self.progress: dict[str, dict[str, Any]] = {}
        """Of the request that is being rendered."""

    def wake(self) -> None:
        """Something was queued or is to be cancelled."""
        self._wake.set()

    def stop(self) -> None:
        """End, and the worker too; what was in flight is taken up at the next start."""
        self._ending.set()
        self._wake.set()
        self.join()

    def run(self) -> None:
        pause = 1.0
        while not self._ending.is_set():
            try:
                for row in self._queue.recover(self._settings.max_tries):
                    self._changed(row.id)
                while not self._ending.is_set():
                    if self._worker is None:
                        self._start()
                    pause = 1.0
                    self._serve_or_restart()
            except WorkerDied as error:  # before it was ready: it will die again, so take it easy
                self._let_go(f"the worker died {error}")
                log.error("the worker does not start", extra={"cause": str(error), "again_in": pause})
            except Exception as error:  # a full disk, say: keep trying, and say so at /readyz
                self._let_go(f"{type(error).__name__}; the log says more")
                log.exception("the dispatcher failed", extra={"again_in": pause})
            self._ending.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self._let_go("the server is stopping")

    def _serve_or_restart(self) -> None:
        assert self._worker is not None
        try:
            self._serve(self._worker)
        except WorkerDied as error:
            self._metrics.worker_deaths.inc()
            log.error("the worker died", extra={"cause": str(error)})
            self._let_go(f"the worker died {error}")

    def _start(self) -> None:
        worker = self._worker = self._start_worker()
        while not self._ending.is_set():
            message = worker.receive(0.2)
            if message is not None and message["event"] == "unusable":
                raise WorkerDied(f"because {self._settings.device} cannot be used ({message['error']})")
            if message is not None:
                self.problem = None
                log.info("the worker is ready", extra={"device": self._settings.device})
                return

    def _let_go(self, problem: str) -> None:
        if self._worker is not None:
            self._worker.stop()
        self._worker, self._loaded, self.problem = None, [], problem

    def _serve(self, worker: Worker) -> None:
        """Render what is queued until the worker dies or the server stops."""
        while not self._ending.is_set():
            self._wake.clear()
            row = self._queue.claim(self._loaded, self._settings.fairness_bound)
            if row is not None:
                self._render(worker, row)
            elif not self._wake.wait(0.5):
                worker.receive(0)  # has it died meanwhile?

    def _render(self, worker: Worker, row: Row) -> None:
        job, secrets = Job.model_validate(row.job), Secrets.model_validate(row.secrets or {})
        try:
            worker.send("render", {"job": job.model_dump(), "hf_token": secrets.hf_token})
            log.info("started", extra={"request_id": row.id, "model": row.model, "try": row.tries})
            self._changed(row.id)
            ended = self._watch(worker, row.id)
        except WorkerDied as error:
            self._after_death(row, str(error))
            raise
        finally:
            self.progress.pop(row.id, None)
        if ended is None:
            return
        self._loaded = ended.get("loaded", self._loaded)
        if ended["event"] == "done":
            self.finish(row.id, "succeeded", outputs=ended["outputs"], timings=ended["timings"])
        elif ended["event"] == "canceled":
            self.finish(row.id, "canceled", code="CANCELED", error="canceled while it was rendered")
        elif ended["event"] == "failed":
            self.finish(row.id, "failed", code=ended["code"], error=ended["error"])
        else:
            self._after_death(row, ended["error"])
            raise WorkerDied(f"after {ended['error']}")

    def _watch(self, worker: Worker, request_id: str) -> dict[str, Any] | None:
        """The message that ends a request; None if the server stops or the request took too long."""
        deadline = time.monotonic() + self._settings.inference_timeout
        asked_to_cancel = False
        while not self._ending.is_set():
            message = worker.receive(0.1)
            if message is not None and message["event"] != "progress":
                return message
            if message is not None:
                self.progress[request_id] = message
                self._changed(request_id)
            if time.monotonic() > deadline:
                self.finish(request_id, "failed", code="TIMEOUT",
                            error=f"not finished {self._settings.inference_timeout:g} s after its start")  # fmt: skip
                raise WorkerDied("because a request took too long")
            if self._wake.is_set() and not asked_to_cancel:
                self._wake.clear()
                if self._queue.cancel_wanted(request_id):
                    worker.send("cancel", request_id)
                    asked_to_cancel = True
        return None

    def _after_death(self, row: Row, cause: str) -> None:
        if self._queue.cancel_wanted(row.id):
            self.finish(row.id, "canceled", code="CANCELED", error="canceled while it was rendered")
        elif row.tries >= self._settings.max_tries:
            error = f"the worker died {row.tries} times while rendering it, the last time {cause}"
            self.finish(row.id, "failed", code="TRIES_EXHAUSTED", error=error)
        else:
            self._queue.requeue(row.id)
            self._changed(row.id)

    def finish(self, request_id: str, state: State, **how: Any) -> None:
        row = self._queue.finish(request_id, state, **how)
        if row is None:
            return
        self._metrics.note_end(row)
        self._changed(request_id)
        extra = {"request_id": row.id, "model": row.model, "state": state, "code": row.error_code}
        log.info("finished", extra=extra)
