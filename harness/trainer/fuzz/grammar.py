"""Jobs as hypothesis draws them: the grammar is the trainer's (SampleConfig, SampleItem and GenerateImageConfig in
toolkit/config_modules.py), odd values included."""

from typing import Any

from hypothesis import strategies as st

from lora_drift.harness.check.cases import ASSETS

PICTURES = tuple(sorted(path.name for path in ASSETS.iterdir() if path.suffix == ".png"))
INT_FLAGS = ("w", "h", "d", "seed", "s", "steps", "frames", "num_frames", "fps", "ctrl_idx")
FLOAT_FLAGS = ("l", "cfg", "m", "network_multiplier", "gr", "a", "ref")
LIST_FLAGS = ("ev", "extra_values")
FLAGS = {*INT_FLAGS, *FLOAT_FLAGS, *LIST_FLAGS, "n", "n2", "p2", "ctrl_img"}
TEXT_FLAGS = ("n", "n2", "p2", "zz", "W", "", "steps=4", "ctrl_img_1")

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
"""Of all of Unicode. (Half a surrogate pair is in no file.)"""
PIECES = (
    "a fox", "A Fox", "[trigger]", "[name]", "sks's", "\u201cquoted\u201d", "\u2026", "\ufb01ne", "\u96e8", "\xe9",
    "e\u0301", "--", "-", "\xa0", "\t", "\n", "&amp;", "\uff21\uff22", "\U0001f98a", "(word:1.2)", "{x}", "${X", "\\n",
    '"', "#",
    "a" * 60,
)  # fmt: skip
"""Typographic quotes, an ellipsis, a ligature, CJK, composed and decomposed accents, full-width letters, ..."""
WORDS = st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join)
INT = st.one_of(st.integers(-100, 2100), st.sampled_from([-1, 0, 1, 7, 8, 9, 63, 64, 65, 16384, 16385]))
SEED = st.one_of(INT, st.integers(-(2**63) - 2, 2**64 + 1))
FLOAT = st.one_of(st.floats(-10, 10, allow_nan=False), st.sampled_from([0.0, 1.0, 0.5, -0.0, 1e-9, 1e9]))
ODD = st.sampled_from(["", "x", "1.5", "1e3", " 7 ", "7 cats", "\uff11\uff12", "1_0", "+5", "-", "0x10", "nan", "inf",
                       "-inf", "1,5", "True", "\u0663"])  # fmt: skip
"""Numbers as Python reads them and as it does not: full-width and Arabic digits, underscores, ..."""


def _number(strategy: Any) -> Any:
    return st.one_of(strategy.map(str), strategy.map(str), ODD)


FLAG = st.one_of(
    st.tuples(st.sampled_from(INT_FLAGS), _number(SEED)),
    st.tuples(st.sampled_from(FLOAT_FLAGS), _number(FLOAT)),
    st.tuples(st.sampled_from(LIST_FLAGS), st.lists(_number(FLOAT), min_size=1, max_size=3).map(",".join)),
    st.tuples(st.sampled_from(TEXT_FLAGS), st.one_of(TEXT, WORDS)),
    st.tuples(st.just("ctrl_img"), st.sampled_from(PICTURES)),
)
SPACE = st.sampled_from([" ", "  ", "\t", ""])


def _prompt(parts: tuple[str, list[tuple[str, str]], str]) -> str:
    head, flags, space = parts
    return head + "".join(f" --{name}{space}{value}" for name, value in flags)


PROMPT = st.tuples(st.one_of(WORDS, TEXT), st.lists(FLAG, max_size=4), SPACE).map(_prompt)
PICTURE = st.one_of(st.none(), st.sampled_from(PICTURES))
STEPS = st.integers(2, 60)
FRAMES, FPS = st.integers(1, 130), st.integers(1, 60)
SHARED: dict[str, Any] = {
    "width": INT,
    "height": INT,
    "neg": st.one_of(TEXT, WORDS),
    "seed": SEED,
    "guidance_scale": FLOAT,
    "sample_steps": STEPS,
    "network_multiplier": FLOAT,
    "num_frames": FRAMES,
    "fps": FPS,
}
"""Fields that `sample:` and each of its items have."""
ITEM = st.fixed_dictionaries(
    {"prompt": PROMPT},
    optional={
        **SHARED,
        "network_multiplier": st.one_of(FLOAT, FLOAT.map(str), st.just("strong")),
        "ctrl_idx": st.integers(-1, 2),
        **dict.fromkeys(("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3"), PICTURE),
    },
)
SAMPLE = st.fixed_dictionaries(
    {},
    optional={
        **SHARED,
        "walk_seed": st.booleans(),
        "guidance_rescale": FLOAT,
        "do_cfg_norm": st.booleans(),
        "format": st.sampled_from(["jpg", "png", "webp"]),
    },
)
ITEMS = st.one_of(
    st.fixed_dictionaries({"samples": st.lists(ITEM, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"prompts": st.lists(PROMPT, min_size=1, max_size=3)}),
)


def _job(drawn: tuple[str, str | None, dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    name, trigger, sample, items = drawn
    process: dict[str, Any] = {"type": "sd_trainer", "sample": {**sample, **items}, "model": {"name_or_path": "x"}}
    if trigger is not None:
        process["trigger_word"] = trigger
    return {"job": "extension", "config": {"name": name, "process": [process]}}


NAME = st.sampled_from(["my_lora", "a b", "ö", 'q"uote', "[trigger]", "--w 64"])
TRIGGER = st.one_of(st.none(), st.sampled_from(["sks", "", "a man", "[name]", "--s 3", "“x”"]))
JOBS = st.tuples(NAME, TRIGGER, SAMPLE, ITEMS).map(_job)
"""A whole job file, but for the model."""
