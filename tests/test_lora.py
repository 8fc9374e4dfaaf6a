"""A LoRA reaches the picture, leaves without a trace, and a file that does not fit is refused before weights load."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_drift import pipelines
from lora_drift.harness.check import cases
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.runner import Bench, encodings_kept
from lora_drift.pipelines import MODELS, Cancelled, LoraError, Pipeline
from lora_drift.pipelines.adapter import Adapter, live, where_it_was
from lora_drift.pipelines.lora import LowRank
from lora_drift.pipelines.settings import LoraMode

PipelineOf = Callable[[str], Pipeline]
LoraOf = Callable[[str], Path]

CORE = ("sd15", "sdxl", "flux", "zimage_turbo", "wan21_1b")
"""One model of each kind, for what the others would show no better."""
MODES: tuple[LoraMode, ...] = ("merged", "live")
TWO_LORAS = [("sd15/lora", "sd15/lora-conv"), ("sdxl/lora", "sdxl/lora-conv"), ("flux/lora", "flux/lora-live")]


@pytest.fixture(scope="module")
def unloaded() -> PipelineOf:
    """Model id -> a pipeline whose weights no test of this module loads."""
    return cache(pipelines.load)


def pixels(pipeline: Pipeline, **fields: Any) -> bytes:
    frames = 5 if pipeline.spec.kind == "video" else 1
    output = pipeline.sample("a photo of a fox", width=64, height=64, steps=2, num_frames=frames, **fields)
    return np.stack([np.asarray(frame) for frame in output.frames]).tobytes()


def levels(a: bytes, b: bytes) -> int:
    """Largest difference of two pictures, of 255."""
    return int(abs(np.frombuffer(a, np.uint8).astype(int) - np.frombuffer(b, np.uint8)).max())


# ------------------------------------------------------------------------------------------------------- invariance


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("model", MODELS)
def test_a_lora_comes_and_goes_without_a_trace(
    model: str, bench: Bench, golden_of: Callable[[str], Golden], tmp_path: Path
) -> None:
    """Five stages and a switch to another LoRA and back, with the settings (and control images, and experts) of the
    model's own case."""
    case = cases.load(cases.CASES / f"{model}/lora.yaml")
    settings = replace(bench.settings(case), steps=max(2, MODELS[model].fewest_steps))
    golden = golden_of(case.id)
    view = bench.pipeline(case, golden)
    first = bench.render(view, bench.settings(case)).frames  # of a fresh load, as in every `lora-drift sample`
    assert levels(first.tobytes(), golden.frames().tobytes()) <= 1, "the first render is another one"
    assert view.lora.coverage.applied == view.lora.coverage.keys

    def rendered(pipeline: Pipeline, multiplier: float = 0.8) -> bytes:
        return bench.render(pipeline, replace(settings, multiplier=multiplier)).frames.tobytes()

    base = replace(view, lora=None)
    other = base.with_lora(**negated(golden, tmp_path))
    with encodings_kept(base.base.pipe.vae):
        plain = rendered(base)
        for mode in MODES:
            with_lora = replace(view, mode=mode)
            adapted = rendered(with_lora)
            assert levels(adapted, plain) > 8, "the LoRA changes nothing"
            assert rendered(base) == plain, "taken out, it left something behind"
            assert rendered(with_lora) == adapted, "put in again, it is another picture"
            assert rendered(with_lora, 0.0) == plain, "at multiplier 0 it still shows"
            assert levels(rendered(replace(other, mode=mode)), adapted) > 8, "another LoRA is the same picture"
            assert rendered(with_lora) == adapted, "the other LoRA left something behind"


def negated(golden: Golden, folder: Path) -> dict[str, Path]:
    """Another LoRA for the same model: the golden's, with every change turned round."""
    made = {}
    for artefact, argument in (("lora", "path"), ("lora_high", "high"), ("lora_low", "low")):
        if artefact in golden.artefacts:
            made[argument] = folder / f"{artefact}.safetensors"
            tensors = load_file(golden.path(artefact))
            save_file({k: -v if "lora_B" in k or "lora_up" in k else v for k, v in tensors.items()}, made[argument])
    return made


