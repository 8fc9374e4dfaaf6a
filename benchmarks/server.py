"""The HTTP server under load, and under fire.

    python benchmarks/server.py load  [--requests 500] [--clients 32] [--device cpu]
    python benchmarks/server.py chaos [--requests 100] [--kills 20]

`load` asks for pictures of eight mini models from many clients at once, and then renders the same in a plain loop over
`pipelines`. `chaos` kills the server or its worker at random moments while requests are waiting and rendered, and
compares every picture with that of an undisturbed run. Both print JSON and end with 1 when a promise is broken. What
the machine is otherwise busy with shows in the milliseconds.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil

from lora_drift.harness.check import cases, goldens, runner
from lora_drift.harness.minihub import factory
from lora_drift.server.local import LocalServer

MODELS = ("sd15", "sdxl", "flux", "flex1", "zimage_turbo", "lumina2", "qwen_image", "wan21_1b")
FAIRNESS_BOUND = 8
Body = dict[str, Any]


def lora(case_id: str) -> Path:
    """The LoRA file of a golden."""
    case = cases.load(cases.CASES / f"{case_id}.yaml")
    return goldens.load(runner.newest_tag(), case, factory.manifest_sha256(case.model, case.extras)).path("lora")


def bodies(count: int, seed: int = 0, side: int = 64, steps: int = 2) -> Iterator[Body]:
    draw = random.Random(seed)
    for _ in range(count):
        model = draw.choice(MODELS)
        prompt: Body = {
            "prompt": draw.choice(("a fox", "a boat")),
            "width": side,
            "height": side,
            "sample_steps": steps,
        }
        if model.startswith("wan"):
            prompt["num_frames"] = 1
        yield {"model": model, "loras": [{"path": f"{model}.safetensors"}], "output_format": "png",
               "prompts": [{**prompt, "seed": draw.randrange(4)}]}  # fmt: skip


def prepare(folder: Path) -> None:
    (folder / "loras").mkdir(parents=True)
    for model in MODELS:
        shutil.copy(lora(f"{model}/lora"), folder / "loras" / f"{model}.safetensors")
    shutil.copy(lora("sd15/lora-conv"), folder / "loras" / "sd15-other.safetensors")


def key(body: Body) -> str:
    return json.dumps(body, sort_keys=True)


# --------------------------------------------------------------------------------------------------------------- load


def load(server: LocalServer, count: int, clients: int) -> tuple[dict[str, Any], list[str]]:
    """(figures, broken promises)."""
    wanted = list(bodies(count))
    memory: dict[str, list[int]] = {"server": [], "worker": []}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            for name, pid in (("server", server.pid), ("worker", server.worker_pid())):
                if pid is not None:
                    memory[name].append(psutil.Process(pid).memory_info().rss)

    for body in {b["model"]: b for b in wanted}.values():  # bases are loaded before the clock starts
        server.wait(server.submit(body))
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(lambda body: server.wait(server.submit(body), pause=0.25), wanted))
    seconds = time.perf_counter() - started
    over.set()
    watcher.join()

    statuses = [server.get(result["request_id"], "status") for result in results]
    moments = sorted((_at(s["started_at"]), _at(s["finished_at"]), _at(s["created_at"]), r) for s, r in zip(
        statuses, results, strict=True) if r["status"] == "succeeded")  # fmt: skip
    own = [r["metadata"]["timings"]["total"] for *_, r in moments]
    # From the moment that the worker was free and the request there, to its end, without the worker's own time.
    busy = [
        (end - max(created, before)) - total
        for (_, end, created, _), before, total in zip(moments, [0.0, *(m[1] for m in moments)], own, strict=False)
    ]
    created = [m[2] for m in moments]
    overtaken = [sum(later > mine for later in created[:i]) for i, mine in enumerate(created)]
    files = list((server.folder / "outputs").glob("*.png"))
    growth = {name: _growth(values) for name, values in memory.items()}
    figures = {
        "requests": count,
        "clients": clients,
        "models": len(MODELS),
        "succeeded": len(moments),
        "seconds": round(seconds, 2),
        "render_ms_p50": _ms(own),
        "overhead_ms_p50": _ms(busy),
        "overhead_ms_p95": _ms(busy, 0.95),
        "most_overtaken": max(overtaken),
        "memory_mb": {name: round(values[-1] / 1e6) for name, values in memory.items()},
        "memory_growth_percent": growth,
    }
    broken = []
    if len(moments) != count:
        broken.append("a request did not succeed")
    if len(files) != count + len(MODELS) or len({r["request_id"] for r in results}) != count:
        broken.append("a request was lost or rendered twice")
    # Requests that arrive within the same millisecond may be queued in the other order.
    if max(overtaken) > FAIRNESS_BOUND + clients:
        broken.append("a request was overtaken too often")
    if max(growth.values()) > 5:
        broken.append("memory grew")
    return figures, broken


def _at(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()


def _ms(seconds: list[float], quantile: float = 0.5) -> float:
    return round(1000 * sorted(seconds)[int(quantile * len(seconds))], 1)


def _growth(values: list[int]) -> float:
    """Per cent from the second to the last fifth of the run (the first one warms up)."""
    fifth = max(1, len(values) // 5)
    before, after = statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:])
    return round(100 * (after / before - 1), 2)


class Plain:
    """The same renders in this process: `pipelines` and nothing else."""

    def __init__(self, folder: Path, device: str) -> None:
        runner.use_minihub()
        from lora_drift.harness.hf_logging import quiet

        quiet()
        from lora_drift import pipelines

        self.folder = folder
        bases = {model: pipelines.load(model, device=device) for model in MODELS}
        self.views = {m: base.with_lora(folder / "loras" / f"{m}.safetensors") for m, base in bases.items()}
        for body in {b["model"]: b for b in bodies(100)}.values():
            self.seconds(body)

    def seconds(self, body: Body) -> float:
        began = time.perf_counter()
        (prompt,) = body["prompts"]
        fields = {"steps" if name == "sample_steps" else name: value for name, value in prompt.items()}
        self.views[body["model"]].sample(fields.pop("prompt"), **fields).save(self.folder / "plain.png")
        return time.perf_counter() - began


def alone(server: LocalServer, plain: Plain, repeats: int = 100) -> dict[str, float]:
    """Overhead as one client sees it that waits for each answer: its whole wait without the worker's own time, and
    without the time of a plain render that goes before it."""
    waits, owns, plains = [], [], []
    for body in bodies(repeats, seed=1):
        plains.append(plain.seconds(body))
        began = time.perf_counter()
        request_id = server.submit(body)
        with server.http.stream("GET", f"/v1/requests/{request_id}/events") as events:
            for _ in events.iter_lines():
                pass
        waits.append(time.perf_counter() - began)
        owns.append(server.get(request_id)["metadata"]["timings"]["total"])
    beside = [wait - own for wait, own in zip(waits, owns, strict=True)]
    return {"one_client_wait_ms_p50": _ms(waits), "one_client_plain_ms_p50": _ms(plains),
            "one_client_overhead_ms_p50": _ms(beside), "one_client_overhead_ms_p95": _ms(beside, 0.95),
            "one_client_beyond_plain_ms_p50": _ms([w - p for w, p in zip(waits, plains, strict=True)])}  # fmt: skip


def switches(server: LocalServer) -> dict[str, Any]:
    """What another LoRA of the same kind costs, as a share of loading the base model again: medians, per model."""
    from safetensors.numpy import load_file, save_file

    folder = server.folder / "loras"
    prompt = {"prompt": "a", "width": 64, "height": 64, "sample_steps": 2, "seed": 1}

    def timings(model: str, name: str) -> dict[str, float]:
        frames = {"num_frames": 1} if model.startswith("wan") else {}
        body = {"model": model, "loras": [{"path": f"{name}.safetensors"}], "prompts": [{**prompt, **frames}]}
        return server.wait(server.submit(body))["metadata"]["timings"]

    switch, load = {}, {}
    for model in MODELS:
        tensors = load_file(folder / f"{model}.safetensors")
        save_file({name: np.asarray(value * 2) for name, value in tensors.items()}, folder / f"{model}-2.safetensors")
        names = (model, f"{model}-2")
        for name in names:
            timings(model, name)
        same = statistics.median(timings(model, names[0])["total"] for _ in range(15))
        switch[model] = statistics.median(timings(model, names[i % 2])["total"] for i in range(30)) - same
    server.stop()
    server.environment["MEMORY_BUDGET_GB"] = "0.000001"
    server.start()
    for _ in range(3):  # the last time with all libraries imported and all files in the page cache
        load = {model: timings(model, model)["load"] for model in MODELS}
    percent = {model: round(100 * switch[model] / load[model], 1) for model in MODELS}
    return {"lora_switch_ms": {m: round(1000 * s, 1) for m, s in switch.items()},
            "base_load_ms": {m: round(1000 * s, 1) for m, s in load.items()}, "switch_percent_of_load": percent,
            "switch_percent_of_load_p50": statistics.median(percent.values())}  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- chaos


def chaos(server: LocalServer, count: int, kills: int) -> tuple[dict[str, Any], list[str]]:
    """(figures, broken promises)."""
    wanted = list(bodies(count, seed=2, side=128, steps=12))
    distinct = {key(body): body for body in wanted}
    undisturbed = {name: _hash(server.wait(server.submit(body))) for name, body in distinct.items()}
    queued = [(body, server.submit(body)) for body in wanted]
    draw, killed = random.Random(3), {"server": 0, "worker": 0}
    for i in range(kills):
        until = time.monotonic() + 60  # a kill should meet a request in flight, if there is one left
        while time.monotonic() < until and not any(server.get(r, "status")["progress"] for _, r in queued):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1))
        victim = draw.choice(("server", "worker")) if i else "server"
        pid = server.worker_pid()
        if victim == "worker" and pid is not None:
            psutil.Process(pid).kill()
        else:
            victim = "server"
            server.kill()
            server.start(ready=False)
        killed[victim] += 1
    results = [(body, server.wait(request_id, timeout=600)) for body, request_id in queued]
    ends = [r["status"] for _, r in results]
    wrong = sum(r["status"] == "succeeded" and _hash(r) != undisturbed[key(body)] for body, r in results)
    causes = sorted({f"{r['error_code']}: {r['error']}" for _, r in results if r["status"] == "failed"})
    figures = {"requests": count, "kills": killed, "ends": {end: ends.count(end) for end in set(ends)},
               "other_bytes": wrong, "causes": causes,
               "tried_again": sum(server.get(r["request_id"], "status")["tries"] > 1 for _, r in results)}  # fmt: skip
    broken = ["a request ended with other bytes"] if wrong else []
    if set(ends) - {"succeeded", "failed"} or not all(r["error"] for _, r in results if r["status"] == "failed"):
        broken.append("a request neither succeeded nor failed with a cause")
    return figures, broken


def _hash(result: dict[str, Any]) -> str:
    outputs = result["outputs"]
    return str((outputs["images"] + outputs["videos"])[0]["sha256"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("load", "chaos"))
    parser.add_argument("--requests", type=int)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        with LocalServer(folder, DEVICE=args.device, FAIRNESS_BOUND=FAIRNESS_BOUND) as server:
            if args.what == "chaos":
                figures, broken = chaos(server, args.requests or 100, args.kills)
            else:
                figures, broken = load(server, args.requests or 500, args.clients)
                plain = Plain(folder, args.device)
                loop = [plain.seconds(body) for body in bodies(args.requests or 500)]
                figures |= {"plain_loop_seconds": round(sum(loop), 2), "plain_loop_render_ms_p50": _ms(loop)}
                figures |= alone(server, plain) | switches(server)
    print(json.dumps({**figures, "device": args.device, "broken": broken}, indent=2))
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
