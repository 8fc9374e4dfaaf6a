"""How far plain Diffusers is from the trainer, and what the reference path costs beside it.

    python benchmarks/plain_diffusers.py [--model flux] [--json]

Every mini case is rendered twice in one process: by a plain script (`DiffusionPipeline.from_pretrained`, the saved
scheduler, `load_lora_weights`, a call with the case's settings) and by ours. Both are compared with the golden; the
seconds are of the second of two renders, and their ratio (ours / plain) is what may be quoted.
"""

import argparse
import inspect
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from harness import cases, goldens, metrics, runner
from harness.cases import Case
from harness.goldens import Golden
from harness.minihub import factory
from harness.quiet import quiet


def plain(case: Case, golden: Golden, settings: Any) -> Callable[[], np.ndarray]:
    """A function that renders `case` as a plain script would; uint8 [frames, height, width, 3]."""
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    from pipelines import loading
    from pipelines.table import MODELS

    spec, dtype = MODELS[case.model], torch.float32
    # Copies of encoders that the trainer keeps in repositories of its own have other weights in the mini hub (to show
    # mix-ups), though not in reality: the plain script gets the trainer's.
    elsewhere = {name: loading.component(spec.base, name, repo, dtype) for name, repo in spec.components.items()}
    pipe = DiffusionPipeline.from_pretrained(spec.base, torch_dtype=dtype, **elsewhere)
    pipe.set_progress_bar_config(disable=True)
    if "lora" in golden.artefacts:
        path = golden.path("lora")
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="lora")
        pipe.set_adapters(["lora"], [settings.multiplier])
    accepted = inspect.signature(pipe.__call__).parameters
    images = [Image.open(p).convert("RGB") for p in settings.control]
    wanted = {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "width": settings.width,
        "height": settings.height,
        "num_inference_steps": settings.steps,
        "true_cfg_scale" if "true_cfg_scale" in accepted and "Flux" not in type(pipe).__name__ else "guidance_scale":
            settings.guidance_scale,
        "num_frames": settings.num_frames,
        **({"image": images if len(images) > 1 else images[0]} if images else {}),
    }  # fmt: skip
    call = {name: value for name, value in wanted.items() if name in accepted}

    def render() -> np.ndarray:
        output = pipe(**call, generator=torch.Generator("cpu").manual_seed(settings.seed), output_type="pil")
        frames = output.images if hasattr(output, "images") else output.frames[0]
        return np.stack([np.asarray(frame.convert("RGB")) for frame in frames])

    return render


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
    golden = goldens.load(runner.newest_tag(), case, factory.manifest_sha256(case.model))
    pipeline, settings = bench.pipeline(case, golden), bench.settings(case)
    row: dict[str, Any] = {"case": case.id}
    ours, ours_seconds = twice(lambda: bench.render(pipeline, settings))
    row["ours"] = distance(golden.frames(), ours.frames)
    try:
        frames, seconds = twice(plain(case, golden, settings))
    except Exception as error:  # noqa: BLE001  that a plain script fails is a finding, and is printed
        row["plain"] = {"note": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
    else:
        row |= {"plain": distance(golden.frames(), frames), "ratio": ours_seconds / seconds}
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
    bench = runner.Bench()
    if not args.json:
        print(f"{'case':34} {'ours: max / mean':18} {'plain: max / mean':26} seconds ours/plain")
    for case in cases.load_all():
        if case.tier == "mini" and (not args.model or case.model in args.model):
            row = measure(bench, case)
            ratio = f"{row['ratio']:.2f}" if "ratio" in row else "-"
            line = f"{row['case']:34} {shown(row['ours']):18} {shown(row['plain']):26} {ratio}"
            print(json.dumps(row) if args.json else line, flush=True)


if __name__ == "__main__":
    main()
