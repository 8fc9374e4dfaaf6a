"""The server with its queue in Postgres and its workers on Ray, on one machine: under fire, and what the way costs.

    python benchmarks/fleet.py chaos [--kills 200] [--requests 200]
    python benchmarks/fleet.py speed

`chaos` kills the server, a replica, a node of the cluster or Postgres, again and again, while requests arrive, wait and
are rendered, and then looks for what was lost, done twice, or came out otherwise. `speed` measures what a request costs
beside its render, here and over Ray, and the throughput of one, two and four replicas. Renders are synthetic: they take
their time, and make bytes that follow from the prompt. Both print JSON and end with 1 when a promise is broken. Nothing
but 127.0.0.1 and sockets in temporary folders is used.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx2 as httpx
from sqlalchemy import create_engine, text

from lora_drift.harness.check import cases, goldens, runner
from lora_drift.harness.minihub import factory
from lora_drift.server.config import Settings
from lora_drift.server.local import LocalServer
from lora_drift.server.local_postgres import LocalPostgres
from lora_drift.server.local_ray import LocalRay, SyntheticWorker, synthetic
from lora_drift.server.request_plan import Job, Prompt, Secrets
from lora_drift.server.store import New, Store
from lora_drift.server.supervisor import Dispatcher
from lora_drift.server.telemetry import Metrics
from lora_drift.server.workers import Workers

BACKLOG = 12
"""Requests that are kept unfinished while something is killed."""
VICTIMS = ("server", "replica", "node", "postgres", "replica", "replica")

_NOTE_ENDS = """
CREATE TABLE ends (id VARCHAR NOT NULL);
CREATE FUNCTION note_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.finished_at IS DISTINCT FROM OLD.finished_at OR NEW.outputs::text IS DISTINCT FROM OLD.outputs::text THEN
        INSERT INTO ends VALUES (NEW.id);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER ends AFTER UPDATE ON requests FOR EACH ROW EXECUTE FUNCTION note_end();
