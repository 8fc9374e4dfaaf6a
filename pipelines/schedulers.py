"""Schedulers that lay out their steps as the trainer's do, whatever the installed Diffusers does.

A row names a class from here as "ours.NAME". Imported lazily by `loading.scheduler`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch.overrides import TorchFunctionMode


class FlowMatchEulerToZero(FlowMatchEulerDiscreteScheduler):
    """Sigmas from 1 to 0 *before* the shift, laid out in float64: the last step changes nothing.

    The pinned ZImagePipeline sets `scheduler.sigma_min = 0` and lets the scheduler lay out the steps. Newer releases
    pass a list that ends at 1/n, and any list that is passed is rounded to float32 before the shift.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        self.sigma_min = 0.0
        super().set_timesteps(num_inference_steps or len(sigmas or timesteps or ()), device=device, mu=mu)


class FlowMatchEulerInModelDtype(FlowMatchEulerDiscreteScheduler):
    """Euler's step in the dtype of the latents, as FLUX.2's own sampling has it; the stock scheduler goes through
    float32 and rounds once. Timesteps are exact (float64), so that the model may round them once."""

    sigmas: torch.Tensor

    @wraps(FlowMatchEulerDiscreteScheduler.set_timesteps)  # pipelines ask for the names of its arguments
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.timesteps = self.sigmas[:-1].double() * self.config.num_train_timesteps
        self.sigmas = self.sigmas.cpu()  # a number read from a GPU would wait for all that it has to do

    def step(self, model_output: Any, timestep: Any, sample: Any, *_: Any, **__: Any) -> tuple[Any]:
        index: int = self.step_index or 0
        self._step_index: int | None = index + 1
        now, then = (self.sigmas[i].item() for i in (index, index + 1))
        return (sample + (then - now) * model_output,)


class FlowMatchEulerUpwards(FlowMatchEulerDiscreteScheduler):
    """The model is told a time from 0, noise, to 1, and predicts what leads there (Ideogram 4).

    `invert_sigmas` of the stock scheduler says the same, but steps by differences of rounded times, not of sigmas.
    """

    @wraps(FlowMatchEulerDiscreteScheduler.set_timesteps)
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.timesteps = 1 - self.sigmas[:-1]

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
        return super().step(-model_output, timestep, sample, **options)


class ScalarsStayOnCPU(TorchFunctionMode):
    """While it is active, single numbers that are on the CPU stay there; lists of them become tensors on `device`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.to and isinstance(args[1], torch.device) and args[0].dim() == 0 and args[0].is_cpu:
            return args[0]
        if func is torch.stack and all(number.dim() == 0 for number in args[0]):
            return torch.stack([number.to(self.device) for number in args[0]])
        return func(*args, **(kwargs or {}))


class UniPCWithSigmasOnCPU(UniPCMultistepScheduler):
    """Steps with sigmas from the CPU, as the pinned Diffusers has it.

    From 0.38 on (#13489) they are moved to the sample's device first. A GPU rounds a number of its own to the sample's
    dtype before it multiplies, but not one from the CPU: 0.2 % of the latents in bfloat16.
    """

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
        with ScalarsStayOnCPU(sample.device):
            return super().step(model_output, timestep, sample, **options)


class FlowUniPCFromBelowOne(UniPCWithSigmasOnCPU):
    """UniPC over even steps that begin at 0.999 and end at 0, as Diffusers laid them out before #12109 (0.37): now they
    begin at 1 and end at 0.001."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
    ) -> None:
        steps = num_inference_steps or len(sigmas or ())
        even = np.flip(1.0 - np.linspace(1, 1 / self.config.num_train_timesteps, steps + 1))
        super().set_timesteps(device=device, sigmas=even[:-1].copy())


class FlowUniPCShiftedTwice(UniPCWithSigmasOnCPU):
    """UniPC over even steps between the ends of a schedule that is already shifted by 3, shifted again by `flow_shift`.

    So does the scheduler that the trainer brings for HiDream (fm_solvers_unipc.py): its constructor shifts the sigmas
    whose ends its `set_timesteps` then starts from. Diffusers lays steps out between 1 and 0.001 and shifts them once.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
    ) -> None:
        steps = num_inference_steps or len(sigmas or ())
        highest = torch.tensor(0.999, dtype=torch.float32)  # of 1000 sigmas from 0.999 to 0, in float32 as there
        highest = 3.0 * highest / (1 + (3.0 - 1) * highest)
        super().set_timesteps(device=device, sigmas=np.linspace(highest.item(), 0.0, steps + 1)[:-1])


class OmniGen2FlowMatchEuler(FlowMatchEulerDiscreteScheduler):
    """Time from 0 (noise) to 1 (picture), shifted by the size of the picture (OmniGen2's own scheduler).

    The stock scheduler could count upwards (`invert_sigmas`), but rounds twice on the way, and this model multiplies
    its timesteps by 1000 before it takes their sines.
    """

    def set_timesteps(self, num_inference_steps: int, device: Any = None, num_tokens: int = 1600) -> None:
        """`num_tokens`: height times width of the latents; 1600 (a picture of 320x320) shifts nothing."""
        t = np.linspace(0, 1, num_inference_steps + 1, dtype=np.float32)[:-1]
        m = np.float32(np.sqrt(num_tokens) / 40)
        self.timesteps = torch.from_numpy(t / (m - m * t + t)).to(device)
        self.sigmas = torch.cat([self.timesteps, torch.ones(1, device=device)])
        self._step_index = self._begin_index = None
