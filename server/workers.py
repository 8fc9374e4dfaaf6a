"""The workers of this host: one for each device, on the queue that all share."""

import shutil
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from lora_drift.server.config import MEGABYTE, Settings
from lora_drift.server.render_process import WorkerSettings
from lora_drift.server.store import Store
from lora_drift.server.supervisor import Dispatcher, WorkerProcess, devices_of
from lora_drift.server.telemetry import Metrics


class Workers(Protocol):
    """Whoever renders what is queued."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def wake(self) -> None:
        """Something was queued or is to be cancelled."""

    @property
    def problem(self) -> str | None:
        """Why nothing can be rendered right now, by none of them."""

    def progress(self, request_id: str) -> dict[str, Any] | None:
        """Of a request that one of them renders."""


class LocalWorkers:
    def __init__(self, settings: Settings, store: Store, metrics: Metrics, changed: Callable[[str], None]) -> None:
        """Not started. `changed` is told, in their threads, of each request about which something has changed.

        Raises:
            NoDevice: DEVICES=auto, and there is no GPU.
        """

        def made(number: int, device: str) -> Dispatcher:
            def others() -> list[str]:
                return [base for n, other in enumerate(self.dispatchers) if n != number for base in other.bases]

            def process() -> WorkerProcess:
                return WorkerProcess(worker_settings(settings, device))

            return Dispatcher(store, process, settings, metrics, changed, lambda: storage_problem(settings),
                              f"{socket.gethostname()}:{number}:{device}", others)  # fmt: skip

        self.dispatchers = [made(number, device) for number, device in enumerate(devices_of(settings))]

    def start(self) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.start()

    def stop(self) -> None:
        with ThreadPoolExecutor(len(self.dispatchers)) as pool:
            list(pool.map(Dispatcher.stop, self.dispatchers))

    def wake(self) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.wake()

    @property
    def problem(self) -> str | None:
        problems = [dispatcher.problem for dispatcher in self.dispatchers]
        return None if None in problems else problems[0]

    def progress(self, request_id: str) -> dict[str, Any] | None:
        known = (dispatcher.progress.get(request_id) for dispatcher in self.dispatchers)
        return next(filter(None, known), None)


def worker_settings(settings: Settings, device: str) -> WorkerSettings:
    """What a worker has to know of them."""
    return WorkerSettings(
        device=device,
        offload=settings.offload,
        memory_budget=settings.memory_budget_gb and settings.memory_budget_gb * 1024 * MEGABYTE,
        hub_cache=None if settings.model_cache_dir is None else str(settings.model_cache_dir),
        hf_token=settings.token,
    )


def storage_problem(settings: Settings) -> str | None:
    """Why outputs or the queue could not be written right now, on this host."""
    for name, folder in (("OUTPUT_BASE_PATH", settings.output_base_path), ("STATE_PATH", settings.state)):
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(4096))
                probe.flush()
            free = shutil.disk_usage(folder).free
        except OSError as error:
            return f"{name} cannot be written: {error.strerror}"
        if free < settings.min_free_mb * MEGABYTE:
            return f"{name}: {free // MEGABYTE} MB are free, less than MIN_FREE_MB ({settings.min_free_mb})"
    return None
