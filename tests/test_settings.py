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

from lora_drift.harness.check import cases
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
ASKED = {"width": "asked_width", "height": "asked_height", "num_frames": "asked_frames"}
FIELDS = Request(
    "", negative="noisy", width=256, height=256, steps=4, guidance_scale=3.0, guidance_rescale=0.1, seed=1,
    multiplier=0.5, num_frames=5, fps=8,
)  # fmt: skip


@pytest.mark.parametrize(("flag", "field", "value"), FLAGS, ids=[flag for flag, _, _ in FLAGS])
def test_a_flag_wins_over_its_field_and_changes_nothing_else(flag: str, field: str, value: object) -> None:
    without = resolve(VIDEO, replace(FIELDS, prompt="a fox"))
    with_flag = resolve(VIDEO, replace(FIELDS, prompt=f"a fox {flag}"))
    changes: dict[str, Any] = {field: value, **({ASKED[field]: value} if field in ASKED else {})}
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
    ("flag", "field", "value"),
    [
        ("--seed -7", "seed", -7),
        ("--seed -1", "seed", -1),
        ("--w 0", "width", 64),
        ("--h -8", "height", 64),
        ("--frames 5", "num_frames", 1),
        ("--fps 0", "fps", 0),
    ],
)
def test_what_the_trainer_takes_of_a_picture_model_is_taken(flag: str, field: str, value: int) -> None:
    """Pictures have no frames, sides are at least 64, and torch takes negative seeds."""
    assert getattr(resolved(f"a fox {flag}"), field) == value


def test_a_short_video_becomes_one_frame_and_is_still_a_video() -> None:
    found = resolved("a fox --frames 5", model="ltx2")
    assert (found.num_frames, found.moving) == (1, True)
    assert not resolved("a fox --frames 1", model="ltx2").moving
    assert not resolved("a fox --frames 5").moving


