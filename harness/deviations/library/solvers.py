"""Which solver steps along the sigmas, and which expert predicts."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lora_drift.harness.check.divergence import DENOISER, NOISE, SCHEDULE, STEP
from lora_drift.harness.deviations.library.base import (
    Subject,
    config,
    ddpm,
    flow_euler,
    patched,
    scheduler_made,
    unipc,
    variation,
)
from lora_drift.pipelines.spec import Scheduler


def _several_steps(s: Subject) -> bool:
    return s.settings.steps > 2


# ----------------------------------------------------------------------------------------------------------- solvers


def _sd_scheduler(s: Subject, cls: str, **options: Any) -> Subject:
    shared = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "steps_offset",
              "timestep_spacing")  # fmt: skip
    return s.with_spec(scheduler=Scheduler(f"diffusers.{cls}", {name: config(s, name) for name in shared} | options))


@variation(
    "schedule",
    shows=NOISE,
    source="the default sampler of nearly every interface for Stable Diffusion is Euler; trainer: ddpm",
    applies=ddpm,
)
def euler_instead_of_ddpm(s: Subject) -> Iterator[Subject]:
    """Stable Diffusion is sampled with Euler, which scales the noise by its first sigma."""
    yield _sd_scheduler(s, "EulerDiscreteScheduler")


@variation(
    "schedule",
    shows=STEP,
    source="Diffusers' Stable Diffusion pipelines default to PNDM/DDIM; the trainer's DDPM draws noise in each step",
    applies=ddpm,
)
def ddim_instead_of_ddpm(s: Subject) -> Iterator[Subject]:
    """Stable Diffusion is sampled without fresh noise."""
    yield _sd_scheduler(s, "DDIMScheduler", clip_sample=False, set_alpha_to_one=False)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="DPM++ 2M is what SDXL's model card and ComfyUI's examples recommend",
    applies=ddpm,
)
def dpm_instead_of_ddpm(s: Subject) -> Iterator[Subject]:
    """Stable Diffusion is sampled with DPM++ 2M."""
    yield _sd_scheduler(s, "DPMSolverMultistepScheduler")


@variation(
    "schedule",
    shows=STEP,
    source="A1111's v-prediction flag set for an epsilon model; trainer is_v_pred",
    applies=ddpm,
)
def epsilon_read_as_velocity(s: Subject) -> Iterator[Subject]:
    """The prediction is taken for a velocity."""
    yield s.with_scheduler(prediction_type="v_prediction")


@variation(
    "schedule",
    shows=STEP,
    source="Diffusers rescale_betas_zero_snr, which A1111 and ComfyUI (ModelSamplingDiscrete zsnr) offer",
    applies=ddpm,
)
def zero_terminal_snr(s: Subject) -> Iterator[Subject]:
    """The noise schedule is rescaled to end in pure noise."""
    yield s.with_scheduler(rescale_betas_zero_snr=True)


@variation(
    "schedule",
    shows=SCHEDULE,
    source="trainers before 0.9.3, Wan's own code and stock Diffusers sample Wan with UniPC",
    applies=lambda s: s.spec.family == "wan" and not unipc(s),
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
    applies=lambda s: unipc(s) and s.spec.id != "hidream",  # whose render sets UniPC's own second shift
)
def euler_instead_of_unipc(s: Subject) -> Iterator[Subject]:
    """UniPC is replaced by Euler with the same shift."""
    settings = {"num_train_timesteps": 1000, "shift": config(s, "flow_shift")}
    yield s.with_spec(scheduler=Scheduler("diffusers.FlowMatchEulerDiscreteScheduler", settings))


@variation(
    "schedule",
    shows=STEP,
    source="UniPC's order is a setting of ComfyUI and SD.Next; Wan's own code uses 2",
    applies=lambda s: unipc(s) and _several_steps(s),
)
def unipc_of_order_one(s: Subject) -> Iterator[Subject]:
    """UniPC looks back one step less."""
    yield s.with_scheduler(solver_order=1)


@variation(
    "schedule",
    shows=STEP,
    source="UniPC's bh1 is the default of unipc in SD.Next and of ComfyUI's uni_pc; Wan's is bh2",
    applies=lambda s: unipc(s) and _several_steps(s),
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
    applies=unipc,
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
