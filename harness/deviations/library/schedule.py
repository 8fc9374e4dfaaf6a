"""Sigmas, timesteps, and the scheduler that steps along them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from lora_drift.harness.check.divergence import DENOISER, NOISE, SCHEDULE, STEP
from lora_drift.harness.deviations.library.base import (
    Subject,
    config,
    everywhere,
    families,
    flow_euler,
    hooked,
    laid_out,
    patched,
    scheduler_made,
    variation,
)
from lora_drift.pipelines.spec import Scheduler


def _dynamic(s: Subject) -> bool:
    return bool(config(s, "use_dynamic_shifting"))


def _flow_shift(s: Subject) -> bool:
    # hidream sets its own while it renders
    return s.spec.id != "hidream" and config(s, "flow_shift") is not None


def _ddpm(s: Subject) -> bool:
    return s.spec.scheduler.name == "DDPMScheduler"


def _unipc(s: Subject) -> bool:
    return config(s, "solver_order") is not None


def _several_steps(s: Subject) -> bool:
    return s.settings.steps > 2


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
    applies=_ddpm,
)
def steps_offset_of_the_config(s: Subject) -> Iterator[Subject]:
    """Stable Diffusion's timesteps are one earlier, or for SDXL one later."""
    yield s.with_scheduler(steps_offset=1 - config(s, "steps_offset"))


@variation(
    "schedule",
    shows=SCHEDULE,
    source="off-by-one of samplers that index sigmas (k-diffusion's t_to_sigma); Diffusers .ai/references/pitfalls.md",
    applies=lambda s: not _ddpm(s),
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
    applies=lambda s: not _ddpm(s) and not _unipc(s) and s.spec.family not in ("omnigen2", "ideogram4"),
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
    applies=_ddpm,
)
def trailing_timesteps(s: Subject) -> Iterator[Subject]:
    """Stable Diffusion's timesteps are counted from the noisy end."""
    yield s.with_scheduler(timestep_spacing="trailing")


# ----------------------------------------------------------------------------------------------------------- solvers


def _sd_scheduler(s: Subject, cls: str, **options: Any) -> Subject:
    shared = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "steps_offset",
              "timestep_spacing")  # fmt: skip
    return s.with_spec(scheduler=Scheduler(f"diffusers.{cls}", {name: config(s, name) for name in shared} | options))


@variation(
    "schedule",
    shows=NOISE,
    source="the default sampler of nearly every interface for Stable Diffusion is Euler; trainer: ddpm",
    applies=_ddpm,
)
def euler_instead_of_ddpm(s: Subject) -> Iterator[Subject]:
    """Stable Diffusion is sampled with Euler, which scales the noise by its first sigma."""
    yield _sd_scheduler(s, "EulerDiscreteScheduler")


@variation(
    "schedule",
    shows=STEP,
    source="Diffusers' Stable Diffusion pipelines default to PNDM/DDIM; the trainer's DDPM draws noise in each step",
    applies=_ddpm,
)
def ddim_instead_of_ddpm(s: Subject) -> Iterator[Subject]:
    """Stable Diffusion is sampled without fresh noise."""
    yield _sd_scheduler(s, "DDIMScheduler", clip_sample=False, set_alpha_to_one=False)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="DPM++ 2M is what SDXL's model card and ComfyUI's examples recommend",
    applies=_ddpm,
)
def dpm_instead_of_ddpm(s: Subject) -> Iterator[Subject]:
    """Stable Diffusion is sampled with DPM++ 2M."""
    yield _sd_scheduler(s, "DPMSolverMultistepScheduler")


@variation(
    "schedule",
    shows=STEP,
    source="A1111's v-prediction flag set for an epsilon model; trainer is_v_pred",
    applies=_ddpm,
)
def epsilon_read_as_velocity(s: Subject) -> Iterator[Subject]:
    """The prediction is taken for a velocity."""
    yield s.with_scheduler(prediction_type="v_prediction")


@variation(
    "schedule",
    shows=STEP,
    source="Diffusers rescale_betas_zero_snr, which A1111 and ComfyUI (ModelSamplingDiscrete zsnr) offer",
    applies=_ddpm,
)
def zero_terminal_snr(s: Subject) -> Iterator[Subject]:
    """The noise schedule is rescaled to end in pure noise."""
    yield s.with_scheduler(rescale_betas_zero_snr=True)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="trainers before 0.9.3, Wan's own code and stock Diffusers sample Wan with UniPC",
    applies=lambda s: s.spec.family == "wan" and not _unipc(s),
)
def unipc_instead_of_euler(s: Subject) -> Iterator[Subject]:
    """Euler is replaced by UniPC with the same shift."""
    from lora_drift.pipelines.families.wan import UNIPC_CONFIG

    settings = {**UNIPC_CONFIG, "flow_shift": config(s, "shift")}
    yield s.with_spec(scheduler=Scheduler("ours.UniPCWithSigmasOnCPU", settings))


@variation(
    "schedule",
    shows=SCHEDULE,
    source="trainer 0.9.3 samples Wan with flow-matching Euler, older ones with UniPC; so do ComfyUI's Wan workflows",
    applies=lambda s: _unipc(s) and s.spec.id != "hidream",  # whose render sets UniPC's own second shift
)
def euler_instead_of_unipc(s: Subject) -> Iterator[Subject]:
    """UniPC is replaced by Euler with the same shift."""
    settings = {"num_train_timesteps": 1000, "shift": config(s, "flow_shift")}
    yield s.with_spec(scheduler=Scheduler("diffusers.FlowMatchEulerDiscreteScheduler", settings))


