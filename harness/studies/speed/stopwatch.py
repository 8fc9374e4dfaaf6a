"""Times the stages of a render through hooks on its components, on whichever stack it runs.

The device is waited for at the start and the end of each stage.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

GB = 1e9
STAGES = ("total", "encode", "step", "decode")


class Stopwatch:
    """`begin`, then `end`, for each render; `steps` are marked from outside (a callback) or by a hook."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._begun = 0.0
        self._spent: dict[str, float] = {}
        self._marks: list[float] = []

    def now(self) -> float:
        """Seconds, once the device has done all that it was given."""
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, do: Callable[[], Any]) -> tuple[Any, float]:
        started = self.now()
        result = do()
        return result, self.now() - started

    def begin(self) -> None:
        reset_peak(self.device)
        self._spent, self._marks = {"encode": 0.0, "decode": 0.0}, []
        self._begun = self.now()

    def mark(self) -> None:
        """The same point of each step (or, with several passes a step, of each pass)."""
        self._marks.append(self.now())

    def end(self, steps: int) -> dict[str, float]:
        """Seconds of the stages and the most memory that was in use. A step: the median from mark to mark."""
        total = self.now() - self._begun
        marks = self._marks[:: max(1, len(self._marks) // steps)]
        periods = [after - before for before, after in pairwise(marks)]
        step = {"step": statistics.median(periods)} if periods else {}
        return {"total": total, **self._spent, **step, **peak(self.device)}

    @contextmanager
    def watching(self, components: Mapping[str, Any], denoiser: Any = None) -> Iterator[None]:
        """Hooked while the block runs: `components` as in `DiffusionPipeline.components`; with a `denoiser`, its calls
        are the marks."""
        undo: list[Callable[[], Any]] = []
        for role, component in components.items():
            if role.startswith("text_encoder") and component is not None:
                undo += self._forward(component, "encode")
            elif role == "vae":
                undo += self._decode(component)
        if denoiser is not None:
            undo.append(denoiser.register_forward_pre_hook(lambda *_: self.mark()).remove)
        try:
            yield
        finally:
            for restore in undo:
                restore()

    def _forward(self, module: Any, stage: str) -> list[Callable[[], Any]]:
        started: list[float] = []

        def after(*_: Any) -> None:
            self._spent[stage] += self.now() - started.pop()

        before = module.register_forward_pre_hook(lambda *_: started.append(self.now()))
        return [before.remove, module.register_forward_hook(after).remove]

    def _decode(self, vae: Any) -> list[Callable[[], Any]]:
        original, own = vae.decode, "decode" in vae.__dict__

        def decode(*args: Any, **kwargs: Any) -> Any:
            result, seconds = self.timed(lambda: original(*args, **kwargs))
            self._spent["decode"] += seconds
            return result

        vae.decode = decode
        return [(lambda: setattr(vae, "decode", original)) if own else (lambda: delattr(vae, "decode"))]


def reset_peak(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> dict[str, float]:
    """Gigabytes (10^9) that tensors took at most since `reset_peak`; nothing on the CPU."""
    import torch

    return {"peak_gb": torch.cuda.max_memory_allocated() / GB} if device.startswith("cuda") else {}


def resident(device: str, before: float = 0.0) -> dict[str, float]:
    """Gigabytes in use, less what was before; nothing on the CPU."""
    import torch

    return {"resident_gb": torch.cuda.memory_allocated() / GB - before} if device.startswith("cuda") else {}


def median(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure that all the runs have; of memory the largest."""
    names = [name for name in (*STAGES, "peak_gb") if all(name in run for run in runs)]
    return {n: (max if n == "peak_gb" else statistics.median)(run[n] for run in runs) for n in names if runs}
