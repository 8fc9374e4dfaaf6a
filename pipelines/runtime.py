"""The pipeline object: a base model, perhaps with a LoRA, that renders requests.

import lora_drift
picture = lora_drift.load("flux").with_lora("my.safetensors").sample("a photo of sks", multiplier=0.8)
picture.save("out.png")
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lora_drift.pipelines import hub, loading, output, profiles, quantize
from lora_drift.pipelines.adapter import Adapter
from lora_drift.pipelines.errors import Cancelled, NotFinite, RequestError, Unsupported
from lora_drift.pipelines.family import Family
from lora_drift.pipelines.lora import Lora, Shapes, read, trainer_of
from lora_drift.pipelines.output import Media, Output
from lora_drift.pipelines.profiles import Profile
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.registry import FAMILIES, spec_of
from lora_drift.pipelines.settings import LoraMode, Request, Settings, resolve
from lora_drift.pipelines.spec import (
    NOISE_STREAMS,
    RESIZE_ORDER,
    RESIZE_ORDERS,
    VAE_NOISES,
    ModelSpec,
    NoiseStream,
    ResizeOrder,
    VaeNoise,
    nearest,
    noise_stream_at,
)

Watch = Callable[[Any], AbstractContextManager[Any]]
StepCallback = Callable[[int, int], bool | None]
"""Called as (step done, steps in all) after each denoising step; returning False cancels the render."""


class Base:
    """One loaded base model. Loads at first use, once; every `Pipeline` made from it shares it."""

    def __init__(
        self,
        spec: ModelSpec,
        repo: str,
        device: str,
        dtype: str,
        noise_stream: NoiseStream,
        resize_order: ResizeOrder,
        quantization: Quantization,
        *,
        offload: bool = False,
        profile: Profile = "reference",
        vae_noise: VaeNoise = "device",
        as_intended: bool = False,
    ) -> None:
        self.spec, self.repo, self.device, self.dtype, self.offload = spec, repo, device, dtype, offload
        self.noise_stream, self.resize_order, self.as_intended = noise_stream, resize_order, as_intended
        self.quantization, self.profile, self.vae_noise = quantization, profile, vae_noise
        self.family: Family[Any] = FAMILIES[spec.family]

    @cached_property
    def shapes(self) -> Shapes:
        """Layout of what a LoRA can change, without the weights."""
        hub.check_all(self.spec, self.repo)
        return self.family.denoiser_shapes(self.spec, self.repo)

    @cached_property
    def recovery(self) -> Lora | None:
        """The accuracy-recovery adapter of a quantised base."""
        return quantize.recovery_adapter(self.quantization, self.spec, self.shapes, self.family.lora_targets)

    @cached_property
    def pipe(self) -> Any:
        import torch

        _ = self.shapes, self.recovery  # a wrong `base` or adapter shows here, before gigabytes are read
        try:
            pipe = self.family.load(self.spec, self.repo, getattr(torch, self.dtype))
        except OSError as error:
            raise RequestError(
                f"{self.repo} could not be loaded: {error} (is it downloaded, is the network there, does it need a "
                "login with `hf auth login`?)"
            ) from error
        quantize.apply(pipe, self.spec, self.quantization, self.recovery)
        if self.profile != "reference":
            profiles.compile_denoisers(pipe, self.spec, self.profile)
        if not self.offload:
            return pipe.to(self.device)
        pipe.enable_model_cpu_offload(device=self.device)
        return pipe

    @cached_property
    def adapter(self) -> Adapter:
        parts = {name: getattr(self.pipe, name) for name in self.spec.adapted}
        denoisers = [parts[name] for name in self.spec.denoisers.values()]
        return Adapter(parts, partial(profiles.weights_changed, denoisers, self.profile))


@dataclass(frozen=True)
class Pipeline:
    """A base model with at most one LoRA. Immutable: `with_lora` returns another view of the same base."""

    base: Base
    lora: Lora | None = None
    mode: LoraMode = "merged"
    toolkit: str = ""
    """The trainer version that is reproduced; "": that of `base`, whose rules it has in any case."""
    base_at: Callable[[str], Base] | None = None
    """A base with the rules of another trainer version; None: the version was said, and stays."""

    def __post_init__(self) -> None:
        if self.lora is not None and self.base.profile != "reference":
            profiles.check_lora(self.lora, self.mode, self.base.profile)

    @property
    def spec(self) -> ModelSpec:
        return self.base.spec

    @property
    def usual_mode(self) -> LoraMode:
        """How the trainer applies a LoRA to this base."""
        return "live" if self.base.quantization.quantize else self.spec.lora_mode

    @property
    def applied_mode(self) -> LoraMode | None:
        """How the LoRA is applied, whatever was asked for: a DoRA is never merged. None without one."""
        if self.lora is None:
            return None
        return "live" if self.lora.coverage.kinds == ("dora",) else self.mode

    def with_lora(
        self,
        path: str | Path | None = None,
        *,
        high: str | Path | None = None,
        low: str | Path | None = None,
        mode: LoraMode | None = None,
        allow_partial: bool = False,
        strengths: Mapping[str, float] | None = None,
    ) -> Pipeline:
        """The same model with a LoRA, checked against the model's layout before any weights load; and as the trainer
        version renders that made it, unless `load` was told one.

        Args:
            path: the file; for a model with two experts, a file that holds both.
            high, low: the files of a two-expert model; one alone leaves the other expert as it is.
            mode: "merged" adds the change to the weights, "live" adds it to each layer's output; None takes what the
                trainer does for this model (live where the base is quantised).
            allow_partial: accept a file of which only some keys belong to the model.
            strengths: "high" and "low" -> what the multiplier is multiplied with for that expert.

        Raises:
            LoraError: a file is damaged or does not (wholly) belong to this model.
        """
        files = {name: Path(p) for name, p in (("", path), ("high", high), ("low", low)) if p is not None}
        if not files:
            raise RequestError("with_lora() needs a file: path, or high and low")
        if mode == "merged" and self.base.quantization.quantize:
            raise RequestError("mode merged: a LoRA cannot be merged into a quantised base; leave it out, or take live")
        said = next(filter(None, map(trainer_of, files.values())), "")
        toolkit = nearest(said) if self.base_at else self.toolkit
        base = self.base_at(toolkit) if self.base_at else self.base
        lora = read(files, base.spec, base.shapes, base.family.lora_targets, allow_partial=allow_partial)
        lora = replace(lora, strengths={base.spec.denoisers[name]: s for name, s in (strengths or {}).items()})
        return replace(self, base=base, lora=lora, toolkit=toolkit, mode=mode or self.usual_mode)

    def sample(self, prompt: str, *, on_step: StepCallback | None = None, **fields: Any) -> Output:
        """Render one request; `fields` are those of `lora_drift.pipelines.settings.Request`.

        Raises:
            RequestError: a field is wrong (before weights load).
            Cancelled: `on_step` returned False.
            NotFinite: what came out is no picture.
        """
        try:
            request = Request(prompt, **fields)
        except TypeError as error:
            known = ", ".join(Request.__dataclass_fields__)
            raise RequestError(f"sample(): {error}; the fields are: {known}") from error
        return self.render(resolve(self.spec, request), on_step=on_step)

    def render(self, settings: Settings, *, on_step: StepCallback | None = None, watch: Watch = nullcontext) -> Output:
        """Render resolved settings. `watch(pipe)` is entered around the Diffusers call (the harness traces with it).

        Where the device's memory is too small for it and for the original weights below a LoRA, these leave, and it
        begins again.
        """
        import torch

        try:
            return self._render(settings, on_step, watch)
        except torch.OutOfMemoryError:
            if not self.base.adapter.make_room():
                raise
        torch.cuda.empty_cache()
        return self._render(settings, on_step, watch)

    def _render(self, settings: Settings, on_step: StepCallback | None, watch: Watch) -> Output:
        import numpy as np
        import torch

        from lora_drift.pipelines import finite, noise, resizing

        self.base.family.check(self.spec, self.base.repo, settings)  # before weights load
        pipe = self.base.pipe
        self.base.adapter.set(self.lora, settings.multiplier, self.mode)
        pipe.scheduler = loading.scheduler(self.spec.scheduler)

        def after_step(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None and on_step(step + 1, settings.steps) is False:
                raise Cancelled(f"cancelled after step {step + 1} of {settings.steps}")
            return kwargs

        generator = noise.seeded(settings.seed, self.base.noise_stream, self.base.vae_noise)
        parts = self.base.adapter.parts
        denoisers = {name: parts[name] for name in self.spec.denoisers.values()}
        with (
            torch.no_grad(), noise.diffusers_draws_ours(), resizing.in_order(self.base.resize_order),
            finite.watched(pipe.components, denoisers) as stages, np.errstate(invalid="ignore"), watch(pipe),
        ):  # fmt: skip
            media = self.base.family.render(
                pipe, self.spec, settings, generator=generator, callback_on_step_end=after_step
            )
        output = Output(media, settings, self._receipt(settings, media))
        if stages.first:
            said = finite.words(stages.first, parts, self.lora, settings.multiplier, self.base.dtype)
            raise NotFinite(said, output)
        return output

    def _receipt(self, settings: Settings, media: Media) -> dict[str, Any]:
        scheduler = self.base.pipe.scheduler
        sigmas = getattr(scheduler, "sigmas", None)
        schedule = (scheduler.timesteps if sigmas is None else sigmas).detach().float().cpu().numpy()
        lora = self.lora
        return {
            "model": self.spec.id,
            "reproduces": f"ostris/ai-toolkit {self.toolkit or self.spec.toolkit}",
            **({"as_intended": True} if self.base.as_intended else {}),
            "base": {repo: loading.revision(repo) for repo in (self.base.repo, *self.spec.components.values())},
            "lora": None
            if lora is None
            else {
                "files": {path.name: digest for path, digest in zip(lora.paths, lora.sha256, strict=True)},
                "experts": {path.name: expert for path, expert in zip(lora.paths, lora.experts, strict=True)},
                "mode": self.applied_mode,
                **({"strengths": dict(lora.strengths)} if lora.strengths else {}),
                **lora.coverage.as_dict(),
            },
            "settings": settings.as_dict(),
            "control_sha256": [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in settings.control],
            **(
                {"shown_sha256": [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in settings.shown]}
                if settings.shown
                else {}
            ),
            "scheduler": {"class": self.spec.scheduler.cls, **self.spec.scheduler.config},
            "sigmas_sha256": hashlib.sha256(schedule.tobytes()).hexdigest(),
            "pixels_sha256": output.pixels_sha256(media.frames),
            **({"audio_sha256": output.audio_sha256(media)} if media.audio is not None else {}),
            **(
                {"quantization": quantize.report(self.base.pipe, self.spec, self.base.quantization, self.base.recovery)}
                if self.base.quantization != Quantization()
                else {}
            ),
            "device": self.base.device,
            "dtype": self.base.dtype,
            "noise_stream": self.base.noise_stream,
            **({"resize_order": self.base.resize_order, "vae_noise": self.base.vae_noise} if settings.control else {}),
            **({"profile": self.base.profile} if self.base.profile != "reference" else {}),
            "versions": dict(_versions()),
        }


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "diffusers", "transformers", "safetensors")}


def load(
    model: str,
    *,
    base: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    toolkit: str | None = None,
    noise_stream: str | None = None,
    resize_order: str | None = None,
    vae_noise: str = "device",
    quantization: Quantization | None = None,
    offload: bool = False,
    profile: str = "reference",
    as_intended: bool = False,
) -> Pipeline:
    """A pipeline for `model`. Weights load at the first render, so that mistakes surface before.

    Args:
        toolkit: version of the trainer whose samples to reproduce, any from the first of
            `lora_drift.pipelines.spec.TOOLKITS` to `NEWEST` there; None: the version that made the LoRA, or the nearest
            of these, and without a LoRA the last of `TOOLKITS` that has the model, or `NEWEST`.
        base: hub id or folder of another base model in the same layout.
        dtype: "float32" or "bfloat16"; None takes float32 on the CPU and bfloat16 elsewhere, as the trainer does.
        noise_stream: which torch's noise a seed gives in bfloat16, a member of
            `spec.NOISE_STREAMS`; None takes that of the torch that the trainer's README installs. In
            float32 the noise is the same on every torch.
        resize_order: which Pillow's way to resize control images, a member of
            `lora_drift.pipelines.spec.RESIZE_ORDERS`; None takes the newest.
        vae_noise: whose generator samples the posterior of a control image, where the trainer's code names none
            (Wan 2.2 image to video, OmniGen2): "device" as the trainer, or "cpu" as a trainer on a CPU.
        quantization: how the trainer's job quantised the base model; None: it did not.
        offload: keep each component in main memory, except while it computes.
        profile: "reference"; "compiled", faster and not exact; or "fast", which also multiplies in 8 bits where it
            pays (`lora_drift.pipelines.profiles`).
        as_intended: render without the trainer's mistakes (`ModelSpec.as_intended`); no sample looks like that.

    Raises:
        RequestError: unknown model, dtype, noise stream, resize order, trainer version or profile, or a profile that is
            not for this.
        Unsupported: a package that this model needs is missing or too old.
    """
    if noise_stream not in (None, *NOISE_STREAMS):
        raise RequestError(f"noise_stream {noise_stream!r}: use {' or '.join(NOISE_STREAMS)}")
    if resize_order not in (None, *RESIZE_ORDERS):
        raise RequestError(f"resize_order {resize_order!r}: use {' or '.join(RESIZE_ORDERS)}")
    if vae_noise not in VAE_NOISES:
        raise RequestError(f"vae_noise {vae_noise!r}: use {' or '.join(VAE_NOISES)}")

    bases: dict[tuple[str, str], Base] = {}

    def base_at(version: str) -> Base:
        spec = spec_of(model, version)
        spec = spec.intended() if as_intended else spec
        stream, order = noise_stream or noise_stream_at(version), resize_order or RESIZE_ORDER
        rules = repr(replace(spec, toolkit="")), stream
        if rules in bases:
            return bases[rules]
        for requirement in spec.requires:
            _check_installed(spec, requirement)
        chosen_dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        if chosen_dtype not in ("float32", "bfloat16"):
            raise RequestError(f"dtype {chosen_dtype!r}: use float32 or bfloat16 (the trainer has no other)")
        wanted = quantization or Quantization()
        wanted.check(spec)
        chosen = profiles.choose(profile, spec, wanted, device)
        if chosen != "reference":
            _check_installed(spec, profiles.requirement(chosen, spec, device))
        bases[rules] = Base(
            spec, base or spec.base, device, chosen_dtype, stream, order, wanted,
            offload=offload, profile=chosen, vae_noise=vae_noise, as_intended=as_intended,
        )  # fmt: skip
        return bases[rules]

    return Pipeline(base_at(toolkit or spec_of(model).toolkit), base_at=None if toolkit else base_at)


def _check_installed(spec: ModelSpec, requirement: str) -> None:
    from packaging.requirements import Requirement
    from packaging.version import Version

    wanted = Requirement(requirement)
    try:
        installed = version(wanted.name)
    except PackageNotFoundError:
        installed = ""
    # 0.38.0.dev0 counts as 0.38: the trainer pins snapshots of Diffusers between releases.
    if not installed or not wanted.specifier.contains(Version(installed).base_version):
        here = f"{installed} is installed" if installed else "it is not installed"
        raise Unsupported(f"{spec.id} needs {requirement}, {here}: pip install '{requirement}'")