@variation(
    "schedule",
    shows=STEP,
    source="UniPC's order is a setting of ComfyUI and SD.Next; Wan's own code uses 2",
    applies=lambda s: _unipc(s) and _several_steps(s),
)
def unipc_of_order_one(s: Subject) -> Iterator[Subject]:
    """UniPC looks back one step less."""
    yield s.with_scheduler(solver_order=1)


@variation(
    "schedule",
    shows=STEP,
    source="UniPC's bh1 is the default of unipc in SD.Next and of ComfyUI's uni_pc; Wan's is bh2",
    applies=lambda s: _unipc(s) and _several_steps(s),
)
def unipc_variant_bh1(s: Subject) -> Iterator[Subject]:
    """UniPC solves with the other of its two functions."""
    yield s.with_scheduler(solver_type="bh1")


class SingleNumbersRounded(TorchFunctionMode):
    """A number on a GPU is rounded to bfloat16 when it meets a tensor of that dtype."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in args if isinstance(value, torch.Tensor) and value.is_floating_point()]
        if any(value.dim() for value in tensors):
            single = [value for value in tensors if value.dim() == 0]
            args = [value.bfloat16().to(value.dtype) if any(value is x for x in single) else value for value in args]
        return func(*args, **(kwargs or {}))


@variation(
    "schedule",
    shows=STEP,
    source="Diffusers from 0.38 on (#13489) moves UniPC's sigmas to the GPU, where latents in bfloat16 round them",
    applies=_unipc,
)
def unipc_numbers_in_bfloat16(s: Subject) -> Iterator[Subject]:
    """UniPC rounds to bfloat16 what it multiplies latents with."""

    def update(original: Any, _scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        with SingleNumbersRounded():
            return original(*args, **kwargs)

    with scheduler_made(multistep_uni_p_bh_update=update, multistep_uni_c_bh_update=update):
        yield s


@variation(
    "schedule",
    shows=STEP,
    source="TeaCache, first-block cache and their like (ComfyUI, Diffusers hooks): a step reuses what was computed",
    applies=lambda s: flow_euler(s) and _several_steps(s),
)
def guided_prediction_reused(s: Subject) -> Iterator[Subject]:
    """The second step goes along the mean of its prediction and the first's (Adams-Bashforth's, turned round)."""
    kept: dict[torch.Size, list[torch.Tensor]] = {}  # LTX-2 has a second scheduler for the sound

    def step(original: Any, _scheduler: Any, model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        before = kept.setdefault(model_output.shape, [])
        used = (model_output + before[0]) / 2 if len(before) == 1 else model_output
        before.append(model_output)
        return original(used, *args, **kwargs)

    with scheduler_made(step=step):
        yield s


# ----------------------------------------------------------------------------------------------------------- experts


def _experts(s: Subject) -> bool:
    return len(s.spec.denoisers) > 1


@variation(
    "schedule",
    shows=DENOISER,
    source="Wan 2.2 I2V's released boundary_ratio is 0.9; the trainer samples with 0.875 (wan22_14b_model.py line 390)",
    applies=lambda s: _experts(s) and _changes_over_otherwise(s, 0.9),
)
def boundary_of_the_released_model(s: Subject) -> Iterator[Subject]:
    """The experts change over at 0.9."""
    from lora_drift.harness.deviations.library.base import configured

    with configured(s.pipe, boundary_ratio=0.9):
        yield s


def _changes_over_otherwise(s: Subject, boundary: float) -> bool:
    """Does any timestep lie between the two boundaries?"""
    from lora_drift.pipelines import loading

    scheduler = loading.scheduler(s.spec.scheduler)
    scheduler.set_timesteps(s.settings.steps)
    low, high = sorted((boundary * 1000, s.pipe.config.boundary_ratio * 1000))
    return bool(((scheduler.timesteps >= low) & (scheduler.timesteps < high)).any())


@variation(
    "schedule",
    shows=DENOISER,
    source="ostris/ai-toolkit issue 349: which of high and low noise goes where",
    applies=_experts,
)
def experts_swapped(s: Subject) -> Iterator[Subject]:
    """The expert for little noise begins."""
    first, second = s.pipe.transformer, s.pipe.transformer_2
    with patched(s.pipe, "transformer", second), patched(s.pipe, "transformer_2", first):
        yield s


@variation(
    "schedule",
    shows=DENOISER,
    source="ostris/ai-toolkit issue 349: workflows with one sampler for Wan 2.2 never load the second expert",
    applies=lambda s: _experts(s) and _second_expert_runs(s),
)
def one_expert_for_all_steps(s: Subject) -> Iterator[Subject]:
    """The expert for much noise makes every step."""
    with patched(s.pipe, "transformer_2", s.pipe.transformer):
        yield s


def _second_expert_runs(s: Subject) -> bool:
    from lora_drift.pipelines import loading

    scheduler = loading.scheduler(s.spec.scheduler)
    scheduler.set_timesteps(s.settings.steps)
    return bool((scheduler.timesteps < s.pipe.config.boundary_ratio * 1000).any())
