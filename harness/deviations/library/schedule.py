"""Sigmas and timesteps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lora_drift.harness.check.divergence import SCHEDULE
from lora_drift.harness.deviations.library.base import (
    Subject,
    config,
    ddpm,
    everywhere,
    families,
    flow_euler,
    hooked,
    laid_out,
    patched,
    scheduler_made,
    unipc,
    variation,
)


def _dynamic(s: Subject) -> bool:
    return bool(config(s, "use_dynamic_shifting"))


def _flow_shift(s: Subject) -> bool:
    # hidream sets its own while it renders
    return s.spec.id != "hidream" and config(s, "flow_shift") is not None


# ------------------------------------------------------------------------------------------------------------- shift


@variation(
    "schedule",
    shows=SCHEDULE,
    source="trainer toolkit/samplers/custom_flowmatch_sampler.py: from_config loses its arguments (Lumina 2 runs so)",
    applies=lambda s: (flow_euler(s) and not _dynamic(s) and config(s, "shift") != 1) or _flow_shift(s),
)
def shift_dropped(s: Subject) -> Iterator[Subject]:
    """The sigmas are not shifted."""
    off: dict[str, Any] = {"flow_shift" if _flow_shift(s) else "shift": 1.0}
    yield s.with_scheduler(**off)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="Wan-AI repositories save flow_shift 5 (3 in the trainer), Lumina 2 and Z-Image base 6 (1 and 3)",
    applies=lambda s: s.spec.family in ("zimage", "lumina2") or (s.spec.family == "wan" and _flow_shift(s)),
)
def shift_of_the_repository(s: Subject) -> Iterator[Subject]:
    """The shift is the one that the model's own scheduler config says, or the other of its family."""
    if s.spec.family == "wan":
        yield s.with_scheduler(flow_shift=8.0 - config(s, "flow_shift"))
    else:
        yield s.with_scheduler(shift=6.0)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="Diffusers without mu: a scheduler config saved without use_dynamic_shifting (FLUX schnell's, for dev)",
    applies=_dynamic,
)
def dynamic_shift_off(s: Subject) -> Iterator[Subject]:
    """The static shift of the config is used, whatever the size of the picture."""
    yield s.with_scheduler(use_dynamic_shifting=False)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="ComfyUI's ModelSamplingFlux with its default size 1024x1024, whatever the latent",
    applies=lambda s: _dynamic(s) and s.spec.family != "ltx2",
)
def shift_of_a_megapixel(s: Subject) -> Iterator[Subject]:
    """The dynamic shift is that of 1024x1024 at every size."""
    tokens = (1024 // 16) ** 2
    base, most = config(s, "base_shift"), config(s, "max_shift")
    fewest, all_of_them = config(s, "base_image_seq_len"), config(s, "max_image_seq_len")
    mu = base + (most - base) * (tokens - fewest) / (all_of_them - fewest)
    yield s.with_scheduler(base_shift=mu, max_shift=mu)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="pipelines/families/ltx2.py: the pinned Diffusers counts no tokens, newer ones do",
    applies=families("ltx2"),
)
def shift_by_the_number_of_tokens(s: Subject) -> Iterator[Subject]:
    """LTX-2's shift grows with the size of the video."""
    yield s.with_scheduler(base_shift=0.95)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="Diffusers FlowMatchEulerDiscreteScheduler time_shift_type; ComfyUI shifts Qwen-Image linearly",
    applies=_dynamic,
)
def shift_linear_in_mu(s: Subject) -> Iterator[Subject]:
    """The sigmas are shifted by mu itself, not by its exponential."""
    yield s.with_scheduler(time_shift_type="linear")


