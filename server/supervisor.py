"""Starts the worker process, feeds it, and starts another when it dies.

The dispatcher sees the queue and the worker through two small interfaces: it runs in the server's process, or beside a
device on another host.
"""

import logging
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from multiprocessing import connection
from typing import Any, Protocol, TypeVar

from sqlalchemy.exc import OperationalError

from lora_drift.server.config import Settings
from lora_drift.server.render_process import WorkerSettings, main
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.schemas import State
from lora_drift.server.store import LEASE, Row
from lora_drift.server.telemetry import Metrics

log = logging.getLogger("lora_drift.server.supervisor")

T = TypeVar("T")
LONGEST_PAUSE = 30.0
"""Seconds between starts of a worker that keeps dying before it is ready."""


class Queue(Protocol):
    """Of the queue, what rendering needs."""

    def claim(
        self, loaded: Collection[str], fairness_bound: int, *, owner: str, elsewhere: Collection[str]
    ) -> Row | None: ...
    def renew(self, request_id: str, owner: str) -> bool: ...
    def cancel_wanted(self, request_id: str) -> bool: ...
    def requeue(self, request_id: str, *, owner: str, count_try: bool = True) -> None: ...
    def release(self, owner: str) -> None: ...
    def finish(
        self,
        request_id: str,
        state: State,
        *,
        owner: str | None = None,
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
        storage: Callable[[], str | None] = lambda: None,
        owner: str = "0",
        elsewhere: Callable[[], Collection[str]] = list,
    ) -> None:
        """`storage` says why outputs could not be written right now, if so; `owner` is the worker's own name, and
        `elsewhere` tells the bases that the other workers have."""
        super().__init__(name=f"dispatcher-{owner}", daemon=True)
        self._owner, self._elsewhere = owner, elsewhere
        self._queue, self._start_worker, self._settings = queue, start_worker, settings
        self._metrics, self._changed, self._storage = metrics, changed, storage
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._worker: Worker | None = None
        self._loaded: list[str] = []
        self._in_hand: str | None = None
        """The request that was claimed, until it has ended or is back in the queue."""
        self._base_in_hand: str | None = None
        self._unsure = False
        """The queue could not be asked; perhaps it gave a request of which this does not know."""
        self.problem: str | None = "the worker is starting"
        """Why nothing can be rendered right now."""
        self.progress: dict[str, dict[str, Any]] = {}
        """Of the request that is being rendered."""

    @property
    def bases(self) -> set[str]:
        """What its worker has loaded, or is about to."""
        return {*self._loaded, *([] if self._base_in_hand is None else [self._base_in_hand])}

    @property
    def busy(self) -> bool:
        """It has a request."""
        return self._in_hand is not None

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
                self._give_back()
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
        try:
            self._give_back()
        except Exception:  # the next start finds it in flight, as after a kill
            log.exception("what was in flight could not be put back into the queue")

    def _give_back(self) -> None:
        """Back into the queue with what was in hand when something else than a render failed, or the server was asked
        to stop: that is no try of the request's."""
        if self._unsure:
            self._queue.release(self._owner)
            self._in_hand, self._unsure = None, False
        if self._in_hand is not None:
            if self._queue.cancel_wanted(self._in_hand):
                self.finish(self._in_hand, "canceled", code="CANCELED", error="canceled while it was rendered")
            else:
                self._queue.requeue(self._in_hand, owner=self._owner, count_try=False)
                self._changed(self._in_hand)
            self._in_hand = None

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
                log.info("the worker is ready", extra={"device": self._settings.device})
                return

    def _let_go(self, problem: str) -> None:
        if self._worker is not None:
            self._worker.stop()
        self._worker, self._loaded, self.problem = None, [], problem

    def _serve(self, worker: Worker) -> None:
        """Render what is queued until the worker dies or the server stops."""
        pause, unsaved = 0.5, None
        while not self._ending.is_set():
            self._wake.clear()
            stuck = self._storage()
            if stuck is not None:
                self._hold(stuck, 1.0)
                continue
            self.problem = unsaved
            try:
                self._give_back()  # what an answer that was lost on the way may have given
                row = self._queue.claim(self._loaded, self._settings.fairness_bound, owner=self._owner,
                                        elsewhere=self._elsewhere())  # fmt: skip
            except OperationalError as error:
                self._unsure = True
                self._hold(_cause(error), 1.0)
                continue
            if row is None:
                unsaved = None  # what could not be saved was canceled
                if not self._wake.wait(0.5):
                    worker.receive(0)  # has it died meanwhile?
                continue
            self._in_hand, self._base_in_hand = row.id, row.base
            try:
                unsaved = self._render(worker, row)
            finally:
                self._base_in_hand = None
            if unsaved is None:
                pause = 0.5
            elif not self._ending.is_set():
                self._give_back()
                pause = min(2 * pause, LONGEST_PAUSE)
                self._hold(unsaved, pause)

    def _hold(self, why: str, seconds: float) -> None:
        """Take nothing from the queue for a while, and say why."""
        if self.problem != why:
            log.error("the queue waits", extra={"cause": why})
        self.problem = why
        self._ending.wait(seconds)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """The queue's answer. While it cannot be used, it is asked again, for half a lease: a database is restarted now
        and then, and what is rendered, or loaded, is not to be thrown away for that."""
        before, until = self.problem, time.monotonic() + LEASE / 2
        while True:
            try:
                answer = ask()
            except OperationalError as error:
                if self._ending.is_set() or time.monotonic() > until:
                    raise
                self._hold(_cause(error), 1.0)
            else:
                self.problem = before
                return answer

    def _render(self, worker: Worker, row: Row) -> str | None:
        """None, or why its outputs could not be written: then it is still in hand."""
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
            return None
        self._loaded = ended.get("loaded", self._loaded)
        if ended["event"] == "unsaved":
            return str(ended["error"])
        if ended["event"] == "done":
            self.finish(row.id, "succeeded", outputs=ended["outputs"], timings=ended["timings"])
        elif ended["event"] == "canceled":
            self.finish(row.id, "canceled", code="CANCELED", error="canceled while it was rendered")
        elif ended["event"] == "failed":
            self.finish(row.id, "failed", code=ended["code"], error=ended["error"])
        else:
            self._after_death(row, ended["error"])
            raise WorkerDied(f"after {ended['error']}")
        return None

    def _watch(self, worker: Worker, request_id: str) -> dict[str, Any] | None:
        """The message that ends a request; None if the server stops or the request took too long."""
        deadline = time.monotonic() + self._settings.inference_timeout
        renewed = time.monotonic()
        canceled_by: float | None = None
        while not self._ending.is_set():
            message = worker.receive(0.1)
            if message is not None:
                log.debug("the worker says", extra={"request_id": request_id, "said": message["event"],
                                                    "step": message.get("step")})  # fmt: skip
            if message is not None and message["event"] != "progress":
                return message
            if message is not None:
                self.progress[request_id] = message
                self._changed(request_id)
            if time.monotonic() > renewed + LEASE / 4:
                renewed = time.monotonic()
                if not self._patiently(lambda: self._queue.renew(request_id, self._owner)):
                    raise WorkerDied("because its request is another's by now")
            if time.monotonic() > deadline:
                self.finish(request_id, "failed", code="TIMEOUT",
                            error=f"not finished {self._settings.inference_timeout:g} s after its start")  # fmt: skip
                raise WorkerDied("because a request took too long")
            if canceled_by is not None and time.monotonic() > canceled_by:
                # In a load, an encoder or a long step, where nobody asks; only an end of the process stops it safely.
                self.finish(request_id, "canceled", code="CANCELED", error="canceled while it was rendered")
                raise WorkerDied("because a canceled request did not end")
            if self._wake.is_set() and canceled_by is None:
                self._wake.clear()
                if self._patiently(lambda: self._queue.cancel_wanted(request_id)):
                    worker.send("cancel", request_id)
                    canceled_by = time.monotonic() + self._settings.cancel_grace
        return None

    def _after_death(self, row: Row, cause: str) -> None:
        if self._patiently(lambda: self._queue.cancel_wanted(row.id)):
            self.finish(row.id, "canceled", code="CANCELED", error="canceled while it was rendered")
        elif row.tries >= self._settings.max_tries:
            error = f"the worker died {row.tries} times while rendering it, the last time {cause}"
            self.finish(row.id, "failed", code="TRIES_EXHAUSTED", error=error)
        else:
            self._patiently(lambda: self._queue.requeue(row.id, owner=self._owner))
            self._in_hand = None
            self._changed(row.id)

    def finish(self, request_id: str, state: State, **how: Any) -> None:
        row = self._patiently(lambda: self._queue.finish(request_id, state, owner=self._owner, **how))
        if request_id == self._in_hand:
            self._in_hand = None
        if row is None:
            return
        note_end(row, self._metrics)
        self._changed(request_id)


def _cause(error: OperationalError) -> str:
    return f"the queue cannot be used ({str(error.orig).splitlines()[0]})"


def note_end(row: Row, metrics: Metrics) -> None:
    """For the operator: how a request ended."""
    metrics.note_end(row)
    extra = {"request_id": row.id, "model": row.model, "state": row.state, "code": row.error_code}
    log.info("finished", extra=extra)


def devices_of(settings: Settings) -> list[str]:
    """Device of each worker.

    Raises:
        NoDevice: DEVICES=auto, and there is no GPU.
    """
    if settings.devices != "auto":
        return [name.strip() for name in settings.devices.split(",") if name.strip()] or [settings.device]
    # In another process: this one does not load torch, and must not hold a device.
    count = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    found = [f"cuda:{n}" for n in range(int(done.stdout))]
    if not found:
        raise NoDevice("DEVICES=auto: torch finds no GPU here; name the devices, or leave DEVICES out")
    return found


class NoDevice(Exception):
    """Says what to set instead."""
