"""`lora-drift serve --ray`: the workers are actors on a Ray cluster, as many as there is work for.

A replica claims from the queue in Postgres by the code that a worker of this host uses (`Dispatcher`). Ray places it,
says when it or its host has died, and adds hosts where its autoscaler may. Nothing that must last is Ray's.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy.exc import OperationalError

from lora_drift.server import ray_cluster
from lora_drift.server.config import Settings
from lora_drift.server.databases import StoreError
from lora_drift.server.render_process import WorkerSettings, keep_to_oneself
from lora_drift.server.store import Store
from lora_drift.server.supervisor import Dispatcher, Worker, WorkerProcess
from lora_drift.server.telemetry import Metrics, log_to_stderr
from lora_drift.server.workers import storage_problem, worker_settings

log = logging.getLogger("lora_drift.server.ray_fleet")

ROUND = 0.5
"""Seconds between looks at the replicas."""
TELL_EVERY = 0.2
"""Seconds between two words about the progress of a request."""
SILENT = 60.0
"""Seconds after which a replica that does not answer is taken for dead."""
LONGEST_PAUSE = 30.0
StartWorker = Callable[[WorkerSettings], Worker]


class Report(NamedTuple):
    """What a replica says of itself."""

    bases: list[str]
    """What it has loaded, or is about to."""
    idle: float
    """Seconds since it had something to do."""
    problem: str | None


class Replica:
    """A worker on some host of the cluster: the body of the actor."""

    def __init__(self, settings: Settings, owner: str, start_worker: StartWorker = WorkerProcess) -> None:
        keep_to_oneself()
        log_to_stderr("lora_drift.server", settings)
        self._store = Store(settings.queue)
        self._elsewhere: list[str] = []
        self._active = self._told = time.monotonic()
        self._dispatcher = Dispatcher(
            self._store, lambda: start_worker(worker_settings(settings, settings.device)), settings, Metrics(),
            self._changed, lambda: storage_problem(settings), owner, lambda: self._elsewhere,
        )  # fmt: skip
        self._listener = self._store.listener(self._heard)
        self._listener.start()
        self._dispatcher.start()

    def _heard(self, said: dict[str, Any]) -> None:
        if said["event"] in ("queued", "cancel", "missed"):
            self._dispatcher.wake()

    def _changed(self, request_id: str) -> None:
        self._active = time.monotonic()
        progress = self._dispatcher.progress.get(request_id)
        if progress is None or self._active - self._told < TELL_EVERY:
            return
        self._told = self._active
        try:
            self._store.tell_progress(request_id, {k: v for k, v in progress.items() if k != "event"})
        except OperationalError as error:  # who listens misses a step
            log.debug("progress could not be told", extra={"request_id": request_id, "cause": str(error.orig)})

    def exchange(self, elsewhere: list[str]) -> Report:
        """Hear what the others have loaded, and tell of oneself."""
        self._elsewhere = elsewhere
        if self._dispatcher.busy:
            self._active = time.monotonic()
        return Report(sorted(self._dispatcher.bases), time.monotonic() - self._active, self._dispatcher.problem)

    def stop(self) -> None:
        """Give back what is in hand, and end the worker."""
        self._dispatcher.stop()
        self._listener.stop()
        self._store.close()


@dataclass
class _Member:
    actor: Any
    asked: Any = None
    """What it was asked and has not answered."""
    asked_at: float = 0.0
    report: Report | None = None
    """None: it has not started yet; Ray may be waiting for a host."""
    leaving: Any = None


class Fleet(threading.Thread):
    """`Workers`: keeps as many replicas as there is work for, from MIN_REPLICAS to MAX_REPLICAS, and takes note of
    those that died."""

    def __init__(self, settings: Settings, store: Store, metrics: Metrics, start_worker: StartWorker = WorkerProcess):
        """Connected, not started.

        Raises:
            StoreError: there is no such cluster.
        """
        super().__init__(name="fleet", daemon=True)
        self._settings, self._store, self._metrics, self._start_worker = settings, store, metrics, start_worker
        self._members: dict[str, _Member] = {}
        """By the names under which they own requests."""
        self._ending, self._wake = threading.Event(), threading.Event()
        self._pause, self._not_before = 1.0, 0.0
        self._trouble: str | None = None
        connect(settings)

    def run(self) -> None:
        while not self._ending.is_set():
            self._wake.clear()
            try:
                self._look()
                self._grow_or_shrink()
                self._trouble = None
            except OperationalError as error:
                self._trouble = f"the queue cannot be used ({str(error.orig).splitlines()[0]})"
                log.error("the fleet waits", extra={"cause": self._trouble})
            except Exception as error:  # the next round may do better
                self._trouble = f"{type(error).__name__}; the log says more"
                log.exception("the fleet failed")
            self._wake.wait(ROUND)

    def _look(self) -> None:
        """Ask each replica, and give what the dead had to the others."""
        import ray
        from ray.exceptions import RayError

        for name, member in list(self._members.items()):
            answers = [ref for ref in (member.asked, member.leaving) if ref is not None]
            ready, _ = ray.wait(answers, num_returns=len(answers), timeout=0) if answers else ([], [])
            try:
                if member.asked in ready:
                    member.report, member.asked = ray.get(member.asked), None
                    self._pause = 1.0
                if member.leaving in ready:
                    ray.get(member.leaving)
                    self._forget(name)
                    continue
            except RayError as error:
                self._died(name, str(error).splitlines()[0])
                continue
            silent = time.monotonic() - member.asked_at
            if member.asked is not None and member.report is not None and silent > SILENT:
                self._died(name, f"it has not answered for {silent:.0f} s")
            elif member.asked is None:
                others = [base for other, one in self._members.items() if other != name and one.report
                          for base in one.report.bases]  # fmt: skip
                member.asked, member.asked_at = member.actor.exchange.remote(others), time.monotonic()
        for row in self._store.recover(self._settings.max_tries, living=list(self._members)):
            self._metrics.note_end(row)

    def _died(self, name: str, cause: str) -> None:
        log.error("a replica died", extra={"replica": name, "cause": cause})
        self._metrics.worker_deaths.inc()
        if self._members[name].report is None:  # before it had begun: the next one will, too
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._forget(name)

    def _forget(self, name: str) -> None:
        import ray

        ray.kill(self._members.pop(name).actor)

    def _grow_or_shrink(self) -> None:
        settings, staying = self._settings, {n: m for n, m in self._members.items() if m.leaving is None}
        wanted = max(settings.min_replicas, min(settings.max_replicas, self._store.unfinished()))
        if len(staying) < wanted and time.monotonic() > self._not_before:
            for _ in range(wanted - len(staying)):
                self._add()
        for name, member in list(staying.items())[wanted:]:
            if member.report is None:  # it waits for a host, and nothing waits for it
                self._store.release(name)
                self._forget(name)
            elif member.report.idle > settings.replica_idle:
                member.leaving = member.actor.stop.remote()

    def _add(self) -> None:
        import ray

        name = f"ray:{uuid.uuid4()}"
        gpus = 1 if self._settings.device.startswith("cuda") else 0
        # What a replica needs not know, it does not.
        told = self._settings.model_copy(update={"api_key": None, "webhook_secret": None})
        remote: Any = ray.remote
        actor = remote(num_cpus=1, num_gpus=gpus, max_concurrency=4)(Replica)
        self._members[name] = _Member(actor.remote(told, name, self._start_worker))

    # ----------------------------------------------------------------------------------------------------- for Service

    def stop(self) -> None:
        """End; what was in flight is back in the queue."""
        import ray

        self._ending.set()
        self._wake.set()
        self.join()
        leaving = [member.actor.stop.remote() for member in self._members.values() if member.report is not None]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=10)
        ray.shutdown()

    def wake(self) -> None:
        self._wake.set()

    @property
    def problem(self) -> str | None:
        reports = [member.report for member in self._members.values() if member.report is not None]
        if self._trouble is not None or not self._members:  # none is needed before something is queued
            return self._trouble
        if not reports:
            return "no replica has started: the cluster has no free device, or is about to add a host"
        problems = [report.problem for report in reports]
        return None if None in problems else problems[0]

    def progress(self, request_id: str) -> dict[str, Any] | None:
        return None  # the replicas tell of it through the queue

    @property
    def members(self) -> Sequence[str]:
        """Names of the replicas that there are."""
        return list(self._members)


def connect(settings: Settings) -> None:
    """Become a driver of the cluster at RAY_CLUSTER.

    Raises:
        StoreError: there is none, or the queue is a file, which replicas elsewhere cannot use.
    """
    if settings.database_url is None:
        raise StoreError("RAY_CLUSTER: replicas on other hosts share a queue in Postgres; set DATABASE_URL")
    try:
        ray_cluster.connect(settings.ray_cluster or "auto")
    except ray_cluster.NoCluster as error:
        raise StoreError(f"RAY_CLUSTER: {error}") from error
