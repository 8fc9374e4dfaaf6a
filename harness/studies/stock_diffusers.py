"""What stock Diffusers renders for a case: a script as anybody would write it, without anything of `pipelines`' care.

    python -m lora_drift.harness.studies.stock_diffusers OUT CASE...

writes one JSON line a case to OUT/results.jsonl, pictures and traces beside it.

So `lora-drift matrix --stock` sees what a Diffusers release changes for its users. The benchmark compares it with the
trainer.
"""

import inspect
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_drift.harness import tags
from lora_drift.harness.check import cases, goldens, runner
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.trace import Trace, capture
from lora_drift.harness.hf_logging import quiet
from lora_drift.harness.minihub import factory
from lora_drift.pipelines.settings import Settings


class NoStockScript(Exception):
    """Diffusers has no pipeline for this model, or the case asks for what such a script would not do."""


class StockPipeline:
    """A loaded stock pipeline and the call that renders one case."""

    def __init__(self, case: Case, golden: Golden) -> None:
        if case.extras or case.quantization:
            raise NoStockScript(f"{case.id}: a stock script renders neither quantised bases nor other base models")
        settings = runner.Bench(tag=golden.tag).settings(case)
        pipe, self.loaded = stock(case.model)
        pipe.set_progress_bar_config(disable=True)
        if "lora" in golden.artefacts:
            load_lora(pipe, golden.path("lora"))
            pipe.set_adapters(["lora"], [settings.multiplier])
        self.pipe, self.seed = pipe, settings.seed
        self.call = arguments(pipe, settings)

    def render(self) -> np.ndarray:
        """uint8 [frames, height, width, 3]"""
        return render(self.pipe, self.call, self.seed)

    def script(self) -> str:
        """The same as lines to paste."""
        arguments = [f"{name}={'...' if name == 'image' else repr(value)}" for name, value in self.call.items()]
        seeded = f'generator=torch.Generator("cpu").manual_seed({self.seed})'
        return f"{self.loaded}\npipe({', '.join(arguments)}, {seeded})"


def load_lora(pipe: Any, path: Path) -> None:
    """Load a file as the adapter "lora".

    Raises:
        ValueError: Diffusers takes none of its keys, of which it only warns.
    """
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="lora")
    if not pipe.get_list_adapters():
        raise ValueError("it takes none of the file's keys, and renders the base model")


def arguments(pipe: Any, settings: Settings) -> dict[str, Any]:
    """What the pipeline's own call takes of the settings."""
    from PIL import Image

    accepted = inspect.signature(pipe.__call__).parameters
    images = [Image.open(p).convert("RGB") for p in settings.control]
    wanted = {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "width": settings.width,
        "height": settings.height,
        "num_inference_steps": settings.steps,
        "true_cfg_scale" if "true_cfg_scale" in accepted and "Flux" not in type(pipe).__name__ else
            "guidance_scale": settings.guidance_scale,
        "num_frames": settings.num_frames,
        **({"image": images if len(images) > 1 else images[0]} if images else {}),
    }  # fmt: skip
    return {name: value for name, value in wanted.items() if name in accepted}


def render(pipe: Any, call: Mapping[str, Any], seed: int, **more: Any) -> np.ndarray:
    """uint8 [frames, height, width, 3]"""
    import torch

    output = pipe(**call, generator=torch.Generator("cpu").manual_seed(seed), output_type="pil", **more)
    frames = output.images if hasattr(output, "images") else output.frames[0]
    return np.stack([np.asarray(frame.convert("RGB")) for frame in frames])