"""
"""Postgres itself counts how often a request ends."""


def serve() -> int:
    """`lora-drift serve --ray`, with replicas that render synthetically."""
    from lora_drift.server import service
    from lora_drift.server.command import run
    from lora_drift.server.ray_fleet import Fleet

    def workers(self: service.Service) -> Workers:
        return Fleet(self.settings, self.store, self.metrics, SyntheticWorker)

    service.Service._workers = workers  # type: ignore[method-assign]
    return run()


def lora() -> Path:
    case = cases.load(cases.CASES / "sd15/lora.yaml")
    return goldens.load(runner.newest_tag(), case, factory.manifest_sha256(case.model, case.extras)).path("lora")


class Client:
    """Sends requests until it is told to stop, each until it is sure that it was accepted, and remembers them all."""

    def __init__(self, server: LocalServer, most: int) -> None:
        self.server, self.most = server, most
        self.sent: dict[str, str] = {}
        """Id -> prompt."""
        self._unfinished: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.http = httpx.Client(base_url=server.url, timeout=20)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set() and len(self.sent) < self.most:
            self._unfinished -= {one for one in self._unfinished if self.ended(one)}
            if len(self._unfinished) < BACKLOG:
                self._submit(f"a fox, number {len(self.sent)}")
            else:
                self._over.wait(0.2)

    def _submit(self, prompt: str) -> None:
        asked = {"prompt": prompt, "width": 64, "height": 64, "sample_steps": 500, "seed": 1}
        body = {"model": "sd15", "loras": [{"path": "sd15.safetensors"}], "output_format": "png", "prompts": [asked]}
        while not self._over.is_set():
            answer = self._ask("POST", "/v1/inference", json=body, headers={"Idempotency-Key": prompt})
            if answer is not None:
                self.sent[answer["request_id"]] = prompt
                self._unfinished.add(answer["request_id"])
                return
            time.sleep(0.1)

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any] | None:
        """None: nobody answers right now."""
        try:
            answer = self.http.request(method, path, **more)
        except httpx.TransportError:
            return None
        if answer.status_code == 503:
            return None
        return answer.raise_for_status().json()

    def ended(self, request_id: str) -> bool:
        status = self._ask("GET", f"/v1/requests/{request_id}/status")
        return status is not None and status["finished_at"] is not None

    def wait(self, timeout: float) -> list[str]:
        """What has not ended in time, now that no more is sent."""
        left, deadline = set(self.sent), time.monotonic() + timeout
        while left and time.monotonic() < deadline:
            left -= {one for one in left if self.ended(one)}
            time.sleep(0.2)
        return sorted(left)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def chaos(folder: Path, requests: int, kills: int, nodes: int = 3, seed: int = 0) -> tuple[dict[str, Any], list[str]]:
    """(figures, broken promises), after so many requests and kills at least."""
    draw, killed = random.Random(seed), Counter[str]()
    with LocalPostgres() as postgres, LocalRay(nodes) as cluster:
        Store(postgres.url).close()
        engine = create_engine(postgres.url.replace("postgresql:", "postgresql+psycopg:"), pool_pre_ping=True)
        with engine.begin() as connection:
            connection.execute(text(_NOTE_ENDS))
        server = LocalServer(folder, DATABASE_URL=postgres.url, RAY_CLUSTER=cluster.address, MAX_REPLICAS=nodes,
                             MAX_TRIES=10_000, MAX_QUEUE=10_000)  # fmt: skip
        server.command = (str(Path(__file__).resolve()), "serve")
        shutil.copy(lora(), folder / "loras" / "sd15.safetensors")
        began = time.monotonic()
        with server:
            client = Client(server, 50 * (requests + kills))
            try:
                for n in range(kills):
                    _until_one_is_rendered(engine)
                    time.sleep(draw.uniform(0, 0.5))
                    victim = VICTIMS[n % len(VICTIMS)]
                    _kill(victim, server, postgres, cluster, draw)
                    killed[victim] += 1
                    print(f"{n + 1} of {kills}: {victim}; {len(client.sent)} requests", file=sys.stderr)
                deadline = time.monotonic() + 120 + requests
                while len(client.sent) < requests and time.monotonic() < deadline:
                    time.sleep(0.1)
            finally:
                client.stop()
            lost = client.wait(300)
            figures, broken = _judged(client, engine, lost, folder)
        seconds = time.monotonic() - began
        engine.dispose()
    return {"kills": dict(killed), **figures, "seconds": round(seconds)}, broken


def _until_one_is_rendered(engine: Any) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            if connection.scalar(text("SELECT count(*) FROM requests WHERE state = 'in_progress'")):
                return
        time.sleep(0.05)
    raise TimeoutError("nothing was rendered for a minute")


def _kill(victim: str, server: LocalServer, postgres: LocalPostgres, cluster: LocalRay, draw: random.Random) -> None:
    if victim == "server":
        server.kill()
        server.start(ready=False)
    elif victim == "node":
        cluster.kill(draw.randrange(len(cluster.nodes)))
    elif victim == "postgres":
        postgres.kill()
        postgres.start()
    elif replicas := cluster.processes():
        draw.choice(replicas).kill()


def _judged(client: Client, engine: Any, lost: list[str], folder: Path) -> tuple[dict[str, Any], list[str]]:
    with engine.connect() as connection:
        ended = Counter(connection.scalars(text("SELECT id FROM ends")))
        rows = connection.execute(text("SELECT id, state, tries FROM requests")).all()
    states = {row.id: row.state for row in rows}
    wrong = []
    for request_id, prompt in client.sent.items():
        if states.get(request_id) != "succeeded":
            continue
        content = client.http.get(f"/v1/requests/{request_id}/files/{request_id}_output_0.png").content
        told = client.server.get(request_id)["outputs"]["images"][0]["sha256"]
        if content != synthetic(prompt) or told != hashlib.sha256(content).hexdigest():
            wrong.append(request_id)
    gone = [one for one in client.sent if states.get(one) != "succeeded"]
    doubled = [one for one, count in ended.items() if count > 1]
    # One that was accepted while its answer was lost is asked for again with its key, and is the same.
    doubled += [f"{len(rows)} rows"] if len(rows) != len(client.sent) else []
    doubled += ["files"] if len(list(folder.glob("outputs/*.png"))) != len(client.sent) - len(gone) else []
    figures = {"requests": len(client.sent), "lost": len({*lost, *gone}), "doubled": len(doubled),
               "corrupted": len(wrong), "tried_again": sum(row.tries > 1 for row in rows)}  # fmt: skip
    return figures, [f"{what}: {figures[what]}" for what in ("lost", "doubled", "corrupted") if figures[what]]


# -------------------------------------------------------------------------------------------------------------- speed


def _filled(store: Store, count: int, milliseconds: int, folder: Path) -> list[str]:
    names = [f"{time.monotonic_ns()}-{n}" for n in range(count)]
    for name in names:
        prompt = Prompt(fields={"prompt": name, "steps": milliseconds})
        job = Job(id=name, model="sd15", loras=[], prompts=[prompt], output_folder=str(folder))
        store.add(New(job, Secrets()))
    return names


def _ended(store: Store, names: list[str], timeout: float = 300) -> list[Any]:
    """The rows, when all have ended."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if store.unfinished() == 0:
            return [store.get(name) for name in names]
        time.sleep(0.02)
    raise TimeoutError("not all have ended")


