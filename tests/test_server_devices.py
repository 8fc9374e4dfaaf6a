"""Several devices in one host: a worker each, on one queue. Simulated but for one test, which has two real workers."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_drift.server import store as store_module
from lora_drift.server.config import Settings
from lora_drift.server.local import ROOT, LocalServer
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.store import New, Store
from lora_drift.server.supervisor import Dispatcher, WorkerDied, devices_of
from lora_drift.server.telemetry import Metrics

LoraOf = Callable[[str], Path]
Queues = Callable[[], Path | str]


class Simulated:
    """A device that holds so many bases, and takes its time to render and to load."""

    def __init__(self, render: float, load: float = 0.0, holds: int = 1, dies_at: int | None = None) -> None:
        self.render, self.load, self.holds, self.dies_at = render, load, holds, dies_at
        self.loaded, self.rendered, self.loads = list[str](), list[str](), 0
        self.said: list[dict[str, Any]] = [{"event": "ready"}]

    def send(self, command: str, payload: Any) -> None:
        job = Job.model_validate(payload["job"])
        self.rendered.append(job.id)
        if len(self.rendered) == self.dies_at:
            raise WorkerDied("by signal 9")
        if job.base not in self.loaded:
            time.sleep(self.load)
            self.loads += 1
        self.loaded = [*(base for base in self.loaded if base != job.base), job.base][-self.holds :]
        time.sleep(self.render)
        timings = {"total": self.render, "base_was_loaded": True}
        self.said.append({"event": "done", "outputs": [], "timings": timings, "loaded": [*self.loaded]})

    def receive(self, timeout: float) -> dict[str, Any] | None:
        return self.said.pop(0) if self.said else None

    def stop(self) -> None:
        pass


def add(store: Store, models: str) -> list[str]:
    names = [f"{model}{n}" for n, model in enumerate(models)]
    for name, model in zip(names, models, strict=True):
        store.add(New(Job(id=name, model=model, loras=[], prompts=[], output_folder=""), Secrets()))
    return names


def rendered(where: Path | str, models: str, *workers: Simulated, **more: Any) -> tuple[float, Store]:
    """Seconds until all is rendered by these workers, from one queue."""
    store = Store(where)
    add(store, models)
    left, over = [len(models)], threading.Event()

    def changed(request_id: str) -> None:
        row = store.get(request_id)
        if row is not None and row.finished:
            left[0] -= 1
            if left[0] == 0:
                over.set()

    dispatchers: list[Dispatcher] = []

    def made(n: int, worker: Simulated) -> Dispatcher:
        def others() -> list[str]:
            return [base for other in dispatchers if other is not dispatchers[n] for base in other.bases]

        return Dispatcher(store, lambda: worker, Settings(**more), Metrics(), changed, owner=f"{n}:simulated",
                          elsewhere=others)  # fmt: skip

    dispatchers += [made(n, worker) for n, worker in enumerate(workers)]
    began = time.monotonic()
    for dispatcher in dispatchers:
        dispatcher.start()
    assert over.wait(60), left
    seconds = time.monotonic() - began
    for dispatcher in dispatchers:
        dispatcher.stop()
    return seconds, store


def test_two_devices_render_twice_as_much(tmp_path: Path) -> None:
    one, _ = rendered(tmp_path / "one", "A" * 30, Simulated(0.2))
    pair = Simulated(0.2), Simulated(0.2)
    two, store = rendered(tmp_path / "two", "A" * 30, *pair)
    print(f"30 renders of 0.2 s: one device {one:.2f} s, two {two:.2f} s, {one / two:.2f} times")
    assert one / two >= 1.9
    assert sorted(pair[0].rendered + pair[1].rendered) == sorted(f"A{n}" for n in range(30)), "none lost, none twice"
    assert {store.get(f"A{n}").owner for n in range(30)} == {"0:simulated", "1:simulated"}  # type: ignore[union-attr]


def test_each_device_keeps_to_its_model(tmp_path: Path) -> None:
    """Two models that alternate: as they come, each device would load for every request."""
    pair = Simulated(0.02, load=0.05), Simulated(0.02, load=0.05)
    rendered(tmp_path / "queue", "AB" * 20, *pair)
    assert pair[0].loads + pair[1].loads <= 4


@pytest.mark.parametrize("bound", [0, 8])
def test_switches_are_rare_and_nobody_starves(tmp_path: Path, bound: int) -> None:
    draw = random.Random(0)
    models = "".join(draw.choice("ABCDEFGH") for _ in range(96))
    pair = Simulated(0.005), Simulated(0.005)
    _, store = rendered(tmp_path / "queue", models, *pair, fairness_bound=bound)
    loads = pair[0].loads + pair[1].loads
    overtaken = [store.get(name).overtaken for name in pair[0].rendered + pair[1].rendered]  # type: ignore[union-attr]
    print(f"bound {bound}: {loads} loads in 96 starts, overtaken at most {max(overtaken)} times")
    assert max(overtaken) <= bound and (loads <= 48 if bound else loads > 60)


# --------------------------------------------------------------------------------------------------------------- claims


def claim(store: Store, loaded: str, elsewhere: str, bound: int = 8) -> str | None:
    bases = [[Job(id="", model=m, loras=[], prompts=[], output_folder="").base for m in models]
             for models in (loaded, elsewhere)]  # fmt: skip
    row = store.claim(bases[0], bound, owner="me", elsewhere=bases[1])
    return None if row is None else row.id


def test_what_another_has_loaded_is_left_to_it_for_a_while(new_queue: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(new_queue())
    add(store, "ACA")
    assert claim(store, "B", "A") == "C1", "that nobody has loaded"
    assert claim(store, "B", "AA") is None, "two wait, and two have it"
    assert claim(store, "B", "A") == "A0", "two wait, and one has it"
    assert claim(store, "B", "A") is None
    monkeypatch.setattr(store_module, "PATIENCE", 0)
    assert claim(store, "B", "A") == "A2", "its worker has not come for it"


def test_a_lease_that_ran_out_gives_a_request_to_another(new_queue: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(new_queue())
    add(store, "AB")
    monkeypatch.setattr(store_module, "LEASE", 0.05)
    assert store.claim([], 0, owner="lost").id == "A0"  # type: ignore[union-attr]
    monkeypatch.setattr(store_module, "LEASE", 60)
    assert store.claim([], 0, owner="alive").id == "B1"  # type: ignore[union-attr]
    time.sleep(0.1)
    assert store.recover(3, expired_only=True) == []
    assert [store.get(name).state for name in ("A0", "B1")] == ["in_queue", "in_progress"]  # type: ignore[union-attr]
    assert store.claim([], 0, owner="alive").id == "A0"  # type: ignore[union-attr]
    assert not store.renew("A0", "lost") and store.renew("A0", "alive")
    assert store.finish("A0", "failed", owner="lost") is None
    store.requeue("A0", owner="lost")
    assert store.get("A0").state == "in_progress"  # type: ignore[union-attr]
    assert store.finish("A0", "succeeded", owner="alive").state == "succeeded"  # type: ignore[union-attr]


def test_a_device_that_dies_takes_nothing_of_the_others_along(new_queue: Queues) -> None:
    pair = Simulated(0.05, dies_at=2), Simulated(0.05)
    _, store = rendered(new_queue(), "A" * 12, *pair)
    rows = [store.get(f"A{n}") for n in range(12)]
    assert [row.state for row in rows if row] == ["succeeded"] * 12
    assert sum(row.tries for row in rows if row) == 13


def test_devices_are_named_or_found() -> None:
    assert devices_of(Settings(device="cuda:1")) == ["cuda:1"]
    assert devices_of(Settings(devices="cuda:0, cuda:2")) == ["cuda:0", "cuda:2"]


def test_no_device_is_said_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lora_drift", "serve", "--mini", "--port", "0", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120,
                          env={**os.environ, "DEVICES": "auto", "CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
    assert done.returncode == 2 and "torch finds no GPU" in done.stderr and "Traceback" not in done.stderr


def test_two_workers_render_at_once_and_outlive_each_other(tmp_path: Path, lora_of: LoraOf) -> None:
    with LocalServer(tmp_path, DEVICES="cpu,cpu") as server:
        shutil.copy(lora_of("sd15/lora"), tmp_path / "loras" / "sd15.safetensors")
        prompt = {"prompt": "a fox", "width": 128, "height": 128, "sample_steps": 900, "seed": 7}
        sent = {"model": "sd15", "loras": [{"path": "sd15.safetensors"}], "prompts": [prompt]}
        two = [server.submit(sent) for _ in range(2)]
        for request_id in two:
            server.until_rendering(request_id)
        children = psutil.Process(server.pid).children()
        workers = [child.pid for child in children if any("spawn_main" in part for part in child.cmdline())]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        results = [server.wait(request_id) for request_id in two]
        assert [result["status"] for result in results] == ["succeeded"] * 2
        assert len({result["outputs"]["images"][0]["sha256"] for result in results}) == 1
        assert sorted(server.get(request_id, "status")["tries"] for request_id in two) == [1, 2]