@pytest.mark.parametrize(
    "flag",
    [
        "--a x",
        "--ref",
        "--ev 1,b",
        "--extra_values 1,,2",
        "--ctrl_idx one",
        "--w wide",
        "--h 1.5",
        "--steps",
        "--seed 3 cats",
        "--cfg high",
        "--m",
        "--fps 1,5",
        "--frames many",
    ],
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


def test_the_name_of_the_job_stands_in_the_negative_prompt_and_the_trigger_word_too() -> None:
    named = resolved("[trigger]", negative="no [name], [trigger]", trigger_word="a [name]", job_name="fox")
    assert named.prompt == "a fox"
    assert named.negative_prompt == named.negative_prompt_2 == "no fox, [trigger]"
    assert resolved("a", negative="no [name]").negative_prompt == "no [name]"


# ---------------------------------------------------------------------------------------------------- control images

TALL, WIDE, OTHER = (str(cases.ASSETS / name) for name in ("tall.png", "wide.png", "other.png"))


@pytest.mark.parametrize("model", ["flux_kontext", "flex2", "hidream_e1", "ltx2", "omnigen2", "qwen_image_edit",
                                   "wan21_i2v_14b", "wan22_5b"])  # fmt: skip
def test_a_model_of_one_control_image_reads_ctrl_img_only(model: str) -> None:
    found = resolved(model=model, ctrl_img=TALL, ctrl_img_1=WIDE, ctrl_img_2=OTHER)
    assert (found.control, found.shown) == ((TALL,), ())
    if spec_of(model).controls[0]:
        assert "it reads ctrl_img only" in refusal(model=model, ctrl_img_1=WIDE)
    else:
        assert resolved(model=model, ctrl_img_1=WIDE).control == ()
    assert resolved(model=model, control=[WIDE]).control == (WIDE,)


@pytest.mark.parametrize("model", ["qwen_image_edit_plus", "flux2_klein_4b"])
@pytest.mark.parametrize(
    ("fields", "read", "shown"),
    [
        ({"ctrl_img": TALL}, (TALL,), (TALL, TALL)),
        ({"ctrl_img_1": WIDE}, (WIDE,), (WIDE,)),
        ({"ctrl_img_2": WIDE}, (WIDE,), (WIDE,)),
        ({"ctrl_img": TALL, "ctrl_img_1": WIDE}, (TALL,), (TALL, WIDE)),
        ({"ctrl_img": TALL, "ctrl_img_2": WIDE}, (TALL, WIDE), (TALL, TALL, WIDE)),
        ({"ctrl_img": TALL, "ctrl_img_1": WIDE, "ctrl_img_3": OTHER}, (TALL, OTHER), (TALL, WIDE, OTHER)),
        # ctrl_img is copied to ctrl_img_1 before the prompt's flags are read.
        ({"prompt": f"a --ctrl_img {TALL}"}, (TALL,), (TALL,)),
        ({"prompt": f"a --ctrl_img {TALL}", "ctrl_img": WIDE}, (TALL,), (TALL, WIDE)),
        ({"prompt": f"a --ctrl_img {TALL}", "ctrl_img_1": WIDE, "ctrl_img_2": OTHER}, (TALL, OTHER),
         (TALL, WIDE, OTHER)),
        ({"prompt": f"a --ctrl_img {TALL}", "ctrl_img_2": OTHER}, (TALL, OTHER), (TALL, OTHER)),
        ({"control": [TALL, WIDE]}, (TALL, WIDE), (TALL, WIDE)),
    ],
)  # fmt: skip
def test_of_several_control_images_the_model_and_its_text_encoder_read_what_the_trainers_do(
    model: str, fields: dict[str, Any], read: tuple[str, ...], shown: tuple[str, ...]
) -> None:
    found = resolved(model=model, **{"prompt": "a fox", **fields})
    assert (found.control, found.shown or found.control) == (read, shown)


def test_a_picture_model_passes_over_control_images_and_qwen_image_stops_at_one() -> None:
    assert resolved(f"a fox --ctrl_img {TALL}", model="sdxl", ctrl_img_1=WIDE) == resolved("a fox", model="sdxl")
    for fields in ({"prompt": f"a --ctrl_img {TALL}"}, {"ctrl_img": TALL}):
        assert "the trainer stops" in refusal(model="qwen_image", **{"prompt": "a fox", **fields})
    assert "takes none; leave it out" in refusal(model="sdxl", control=[TALL])


def test_a_picture_that_a_prompt_names_is_looked_for_where_it_lies() -> None:
    asked: dict[str, Any] = {"model": "flux_kontext", "prompt": "a --ctrl_img mine.png"}
    assert "mine.png: no such file" in refusal(**asked)
    assert resolved(**asked, located={"mine.png": TALL}).control == (TALL,)
    assert "'mine.png' is not here" in refusal(**asked, located={})


def test_seed_minus_one_draws_a_seed() -> None:
    drawn = {resolved(seed=-1).seed for _ in range(8)}
    assert len(drawn) > 1
    assert all(0 <= seed < 2**32 for seed in drawn)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "fields", "named"),
    [
        ("sd15", {"width": 16385}, "at most 16384"),
        ("sd15", {"steps": 0}, "steps 0"),
        ("sd15", {"seed": -(2**63) - 1}, f"seed {-(2**63) - 1}"),
        ("sd15", {"seed": 2**64}, f"seed {2**64}"),
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
    assert str(error.value).count("did you mean") == 1
    with pytest.raises(RequestError, match=r"unknown model 'qwertz'; the models are"):
        spec_of("qwertz")


@pytest.mark.parametrize(
    ("model", "scale", "told"),
    [("sd15", 4.0, 4.0), ("sd15", 1.5, 1.5), ("sd15", 1.0, 1.0), ("sd15", 0.0, 1.0), ("flux", 1.0, 1.0),
     ("flux", 0.5, 0.5), ("zimage", 0.5, 0.5), ("zimage", 0.0, 0.0), ("zimage", -1.0, 0.0)],
)  # fmt: skip
def test_a_pipeline_that_must_not_guide_is_told_a_scale_at_which_none_does(
    model: str, scale: float, told: float
) -> None:
    spec = spec_of(model, "0.7.29")
    assert spec.pipeline_scale(scale) == told
    assert spec.guides(scale) == (scale > 1 if model == "sd15" else scale > 0 if model == "zimage" else False)


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
    derived = ("negative_prompt_2", "shown", *ASKED.values())
    for name in derived:
        del fields[name]
    again = resolve(spec, Request(**{"negative": fields.pop("negative_prompt"), **fields}))
    changed: dict[str, Any] = {name: getattr(again, name) for name in derived}
    assert again == replace(once, **changed)
