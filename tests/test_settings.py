"""What the user asks becomes what is rendered, by the trainer's rules and with every refusal explained."""

import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_drift.pipelines import MODELS, ModelSpec, RequestError, loading
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.settings import Request, Settings, resolve
from lora_drift.pipelines.spec import TOOLKITS

CORE = ("sd15", "sdxl", "flux", "zimage_turbo", "wan21_1b")
"""One model of each kind, for what the others would show no better."""
ROWS = [MODELS[model] for model in CORE]
MODEL = st.sampled_from(ROWS)
FLOORED = st.sampled_from([spec for spec in ROWS if spec.size_rule == "floor"])
SIDE = st.integers(1, 16384)
VIDEO = MODELS["wan21_1b"]


def resolved(prompt: str = "a fox", model: str = "sd15", **fields: Any) -> Settings:
    return resolve(spec_of(model), Request(prompt, **fields))


def refusal(prompt: str = "a fox", model: str = "sd15", **fields: Any) -> str:
    with pytest.raises(RequestError) as error:
        resolved(prompt, model, **fields)
    return str(error.value)


def test_importing_the_pipelines_imports_no_heavy_library() -> None:
    code = (
        "import sys, lora_drift.pipelines; print(*{'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# ------------------------------------------------------------------------------------------------------------ sizes


@given(FLOORED, SIDE, SIDE)
def test_a_size_is_floored_to_8_then_raised_to_64_then_floored_to_the_models_divisor(
    spec: ModelSpec, width: int, height: int
) -> None:
    found = resolve(spec, Request("a fox", width=width, height=height))
    for asked, side in ((width, found.width), (height, found.height)):
        assert side >= 64
        assert side % spec.size_divisor == 0
        assert side == max(64, asked // 8 * 8) // spec.size_divisor * spec.size_divisor


@given(SIDE, SIDE)
def test_wan_refuses_what_is_no_multiple_of_16_and_names_sizes_that_work(width: int, height: int) -> None:
    snapped = [max(64, side // 8 * 8) for side in (width, height)]
    request = Request("a fox", width=width, height=height)
    if all(side % 16 == 0 for side in snapped):
        found = resolve(VIDEO, request)
        assert [found.width, found.height] == snapped
        return
    with pytest.raises(RequestError, match=rf"^size {width}x{height}: wan21_1b .* multiples of 16") as error:
        resolve(VIDEO, request)
    named = re.findall(r"(\d+)x(\d+)", str(error.value).partition("; use ")[2])
    assert named
    for near in (tuple(map(int, size)) for size in named):
        found = resolve(VIDEO, replace(request, width=near[0], height=near[1]))
        assert (found.width, found.height) == near
        assert all(abs(got - wanted) < 16 for got, wanted in zip(near, snapped, strict=True))


# ----------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize(("asked", "frames"), [(1, 1), (2, 1), (3, 1), (4, 5), (5, 5), (8, 9), (9, 9), (41, 41)])
def test_a_frame_count_becomes_four_n_plus_one(asked: int, frames: int) -> None:
    assert resolved(model="wan21_1b", num_frames=asked).num_frames == frames


@given(st.integers(1, 1000))
def test_a_frame_count_moves_by_less_than_one_latent_frame(asked: int) -> None:
    frames = resolve(VIDEO, Request("a fox", num_frames=asked)).num_frames
    assert frames % 4 == 1
    assert abs(frames - asked) < 4


# ------------------------------------------------------------------------------------------------------------ flags

FLAGS = [
    ("--n dark and blurry", "negative_prompt", "dark and blurry"),
    ("--w 320", "width", 320),
    ("--h 320", "height", 320),
    ("--d 7", "seed", 7),
    ("--seed 7", "seed", 7),
    ("--l 2.5", "guidance_scale", 2.5),
    ("--cfg 2.5", "guidance_scale", 2.5),
    ("--s 9", "steps", 9),
    ("--steps 9", "steps", 9),
    ("--m 0.25", "multiplier", 0.25),
    ("--network_multiplier 0.25", "multiplier", 0.25),
    ("--gr 0.7", "guidance_rescale", 0.7),
    ("--frames 13", "num_frames", 13),
    ("--num_frames 13", "num_frames", 13),
    ("--fps 24", "fps", 24),
]
FIELDS = Request(
    "", negative="noisy", width=256, height=256, steps=4, guidance_scale=3.0, guidance_rescale=0.1, seed=1,
    multiplier=0.5, num_frames=5, fps=8,
)  # fmt: skip


@pytest.mark.parametrize(("flag", "field", "value"), FLAGS, ids=[flag for flag, _, _ in FLAGS])
def test_a_flag_wins_over_its_field_and_changes_nothing_else(flag: str, field: str, value: object) -> None:
    without = resolve(VIDEO, replace(FIELDS, prompt="a fox"))
    with_flag = resolve(VIDEO, replace(FIELDS, prompt=f"a fox {flag}"))
    changes: dict[str, Any] = {field: value, **({f"asked_{field}": value} if field in ("width", "height") else {})}
    assert with_flag == replace(without, **changes)
    assert with_flag != without


def test_several_flags_in_one_prompt() -> None:
    found = resolved("  a fox, by the sea --w 109 --h 157 --n dark --cfg 5 --s 4 --d 3 --m 1.1 ")
    assert (found.prompt, found.negative_prompt) == ("a fox, by the sea", "dark")
    assert (found.width, found.height, found.steps, found.seed) == (104, 152, 4, 3)
    assert (found.guidance_scale, found.multiplier) == (5.0, 1.1)


def test_the_negative_flag_does_not_reach_the_second_text_encoder() -> None:
    found = resolved("a fox --n dark", model="sdxl", negative="blurry")
    assert (found.negative_prompt, found.negative_prompt_2) == ("dark", "blurry")


@pytest.mark.parametrize("flag", ["--zz 5 cats", "--p2 a dog", "--n2 a dog", "--", "-- dashes", "--W 64"])
def test_an_unknown_flag_is_dropped_with_its_text(flag: str) -> None:
    assert resolved(f"a fox {flag} --s 3") == replace(resolved("a fox"), steps=3)


@pytest.mark.parametrize(
    "flag", ["--w wide", "--h 1.5", "--steps", "--seed 3 cats", "--cfg high", "--m", "--fps 1,5", "--frames many"]
)
def test_a_flag_without_its_number_is_refused_by_name(flag: str) -> None:
    message = refusal(f"a fox {flag} --n dark", model="wan21_1b")
    assert message.startswith(f"prompt flag {flag.split()[0]}:")
    assert repr(flag.partition(" ")[2]) in message


# --------------------------------------------------------------------------------------------------- names and seeds


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "[trigger] by [name]"),
        ({"trigger_word": "sks"}, "sks by sks"),
        ({"job_name": "my-lora"}, "[trigger] by my-lora"),
        ({"trigger_word": "sks", "job_name": "my-lora"}, "sks by my-lora"),
    ],
    ids=lambda value: "+".join(value) or "neither" if isinstance(value, dict) else "",
)
def test_trigger_and_name_in_a_prompt(fields: dict[str, str], prompt: str) -> None:
    assert resolved("[trigger] by [name]", **fields).prompt == prompt


def test_seed_minus_one_draws_a_seed() -> None:
    drawn = {resolved(seed=-1).seed for _ in range(8)}
    assert len(drawn) > 1
    assert all(0 <= seed < 2**32 for seed in drawn)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "fields", "named"),
    [
        ("sd15", {"width": 0}, "size 0x512"),
        ("sd15", {"height": -8}, "size 512x-8"),
        ("sd15", {"width": 16385}, "at most 16384"),
        ("sd15", {"steps": 0}, "steps 0"),
        ("sd15", {"seed": -2}, "seed -2"),
        ("sd15", {"seed": 2**64}, f"seed {2**64}"),
        ("sd15", {"num_frames": 5}, "frames 5: sd15 makes pictures"),
        ("wan21_1b", {"num_frames": 0}, "frames/fps 0/16"),
        ("wan21_1b", {"fps": 0}, "frames/fps 41/0"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(model: str, fields: dict[str, Any], named: str) -> None:
    assert named in refusal(model=model, **fields)


def test_a_flag_is_held_to_the_same_range() -> None:
    assert "steps 0" in refusal("a fox --steps 0", steps=4)
    assert resolved("a fox --steps 4", steps=0).steps == 4


STEPWISE = {
    (spec.scheduler.cls, repr(spec.scheduler.config)): spec
    for model in MODELS.values()
    for spec in map(model.at, TOOLKITS)
    if spec.scheduler.name.startswith("DDPM") or "UniPC" in spec.scheduler.name
}
"""A row for each scheduler that rounds its timesteps."""


@pytest.mark.parametrize("spec", STEPWISE.values(), ids=lambda spec: f"{spec.id}-{spec.toolkit}")
def test_the_table_says_how_many_steps_a_scheduler_can_do(spec: ModelSpec) -> None:
    def walk(steps: int) -> None:
        scheduler, sample = loading.scheduler(spec.scheduler), torch.zeros(1, 1, 1)
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            sample = scheduler.step(sample, timestep, sample, return_dict=False)[0]

    walk(spec.most_steps)
    if spec.most_steps < 1000:
        with pytest.raises((IndexError, AssertionError)):
            walk(spec.most_steps + 1)
    with pytest.raises(RequestError, match=f"to {spec.most_steps}"):
        resolve(replace(spec, controls=(0, 0)), Request("a fox", steps=spec.most_steps + 1))


def test_the_largest_seed_is_accepted() -> None:
    assert resolved(seed=2**64 - 1).seed == 2**64 - 1


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(RequestError) as error:
        spec_of("sd16")
    assert all(model in str(error.value) for model in ("'sd16'", *MODELS))


@given(
    MODEL,
    st.text(max_size=30),
    st.lists(st.sampled_from([flag for flag, field, _ in FLAGS if field not in ("num_frames", "fps")]), max_size=3),
    st.integers(1, 2048),
    st.integers(1, 100),
)
def test_what_is_resolved_resolves_to_itself(spec: ModelSpec, text: str, flags: list[str], side: int, n: int) -> None:
    frames = n if spec.kind == "video" else 1
    side = side // 16 * 16 or 16 if spec.size_rule == "refuse" else side
    text = re.sub(r"--+", "-", text)  # made-up flags have their own test
    request = Request(" ".join([text, *flags]), "noisy", width=side, height=side, seed=n, steps=n, num_frames=frames)
    once = resolve(spec, request)
    fields = once.as_dict()
    derived = ("negative_prompt_2", "asked_width", "asked_height")
    for name in derived:
        del fields[name]
    again = resolve(spec, Request(**{"negative": fields.pop("negative_prompt"), **fields}))
    changed: dict[str, Any] = {name: getattr(again, name) for name in derived}
    assert again == replace(once, **changed)