@pytest.mark.parametrize(("first", "second"), TWO_LORAS)
def test_two_loras_and_both_modes_do_not_mix(first: str, second: str, pipeline_of: PipelineOf, lora_of: LoraOf) -> None:
    base = pipeline_of(first.split("/")[0])
    variants = [base.with_lora(lora_of(name), mode=mode) for name in (first, second) for mode in MODES]
    once = [pixels(variant) for variant in variants]
    assert levels(once[0], once[2]) > 8
    order = [0, 2, 1, 3, 0]
    assert [pixels(variants[i]) for i in order] == [once[i] for i in order]


def test_one_file_for_either_expert_is_two_pictures(
    pipeline_of: PipelineOf, golden_of: Callable[[str], Golden]
) -> None:
    base = pipeline_of("wan22_14b_t2v")
    path = golden_of("wan22_14b_t2v/lora").path("lora_high")
    high, low = pixels(base.with_lora(high=path)), pixels(base.with_lora(low=path))
    assert levels(high, low) > 8
    assert pixels(base.with_lora(high=path)) == high


@pytest.mark.parametrize("case", [*(f"{model}/lora" for model in CORE), "sd15/lora-conv", "sdxl/lora-conv"])
def test_merged_and_live_are_one_picture(case: str, pipeline_of: PipelineOf, lora_of: LoraOf) -> None:
    base = pipeline_of(case.split("/")[0])
    merged, live = (pixels(base.with_lora(lora_of(case), mode=mode), multiplier=0.7) for mode in MODES)
    assert levels(merged, live) <= 1


