"""Traces: distances that can be trusted from 128 numbers, and hooks that leave nothing behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_drift.harness.check.runner import Bench
from lora_drift.harness.check.trace import BUCKETS, LORA_BUCKETS, Trace, Tracer, capture, errors, sketch
from lora_drift.pipelines import MODELS, Pipeline
from lora_drift.pipelines.settings import Request, resolve

SIZES = st.integers(2_000, 20_000)
SEEDS = st.integers(0, 2**32 - 1)


def normal(size: int | tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(size)


def trace_of(**values: Any) -> Trace:
    trace = Trace()
    for name, value in values.items():
        trace.add(name.replace("__", "/"), value)
    return trace


# ---------------------------------------------------------------------------------------------------------- sketches


@settings(derandomize=True)
@given(SIZES, SEEDS, st.floats(1e-6, 2.0))
def test_a_sketch_estimates_the_relative_distance(size: int, seed: int, distance: float) -> None:
    reference = normal(size, seed)
    noise = normal(size, seed + 1)
    ours = reference + noise * (distance * np.linalg.norm(reference) / np.linalg.norm(noise))
    (estimate,) = errors(trace_of(x=reference), trace_of(x=ours)).values()
    assert estimate == pytest.approx(distance, rel=0.35)


@settings(derandomize=True)
@given(SIZES, SEEDS, st.integers(0, 10**6))
def test_a_single_changed_value_shows(size: int, seed: int, where: int) -> None:
    reference = normal(size, seed)
    ours = reference.copy()
    ours[where % size] += np.linalg.norm(reference)
    (estimate,) = errors(trace_of(x=reference), trace_of(x=ours)).values()
    assert estimate == pytest.approx(1, rel=0.35)


@pytest.mark.parametrize(("count", "unknown"), [(1, []), (5, []), (25, [3, 5, 6, 8, 24])])
def test_a_short_list_of_numbers_is_read_out_of_its_sketch(count: int, unknown: list[int]) -> None:
    schedule = np.linspace(1000, 20.5, count).astype(np.float32)
    told = trace_of(schedule__timesteps=schedule).numbers("schedule/timesteps")
    assert told == [None if i in unknown else value for i, value in enumerate(schedule)]
    assert trace_of().numbers("schedule/timesteps") == []


@given(SIZES, SEEDS, st.floats(-100, 100))
def test_a_sketch_is_linear(size: int, seed: int, factor: float) -> None:
    a, b = normal(size, seed), normal(size, seed + 1)
    assert np.allclose(sketch(a + factor * b), sketch(a) + factor * sketch(b), rtol=1e-3, atol=1e-2 + abs(factor) / 1e3)


@given(SIZES, SEEDS)
def test_a_sketch_sees_the_order_but_not_the_shape(size: int, seed: int) -> None:
    values = normal(2 * size, seed)
    assert np.array_equal(sketch(values), sketch(values.reshape(2, size)))
    assert not np.allclose(sketch(values), sketch(values.reshape(2, size).T))


def test_a_lora_delta_takes_fewer_numbers() -> None:
    trace = trace_of(lora__a=normal(100), noise=normal(100))
    assert {name: len(values) for name, values in trace.sketches.items()} == {
        "lora/a": LORA_BUCKETS,
        "noise": BUCKETS,
    }


# ------------------------------------------------------------------------------------------------------------- files


def test_a_saved_trace_is_read_back_in_its_order(tmp_path: Path) -> None:
    trace = trace_of(
        encode=normal((2, 7)), lora__b=normal(9), step0__x=normal(()), lora__a=normal((3, 3)), decode=np.zeros((1, 4))
    )
    trace.save(tmp_path / "trace.safetensors")
    found = Trace.load(tmp_path / "trace.safetensors")
    assert list(found.sketches) == ["encode", "lora/b", "step0/x", "lora/a", "decode"]
    assert found.shapes == trace.shapes
    assert all(np.array_equal(found.sketches[name], trace.sketches[name]) for name in trace.sketches)
    assert set(errors(trace, found).values()) == {0.0}


def test_an_empty_trace_can_be_kept(tmp_path: Path) -> None:
    Trace().save(tmp_path / "trace.safetensors")
    assert Trace.load(tmp_path / "trace.safetensors") == Trace()


# --------------------------------------------------------------------------------------------------------- distances


def test_a_stage_that_is_absent_or_of_another_shape_is_infinitely_far() -> None:
    x = normal((4, 6))
    golden = trace_of(same=x, gone=x, turned=x, after=x)
    ours = trace_of(after=x, same=x, turned=x.reshape(6, 4), added=x)
    assert errors(golden, ours) == {"same": 0.0, "gone": np.inf, "turned": np.inf, "after": 0.0}
    assert list(errors(golden, ours)) == ["same", "gone", "turned", "after"]


def test_an_encoder_call_that_nothing_needs_is_left_out_but_one_that_differs_is_not() -> None:
    x = normal((1, 8))
    golden = trace_of(**{"encode__text#0": x, "encode__text#1": x, "encode__text#2": x})
    ours = trace_of(**{"encode__text#0": x, "encode__text#1": 2 * x})
    assert errors(golden, ours) == {"encode/text#0": 0.0, "encode/text#1": pytest.approx(1.0)}


def test_nothing_is_near_zero_but_zero() -> None:
    golden = trace_of(x=np.zeros(8))
    assert errors(golden, trace_of(x=np.zeros(8))) == {"x": 0.0}
    assert errors(golden, trace_of(x=np.full(8, 1e-9))) == {"x": np.inf}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_number_is_never_within_a_limit(bad: float) -> None:
    ours = normal(100)
    ours[3] = bad
    (error,) = errors(trace_of(x=normal(100)), trace_of(x=ours)).values()
    assert not error <= 1e9


# ------------------------------------------------------------------------------------------------------------ tokens


def test_token_ids_are_kept_whole_and_compared_before_anything_else(tmp_path: Path) -> None:
    golden = trace_of(**{"encode__text_encoder#0": normal(8)})
    golden.tokens = {"tokens/text_encoder#0": np.array([[1, 2, 3]], dtype=np.int32)}
    golden.save(tmp_path / "trace.safetensors")
    kept = Trace.load(tmp_path / "trace.safetensors")
    assert kept.tokens["tokens/text_encoder#0"].tolist() == [[1, 2, 3]]
    for ids, distance in (([[1, 2, 3]], 0.0), ([[1, 2, 4]], 1.0), ([[1, 2]], 1.0)):
        ours = Trace(kept.sketches, kept.shapes, {"tokens/text_encoder#0": np.array(ids, dtype=np.int32)})
        assert errors(kept, ours) == {"tokens/text_encoder#0": distance, "encode/text_encoder#0": 0.0}
    older = Trace(kept.sketches, kept.shapes)
    assert list(errors(older, kept)) == ["encode/text_encoder#0"]


# ------------------------------------------------------------------------------------------------------------- hooks


def leftovers(pipe: Any) -> list[str]:
    """Hooks of modules, and methods that were put on instances."""
    modules = [module for part in pipe.components.values() if isinstance(part, torch.nn.Module)
               for module in part.modules()]  # fmt: skip
    hooks = [type(m).__name__ for m in modules if m._forward_hooks or m._forward_pre_hooks]
    owners = {"vae": ("decode",), "scheduler": ("step", "set_timesteps")}
    return hooks + [f"{o}.{name}" for o, names in owners.items() for name in names if name in vars(getattr(pipe, o))]


@pytest.fixture(scope="module")
def plain() -> Any:
    """What a user has: the stock pipeline, from its repository id."""
    pipe = diffusers.FluxPipeline.from_pretrained(MODELS["flux"].base)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, steps: int = 2) -> Any:
    return pipe("a fox", width=64, height=64, num_inference_steps=steps, guidance_scale=4.0,
                generator=torch.Generator().manual_seed(42)).images  # fmt: skip


def test_any_pipeline_can_be_captured_and_tells_the_same_story(
    plain: Any, pipeline_of: Callable[[str], Pipeline]
) -> None:
    spec = MODELS["flux"]
    request = Request("a fox", width=64, height=64, steps=2, guidance_scale=4.0)
    ours = Bench.render(pipeline_of("flux"), resolve(spec, request))
    untraced = call(plain)
    with capture(plain) as trace:
        (picture,) = call(plain)
    assert leftovers(plain) == []
    assert np.array_equal(np.asarray(picture), np.asarray(untraced[0]))
    assert trace.final_latents is not None
    assert np.allclose(trace.final_latents, ours.latents, atol=1e-4)  # plain T5 runs on another attention
    found = errors(ours.trace, trace)
    assert list(found) == [*sorted(trace.tokens), *trace.sketches]
    assert set(trace.tokens) == {"tokens/text_encoder#0", "tokens/text_encoder_2#0"}
    assert {"decode/in", "decode/out", "schedule/sigmas", "step0/latents", "step1/latents", "step1/denoiser#0"} < set(
        found
    )
    assert max(found.values()) < 1e-5


def test_the_first_stage_that_differs_is_the_cause(plain: Any) -> None:
    with capture(plain) as golden:
        call(plain)
    shift = plain.scheduler.config.base_shift
    plain.scheduler.register_to_config(base_shift=shift / 2)
    try:
        with capture(plain) as ours:
            call(plain)
    finally:
        plain.scheduler.register_to_config(base_shift=shift)
    first = next(name for name, error in errors(golden, ours).items() if not error <= 1e-5)
    assert first.startswith("schedule/")


def test_hooks_are_gone_after_an_error_too(plain: Any) -> None:
    class Boom(Exception):
        pass

    def boom(*_args: Any) -> None:
        raise Boom

    hook = plain.transformer.register_forward_hook(boom)
    with pytest.raises(Boom), capture(plain):
        call(plain)
    hook.remove()
    assert leftovers(plain) == []
    assert len(call(plain)) == 1


def test_a_method_that_was_on_the_instance_before_is_put_back(plain: Any) -> None:
    def mine(*args: Any, **kwargs: Any) -> Any:
        return type(plain.vae).decode(plain.vae, *args, **kwargs)

    plain.vae.decode = mine
    try:
        with capture(plain):
            call(plain)
        assert vars(plain.vae)["decode"] is mine
    finally:
        del plain.vae.decode
    assert leftovers(plain) == []


def test_one_module_in_two_roles_is_watched_once(plain: Any) -> None:
    tracer = Tracer()
    tracer.attach({"transformer": plain.transformer})
    tracer.attach({"transformer": plain.transformer, "unet": plain.transformer, "image_encoder": None})
    assert len(plain.transformer._forward_hooks) == 1
    tracer.detach()
    assert leftovers(plain) == []
