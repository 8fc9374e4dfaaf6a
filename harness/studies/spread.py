"""Measures the spread between renders that are equally correct, from which the tolerances are derived."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lora_drift.harness.check import cases, divergence, goldens, metrics, noise_floor, runner, tolerances
from lora_drift.harness.check.cases import Case, Tier
from lora_drift.harness.check.results import Result
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.check.trace import Rendered, Trace
from lora_drift.harness.environment import same_processor
from lora_drift.harness.minihub import factory
from lora_drift.pipelines.registry import spec_of

Spread = dict[str, tuple[float, str]]
"""Metric name -> (largest distance, "case: comparison")."""


def measure(
    device: str, dtype: str | None, other: Path | None, progress: Callable[[str], None], tier: Tier = "mini"
) -> Spread:
    """The largest distances over all cases of a tier; `other` is a folder that `save` wrote in another environment."""
    if tier == "mini":
        runner.use_minihub()
    bench, spread = Bench(device, dtype), Spread()
    for case, golden in _goldens(bench, tier):
        progress(case.id)
        render = partial(runner.legal_repeat, bench, case, golden)
        floors = noise_floor.measure(render, case, device=bench.device, dtype=bench.dtype)
        if other is not None:
            floors[f"another environment ({other.stem})"] = noise_floor.distances(_loaded(other, case), render())
        _widen(spread, case.id, floors)
    return spread


def of_results(results: Iterable[Result]) -> dict[str, Spread]:
    """What tolerances are filed under -> the largest distances in the noise floors of `results` (`--drift-floor`)."""
    spreads: dict[str, Spread] = {}
    for result in results:
        if result.noise_floor:
            _widen(
                spreads.setdefault(tolerances.key(result.tier, result.environment), {}),
                result.case,
                result.noise_floor,
            )
    return spreads


StageSpread = dict[str, dict[str, dict[str, float]]]
"""What tolerances are filed under -> model -> kind of stage -> largest distance."""


def of_stages(results: Iterable[Result]) -> StageSpread:
    """How far renders that match are from goldens of another processor (or a GPU from the CPU's) at each kind of stage,
    in float32, where a trace shows it."""
    spreads: StageSpread = {}
    for result in results:
        if result.verdict != "match" or result.environment["dtype"] != "float32":
            continue
        if not tolerances.elsewhere(result.environment, result.golden_environment):
            continue
        key = tolerances.key(result.tier, result.environment, result.golden_environment)
        spread = spreads.setdefault(key, {}).setdefault(result.model, {})
        for stage, error in result.trace.items():
            kind = divergence.kind(stage)
            spread[kind] = max(spread.get(kind, 0.0), error or 0.0)  # None: of another shape, and no cause of anything
    return spreads


def _widen(spread: Spread, case_id: str, floors: Mapping[str, Mapping[str, float]]) -> None:
    for comparison, values in floors.items():
        for name, value in values.items() if comparison != noise_floor.DETERMINISTIC else ():
            if value >= spread.get(name, (-1.0, ""))[0]:
                spread[name] = (value, f"{case_id}: {comparison}")


def _goldens(bench: Bench, tier: Tier = "mini") -> Iterator[tuple[Case, goldens.Golden]]:
    for case in cases.known(bench.tag, tier):
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


def of_recordings(there: Path, tag: str) -> dict[str, Spread]:
    """How far the trainer on another processor is from itself: `there` is a goldens folder that the recorder wrote on
    that processor, compared with this checkout's case by case, as far as both have it.

    Trainings are left out: on another processor they end in another LoRA.
    """
    spread: Spread = {}
    for case in cases.known(tag):
        manifest = factory.manifest_sha256(case.model, case.extras)
        try:
            pair = [goldens.load(tag, case, manifest, root) for root in (goldens.GOLDENS, there)]
        except goldens.Missing:
            continue
        if case.training is None and not same_processor(pair[0].environment, pair[1].environment):
            one, other = (_recorded(golden) for golden in pair)
            ours, theirs = (f"{golden.environment['cpu']} ({golden.environment['cpu_capability']})" for golden in pair)
            _widen(spread, case.id, {f"the trainer on {theirs} and on {ours}": noise_floor.distances(one, other)})
    here = {"cpu": "here", "cpu_capability": ""}
    return {tolerances.key("mini", goldens.CPU | here | {"cpu": "there"}, here): spread} if spread else {}


def between_architectures(tag: str, progress: Callable[[int, str], None]) -> dict[str, Spread]:
    """How far renders in half precision are from the goldens of other architectures than this processor, which they
    meet to the bit at home: what tolerances are filed under -> the largest distances, a model each."""
    runner.use_minihub()
    bench, spreads = Bench("cpu", "bfloat16", tag=tag, controls=False), dict[str, Spread]()
    for number, case in enumerate(cases.known(tag)):
        progress(number, case.id)
        for environment in goldens.environments(tag, "bfloat16"):
            try:
                golden = bench.golden(case, environment)
            except goldens.Missing:  # these sets have some cases only
                continue
            drawn = case.sample.control and getattr(spec_of(case.model), "control_posterior", "mode") == "sample"
            if drawn and golden.environment["device"] != "cpu":
                continue  # the posterior of its control image was drawn by the GPU, which draws other numbers
            if not tolerances.elsewhere(bench.environment, golden.environment):
                continue
            ours = bench.render(bench.pipeline(case, golden), bench.settings(case))
            found = noise_floor.distances(_recorded(golden), ours)
            seen = {m.name: m.value for m in metrics.pixels(golden.frames(), ours.frames)}
            found |= {"ssim": 1 - (seen["ssim"] or 0.0), "flip": seen["flip"] or 0.0}
            where = f"{golden.environment.get('gpu', golden.environment['cpu'])} against {bench.environment['cpu']}"
            key = tolerances.key("mini", bench.environment, golden.environment, case.model)
            _widen(spreads.setdefault(key, {}), case.id, {where: found})
    return spreads


def _recorded(golden: goldens.Golden) -> Rendered:
    trace = Trace.load(golden.path("trace"))
    audio = golden.audio() if "audio" in golden.artefacts else None
    return Rendered(golden.frames(), golden.latents(), trace, golden.settings, audio)


def write(spread: Spread, key: str) -> None:
    """Put the tolerances derived from `spread` into tolerances.json under `key`."""
    table = json.loads(tolerances.TOLERANCES.read_text(encoding="utf-8"))
    table["gates"][key] = {
        name: {"spread": float(f"{value:.3g}"), "factor": tolerances.factor(key, name), "seen_in": seen}
        for name, (value, seen) in sorted(spread.items())
    }
    tolerances.TOLERANCES.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def write_stages(spreads: StageSpread) -> None:
    """Put the spreads of kinds of stages into tolerances.json; other models keep theirs."""
    table = json.loads(tolerances.TOLERANCES.read_text(encoding="utf-8"))
    for key, models in spreads.items():
        rounded = {
            model: {kind: float(f"{v:.2g}") for kind, v in sorted(found.items())} for model, found in models.items()
        }
        table["stages"][key] = dict(sorted({**table["stages"].get(key, {}), **rounded}.items()))
    tolerances.TOLERANCES.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
