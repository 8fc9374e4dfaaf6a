"""A Ray cluster of one's own on this machine, and renders that cost nothing: for tests and benchmarks."""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from lora_drift.server.render_process import WorkerSettings
from lora_drift.server.request_plan import Job

# Read when ray is imported, here and by who connects: nothing is sent to its makers, and it keeps to 127.0.0.1.
os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"})


class LocalRay:
    """`with LocalRay(nodes=3) as cluster: Settings(ray_cluster=cluster.address)`: a head without devices, and nodes of
    as many places for replicas (DEVICE=cpu), each of which can be killed."""

    def __init__(self, nodes: int, places: int = 1) -> None:
        from ray.cluster_utils import Cluster

        self._small = {"object_store_memory": 100 << 20, "node_ip_address": "127.0.0.1"}
        self._places = places
        self._cluster = Cluster(
            initialize_head=True, head_node_args={**self._small, "num_cpus": 0, "include_dashboard": False}
        )
        self.nodes = [self.add() for _ in range(nodes)]

    @property
    def address(self) -> str:
        return self._cluster.address

    def add(self) -> Any:
        """Another node."""
        return self._cluster.add_node(wait=False, num_cpus=self._places, num_gpus=0, **self._small)

    def kill(self, number: int) -> None:
        """A node goes without a word, with all that runs on it, and another comes in its place."""
        self._cluster.remove_node(self.nodes[number], allow_graceful=False)
        self.nodes[number] = self.add()

    @staticmethod
    def processes(title: str = "ray::Replica") -> list[psutil.Process]:
        """Those of replicas (or of another title), on nodes that this process started."""
        found = []
        for each in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if title in " ".join(each.cmdline()):
                    found.append(each)
        return found

    def stop(self) -> None:
        self._cluster.shutdown()

    def __enter__(self) -> "LocalRay":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class SyntheticWorker:
    """A `Worker` that renders nothing: after the seconds that the first prompt's `steps` are milliseconds of, it writes
    what follows from the job alone."""

    def __init__(self, _settings: WorkerSettings | None = None) -> None:
        self._said: list[dict[str, Any]] = [{"event": "ready"}]
        self._job: Job | None = None
        self._due = 0.0
        self._loaded: list[str] = []

    def send(self, command: str, payload: Any) -> None:
        if command == "render":
            self._job = Job.model_validate(payload["job"])
            self._due = time.monotonic() + (self._job.prompts[0].fields.get("steps") or 0) / 1000
        elif self._job is not None and payload == self._job.id:
            self._job = None
            self._said.append({"event": "canceled"})

    def receive(self, timeout: float) -> dict[str, Any] | None:
        if self._job is not None:
            time.sleep(max(0.0, min(timeout, self._due - time.monotonic())))
            if time.monotonic() >= self._due:
                job, self._job = self._job, None
                self._loaded = [job.base]
                self._said.append({"event": "done", "outputs": [self._saved(job)], "loaded": self._loaded,
                                   "timings": {"total": 0.0, "base_was_loaded": True, "prompts": []}})  # fmt: skip
        elif not self._said:
            time.sleep(min(timeout, 0.01))
        return self._said.pop(0) if self._said else None

    @staticmethod
    def _saved(job: Job) -> dict[str, Any]:
        content = synthetic(job.prompts[0].fields["prompt"])
        path = Path(job.output_folder) / f"{job.id}_output_0.png"
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)
        return {"format": "png", "width": 64, "height": 64, "file_path": str(path), "seed": 0, "receipt": {},
                "sha256": hashlib.sha256(content).hexdigest()}  # fmt: skip

    def stop(self) -> None:
        self._job = None


def synthetic(prompt: str) -> bytes:
    """What a SyntheticWorker makes of a prompt."""
    return hashlib.sha256(prompt.encode()).digest() * 1000
