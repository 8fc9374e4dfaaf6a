"""Schedulers that lay out their steps as the pinned Diffusers does, whatever the installed release does.

A row of the table may name a class from here instead of one from Diffusers. Imported lazily by `loading.scheduler`.
"""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler


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
        super().set_timesteps(  # type: ignore[misc]
            num_inference_steps or len(sigmas or timesteps or ()), device=device, mu=mu
        )
