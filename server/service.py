"""What the routes share: the queue, the dispatcher, and the tasks that run beside the requests."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy.exc import OperationalError

from lora_drift.server import webhooks
from lora_drift.server.admission import forget_controls
from lora_drift.server.config import Settings
from lora_drift.server.databases import StoreError
from lora_drift.server.fetch import FetchError
from lora_drift.server.loras import Downloads, LoraFileError
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.schemas import OutputFile, Progress, Result, Status, Verified, VideoFile
from lora_drift.server.schemas import Outputs as OutputLists
from lora_drift.server.store import Row, Store
from lora_drift.server.supervisor import NoDevice, devices_of, note_end
from lora_drift.server.telemetry import Metrics
from lora_drift.server.times import iso
from lora_drift.server.workers import LocalWorkers, Workers

log = logging.getLogger("lora_drift.server.service")

THREADS = 16
DOWNLOADS_AT_ONCE, DOWNLOADS_OF_ONE = 8, 2
"""Of all clients, and of one: whose downloads trickle holds up no other."""
DELIVERIES_AT_ONCE = 32
DELAY_EVERY = 0.05
NOTE_EVERY = 30.0
LONG_GAP = 3600.0
"""Seconds without a server after which it is not known whether time has passed, or somebody set the clock."""
TIDY_EVERY = 1.0
"""Seconds between looks for what has expired, and for webhooks that are due."""


FEW, PAUSE = 5, 0.004
"""Listeners of a request that are told at once, and the seconds for each of them in which others are served."""


class Feed:
    """What the listeners of one request hear."""

    def __init__(self) -> None:
        self.listeners: dict[object, asyncio.Event] = {}
        self.text: str | None = None
        self.over = False
        self.pump: asyncio.Future[None]


class Shares:
    """Turns for something that a few may do at once, and one client less than all."""

    def __init__(self, total: int, each: int) -> None:
        self._all, self._each = asyncio.Semaphore(total), each
        self._own: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, client: str) -> AsyncIterator[None]:
        turns, users = self._own.get(client) or (asyncio.Semaphore(self._each), 0)
        self._own[client] = turns, users + 1
        try:
            async with turns, self._all:
                yield
        finally:
            turns, users = self._own[client]
            self._own[client] = turns, users - 1
            if users == 1:
                del self._own[client]


class Service:
    """Everything that lives as long as the server."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.store = Store(settings.queue, settings.synchronous)
        self._listener = self.store.listener(self._heard, alone=True) if self.store.shared else None
        self._progress: dict[str, dict[str, Any]] = {}
        """Of requests that are rendered on other hosts."""
        self.downloads = Downloads(settings, self.store)
        self.loop = asyncio.get_running_loop()
        self.workers = self._workers()
        self._listeners: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._feeds: dict[str, Feed] = {}
        self._noted = 0.0
        self._removes_from = self.store.now()
        if self.store.clock.gap > LONG_GAP:  # or a clock that was set forward, which would remove everything at once
            self._removes_from += min(settings.result_ttl, LONG_GAP)
            log.warning("the last server ran long ago, or the clock was set: nothing is removed for a while",
                        extra={"hours": round(self.store.clock.gap / 3600, 1)})  # fmt: skip
        self.streams = 0
        """Clients that listen to events."""
        self._download_slots = Shares(DOWNLOADS_AT_ONCE, DOWNLOADS_OF_ONE)
        self._delivery_slots = asyncio.Semaphore(DELIVERIES_AT_ONCE)
        self._delivering: set[str] = set()
        self._tasks: set[asyncio.Future[None]] = set()
        self._fetching: dict[str, asyncio.Future[None]] = {}

    def _workers(self) -> Workers:
        if self.settings.ray_cluster is None:
            return LocalWorkers(self.settings, self.store, self.metrics, self._changed_in_thread)
        from lora_drift.server.ray_fleet import Fleet

        return Fleet(self.settings, self.store, self.metrics)

    def wake(self) -> None:
        """Something was queued or is to be cancelled."""
        self.workers.wake()

    @property
    def problem(self) -> str | None:
        """Why nothing can be rendered right now."""
        if self._listener is not None and not self._listener.connected:
            return "the database cannot be reached, or another server has taken over"
        return self.workers.problem

    def _heard(self, said: dict[str, Any]) -> None:
        """What another process did to the queue, in a thread of the listener."""
        event, request_id = said.pop("event"), said.pop("id", "")
        if event == "progress":
            self._progress[request_id] = said
        elif event != "changed":
            self.wake()
        else:
            self._progress.pop(request_id, None)
            if said.get("by") is not None and self.settings.ray_cluster is not None:
                row = self.store.get(request_id)
                if row is not None and row.finished:
                    note_end(row, self.metrics)
        changed = list(self._listeners) if event == "missed" else [request_id]
        for each in changed:
            self._changed_in_thread(each)

    def start(self) -> None:
        for row in self.store.recover(self.settings.max_tries):
            self.metrics.note_end(row)
        if self._listener is not None:
            self._listener.start()
        self.workers.start()
        for row in self.store.unready():
            self.prepare(row)
        self.spawn(self._measure_delay())
        self.spawn(self._repeat(self._tidy))
        self.spawn(self._repeat(self._deliver_webhooks))

    async def stop(self) -> None:
        await asyncio.to_thread(self.workers.stop)
        if self._listener is not None:
            await asyncio.to_thread(self._listener.stop)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.store.close()

    def spawn(self, work: Awaitable[None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except OperationalError as error:
                log.error("the queue cannot be used", extra={"cause": str(error.orig)})
            except Exception:  # the next round may do better, and the others must go on
                log.exception("a task in the background failed")
            await asyncio.sleep(TIDY_EVERY)

    async def cancel(self, request_id: str) -> Row | None:
        """See `Store.cancel`."""
        row = await asyncio.to_thread(self.store.cancel, request_id)
        if row is not None:
            self.wake()
            self._ended_before_its_start(row)
            self.changed(request_id)
        return row

    def _ended_before_its_start(self, row: Row) -> None:
        if row.finished:
            self.metrics.note_end(row)
            if (download := self._fetching.get(row.id)) is not None:
                download.cancel()

    # -------------------------------------------------------------------------------------------------- listening

    def _changed_in_thread(self, request_id: str) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self.loop.call_soon_threadsafe(self.changed, request_id)

    def changed(self, request_id: str) -> None:
        for event in self._listeners.get(request_id, ()):
            event.set()

    @asynccontextmanager
    async def listening(self, request_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever something about the request changes."""
        event = asyncio.Event()
        self._listeners[request_id].add(event)
        try:
            yield event
        finally:
            self._listeners[request_id].discard(event)
            if not self._listeners[request_id]:
                del self._listeners[request_id]

    async def updates(self, request_id: str) -> AsyncIterator[str]:
        """Its status as JSON, at once and whenever it has changed, until it has finished: made once, however many
        listen, and told to a few at a time, so that others are answered in between."""
        feed = self._feeds.get(request_id)
        if feed is None:
            feed = self._feeds[request_id] = Feed()
            feed.pump = self.spawn(self._pump(request_id, feed))
        mine = feed.listeners[object()] = asyncio.Event()
        try:
            if feed.text is not None:
                mine.set()
            while True:
                await mine.wait()
                mine.clear()
                if feed.text is not None:
                    yield feed.text
                if feed.over:
                    return
        finally:
            feed.listeners = {key: event for key, event in feed.listeners.items() if event is not mine}
            if not feed.listeners:
                self._feeds.pop(request_id, None)
                feed.pump.cancel()

    async def _pump(self, request_id: str, feed: "Feed") -> None:
        def current() -> tuple[str | None, bool]:
            row = self.store.get(request_id)
            return (None, True) if row is None else (self.status(row).model_dump_json(), row.finished)

        try:
            async with self.listening(request_id) as event:
                while not feed.over:
                    event.clear()
                    feed.text, feed.over = await asyncio.to_thread(current)
                    for n, listener in enumerate([*feed.listeners.values()]):
                        listener.set()
                        if n % FEW == FEW - 1:
                            await asyncio.sleep(FEW * PAUSE)
                    await asyncio.sleep(PAUSE)
                    if not feed.over:
                        await event.wait()
        finally:  # also when the queue could not be read: nobody waits for what does not come
            feed.over = True
            for listener in feed.listeners.values():
                listener.set()

    # -------------------------------------------------------------------------------------------------- downloads

    def prepare(self, row: Row, client: str = "") -> None:
        """See to it that a new request is rendered: at once, or when its LoRA files are here.

        `client` is the address that asked; unknown after a restart.
        """
        if row.ready:
            self.wake()
        else:
            self._fetching[row.id] = task = self.spawn(self._fetch(row, client))
            task.add_done_callback(lambda _: self._fetching.pop(row.id, None))

    async def _fetch(self, row: Row, client: str) -> None:
        job, secrets = Job.model_validate(row.job), Secrets.model_validate(row.secrets or {})
        token = secrets.hf_token or self.settings.token
        pause = 1.0
        while True:
            try:
                async with self._download_slots.of(client):
                    for i, url in secrets.urls.items():
                        digest = await self.downloads.get(url, job.loras[i].sha256, token)
                        job.loras[i].sha256, job.loras[i].file = digest, str(self.downloads.path(digest))
                await asyncio.to_thread(self.store.make_ready, row.id, job)
                return self.wake()
            except (FetchError, LoraFileError) as error:
                label = job.loras[i].label
                message = str(error) if isinstance(error, FetchError) else f"{label}: {error}"
                return await self._download_failed(row.id, message)
            except (OSError, OperationalError) as error:  # of our disk: those of the network are FetchErrors
                log.error("a download waits", extra={"request_id": row.id, "cause": str(error), "again_in": pause})
            except Exception as error:
                log.exception("a download failed", extra={"request_id": row.id})
                cause = f"{job.loras[i].label}: {type(error).__name__}"
                return await self._download_failed(row.id, cause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 60)

    async def _download_failed(self, request_id: str, error: str) -> None:
        def finish() -> Row | None:
            return self.store.finish(request_id, "failed", code="LORA_DOWNLOAD_FAILED", error=error)

        row = await asyncio.to_thread(finish)
        if row is not None:
            note_end(row, self.metrics)
            self.changed(request_id)

    # ------------------------------------------------------------------------------------------- webhooks and time

    async def _deliver_webhooks(self) -> None:
        for row in await asyncio.to_thread(self.store.webhooks_due):
            if row.id not in self._delivering:  # one that does not answer must not hold up the others
                self._delivering.add(row.id)
                self.spawn(self._deliver(row))

    async def _deliver(self, row: Row) -> None:
        try:
            async with self._delivery_slots:
                outcome, due = await webhooks.deliver(
                    row, self.result(row).model_dump(), self.settings, self.store.now()
                )
            self.metrics.webhooks.labels(outcome).inc()
            await asyncio.to_thread(self.store.note_webhook, row.id, row.webhook_tries + 1, due)
        finally:
            self._delivering.discard(row.id)

    async def _tidy(self) -> None:
        for row in await asyncio.to_thread(self.store.expire):
            self._ended_before_its_start(row)
            self.changed(row.id)
        await asyncio.to_thread(self._tidy_up)

    def _tidy_up(self) -> None:
        now = self.store.now()
        if now - self._noted > NOTE_EVERY:
            self.store.note_time()
            self._noted = now
            for row in self.store.recover(self.settings.max_tries, expired_only=True):
                self.metrics.note_end(row)
        old = self.store.finished(now - self.settings.result_ttl) if now > self._removes_from else set()
        if old:
            self._remove_files(old)
            self.store.remove(old)
        self.store.scrub()
        self.metrics.queue.set(self.store.waiting())

    async def _measure_delay(self) -> None:
        """How late the event loop comes to what is due: what every answer waits for, too."""
        while True:
            due = self.loop.time() + DELAY_EVERY
            await asyncio.sleep(DELAY_EVERY)
            self.metrics.loop_delay.observe(self.loop.time() - due)

    def _remove_files(self, request_ids: set[str]) -> None:
        for path in self.settings.output_base_path.glob("*_output_*"):
            if path.name.lstrip(".").partition("_output_")[0] in request_ids:  # a dot: half a file of a killed worker
                path.unlink(missing_ok=True)
        for request_id in request_ids:
            forget_controls(request_id, self.settings)

    # ------------------------------------------------------------------------------------------------------ answers

    def request_url(self, request_id: str, what: str = "") -> str:
        return f"{self.settings.url}/v1/requests/{request_id}{what}"

    def status(self, row: Row) -> Status:
        seen = None
        if row.state == "in_progress":
            seen = self.workers.progress(row.id) or self._progress.get(row.id)
        fraction = (seen["prompt"] + seen["step"] / seen["steps"]) / seen["prompts"] if seen else 0.0
        return Status(
            request_id=row.id,
            status=row.state,
            created_at=iso(row.created_at),
            started_at=iso(row.started_at),
            finished_at=iso(row.finished_at),
            error=row.error,
            error_code=row.error_code,
            queue_position=self.store.position(row),
            progress=None if seen is None else Progress(**seen, fraction=fraction),
            tries=row.tries,
        )

    def result(self, row: Row) -> Result:
        files = [
            {**output, "url": self.request_url(row.id, f"/files/{Path(output['file_path']).name}")}
            for output in row.outputs or ()
        ]
        outputs = None if row.outputs is None else OutputLists(
            images=[OutputFile(**file) for file in files if "fps" not in file],
            videos=[VideoFile(**file) for file in files if "fps" in file],
        )  # fmt: skip
        metadata: dict[str, Any] | None = None
        if row.timings is not None:
            metadata = {"model": row.model, "inference_time": row.timings["total"], "timings": row.timings}
        return Result(
            request_id=row.id,
            status=row.state,
            outputs=outputs,
            error=row.error,
            error_code=row.error_code,
            created_at=iso(row.created_at),
            finished_at=iso(row.finished_at),
            metadata=metadata,
            verified=row.job["verified"] and Verified(**row.job["verified"]),
        )


class StateError(RuntimeError):
    """The folders that the server needs cannot be used."""


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """The folders, and no other server in them.

    Raises:
        StateError: a folder cannot be written, or another server uses it.
    """
    try:
        if not settings.output_base_path.is_dir():
            settings.output_base_path.mkdir(parents=True, mode=0o700)
        settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings.state.chmod(0o700)  # fails where somebody else laid the folder out: secrets go here
    except OSError as error:
        raise StateError(f"OUTPUT_BASE_PATH or STATE_PATH cannot be used: {error}; give folders of your own") from error
    lock = FileLock(settings.state / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StateError(f"another server uses {settings.state}: give each its own STATE_PATH, and one worker "
                         "(the queue is one process's)") from error  # fmt: skip
    try:
        yield
    except (StoreError, NoDevice, OperationalError) as error:
        raise StateError(str(error.orig) if isinstance(error, OperationalError) else str(error)) from error
    finally:
        lock.release()


def check_state(settings: Settings) -> None:
    """Open the queue, and bring it to today's layout.

    Raises:
        StateError: as `running` would, but before a server has begun, so that it can be said in a sentence.
    """
    with _alone(settings):
        Store(settings.queue, settings.synchronous).close()
        if settings.ray_cluster is None:
            devices_of(settings)
        else:
            import ray

            from lora_drift.server.ray_fleet import connect

            connect(settings)
            ray.shutdown()


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Service]:
    """A started service.

    Raises:
        StateError: a folder cannot be written, another server uses it, or the queue is damaged.
    """
    with _alone(settings):
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "server"))
        service = Service(settings)
        service.start()
        try:
            yield service
        finally:
            await service.stop()