def test_the_base_is_whole_after_a_merge_that_failed_half_way(
    pipeline_of: PipelineOf, lora_of: LoraOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pipeline_of("sd15")
    with_lora = base.with_lora(lora_of("sd15/lora"), mode="merged")
    plain, adapted = pixels(base), pixels(with_lora)
    pixels(base)
    merge, done = Adapter._apply, []

    def runs_out_of_memory(*args: Any) -> None:
        done.append(args)
        if len(done) == 5:
            raise RuntimeError("out of memory")
        merge(*args)

    with monkeypatch.context() as patched:
        patched.setattr(Adapter, "_apply", runs_out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            pixels(with_lora)
    try:
        assert pixels(base) == plain
        assert pixels(with_lora) == adapted
    finally:
        base.base.adapter.set(None)  # whatever was found here, the tests that follow need a whole base


def test_originals_stay_where_they_are(pipeline_of: PipelineOf, lora_of: LoraOf) -> None:
    """Moving or copying them takes longer than all the rest of putting in a LoRA."""
    base = pipeline_of("sd15")
    pixels(base)
    weights = [p.data_ptr() for part in base.base.adapter.parts.values() for p in part.parameters()]
    pixels(base.with_lora(lora_of("sd15/lora"), mode="merged"))
    pixels(base)
    assert weights == [p.data_ptr() for part in base.base.adapter.parts.values() for p in part.parameters()]


def test_a_render_that_finds_too_little_memory_begins_again_once_originals_left(
    pipeline_of: PipelineOf, lora_of: LoraOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of("sd15").with_lora(lora_of("sd15/lora"), mode="merged")
    expected = pixels(pipeline)
    render, tries = Pipeline._render, []

    def first_full(*args: Any) -> Any:
        tries.append(args)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return render(*args)

    monkeypatch.setattr(Pipeline, "_render", first_full)
    monkeypatch.setattr(Adapter, "make_room", lambda _: True)
    assert pixels(pipeline) == expected
    tries.clear()
    monkeypatch.setattr(Adapter, "make_room", lambda _: False)
    with pytest.raises(torch.OutOfMemoryError):
        pixels(pipeline)


# ------------------------------------------------------------------------------------------------------- other state


@pytest.mark.parametrize("model", ["sd15", "flux"])
def test_a_render_leaves_the_callers_state_alone(model: str, pipeline_of: PipelineOf) -> None:
    def state() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            str(np.random.get_state()),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
            torch.backends.cuda.matmul.allow_tf32,
            torch.get_float32_matmul_precision(),
        ]

    before = state()
    pixels(pipeline_of(model), seed=123)
    assert state() == before


def test_a_render_does_not_depend_on_the_callers_random_state(pipeline_of: PipelineOf) -> None:
    first = pixels(pipeline_of("sd15"))
    torch.manual_seed(99)
    assert pixels(pipeline_of("sd15")) == first
    assert pixels(pipeline_of("sd15"), seed=43) != first


@pytest.mark.parametrize("model", ["sd15", "flux"])
def test_a_cancelled_render_leaves_nothing_behind(model: str, pipeline_of: PipelineOf, lora_of: LoraOf) -> None:
    pipeline = pipeline_of(model).with_lora(lora_of(f"{model}/lora"))
    whole = pixels(pipeline)
    seen: list[tuple[int, int]] = []

    def stop(step: int, total: int) -> bool:
        seen.append((step, total))
        return False

    with pytest.raises(Cancelled, match="after step 1 of 2"):
        pixels(pipeline, on_step=stop)
    assert seen == [(1, 2)]
    assert pixels(pipeline) == whole


def test_every_step_is_reported(pipeline_of: PipelineOf) -> None:
    seen: list[tuple[int, int]] = []
    pixels(pipeline_of("wan21_1b"), on_step=lambda step, total: seen.append((step, total)))
    assert seen == [(1, 2), (2, 2)]


# ------------------------------------------------------------------------------------------------------------- files


def test_coverage_counts_the_whole_file(unloaded: PipelineOf, lora_of: LoraOf) -> None:
    path = lora_of("sd15/lora-conv")  # linear rank 4 alpha 4, convolutions rank 2 alpha 1
    keys = load_file(path)
    coverage = unloaded("sd15").with_lora(path).lora
    assert coverage is not None
    assert coverage.coverage.as_dict() == {
        "keys": len(keys),
        "applied": len(keys),
        "modules": len(keys) // 3,
        "kinds": ("lora",),
        "ranks": (2, 4),
        "scales": (0.5, 1.0),
        "unmatched": [],
    }


@pytest.mark.parametrize("other", CORE)
@pytest.mark.parametrize("model", CORE)
def test_a_lora_fits_its_own_model_only(model: str, other: str, unloaded: PipelineOf, lora_of: LoraOf) -> None:
    pipeline, path = unloaded(model), lora_of(f"{other}/lora")
    if model == other:
        assert pipeline.with_lora(path).mode == MODELS[model].lora_mode
        return
    with pytest.raises(LoraError) as error:
        pipeline.with_lora(path)
    assert re.search(r"LoRA for (another model|a model of another size)", str(error.value))
    assert str(error.value).startswith(f"{path}: ")
    assert "pipe" not in vars(pipeline.base)


def edited(path: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a LoRA file with some of its tensors changed."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, folder / "edited.safetensors")
    return folder / "edited.safetensors"


def key(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(part))


def shorten(tensors: dict[str, torch.Tensor], part: str) -> None:
    name = key(tensors, part)
    tensors[name] = tensors[name][:, :-1].contiguous()


def empty_the_first_pair(tensors: dict[str, torch.Tensor]) -> None:
    down, up = key(tensors, "lora_down.weight"), key(tensors, "lora_up.weight")
    tensors[down], tensors[up] = tensors[down][:0], tensors[up][:, :0]


EDITS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no up half": (lambda t: t.pop(key(t, "lora_up.weight")), "the other half of the pair is missing"),
    "no down half": (lambda t: t.pop(key(t, "lora_down.weight")), "the other half of the pair is missing"),
    "another width": (lambda t: shorten(t, "lora_down.weight"), "a LoRA for a model of another size"),
    "another rank": (lambda t: shorten(t, "lora_up.weight"), "in one half and 3 in the other"),
    "a number for a matrix": (lambda t: t.update({key(t, "lora_up.weight"): torch.tensor(1.0)}), "shapes"),
    "a number for the other": (lambda t: t.update({key(t, "lora_down.weight"): torch.tensor(1.0)}), "shapes"),
    "rank 0": (empty_the_first_pair, ""),
    "two alphas": (lambda t: t.update({key(t, "alpha"): torch.ones(2)}), "alpha"),
    "a key of another tool": (lambda t: t.update({"lora_te_x.lora_up.weight": torch.ones(1)}), "144 of 145 keys"),
    "an unknown part": (lambda t: t.update({key(t, "alpha").replace("alpha", "dora_scale"): torch.ones(1)}), "141 of"),
    "nothing": (lambda t: t.clear(), "holds no tensors"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_file_that_does_not_fit_is_refused_before_weights_load(
    edit: str, unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path
) -> None:
    change, cause = EDITS[edit]
    path = edited(lora_of("sd15/lora"), tmp_path, change)
    pipeline = unloaded("sd15")
    with pytest.raises(LoraError) as error:
        pipeline.with_lora(path)
    assert str(error.value).startswith(f"{path}: ")
    assert cause in str(error.value)
    assert "pipe" not in vars(pipeline.base)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (lambda whole: whole[: len(whole) // 2], "truncated"),
        (lambda whole: whole[:4], "truncated"),
        (lambda whole: b"<!doctype html><title>Log in</title>" * 9, "a web page"),
        (lambda whole: b"", "truncated"),
        (None, "no such LoRA file"),
    ],
    ids=["truncated", "cut in its header", "a web page", "empty", "missing"],
)
def test_a_damaged_file_is_refused_before_weights_load(
    content: Callable[[bytes], bytes] | None, cause: str, unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path
) -> None:
    path = tmp_path / "my.safetensors"
    if content is not None:
        path.write_bytes(content(lora_of("sd15/lora").read_bytes()))
    pipeline = unloaded("sd15")
    with pytest.raises(LoraError) as error:
        pipeline.with_lora(path)
    assert str(error.value).startswith(f"{path}: ")
    assert cause in str(error.value)
    assert "pipe" not in vars(pipeline.base)


def test_a_lora_that_matches_in_part_needs_consent_and_says_what_is_left_out(
    pipeline_of: PipelineOf, lora_of: LoraOf, tmp_path: Path
) -> None:
    foreign = "lora_te_layers_0.lora_up.weight"
    path = edited(lora_of("sd15/lora"), tmp_path, lambda t: t.update({foreign: torch.ones(1)}))
    base = pipeline_of("sd15")
    with pytest.raises(LoraError, match="give allow_partial=True"):
        base.with_lora(path)
    partial = base.with_lora(path, allow_partial=True)
    assert partial.lora is not None
    coverage = partial.lora.coverage
    assert (coverage.keys, coverage.applied, coverage.unmatched) == (145, 144, (foreign,))
    assert pixels(partial) == pixels(base.with_lora(lora_of("sd15/lora")))
    receipt = partial.sample("a fox", width=64, height=64, steps=1).receipt
    assert receipt["lora"]["unmatched"] == [foreign]


def test_consent_does_not_extend_to_a_file_of_which_nothing_matches(unloaded: PipelineOf, lora_of: LoraOf) -> None:
    with pytest.raises(LoraError, match="0 of"):
        unloaded("sd15").with_lora(lora_of("flux/lora"), allow_partial=True)


def test_one_change_said_twice_is_refused(unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path) -> None:
    """Two spellings of one key: applying either would silently drop the other."""

    def say_again(tensors: dict[str, torch.Tensor]) -> None:
        name = key(tensors, "lora_down.weight")
        tensors[name.replace("lora_down", "lora_A")] = tensors[name] * 2

    with pytest.raises(LoraError, match="twice"):
        unloaded("sd15").with_lora(edited(lora_of("sd15/lora"), tmp_path, say_again))


def test_a_file_without_alpha_has_scale_one(unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path) -> None:
    def drop_alphas(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("alpha")]:
            del tensors[name]

    pipeline = unloaded("sd15").with_lora(edited(lora_of("sd15/lora"), tmp_path, drop_alphas))
    assert pipeline.lora is not None
    assert pipeline.lora.coverage.scales == (1.0,)


def test_an_infinite_alpha_is_refused_where_it_counts(unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path) -> None:
    """The trainer saves the alpha of a LoKr with whole factors, which means nothing, as infinity in float16."""

    def diverge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key(tensors, "alpha")].fill_(float("inf"))

    with pytest.raises(LoraError, match=r"the alpha of .* holds NaN or infinity"):
        unloaded("sd15").with_lora(edited(lora_of("sd15/lora"), tmp_path, diverge))
    whole = lora_of("lumina2/lokr")
    assert any(name.endswith("alpha") and tensor.isinf().all() for name, tensor in load_file(whole).items())
    assert unloaded("lumina2").with_lora(whole).lora is not None


def test_a_pipeline_is_not_changed_by_giving_it_a_lora(unloaded: PipelineOf, lora_of: LoraOf) -> None:
    base = unloaded("sd15")
    with_lora = base.with_lora(lora_of("sd15/lora"))
    assert base.lora is None
    assert with_lora.base is base.base
    assert with_lora.toolkit == "0.7.29", "the version that made the LoRA"
    assert replace(with_lora, lora=None, mode=base.mode, toolkit=base.toolkit) == base


@pytest.mark.parametrize(("rows", "multiplier"), [(70, 0.7), (70, 1.0), (2, 0.7), (331, -1.3)])
def test_a_live_dora_takes_the_mean_of_one_multiplier_a_row(rows: int, multiplier: float) -> None:
    """As toolkit/network_mixins.py has it: of many rows that mean is rounded, and guidance makes much of that."""
    torch.manual_seed(1)
    linear, x = torch.nn.Linear(24, 16), torch.randn(rows, 24)
    down, up = torch.randn(3, 24), torch.randn(16, 3)
    change = LowRank(down=down, up=up, scale=2.0, magnitude=linear.weight.detach().norm(dim=1))
    with torch.no_grad():
        ours = live(change, linear, multiplier)(linear, (x,), linear(x))
        each = torch.tensor([multiplier]).repeat_interleave(rows)
        weight = linear.weight + (up @ down) * each.mean()
        stretch = (change.magnitude / torch.linalg.norm(weight, dim=1) - 1).view(1, -1)
        added = (x @ down.T @ up.T) * 2.0 * each[:, None] + stretch * torch.nn.functional.linear(x, weight)
        assert torch.equal(ours, linear(x) + added)


def test_a_merged_weight_lies_in_memory_as_the_loaded_one_did() -> None:
    """The trainer merges in place; a product of one row is summed otherwise where memory is aligned otherwise."""
    room = torch.arange(64 * 64 + 16, dtype=torch.float32)
    for ahead in (0, 1, 7, 15):
        loaded = room[ahead : ahead + 64 * 64].view(64, 64)
        for weight in (loaded, loaded.T):
            merged = where_it_was(weight, weight + 1)
            assert merged.data_ptr() % 64 == weight.data_ptr() % 64 == 4 * ahead
            assert merged.stride() == weight.stride()
            assert torch.equal(merged, weight + 1)
            assert torch.equal(room, torch.arange(64 * 64 + 16)), "the loaded one stays"
