"""How far stock Diffusers is from the trainer, and what the reference path costs beside it.

    python benchmarks/stock_diffusers.py [--model flux] [--json]

Every mini case is rendered twice in one process: by a stock script (`DiffusionPipeline.from_pretrained`, the saved
scheduler, `load_lora_weights`, a call with the case's settings) and by ours. Both are compared with the golden; the
seconds are of the second of two renders, and their ratio (ours / stock) is what may be quoted.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lora_drift.harness import tags
from lora_drift.harness.check import cases, metrics, runner
from lora_drift.harness.check.cases import Case
from lora_drift.harness.hf_logging import quiet
from lora_drift.harness.studies import stock_diffusers


def twice(render: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds of the second run)"""
    render()
    started = time.perf_counter()
    return render(), time.perf_counter() - started


def distance(golden: np.ndarray, frames: np.ndarray) -> dict[str, Any]:
    if golden.shape != frames.shape:
        return {"note": f"another size: {frames.shape[2]}x{frames.shape[1]}, {len(frames)} frame(s)"}
    return {m.name: m.value for m in metrics.pixel_levels(golden, frames)}


def measure(bench: runner.Bench, case: Case) -> dict[str, Any]:
    golden = bench.golden(case)
    pipeline, settings = bench.pipeline(case, golden), bench.settings(case)
    row: dict[str, Any] = {"case": case.id}
    ours, ours_seconds = twice(lambda: bench.render(pipeline, settings))
    row["ours"] = distance(golden.frames(), ours.frames)
    try:
        frames, seconds = twice(stock_diffusers.StockPipeline(case, golden).render)
    except Exception as error:  # noqa: BLE001  that a stock script fails is a finding, and is printed
        row["stock"] = {"note": stock_diffusers.short(error)[:100]}
    else:
        row |= {"stock": distance(golden.frames(), frames), "ratio": ours_seconds / seconds}
    return row


def shown(found: dict[str, Any]) -> str:
    return found.get("note") or f"{found['pixel_max']:3.0f} / {found['pixel_mean']:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="only this model (repeatable)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per case")
    args = parser.parse_args()
    runner.use_minihub()
    quiet()
    bench = runner.Bench(tag=tags.newest_of(args.model or []))
    if not args.json:
        print(f"{'case':34} {'ours: max / mean':18} {'stock: max / mean':26} seconds ours/stock")
    for case in cases.known(bench.tag):
        if not args.model or case.model in args.model:
            row = measure(bench, case)
            ratio = f"{row['ratio']:.2f}" if "ratio" in row else "-"
            line = f"{row['case']:34} {shown(row['ours']):18} {shown(row['stock']):26} {ratio}"
            print(json.dumps(row) if args.json else line, flush=True)


if __name__ == "__main__":
    main()
