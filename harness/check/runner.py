"""Checks one case: renders it with our pipelines, compares with the trainer's golden, and tries the controls."""

import gc
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from lora_drift.harness import tags
from lora_drift.harness.check import (
    agreements,
    divergence,
    goldens,
    known,
    metrics,
    noise_floor,
    strips,
    tolerances,
    trusted,
    user_cache,
    wav,
)
from lora_drift.harness.check import (
    negative_controls as controls,
)
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import Golden, GoldenError
from lora_drift.harness.check.results import JUDGED, Control, Divergence, Metric, Result
from lora_drift.harness.check.trace import Rendered, Trace, Tracer
from lora_drift.harness.environment import architecture, facts
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines.errors import NotFinite

LORA_FILES = {"lora": "path", "lora_high": "high", "lora_low": "low"}
"""Artefact -> the argument of `Pipeline.with_lora` that takes it."""
RELATIVE = {"latents_rel_l2": "latents differ by", "audio_rel_l2": "sound differs by"}
LEVELS = {"pixel_max": "largest", "pixel_mean": "mean"}
"""Metrics -> words for them in messages."""


def use_minihub(home: Path | None = None) -> Path:
    """Point every Hugging Face library at the mini hub, building it if needed.

    Raises:
        RuntimeError: `huggingface_hub` was imported before and froze another cache folder.
    """
    import sys

    home = home or factory.build()
    user_cache.set_aside()
    os.environ.pop("HF_HUB_CACHE", None)  # it would win over HF_HOME
    os.environ.update({"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"})
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None and Path(constants.HF_HUB_CACHE) != home / "hub":
        raise RuntimeError(
            f"huggingface_hub was imported before the mini hub could be set up and uses {constants.HF_HUB_CACHE}; "
            f"start again with HF_HOME={home} HF_HUB_OFFLINE=1 (`lora-drift minihub path` prints the folder)"
        )
    return home


Comparison = Callable[[Result, "Bench", Case, Golden, Path], None]


