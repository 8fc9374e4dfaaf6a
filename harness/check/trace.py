"""Traces: what passed each stage of a render, small enough to keep with every golden.

The same hooks watch the trainer's pipelines and ours, by the role of a module rather than by its class:

    tokens/<encoder>#<n>         token ids that the n-th call of a text encoder reads (positive first, then negative)
    encode/<encoder>#<n>         output of that call
    schedule/timesteps|sigmas    what the scheduler laid out
    step0/noise                  latents before the first step
    step<k>/denoiser#<n>.<arg>   each tensor input of the n-th denoiser call of step k (embeddings: step 0 only)
    step<k>/denoiser#<n>         its prediction
    step<k>/scheduler.prediction what guidance made of the predictions, as the scheduler received it
    step<k>/latents              latents after the scheduler's step
    decode/in, decode/out        VAE decoder input ("final latents") and output
    lora/<module>                the weight change of one module at multiplier 1

Token ids are kept whole (recordings from before there was this stage have none). Any other stage is kept as a count
sketch of 128 numbers (16 for a LoRA delta, of its first million elements): linear and
unbiased in the squared norm, so that the relative distance of two tensors can be estimated (to about 9 %; 25 %) from
their sketches alone.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np

BUCKETS, LORA_BUCKETS = 128, 16
LORA_ELEMENTS = 2**20
"""All, in a miniature; a real model's changes are as large as the model, and a wrong one shows in any of its rows."""
STEP_INPUTS = ("hidden_states", "sample", "timestep", "x", "t")
"""Denoiser inputs that change from step to step; everything else is embeddings, kept for step 0."""


