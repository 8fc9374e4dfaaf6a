"""Measures the spread between renders that are legally the same, from which the gates are derived."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lora_drift.harness.check import cases, goldens, metrics, runner, tolerances
from lora_drift.harness.check.cases import Case, Tier
from lora_drift.harness.check.results import Result
from lora_drift.harness.check.runner import Bench, Rendered
from lora_drift.harness.check.tolerances import FACTORS
from lora_drift.harness.check.trace import Trace, errors
from lora_drift.harness.environment import device_kind

DETERMINISTIC = "deterministic kernels against default ones"
"""Part of a noise floor, but no gate is derived from it: in half precision other kernels make another picture."""

Spread = dict[str, tuple[float, str]]
"""Metric name -> (largest distance, "case: comparison")."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    import torch

    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def distances(a: Rendered, b: Rendered) -> dict[str, float]:
    """The gated distances between two renders of one case."""
    levels = {m.name: m.value or 0.0 for m in metrics.pixel_levels(a.frames, b.frames)}
    sound = (
        {"audio_rel_l2": metrics.relative_l2(a.audio, b.audio)} if a.audio is not None and b.audio is not None else {}
    )
    return {
        **sound,
        "latents_rel_l2": metrics.relative_l2(a.latents, b.latents),
        "pixel_max": levels["pixel_max"],
        "pixel_mean": levels["pixel_mean"],
        "trace": max(errors(a.trace, b.trace).values()),
    }


def repeats(bench: Bench, case: Case, golden: goldens.Golden) -> Iterator[tuple[str, Rendered, Rendered]]:
    """(comparison, one render, the other) within this environment."""
    first = runner.legal_repeat(bench, case, golden)
    yield "same code again", first, runner.legal_repeat(bench, case, golden)
    if bench.device != "cpu":
        with deterministic_kernels():
            yield DETERMINISTIC, runner.legal_repeat(bench, case, golden), first
    if bench.dtype != "float32":  # in half precision the order of operations makes another picture, in the trainer too
        return
    if case.lora is not None and not (case.quantization and case.quantization.quantize):
        merged, live = (runner.legal_repeat(bench, case, golden, mode) for mode in ("merged", "live"))
        yield "merged against live LoRA", merged, live
    if bench.device == "cpu":
        with threads(2):
            yield "one thread against two", first, runner.legal_repeat(bench, case, golden)


def floors(bench: Bench, case: Case, golden: goldens.Golden) -> dict[str, dict[str, float]]:
    """Comparison -> metric name -> distance: the noise floor of one case on this device."""
    return {comparison: distances(a, b) for comparison, a, b in repeats(bench, case, golden)}


def measure(
    device: str, dtype: str | None, other: Path | None, progress: Callable[[str], None], tier: Tier = "mini"
) -> Spread:
    """The largest distances over all cases of a tier; `other` is a folder that `save` wrote in another environment."""
    if tier == "mini":
        runner.use_minihub()
    bench, spread = Bench(device, dtype), Spread()
    for case, golden in _goldens(bench, tier):
        progress(case.id)
        found = floors(bench, case, golden)
        if other is not None:
            again = runner.legal_repeat(bench, case, golden)
            found[f"another environment ({other.stem})"] = distances(_loaded(other, case), again)
        _widen(spread, case.id, found)
    return spread


def of_results(results: Iterable[Result]) -> dict[str, Spread]:
    """What gates are filed under -> the largest distances in the noise floors of `results` (`--drift-floor`)."""
    spreads: dict[str, Spread] = {}
    for result in results:
        if result.noise_floor:
            _widen(spreads.setdefault(key(result.environment, result.tier), {}), result.case, result.noise_floor)
    return spreads


def _widen(spread: Spread, case_id: str, found: Mapping[str, Mapping[str, float]]) -> None:
    for comparison, values in found.items():
        for name, value in values.items() if comparison != DETERMINISTIC else ():
            if value >= spread.get(name, (-1.0, ""))[0]:
                spread[name] = (value, f"{case_id}: {comparison}")


def _goldens(bench: Bench, tier: Tier = "mini") -> Iterator[tuple[Case, goldens.Golden]]:
    for case in cases.load_all(tier=tier):
        try:
            golden = bench.golden(case)
        except goldens.Missing:
            if bench.dtype == "float32" and tier == "mini":
                raise
            continue  # other dtypes, and the real weights, have goldens of some cases only
        yield case, golden


def save(folder: Path, device: str, dtype: str | None, progress: Callable[[str], None]) -> None:
    """Keep this environment's renders of all mini cases for `measure` in another one."""
    runner.use_minihub()
    bench = Bench(device, dtype)
    for case, golden in _goldens(bench):
        progress(case.id)
        ours = runner.legal_repeat(bench, case, golden)
        stem = folder / case.id
        stem.parent.mkdir(parents=True, exist_ok=True)
        sound: dict[str, Any] = {} if ours.audio is None else {"audio": ours.audio}
        np.savez_compressed(stem.with_suffix(".npz"), frames=ours.frames, latents=ours.latents, **sound)
        ours.trace.save(stem.with_suffix(".safetensors"))


def _loaded(folder: Path, case: Case) -> Rendered:
    stem = folder / case.id
    with np.load(stem.with_suffix(".npz")) as arrays:
        trace = Trace.load(stem.with_suffix(".safetensors"))
        return Rendered(arrays["frames"], arrays["latents"], trace, {}, arrays.get("audio"))


def key(environment: Mapping[str, Any], tier: str = "mini") -> str:
    """What the gates of a tier's cases are filed under: "mini/h100/bfloat16"."""
    return f"{tier}/{device_kind(environment)}/{environment['dtype']}"


def write(spread: Spread, key: str) -> None:
    """Put the gates derived from `spread` into gates.json under `key`."""
    table = json.loads(tolerances.GATES.read_text(encoding="utf-8")) if tolerances.GATES.is_file() else {"gates": {}}
    table["gates"][key] = {
        name: {"spread": float(f"{value:.3g}"), "factor": FACTORS[name], "seen_in": seen}
        for name, (value, seen) in sorted(spread.items())
    }
    tolerances.GATES.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