def stock(model: str, dtype: str = "float32") -> tuple[Any, str]:
    """(the stock pipeline with its repository's own scheduler, how a script would load it).

    Raises:
        NoStockScript: there is none.
    """
    import diffusers
    import torch

    from lora_drift import pipelines
    from lora_drift.pipelines import loading
    from lora_drift.pipelines.registry import spec_of

    spec, torch_dtype = spec_of(model), getattr(torch, dtype)
    if spec.pipeline == "ours":
        raise NoStockScript(f"Diffusers has no pipeline for {spec.title}")
    loaded = f'pipe = DiffusionPipeline.from_pretrained("{spec.base}", torch_dtype=torch.{dtype})'
    try:
        # Copies of encoders that the trainer keeps in repositories of its own have other weights in the mini hub (to
        # show mix-ups), though not in reality: the stock script gets the trainer's.
        elsewhere = {
            name: loading.component(spec.base, name, repo, torch_dtype) for name, repo in spec.components.items()
        }
        return diffusers.DiffusionPipeline.from_pretrained(spec.base, torch_dtype=torch_dtype, **elsewhere), loaded
    except (OSError, KeyError):  # repositories in the trainer's layout: its parts, in a stock pipeline
        parts = pipelines.load(model, dtype=dtype).base.pipe
        pipe = getattr(diffusers, spec.pipeline).from_pipe(parts, torch_dtype=torch_dtype)
    for repo in (spec.base, *spec.components.values()):
        if (config := own_scheduler(repo)) is not None:
            pipe.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
            break
    return pipe, f"pipe = {spec.pipeline}(...)  # {spec.title}, {dtype}"


def own_scheduler(repo: str) -> Any:
    """The scheduler's config in a repository of the cache; None if it has none."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, "scheduler/scheduler_config.json")
    return json.loads(Path(path).read_text(encoding="utf-8")) if isinstance(path, str) else None


def short(error: Exception) -> str:
    """Kind and first line of an exception."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def difference(before: tuple[np.ndarray, Trace], after: tuple[np.ndarray, Trace]) -> dict[str, Any]:
    """Mean and maximum pixel difference of two renders and the first stage at which they part."""
    from lora_drift.harness.check import metrics, tolerances
    from lora_drift.harness.check.trace import errors

    limits = tolerances.load("mini", goldens.CPU)
    found = errors(before[1], after[1])
    parted = next(((n, e) for n, e in found.items() if not e <= limits["trace"].limit), (None, None))
    if before[0].shape != after[0].shape:
        return {"within": False, "boundary": parted[0], "error": None, "pixel_max": None, "pixel_mean": None}
    measured = tolerances.apply(metrics.pixel_levels(before[0], after[0]), limits)
    values = {m.name: m.value for m in measured}
    error = parted[1] if parted[1] is not None and np.isfinite(parted[1]) else None
    return {"within": all(m.within for m in measured), "boundary": parted[0], "error": error, **values}


def stored(folder: Path, case_id: str) -> tuple[np.ndarray, Trace]:
    """Picture and trace that `main` wrote."""
    picture: np.ndarray = np.load(folder / f"{case_id}.npy")
    return picture, Trace.load(folder / f"{case_id}.safetensors")


def main(out: Path, tag: str, case_ids: list[str]) -> None:
    runner.use_minihub()
    out.mkdir(parents=True, exist_ok=True)
    with (out / "results.jsonl").open("w", encoding="utf-8") as stream:
        for case_id in case_ids:
            started = time.perf_counter()
            line: dict[str, Any] = {"case": case_id, "message": ""}
            try:
                quiet()
                case = cases.load(cases.CASES / f"{case_id}.yaml")
                made = StockPipeline(case, goldens.load(tag, case, factory.manifest_sha256(case.model, case.extras)))
                with capture(made.pipe) as trace:
                    picture = made.render()
                (out / case_id).parent.mkdir(parents=True, exist_ok=True)
                np.save(out / f"{case_id}.npy", picture)
                trace.save(out / f"{case_id}.safetensors")
                line["script"] = made.script()
            except Exception as error:  # noqa: BLE001  that a stock script fails is a finding: the line carries it
                line["message"] = short(error)
            line["seconds"] = round(time.perf_counter() - started, 3)
            stream.write(json.dumps(line) + "\n")
            stream.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] or tags.newest(), sys.argv[3:])