@lru_cache(maxsize=64)
def _hashes(count: int, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    raw = np.random.Philox(key=0x5EED).random_raw(count)
    return (raw % np.uint64(buckets)).astype(np.intp), np.where(raw >> np.uint64(63), 1.0, -1.0)


def sketch(values: np.ndarray, buckets: int = BUCKETS) -> np.ndarray:
    """Count sketch, float32 [buckets]: element i is added with a fixed random sign to a fixed random bucket."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    index, signs = _hashes(flat.size, buckets)
    return np.bincount(index, weights=flat * signs, minlength=buckets).astype(np.float32)


@dataclass
class Trace:
    """Stages in the order in which they were passed."""

    sketches: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    """Boundary -> ids, int32 [batch, tokens]."""
    final_latents: np.ndarray | None = None
    """float32: the first decoder call's input, whole."""

    def add(self, name: str, value: np.ndarray) -> None:
        lora = name.startswith("lora/")
        self.sketches[name] = sketch(value.ravel()[:LORA_ELEMENTS], LORA_BUCKETS) if lora else sketch(value)
        self.shapes[name] = list(value.shape)

    def numbers(self, name: str) -> list[float | None]:
        """What passed a stage, as far as its sketch tells; nothing where there is no such stage.

        None for numbers that share a bucket, which only their sum fills: none of a schedule of five, five of 25.
        """
        if name not in self.sketches:
            return []
        kept = self.sketches[name]
        index, signs = _hashes(math.prod(self.shapes[name]), len(kept))
        alone = np.bincount(index, minlength=len(kept)) == 1
        return [float(kept[i] * sign) if alone[i] else None for i, sign in zip(index, signs, strict=True)]

    def save(self, path: Path) -> None:
        from safetensors.numpy import save_file

        sizes = {len(s) for s in self.sketches.values()}
        tensors = {str(n): np.stack([s for s in self.sketches.values() if len(s) == n]) for n in sizes}
        stages = [[name, self.shapes[name], len(s)] for name, s in self.sketches.items()]
        save_file({**tensors, **self.tokens}, path, {"boundaries": json.dumps(stages)})

    @classmethod
    def load(cls, path: Path) -> "Trace":
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            stages = json.loads(file.metadata()["boundaries"])
            tokens = {name: file.get_tensor(name) for name in file.keys() if name.startswith("tokens/")}  # noqa: SIM118
            rows = {size: iter(file.get_tensor(size)) for size in {str(s) for _, _, s in stages}}
        sketches = {name: next(rows[str(size)]) for name, _, size in stages}
        return cls(sketches, {name: shape for name, shape, _ in stages}, tokens)


@dataclass(frozen=True)
class Rendered:
    """One render of ours, and its trace."""

    frames: np.ndarray
    """uint8 [frames, height, width, 3]"""
    latents: np.ndarray
    """float32: what the VAE decoder received."""
    trace: Trace
    settings: dict[str, Any]
    audio: np.ndarray | None = None
    """float32 [channels, samples]"""
    sample_rate: int = 0


def errors(golden: Trace, ours: Trace) -> dict[str, float]:
    """Stage -> relative L2 distance, in the golden's order.

    A stage that is missing on our side, or has another shape (dimensions of one aside), counts as infinitely far.
    An encoder call that we do not make is left out (the trainer also encodes negative prompts that nothing reads), and
    so is an argument that our denoiser names or splits otherwise: what matters of it shows in what follows. So is what
    goes through the trainer's denoiser in another layout (HiDream's takes a picture that is not square as a row of
    patches, and returns its mask): another size of the picture itself would show in the noise.

    Token ids are equal (0) or not (1), wherever both sides know them.
    """
    both = golden.tokens.keys() & ours.tokens.keys()
    found = {name: float(not np.array_equal(golden.tokens[name], ours.tokens[name])) for name in sorted(both)}
    for name, reference in golden.sketches.items():
        may_lack = name.startswith("encode/") or re.search(r"/denoiser#\d+\.", name)
        if may_lack and name not in ours.sketches:
            continue
        same_shape = name in ours.sketches and without_ones(golden.shapes[name]) == without_ones(ours.shapes[name])
        if (
            name in ours.sketches
            and not same_shape
            and _in_another_layout(name, golden.shapes[name], ours.shapes[name])
        ):
            continue
        if not same_shape:
            found[name] = float("inf")
            continue
        norm = float(np.linalg.norm(reference))
        distance = float(np.linalg.norm(reference - ours.sketches[name]))
        found[name] = distance / norm if norm else (0.0 if distance == 0 else float("inf"))
    return found


def _in_another_layout(name: str, golden: list[int], ours: list[int]) -> bool:
    """Latents with more or fewer dimensions, or of another width: not just a longer sequence or a bigger batch."""
    latents = re.search(r"/denoiser#\d+(\.hidden_states)?$", name) is not None
    return latents and (len(golden) != len(ours) or golden[-1] != ours[-1])


def without_ones(shape: list[int]) -> list[int]:
    """A shape as far as it tells how many numbers there are: the trainer's and ours have other dimensions of one."""
    return [n for n in shape if n != 1]


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """Every tensor inside an output (tensor, tuple, list, mapping), as float32 arrays."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.numel():
            yield value.detach().to("cpu", torch.float32).numpy()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _arrays(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _arrays(item)


def _whole(value: Any) -> np.ndarray | None:
    """All tensors of an output as one array: the array itself when there is one, else their concatenation."""
    parts = list(_arrays(value))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else np.concatenate([p.ravel() for p in parts])


class Tracer:
    """Hooks the components of a pipeline and fills `trace`.

    `arguments` renames denoiser inputs (the trainer's own network classes call them otherwise); "" leaves one out.
    """

    def __init__(self, arguments: Mapping[str, str] | None = None) -> None:
        self.trace = Trace()
        self._arguments = arguments or {}
        self._last_call: tuple[int, float | None] = 0, None
        """Step and timestep of the denoiser's last call."""
        self._undo: list[Callable[[], Any]] = []
        self._attached: set[int] = set()
        self._calls: dict[str, int] = {}
        self._step = 0

    def attach(self, components: Mapping[str, Any]) -> None:
        """Hook `components` (role -> module, as in `DiffusionPipeline.components`)."""
        for role, component in components.items():
            if component is None or id(component) in self._attached:
                continue
            self._attached.add(id(component))
            if role.startswith(("transformer", "unet")):
                self._hook_denoiser(component)
            elif role.startswith(("text_encoder", "mllm", "image_encoder")):
                self._hook_encoder(role, component)
            elif role == "vae":
                self._wrap(component, "decode", self._decode)
            elif role == "vae_decoder":
                self._wrap(component, "forward", self._decode)
            elif role == "scheduler":
                self._wrap(component, "set_timesteps", self._set_timesteps)
                self._wrap(component, "step", self._scheduler_step)

    @contextmanager
    def watching(self, pipe: Any) -> Iterator[None]:
        """Hooked while the block runs: `pipe` is any Diffusers pipeline."""
        self.attach(pipe.components)
        try:
            yield
        finally:
            self.detach()

    def detach(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _count(self, name: str) -> int:
        self._calls[name] = self._calls.get(name, -1) + 1
        return self._calls[name]

    def _add(self, name: str, value: Any) -> None:
        array = _whole(value)
        if array is not None:
            self.trace.add(name, array)

    def _hook_encoder(self, role: str, module: Any) -> None:
        signature = inspect.signature(module.forward)

        def before(_module: Any, args: Any, kwargs: Any) -> None:
            ids = signature.bind(*args, **kwargs).arguments.get("input_ids")
            if ids is not None:  # an encoder of pictures has none
                self.trace.tokens[f"tokens/{role}#{self._count(f'tokens/{role}')}"] = ids.cpu().numpy().astype(np.int32)

        def after(_module: Any, _args: Any, output: Any) -> None:
            hidden = getattr(output, "last_hidden_state", None)
            if hidden is None:
                hidden = getattr(output, "hidden_states", None) or output
            self._add(f"encode/{role}#{self._count(role)}", hidden[-1] if isinstance(hidden, tuple) else hidden)

        self._undo.append(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        self._undo.append(module.register_forward_hook(after).remove)

    def _hook_denoiser(self, module: Any) -> None:
        signature = inspect.signature(module.forward)

        def before(_module: Any, args: Any, kwargs: Any) -> None:
            given = signature.bind(*args, **kwargs).arguments
            inputs = {self._arguments.get(arg, arg): value for arg, value in given.items()}
            self._notice_step(inputs.get("timestep"))
            name = f"step{self._step}/denoiser#{self._count(f'denoiser{self._step}')}"
            for arg, value in inputs.items():
                if arg and (arg in STEP_INPUTS or self._step == 0):
                    self._add(f"{name}.{arg}", value)

        def after(_module: Any, _args: Any, output: Any) -> None:
            index = self._calls[f"denoiser{self._step}"]
            sample = getattr(output, "sample", output)
            self._add(f"step{self._step}/denoiser#{index}", sample)

        self._undo.append(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        self._undo.append(module.register_forward_hook(after).remove)

    def _notice_step(self, timestep: Any) -> None:
        """A new timestep without a scheduler's step between: this pipeline steps without a scheduler.

        By its largest value: passes of one step may have other batches, and tokens of a first frame have time 0.
        """
        whole = _whole(timestep)
        if whole is None:
            return
        now = float(whole.max())
        step, before = self._last_call
        if before is not None and step == self._step and before != now:
            self._step += 1
        self._last_call = self._step, now

    def _wrap(self, owner: Any, method: str, watch: Callable[..., Any]) -> None:
        """Put `watch(owner, original, *args, **kwargs)` in front of a bound method, on this instance only.

        A deep copy of `owner` (LTX-2 copies its scheduler for the sound) is not watched, and works on itself: what is
        set here is a bound method, so copying binds it to the copy.
        """
        original = getattr(owner, method)
        had = method in owner.__dict__

        def wrapped(this: Any, *args: Any, **kwargs: Any) -> Any:
            if this is not owner:
                return getattr(type(this), method)(this, *args, **kwargs)
            return watch(owner, original, *args, **kwargs)

        signature = inspect.signature(original)  # pipelines inspect it
        this = inspect.Parameter("this", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [this, *signature.parameters.values()]
        wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        setattr(owner, method, MethodType(wrapped, owner))
        self._undo.append(lambda: setattr(owner, method, original) if had else delattr(owner, method))

    def _set_timesteps(self, scheduler: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self._add("schedule/timesteps", scheduler.timesteps)
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is not None:
            self._add("schedule/sigmas", sigmas)
        return result

    def _scheduler_step(self, scheduler: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        prediction = args[0] if args else kwargs["model_output"]
        if self._step == 0:
            self._add("step0/noise", args[2] if len(args) > 2 else kwargs["sample"])
        self._add(f"step{self._step}/scheduler.prediction", prediction)
        result = original(*args, **kwargs)
        self._add(f"step{self._step}/latents", result[0] if isinstance(result, tuple) else result.prev_sample)
        self._step += 1
        return result

    def _decode(self, _vae: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        latents = _whole(args[0] if args else kwargs["z"])
        if latents is not None and self.trace.final_latents is None:
            self.trace.final_latents = latents.copy()
            self.trace.add("decode/in", latents)
        result = original(*args, **kwargs)
        if "decode/out" not in self.trace.sketches:
            self._add("decode/out", getattr(result, "sample", result))
        return result


@contextmanager
def capture(pipe: Any) -> Iterator[Trace]:
    """Trace one call of any Diffusers pipeline.

    with capture(pipe) as trace:
        pipe("a fox", num_inference_steps=4)
    trace.save("mine.safetensors")
    """
    tracer = Tracer()
    with tracer.watching(pipe):
        yield tracer.trace