class Bench:
    """Renders cases on one device, one base model at a time (a model is loaded once for all its cases in a row)."""

    def __init__(
        self,
        device: str = "cpu",
        dtype: str | None = None,
        *,
        tag: str | None = None,
        controls: bool = True,
        floor: bool = False,
        profile: str = "reference",
        capability: str = "",
        goldens: Path = goldens.GOLDENS,
        known: Path = known.KNOWN,
    ) -> None:
        """`dtype`: None is float32 on the CPU and bfloat16 elsewhere, as the trainer has it. `floor`: measure the noise
        floor of every case, too. `capability`: judge as on a GPU of this compute capability ("8.0"). `goldens`: folder;
        `known`: file of known drifts."""
        self.device, self.controls, self.floor, self.profile = device, controls, floor, profile
        self.capability = capability
        self.goldens, self.known = Path(goldens), Path(known)
        self.dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        self.tag = tag or newest_tag()
        self._loaded: Any = None
        self._loaded_as: Any = None
        self._on_cpu: Bench | None = None

    @property
    def toolkit(self) -> str:
        """The trainer version whose behaviour is rendered."""
        return tags.row(self.tag).version

    @property
    def environment(self) -> dict[str, Any]:
        profile = {} if self.profile == "reference" else {"profile": self.profile}
        return {**facts(self.device, self.dtype), **profile, **self._supposed()}

    def _supposed(self) -> dict[str, str]:
        if not self.capability:
            return {}
        name = f"a GPU of compute capability {self.capability}, supposed"
        return {"device": "cuda", "gpu": name, "compute_capability": self.capability}

    def golden(self, case: Case, environment: Mapping[str, Any] | None = None) -> Golden:
        """The golden of `case` for this device and dtype, or for another environment, checked (`goldens.load`)."""
        environment = environment or self.environment
        if case.tier == "mini":
            manifest = factory.manifest_sha256(case.model, case.extras)
            return goldens.load(self.tag, case, manifest, root=self.goldens, environment=environment)
        try:
            weights = user_cache.revisions(case)
        except user_cache.NoWeights as error:
            raise goldens.Missing(str(error)) from error
        return goldens.load(self.tag, case, None, root=self.goldens, weights=weights, environment=environment)

    def tolerances(self, case: Case, golden: Golden) -> dict[str, tolerances.Tolerance]:
        return tolerances.load(case.tier, self.environment, golden.environment, case.model)

    def pipeline(self, case: Case, golden: Golden) -> Any:
        """Our pipeline for `case`, with the LoRA file that the trainer saved."""
        from lora_drift import pipelines
        from lora_drift.pipelines.quantize import Quantization

        quantization = Quantization(**case.quantization.model_dump()) if case.quantization else None
        wanted = (case.model, case.base, golden.noise_stream, golden.resize_order, quantization)
        if self._loaded is None or self._loaded_as != wanted:
            self._loaded = None  # let the old model go before the next one loads
            self._loaded_as = wanted
            self._loaded = pipelines.load(
                case.model,
                base=case.base,
                device=self.device,
                dtype=self.dtype,
                toolkit=self.toolkit,
                noise_stream=golden.noise_stream,
                resize_order=golden.resize_order,
                vae_noise="cpu" if golden.environment["device"] == "cpu" else "device",
                quantization=quantization,
                profile=self.profile,
            )
        if case.lora is None:
            return self._loaded
        files = {LORA_FILES[a]: golden.path(a) for a in golden.artefacts if a in LORA_FILES}
        return self._loaded.with_lora(**files, mode=case.lora.mode)

    def on_cpu(self) -> "Bench":
        """The same on the CPU, in float32; kept, so that a model is loaded once there too."""
        if self._on_cpu is None:
            self._on_cpu = Bench("cpu", "float32", tag=self.tag, goldens=self.goldens, known=self.known)
        return self._on_cpu

    def forget(self) -> None:
        """Let the loaded model go: after an error (a full GPU, say) the next case starts from nothing."""
        import torch

        self._loaded = self._loaded_as = None
        gc.collect()
        if usable(self.device):  # a GPU that is lost to this process would refuse this, too
            torch.cuda.empty_cache()

    @staticmethod
    def request(case: Case) -> Any:
        """What the case asks, in our terms."""
        from lora_drift.pipelines.settings import Request

        sample = case.sample
        return Request(
            prompt=sample.prompt,
            negative=sample.neg,
            width=sample.width,
            height=sample.height,
            steps=sample.sample_steps,
            guidance_scale=sample.guidance_scale,
            guidance_rescale=sample.guidance_rescale,
            seed=sample.seed,
            multiplier=sample.network_multiplier,
            num_frames=sample.num_frames,
            fps=sample.fps,
            trigger_word=case.trigger_word,
            job_name=case.job_name,
            ctrl_img=sample.ctrl_img,
            ctrl_img_1=sample.ctrl_img_1,
            ctrl_img_2=sample.ctrl_img_2,
            ctrl_img_3=sample.ctrl_img_3,
            located=sample.located,
            ctrl_idx=sample.ctrl_idx,
            do_cfg_norm=sample.do_cfg_norm,
        )

    def settings(self, case: Case) -> Any:
        """The case's resolved settings, by our rules."""
        from lora_drift.pipelines.registry import spec_of
        from lora_drift.pipelines.settings import resolve

        return resolve(spec_of(case.model, self.toolkit), self.request(case))

    @staticmethod
    def render(pipeline: Any, settings: Any) -> Rendered:
        tracer = Tracer()
        if pipeline.lora is not None:
            for name, change in _lora_changes(pipeline):
                tracer.trace.add(f"lora/{name}", change)
        try:
            with no_tf32() if pipeline.base.dtype == "float32" else nullcontext():
                output = pipeline.render(settings, watch=tracer.watching)
        except NotFinite as error:  # measured all the same: the trace says where it left the golden
            output = error.output
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in output.frames])
        assert tracer.trace.final_latents is not None
        pictures = {field: [Path(p).name for p in getattr(output.settings, field)] for field in ("control", "shown")}
        settings = {**output.receipt["settings"], **pictures}
        media = output.media
        return Rendered(frames, tracer.trace.final_latents, tracer.trace, settings, media.audio, media.sample_rate)


