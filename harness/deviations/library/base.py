"""What a variation is, and the tools that it is made of: everything that they change, they put back."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from torch import nn

from lora_drift.pipelines import Pipeline, loading
from lora_drift.pipelines.lora import Delta, Lora
from lora_drift.pipelines.runtime import Base
from lora_drift.pipelines.settings import Request, Settings, resolve
from lora_drift.pipelines.spec import ModelSpec, Scheduler

_MISSING = object()
_numbers = itertools.count()


@dataclass(frozen=True)
class Subject:
    """What is rendered: a pipeline (with its LoRA), what was asked, and what that was resolved to."""

    pipeline: Pipeline
    request: Request
    settings: Settings

    @classmethod
    def of(cls, pipeline: Pipeline, request: Request) -> Subject:
        return cls(pipeline, request, resolve(pipeline.spec, request))

    @property
    def spec(self) -> ModelSpec:
        return self.pipeline.spec

    @property
    def pipe(self) -> Any:
        """The loaded Diffusers pipeline."""
        return self.pipeline.base.pipe

    @property
    def lora(self) -> Lora | None:
        return self.pipeline.lora

    @property
    def denoisers(self) -> list[Any]:
        return [getattr(self.pipe, name) for name in self.spec.denoisers.values()]

    @property
    def guided(self) -> bool:
        """Is there a second pass?"""
        return self.spec.guides(self.settings.guidance_scale)

    @property
    def reads_negative(self) -> bool:
        """Does it read the negative prompt?"""
        return self.spec.reads_negative(self.settings.guidance_scale)

    def but(self, **settings: Any) -> Subject:
        """With other settings."""
        return replace(self, settings=replace(self.settings, **settings))

    def _shared(self) -> Base:
        """A copy of the base that shares its weights, and what keeps account of the LoRA in them."""
        _ = self.pipeline.base.adapter
        return copy.copy(self.pipeline.base)

    def with_spec(self, **fields: Any) -> Subject:
        """With another row of the table, over the same loaded weights."""
        base = self._shared()
        base.spec = replace(base.spec, **fields)
        return replace(self, pipeline=replace(self.pipeline, base=base))

    def with_scheduler(self, cls: str | None = None, /, **config: Any) -> Subject:
        """With another scheduler class, or other entries in its config."""
        row = self.spec.scheduler
        return self.with_spec(scheduler=Scheduler(cls or row.cls, {**row.config, **config}))

    def with_deltas(self, change: Callable[[Delta], Delta | None], mode: Any = None) -> Subject:
        """With each module's LoRA delta changed, or left out where `change` returns None."""
        assert self.lora is not None
        deltas = tuple(new for delta in self.lora.deltas if (new := change(delta)) is not None)
        # Other hashes, by which the adapter notices that the LoRA is another one.
        hashes = tuple(f"{digest} varied {next(_numbers)}" for digest in self.lora.sha256)
        lora = replace(self.lora, deltas=deltas, sha256=hashes)
        return replace(self, pipeline=replace(self.pipeline, lora=lora, mode=mode or self.pipeline.mode))

    def with_call(self, **arguments: Any) -> Subject:
        """With further arguments to the Diffusers call (families hand on what they do not know)."""
        return self.around_render(lambda render, pipe, settings, call: render(pipe, settings, **call, **arguments))

    def around_render(self, wrapper: Callable[[Callable[..., Any], Any, Settings, dict[str, Any]], Any]) -> Subject:
        """With `wrapper(render, pipe, settings, call)` in place of the family's `render`, which it is handed."""
        base = self._shared()
        family = base.family

        def render(pipe: Any, spec: ModelSpec, settings: Settings, **call: Any) -> Any:
            def own(pipe: Any, settings: Settings, **call: Any) -> Any:
                return family.render(pipe, spec, settings, **call)

            return wrapper(own, pipe, settings, call)

        around: Any = SimpleNamespace(render=render, check=family.check)
        base.family = around
        return replace(self, pipeline=replace(self.pipeline, base=base))

    def before_each_step(self, act: Callable[[int], None]) -> Subject:
        """With `act(step)` called before each step; steps count from 0, before which prompts are encoded."""

        def render(original: Callable[..., Any], pipe: Any, settings: Settings, call: dict[str, Any]) -> Any:
            after = call["callback_on_step_end"]

            def next_step(pipe: Any, step: int, *others: Any) -> Any:
                act(step + 1)
                return after(pipe, step, *others)

            act(0)
            return original(pipe, settings, **{**call, "callback_on_step_end": next_step})

        return self.around_render(render)

    def with_predictions(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Subject:
        """With `change` of each guided prediction, in front of the scheduler and of a trace."""

        def step(original: Any, *args: Any, **kwargs: Any) -> Any:
            if args:
                return original(change(args[0]), *args[1:], **kwargs)
            return original(**{**kwargs, "model_output": change(kwargs["model_output"])})

        def render(original: Callable[..., Any], pipe: Any, settings: Settings, call: dict[str, Any]) -> Any:
            with wrapped(pipe.scheduler, "step", step):
                return original(pipe, settings, **call)

        return self.around_render(render)


Change = Callable[[Subject], Iterator[Subject]]
Shows = str | Callable[[Subject], str]
Kind = Literal[
    "request", "adapter", "text", "encode", "control", "schedule", "noise", "denoiser", "guidance", "precision",
    "output",
]  # fmt: skip
"""What part of the inference graph a variation changes: the request, the LoRA, the letters of prompts, their encoding,
control images, the schedule with its scheduler, the noise, what the denoiser computes, the guidance, the numbers that
anything computes with, or the decoding and what follows it."""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Variation:
    """One named, realistic deviation of the inference graph."""

    name: str
    about: str
    """One sentence: what another stack does there."""
    source: str
    """Where it was seen: a bug, a thread, a difference between stacks."""
    kind: Kind
    applies: Callable[[Subject], bool]
    change: Change
    _shows: Shows

    @property
    def always_shows(self) -> str:
        """The stage at which it must show first, whatever is rendered; "" if that depends on it."""
        return self._shows if isinstance(self._shows, str) else ""

    def shows(self, subject: Subject) -> str:
        """The stage at which it must show first: a prefix of `divergence.place`."""
        return self._shows if isinstance(self._shows, str) else self._shows(subject)

    def applied(self, subject: Subject) -> AbstractContextManager[Subject]:
        """While the block runs, what to render instead; afterwards everything is as it was, to the bit."""
        return contextmanager(self.change)(subject)


_defined: dict[str, Variation] = {}


def variation(
    kind: Kind, *, shows: Shows, source: str, applies: Callable[[Subject], bool]
) -> Callable[[Change], Change]:
    """Add a function to the library. Its name is the variation's, its docstring says what another stack does."""

    def add(change: Change) -> Change:
        name = change.__name__.replace("_", " ").strip()
        assert change.__doc__ and name not in _defined
        _defined[name] = Variation(name, " ".join(change.__doc__.split()), source, kind, applies, change, shows)
        return change

    return add


def library() -> dict[str, Variation]:
    """The variations defined so far, by name, in the order of the inference graph, in whatever files they stand."""
    return dict(sorted(_defined.items(), key=lambda item: KINDS.index(item[1].kind)))


# -------------------------------------------------------------------------------------------------------- predicates


def everywhere(_subject: Subject) -> bool:
    return True


def families(*names: str) -> Callable[[Subject], bool]:
    return lambda s: s.spec.family in names


POSTERIOR_FIRST = ("flex2", "omnigen2", "krea2_o_edit", "krea2_o_edit_turbo")
"""Models that sample the posterior of control images before they draw the noise."""


def posterior_first(s: Subject) -> bool:
    """Is a control image's posterior sampled, so that another draw is another control image too?"""
    return bool(s.settings.control) and s.spec.id in POSTERIOR_FIRST


def config(s: Subject, name: str) -> Any:
    """An entry of the scheduler's config, None if it has none."""
    return s.spec.scheduler.config.get(name)


def flow_euler(s: Subject) -> bool:
    """Diffusers' flow-matching Euler scheduler, or ours that only lay it out or round otherwise."""
    ours = ("ours.FlowMatchEulerToZero", "ours.FlowMatchEulerInModelDtype", "ours.FlowMatchEulerUpwards")
    return s.spec.scheduler.cls in ("diffusers.FlowMatchEulerDiscreteScheduler", *ours)


def ddpm(s: Subject) -> bool:
    return s.spec.scheduler.name == "DDPMScheduler"


def unipc(s: Subject) -> bool:
    return config(s, "solver_order") is not None


def text_encoders(s: Subject) -> list[Any]:
    return [part for role, part in s.pipe.components.items() if role.startswith("text_encoder") and part is not None]


# ------------------------------------------------------------------------------------------------------------- tools


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` while the block runs; `owner` may be a module, a class or an instance."""
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def configured(component: Any, **values: Any) -> Iterator[None]:
    """Other values in the config of a Diffusers component."""
    before = component._internal_dict
    component.register_to_config(**values)
    try:
        yield
    finally:
        component._internal_dict = before


@contextmanager
def wrapped(owner: Any, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """`wrapper(original, *args, **kwargs)` in place of the method `name` of this instance."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    call.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]  # pipelines inspect it
    with patched(owner, name, call):
        yield


@contextmanager
def hooked(module: nn.Module, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """`change(inputs)` of every call of `module`, by name, before anybody else sees them."""
    names = list(inspect.signature(module.forward).parameters)

    def hook(_module: Any, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return (), change({**dict(zip(names, args, strict=False)), **kwargs})

    handle = module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def answering(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """`change(output)` of every call of `module`, before anybody else sees it."""
    handle = module.register_forward_hook(lambda _module, _args, output: change(output), prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def scheduler_made(**methods: Callable[..., Any]) -> Iterator[None]:
    """Schedulers that a render makes get `methods`: each is called as `method(original, scheduler, *args, **kwargs)`.

    They become a class, because LTX-2 copies its scheduler, and the copy must work on itself.
    """
    make = loading.scheduler

    def overridden(name: str, method: Callable[..., Any], cls: type) -> Callable[..., Any]:
        original = getattr(cls, name)

        @functools.wraps(original)  # pipelines inspect the signature
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return method(functools.partial(original, self), self, *args, **kwargs)

        return call

    def made(row: Scheduler) -> Any:
        scheduler = make(row)
        cls = type(scheduler)
        members = {name: overridden(name, method, cls) for name, method in methods.items()}
        scheduler.__class__ = type(cls.__name__, (cls,), members)
        return scheduler

    with patched(loading, "scheduler", made):
        yield


def laid_out(change: Callable[[Any], None]) -> AbstractContextManager[None]:
    """`change(scheduler)` after every `set_timesteps`."""

    def set_timesteps(original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        change(scheduler)

    return scheduler_made(set_timesteps=set_timesteps)


@contextmanager
def called_with(*classes: Any, **arguments: Any) -> Iterator[None]:
    """Calls of these Diffusers pipelines get other arguments than their family gives."""

    def overridden(cls: Any) -> Any:
        original = cls.__call__
        return functools.wraps(original)(lambda self, *args, **kwargs: original(self, *args, **{**kwargs, **arguments}))

    with ExitStack() as stack:
        for cls in classes:
            stack.enter_context(patched(cls, "__call__", overridden(cls)))
        yield


@contextmanager
def weights(s: Subject, module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Every floating-point weight of `module` goes through `change`; a LoRA is merged after that."""
    adapter = s.pipeline.base.adapter
    adapter.set(None)
    kept = [(p, p.data) for p in module.parameters() if p.is_floating_point()]
    for parameter, before in kept:
        parameter.data = change(before).to(before.dtype)
    try:
        yield
    finally:
        adapter.set(None)
        for parameter, before in kept:
            parameter.data = before


def changes(s: Subject, module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Would `change` move any weight of the base (without a LoRA) by more than float32 rounds?"""
    s.pipeline.base.adapter.set(None)
    return any((change(p.data) - p.data).norm() > 1e-6 * p.data.norm() for p in module.parameters()
               if p.is_floating_point())  # fmt: skip


def rounded(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.to(dtype).to(t.dtype)