def _one_by_one(
    store: Store, folder: Path, count: int, wake: Callable[[], None] = lambda: None, milliseconds: int = 100
) -> float:
    """Median milliseconds from a request's arrival to its end, without its render. `wake`: whoever hears of it only
    from who queued it."""
    beside = []
    for _ in range(count):
        names = _filled(store, 1, milliseconds, folder)
        wake()
        (row,) = _ended(store, names)
        beside.append(1000 * (row.finished_at - row.created_at) - milliseconds)
    return round(statistics.median(beside), 1)


def speed(folder: Path, renders: int = 120, milliseconds: int = 500) -> tuple[dict[str, Any], list[str]]:
    """(figures, broken promises)."""
    from lora_drift.server.ray_fleet import Fleet

    figures: dict[str, Any] = {}
    with LocalPostgres() as postgres, LocalRay(4) as cluster:
        for where, queue in (("sqlite", folder / "queue.sqlite"), ("postgres", postgres.create("direct"))):
            store = Store(queue)
            direct = Dispatcher(store, SyntheticWorker, Settings(), Metrics(), lambda _: None)
            direct.start()
            figures[f"overhead_ms_direct_{where}"] = _one_by_one(store, folder, 40, direct.wake)
            direct.stop()
            store.close()
        store, rates = Store(postgres.url), {}
        for replicas in (1, 2, 4):
            settings = Settings(database_url=postgres.url, ray_cluster=cluster.address, device="cpu",  # type: ignore[arg-type]
                                output_base_path=folder, state_path=folder, min_replicas=replicas,
                                max_replicas=replicas)  # fmt: skip
            fleet = Fleet(settings, store, Metrics(), SyntheticWorker)
            fleet.start()
            _ended(store, _filled(store, 8 * replicas, milliseconds, folder))  # all have started
            if replicas == 1:
                figures["overhead_ms_ray"] = _one_by_one(store, folder, 40)
            rows = _ended(store, _filled(store, renders, milliseconds, folder))
            seconds = max(row.finished_at for row in rows) - min(row.started_at for row in rows)
            rates[replicas] = renders / seconds
            figures[f"renders_a_second_{replicas}"] = round(rates[replicas], 2)
            fleet.stop()
        store.close()
    figures |= {"render_ms": milliseconds, "two_to_one": round(rates[2] / rates[1], 2),
                "four_to_one": round(rates[4] / rates[1], 2)}  # fmt: skip
    return figures, ["two replicas render less than 1.9 times as much"] if rates[2] < 1.9 * rates[1] else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("chaos", "speed", "serve"))
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--kills", type=int, default=200)
    args = parser.parse_args()
    if args.what == "serve":
        return serve()
    with tempfile.TemporaryDirectory() as name:
        figures, broken = chaos(Path(name), args.requests, args.kills) if args.what == "chaos" else speed(Path(name))
    print(json.dumps({**figures, "broken": broken}, indent=2))
    return bool(broken)


if __name__ == "__main__":
    raise SystemExit(main())