@contextmanager
def no_tf32() -> Iterator[None]:
    """float32 means float32: by default torch lets a GPU's convolutions round to TF32 (10 bits of mantissa), which is
    another picture than the CPU's goldens by up to 1 of 255, mean 0.07."""
    import torch

    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def _lora_changes(pipeline: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(name, weight change at multiplier 1) of every module, and under its own name of every matrix that a file fuses.

    The trainer's own network classes keep q, k and v in one; its goldens know the change of that one. Changes are made
    one by one: all of a real model's together are twice as large as the model.
    """
    from lora_drift.pipelines.adapter import scaled
    from lora_drift.pipelines.lora import on_device

    def change(delta: Any) -> np.ndarray:
        return scaled(on_device(delta.change, pipeline.base.device), 1.0).cpu().numpy()

    fused: dict[str, list[Any]] = {}
    for delta in pipeline.lora.deltas:
        if delta.component not in pipeline.spec.denoisers.values():  # a text encoder, whose paths change with releases
            yield delta.name, change(delta)
            continue
        if len(pipeline.spec.denoisers) > 1:
            yield f"{delta.component}.{delta.module}", change(delta)
            continue
        yield delta.module, change(delta)
        prefix = next((p for p in pipeline.spec.lora_prefixes if delta.name.startswith(p)), "")
        fused.setdefault(delta.name.removeprefix(prefix), []).append(delta)
    for name, parts in fused.items():
        if [part.module for part in parts] != [name]:
            yield name, _fused([(part.change.rows, change(part)) for part in parts])


def _fused(parts: list[tuple[Any, np.ndarray]]) -> np.ndarray:
    """The file's own matrix, of (which of its rows a part is, the part)."""
    whole = np.concatenate([part for _, part in parts])
    for rows, part in parts:
        whole[slice(None) if rows is None else rows] = part
    return whole


def check(bench: Bench, case: Case, out: Path, compare: Comparison | None = None) -> Result:
    """Check one case; never raises for what a case can get wrong, the verdict says it.

    Pictures of the run are written to `out`. `compare` renders, measures and judges once there is a golden; None does
    so in this process.
    """
    started = time.perf_counter()
    result = Result(
        case=case.id,
        model=case.model,
        tag=bench.tag,
        tier=case.tier,
        device=bench.device,
        dtype=bench.dtype,
        verdict="error",
        about=case.about,
        lora=case.lora.network.type if case.lora else "",
        environment=bench.environment,
        made=trusted.made(),
    )
    try:
        _need(bench.device)
        golden = bench.golden(case)
        _describe(result, golden)
        (compare or _compare)(result, bench, case, golden, out)
    except GoldenError as error:
        result.verdict, result.message = error.verdict, str(error)  # type: ignore[assignment]
    except Exception as error:  # noqa: BLE001  the verdict `error` carries it; one broken case must not hide the rest
        result.verdict, result.message = "error", f"{type(error).__name__}: {error}"
        result.traceback = traceback.format_exc()
        bench.forget()
    result.seconds = round(time.perf_counter() - started, 3)
    return known.judge(result, path=bench.known)


def _describe(result: Result, golden: Golden) -> None:
    result.golden_settings = {**golden.settings, "num_frames": int(golden.output["frames"])}
    result.golden_environment = golden.environment
    result.provenance = {
        **golden.trainer,
        "origin": golden.origin,
        **({"short_way": golden.short_way} if golden.short_way else {}),
        "patches": golden.patches,
        "noise_stream": golden.noise_stream,
        "resize_order": golden.resize_order,
        "recorder": golden.recorder,
        "seal": golden.seal,
    }
    result.frames, result.fps = int(golden.output["frames"]), int(golden.output["fps"])
    result.golden_picture = os.path.relpath(golden.stored("picture"), ROOT)
    if "audio" in golden.artefacts:
        result.golden_sound = os.path.relpath(golden.stored("audio"), ROOT)


def _compare(result: Result, bench: Bench, case: Case, golden: Golden, out: Path) -> None:
    if bench.floor:  # first, because tolerances are derived from it
        render, on_cpu = partial(legal_repeat, bench, case, golden), None
        if bench.device != "cpu" and bench.dtype == "float32":  # where the goldens are from
            on_cpu = partial(legal_repeat, bench.on_cpu(), case, golden)
        result.noise_floor = noise_floor.measure(render, case, device=bench.device, dtype=bench.dtype, on_cpu=on_cpu)
    limits = bench.tolerances(case, golden)
    pipeline, settings = bench.pipeline(case, golden), bench.settings(case)
    with encodings_kept(pipeline.base.pipe.vae):
        ours = bench.render(pipeline, settings)
        wanted = _wanted(case, pipeline, settings) if bench.controls else []
        result.controls = [_control(name, golden, bench.render(p, s), limits) for name, p, s in wanted]
    row = pipeline.spec.scheduler
    result.settings = {
        **ours.settings,
        **_seen(ours.frames),
        "lora_mode": pipeline.applied_mode,
        "scheduler": {"class": row.cls, **row.config},
    }
    path = out / f"{case.id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    strips.write(path, ours.frames)
    result.output_picture, result.root = os.path.relpath(path, ROOT), str(ROOT)
    if ours.audio is not None:
        heard = path.with_name(f"{path.name}.wav")
        heard.write_bytes(wav.encoded(ours.audio, ours.sample_rate))
        result.output_sound = os.path.relpath(heard, ROOT)

    reference = golden.frames()
    if reference.shape != ours.frames.shape:
        _trace(result, golden, ours, limits)
        result.verdict = "drift"
        result.message = (
            f"the trainer rendered {_shape(reference)}, we rendered {_shape(ours.frames)}: another size or frame rule"
            + _where(result)
        )
        return
    measured = [*metrics.latents(golden.latents(), ours.latents), *metrics.pixels(reference, ours.frames)]
    told = agreements.disagreements(golden, settings, ours, pipeline.base.pipe)
    if "audio" in golden.artefacts and ours.audio is not None:
        measured.append(metrics.audio(golden.audio(), ours.audio))
    result.metrics = tolerances.apply(measured, limits)
    _trace(result, golden, ours, limits)
    outside = [m for m in result.metrics if not m.within]
    blind = [c.name for c in result.controls if not c.caught]
    if outside or told:
        result.verdict, result.disagreements = "drift", told
        beyond = ", ".join(_beyond(m) for m in outside)
        result.message = "; ".join([*told, *([beyond[0].upper() + beyond[1:]] if outside else [])])
        result.message += _where(result) if outside else ""
    elif tolerances.sensitive([c.caught for c in result.controls], result.environment, golden.environment):
        result.verdict = "match"
        if tolerances.across(result.environment, golden.environment):
            result.message = _proven(golden, blind)
    else:
        result.verdict = "error"
        result.message = f"insensitive case: it would not notice {', '.join(blind)}. Change the case, then record it."


def _proven(golden: Golden, blind: list[str]) -> str:
    """What a match proves where the golden is another architecture's."""
    recorded = architecture(golden.environment)
    hidden = f"; {', '.join(blind)} would not show beyond that" if blind else ""
    return f"within what correct renders on two architectures differ by (recorded on {recorded}), not equal{hidden}"


def _wanted(case: Case, pipeline: Any, settings: Any) -> list[tuple[str, Any, Any]]:
    found = [c for c in controls.controls(pipeline, settings) if not case.controls or c[0] in case.controls]
    if len(found) < max(1, len(case.controls)):
        raise ValueError(f"controls: {', '.join(case.controls)}: not all of these apply to {case.id}")
    return found


@contextmanager
def encodings_kept(vae: Any) -> Iterator[None]:
    """While the block runs, `vae` encodes a picture that it has encoded before by looking it up.

    The controls of an editing case all encode the same control images, a megapixel each: half of its time.
    """
    import torch

    original, kept = vae.encode, {}

    def encode(pixels: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        data = pixels.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        key = (sha256(data).digest(), pixels.shape, pixels.stride(), pixels.dtype, args, tuple(kwargs.items()))
        if key not in kept:
            kept[key] = original(pixels, *args, **kwargs)
        return kept[key]

    vae.encode = encode
    try:
        yield
    finally:
        del vae.encode


def _need(device: str) -> None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(f"{device} was asked for, but there is no CUDA device here; run without `-m gpu`")


def usable(device: str) -> bool:
    """Does the device still answer this process? Some errors of a GPU end everything that the process has there."""
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _shape(frames: np.ndarray) -> str:
    count, height, width = frames.shape[:3]
    return f"{width}x{height}" + (f", {count} frames" if count > 1 else "")


def _seen(frames: np.ndarray) -> dict[str, int]:
    """The size of what came out, as goldens tell it: HiDream renders twice what it is told, Wan rounds 8 frames to 9.
    A setting that differs when a case matches would be blamed for every drift."""
    count, height, width = frames.shape[:3]
    return {"width": width, "height": height, "num_frames": count}


def _beyond(metric: Metric) -> str:
    """ "latents differ by 16.5 % (limit 0.000796 %)", "largest pixel difference 57 of 255 (limit 1)" """
    assert metric.gate is not None
    if metric.value is None:
        return f"{metric.name} {metric.note} (limit {metric.gate:.3g})"
    if metric.name in RELATIVE:
        return f"{RELATIVE[metric.name]} {100 * metric.value:.3g} % (limit {100 * metric.gate:.3g} %)"
    if metric.name in LEVELS:
        return f"{LEVELS[metric.name]} pixel difference {metric.value:.3g} of 255 (limit {metric.gate:.3g})"
    return f"{metric.name} {metric.value:.3g} (limit {metric.gate:.3g})"


def _where(result: Result) -> str:
    return result.first_divergence.sentence if result.first_divergence else ""


def _trace(result: Result, golden: Golden, ours: Rendered, limits: dict[str, tolerances.Tolerance]) -> None:
    """Where the run leaves its golden; `result.metrics` say whether it does so in what follows the traced ones."""
    reference = Trace.load(golden.path("trace"))
    found, limit = divergence.distances(reference, ours.trace), partial(tolerances.of_stage, limits)
    result.trace = {name: error if math.isfinite(error) else None for name, error in found.items()}
    for name in (name for name, error in found.items() if name.startswith("schedule/") and not error <= limit(name)):
        result.schedule[name.removeprefix("schedule/")] = reference.numbers(name), ours.trace.numbers(name)
    facts = {**result.settings, "golden_lora_mode": golden.settings.get("lora_mode")}
    first = divergence.first(found, limit) or finished(result.metrics)
    if first is not None:
        place = divergence.place(first, reference, ours.trace, facts)
        judged = {m.name: m for m in result.metrics}
        behind = {divergence.PIXELS: "pixel_max", divergence.AUDIO: "audio_rel_l2"}.get(first)
        error = judged[behind].value if behind else result.trace[first]
        tolerance = judged[behind].gate or 0.0 if behind else limit(first)
        result.first_divergence = Divergence(boundary=first, error=error, gate=tolerance, place=place)


def finished(measured: list[Metric]) -> str | None:
    """The stage behind the traced ones at which a finished render is outside its tolerance."""
    outside = {m.name for m in measured if not m.within}
    if outside & {"pixel_max", "pixel_mean"}:
        return divergence.PIXELS
    return divergence.AUDIO if "audio_rel_l2" in outside else None


def _control(name: str, golden: Golden, ours: Rendered, limits: dict[str, tolerances.Tolerance]) -> Control:
    """A control is caught when one of the judged metrics is outside its tolerance."""
    reference = golden.frames()
    if reference.shape != ours.frames.shape or not np.isfinite(ours.latents).all():
        return Control(name=name, pixel_max=255, latents_rel_l2=1, caught=True)
    measured = {
        m.name: m
        for m in tolerances.apply(
            [*metrics.latents(golden.latents(), ours.latents), *metrics.pixel_levels(reference, ours.frames)], limits
        )
    }
    return Control(
        name=name,
        pixel_max=measured["pixel_max"].value or 0.0,
        latents_rel_l2=measured["latents_rel_l2"].value or 0.0,
        pixel_mean=measured["pixel_mean"].value,
        caught=any(not measured[m].within for m in JUDGED),
    )


def dtype_of(device: str, tag: str, case: Case, root: Path) -> str:
    """What a case is checked in, unless the user says: in the trainer's own dtype where the device has goldens for that
    (on a GPU bfloat16), else in float32, for which the CPU's serve every device."""
    if device != "cpu" and case.tier == "full":
        return "bfloat16"  # there are no others
    if device != "cpu":
        where = goldens.variant(facts(device, "bfloat16"))
        if goldens.content(tag, case.id, root, variant=where) is not None:
            return "bfloat16"
    return "float32"


def newest_tag() -> str:
    return tags.newest()


def legal_repeat(bench: Bench, case: Case, golden: Golden, mode: str | None = None) -> Rendered:
    """The case once more, with the LoRA in another mode if given: what tolerances are derived from."""
    pipeline = bench.pipeline(case, golden)
    if mode is not None and pipeline.lora is not None:
        pipeline = replace(pipeline, mode=mode)
    return bench.render(pipeline, bench.settings(case))