@variation(
    "schedule",
    shows=SCHEDULE,
    source="Qwen-Image's and LTX's shift_terminal is ignored by k-diffusion samplers (ComfyUI's simple scheduler)",
    applies=lambda s: bool(config(s, "shift_terminal")),
)
def terminal_shift_missing(s: Subject) -> Iterator[Subject]:
    """The sigmas are not stretched to end at the terminal value."""
    yield s.with_scheduler(shift_terminal=None)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="stock Diffusers' HiDreamImagePipeline: one shift; trainer hidream/src/schedulers/fm_solvers_unipc.py: two",
    applies=families("hidream"),
)
def shifted_once(s: Subject) -> Iterator[Subject]:
    """HiDream's sigmas are shifted once."""
    yield s.with_scheduler("ours.UniPCWithSigmasOnCPU")


@variation(
    "schedule",
    shows=SCHEDULE,
    source="Diffusers compute_empirical_mu (pipeline_flux2.py); trainer flux2/src/sampling.py get_schedule",
    applies=families("flux2"),
)
def mu_of_stock_diffusers(s: Subject) -> Iterator[Subject]:
    """FLUX.2's mu is fitted to the number of steps as well as to the size."""
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    from lora_drift.pipelines.families import flux2

    def schedule(_spec: Any, steps: int, tokens: int) -> list[float]:
        shift = np.exp(compute_empirical_mu(tokens, steps))
        even = np.linspace(1.0, 1 / steps, steps)
        return (shift / (shift + (1 / even - 1))).tolist()

    with patched(flux2, "schedule", schedule):
        yield s


@variation(
    "schedule",
    shows=SCHEDULE,
    source="Diffusers' Ideogram4Pipeline: std 1.5; trainer ideogram4/src/pipeline.py, as ComfyUI: 1.75",
    applies=families("ideogram4"),
)
def spread_of_stock_diffusers(s: Subject) -> Iterator[Subject]:
    """Ideogram 4's sigmas are spread less."""
    yield s.with_spec(schedule_std=1.5)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="OmniGen2's own README counts tokens after patching; trainer pipeline_omnigen2.py line 630 before",
    applies=families("omnigen2"),
)
def shift_by_patches(s: Subject) -> Iterator[Subject]:
    """OmniGen2's shift counts patches of 2x2 latent pixels."""

    def set_timesteps(original: Any, _scheduler: Any, *args: Any, num_tokens: int, **kwargs: Any) -> None:
        original(*args, num_tokens=num_tokens // 4, **kwargs)

    with scheduler_made(set_timesteps=set_timesteps):
        yield s


# ------------------------------------------------------------------------------------------------------------ layout


@variation(
    "schedule",
    shows=SCHEDULE,
    source="Diffusers 0.42 ZImagePipeline: linspace(1, 1/n, n); the pinned commit: 1 to 0 (pipelines/schedulers.py)",
    applies=lambda s: s.spec.scheduler.name == "FlowMatchEulerToZero",
)
def sigmas_of_newer_diffusers(s: Subject) -> Iterator[Subject]:
    """Z-Image's n steps are n real ones: the sigmas end at 1/n."""
    yield s.with_scheduler("diffusers.FlowMatchEulerDiscreteScheduler")


@variation(
    "schedule",
    shows=SCHEDULE,
    source="ZImagePipeline of the Diffusers that trainers before 0.10.24 pin lays steps out from 1 to 0",
    applies=lambda s: s.spec.family == "zimage" and s.spec.scheduler.name != "FlowMatchEulerToZero",
)
def last_step_changes_nothing(s: Subject) -> Iterator[Subject]:
    """Z-Image's n steps are n - 1 real ones and one that changes nothing."""
    yield s.with_scheduler("ours.FlowMatchEulerToZero")


@variation(
    "schedule",
    shows=SCHEDULE,
    source="Diffusers 8600b4c1 (trainer 0.7.19 to 0.7.24) against 072d15ee: UniPC's flow sigmas start at 0.999",
    applies=lambda s: s.spec.family == "wan",
)
def sigmas_of_older_diffusers(s: Subject) -> Iterator[Subject]:
    """UniPC's flow sigmas are laid out as before they were corrected."""

    def set_timesteps(original: Any, _scheduler: Any, steps: int, device: Any = None, **_options: Any) -> None:
        original(device=device, sigmas=np.linspace(1 - 1 / 1000, 0, steps + 1)[:-1])

    with scheduler_made(set_timesteps=set_timesteps):
        yield s


@variation(
    "schedule",
    shows=SCHEDULE,
    source="runcomfy ai-toolkit-inference sd15.py: steps_offset 0 where the trainer's pipeline makes it 1",
    applies=ddpm,
)
def steps_offset_of_the_config(s: Subject) -> Iterator[Subject]:
    """Stable Diffusion's timesteps are one earlier, or for SDXL one later."""
    yield s.with_scheduler(steps_offset=1 - config(s, "steps_offset"))


@variation(
    "schedule",
    shows=SCHEDULE,
    source="off-by-one of samplers that index sigmas (k-diffusion's t_to_sigma); Diffusers .ai/references/pitfalls.md",
    applies=lambda s: not ddpm(s),
)
def timesteps_offset_by_one(s: Subject) -> Iterator[Subject]:
    """The denoiser is told timesteps that are one (of a thousand) too late."""

    def change(scheduler: Any) -> None:
        unit = 1 if scheduler.timesteps.max() > 1 else 0.001
        scheduler.timesteps = scheduler.timesteps + unit

    with laid_out(change):
        yield s


@variation(
    "schedule",
    shows=SCHEDULE,
    source="discrete samplers round flow timesteps to integers; Diffusers .ai/references/pitfalls.md: timestep dtype",
    applies=lambda s: not ddpm(s) and not unipc(s) and s.spec.family not in ("omnigen2", "ideogram4"),
)
def timesteps_truncated_to_integers(s: Subject) -> Iterator[Subject]:
    """The denoiser is told whole numbers of a thousand."""

    def change(scheduler: Any) -> None:
        scheduler.timesteps = scheduler.timesteps.floor()

    with laid_out(change):
        yield s


@variation(
    "schedule",
    shows=SCHEDULE,
    source="Diffusers .ai/references/pitfalls.md: a timestep cast to the model's bfloat16 (ostris/ai-toolkit flux2)",
    applies=everywhere,
)
def timestep_in_bfloat16(s: Subject) -> Iterator[Subject]:
    """The timestep is rounded to bfloat16 before it is embedded."""

    def change(inputs: dict[str, Any]) -> dict[str, Any]:
        for name in {"timestep", "timesteps", "t"} & inputs.keys():
            if isinstance(inputs[name], torch.Tensor):
                inputs[name] = inputs[name].float().to(torch.bfloat16).to(torch.float32)
        return inputs

    with hooked(s.denoisers[0], change), hooked(s.denoisers[-1], change):
        yield s


for _kind in ("karras", "exponential", "beta"):

    def _sigmas(s: Subject, kind: str = _kind) -> Iterator[Subject]:
        spaced: dict[str, Any] = {f"use_{kind}_sigmas": True}
        yield s.with_scheduler(**spaced)

    _sigmas.__name__ = f"{_kind}_sigmas"
    _sigmas.__doc__ = f"The steps are spaced by the {_kind} rule between the same ends."
    variation(
        "schedule",
        shows=SCHEDULE,
        source="ComfyUI's and A1111's scheduler menus; Diffusers FlowMatchEulerDiscreteScheduler use_*_sigmas",
        # Not where the last sigma is 0: the logarithm of the exponential rule has no place for it.
        applies=lambda s, kind=_kind: (  # type: ignore[misc]
            flow_euler(s) and s.settings.steps > 2 and (kind, s.spec.family) != ("exponential", "zimage")
        ),
    )(_sigmas)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="Diffusers timestep_spacing; ComfyUI's and A1111's uniform schedules are linspace",
    applies=ddpm,
)
def trailing_timesteps(s: Subject) -> Iterator[Subject]:
    """Stable Diffusion's timesteps are counted from the noisy end."""
    yield s.with_scheduler(timestep_spacing="trailing")
