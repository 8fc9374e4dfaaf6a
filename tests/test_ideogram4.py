"""Ideogram 4: captions in JSON, which layers of the text encoder are read, and the pass without text."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_drift import pipelines
from lora_drift.harness.check import runner
from lora_drift.harness.minihub import factory, weights
from lora_drift.pipelines.adapter import live, underneath
from lora_drift.pipelines.families import ideogram4
from lora_drift.pipelines.families.ideogram4_captions import digested
from lora_drift.pipelines.lora import LoKr, LowRank
from lora_drift.pipelines.runtime import Pipeline
from lora_drift.pipelines.settings import Request, resolve

PARTS = {"background": "a wall", "elements": []}


def caption(**fields: Any) -> dict[str, Any]:
    return {"compositional_deconstruction": PARTS, **fields}


# ---------------------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red fox",
        "{",
        '{"a": 1}',
        '[{"compositional_deconstruction": {}}]',
        '{"compositional_deconstruction": []}',
        "{red} fox",
        '{"compositional_deconstruction": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_what_is_no_caption_stays_to_the_letter(prompt: str) -> None:
    assert digested(f"  {prompt} \n") == f"  {prompt} \n"


STYLES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # given, with the fields in the order of the model's form
    ({"photo": "ink", "medium": "Illustration."}, {"medium": "illustration", "art_style": "ink"}),
    ({"art_style": "35mm", "medium": " Photo "}, {"photo": "35mm", "medium": "photograph"}),
    ({"art_style": "oil", "medium": "Fresco. "}, {"medium": "Fresco.", "art_style": "oil"}),
    ({"photo": "a", "art_style": "b", "medium": "Fresco"}, {"photo": "a", "medium": "Fresco"}),
    ({"photo": "", "art_style": "b", "medium": "3D-Render"}, {"medium": "3d_render", "art_style": "b"}),
    ({"medium": None, "lighting": None, "aesthetics": "x"}, {"aesthetics": "x", "lighting": None}),
    ({"mood": 1, "color_palette": ["#0af", "#00AAFF", "red", 3, " #123456 "]},
     {"color_palette": ["#00AAFF", "#123456"], "mood": 1}),
    ({"color_palette": ["#12"], "medium": 5}, {"medium": 5}),
    ({"color_palette": [f"#0000{n:02}" for n in range(20)]}, {"color_palette": [f"#0000{n:02}" for n in range(16)]}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), STYLES)
def test_a_style_in_the_models_form(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = json.loads(digested(json.dumps(caption(style_description=given))))["style_description"]
    assert list(found.items()) == list(expected.items())


ELEMENTS: list[tuple[Any, Any]] = [
    ({"color_palette": ["#abc"], "desc": "d", "bbox": [1, 2, 3, 4]},
     {"type": "obj", "bbox": [1, 2, 3, 4], "desc": "d", "color_palette": ["#AABBCC"]}),
    ({"type": "text", "desc": "d", "text": "T", "x": 1}, {"type": "text", "text": "T", "desc": "d", "x": 1}),
    ({"type": "obj", "text": "T", "desc": "d"}, {"type": "obj", "desc": "d", "text": "T"}),
    ({"bbox": None, "desc": None}, {"type": "obj", "desc": None, "bbox": None}),
    ({"color_palette": [f"#00000{n}" for n in range(9)]},
     {"type": "obj", "color_palette": [f"#00000{n}" for n in range(5)]}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), ELEMENTS)
def test_an_element_in_the_models_form(given: Any, expected: Any) -> None:
    scene = {"extra": 1, "elements": [given, "a word"], "background": "b"}
    found = json.loads(digested(json.dumps({"compositional_deconstruction": scene})))["compositional_deconstruction"]
    assert list(found) == ["background", "elements", "extra"]
    assert list(found["elements"][0].items()) == list(expected.items()) and found["elements"][1] == "a word"


def test_a_caption_is_written_without_spaces_and_in_its_own_letters() -> None:
    given = {"z": 1, **caption(style_description="s", aspect_ratio="1:1", high_level_description="Café “x”")}
    assert digested(f"\n{json.dumps(given)}\u00a0") == (
        '{"high_level_description":"Café “x”","style_description":"s",'
        '"compositional_deconstruction":{"background":"a wall","elements":[]},"z":1}'
    )


def test_elements_that_are_no_list_are_left_out() -> None:
    found = digested('{"compositional_deconstruction": {"elements": {}, "more": 1}, "style_description": null}')
    assert found == '{"style_description":null,"compositional_deconstruction":{"more":1}}'


# ---------------------------------------------------------------------------------------------------------- schedule


def test_sigmas_are_quantiles_of_a_logit_normal_distribution_that_shifts_with_the_size() -> None:
    spec = ideogram4.ROWS[0]
    square = ideogram4.schedule(spec, 4, 512 * 512)
    quarter = 1 / (1 + math.exp(1.75 * NormalDist().inv_cdf(0.75)))
    assert square == pytest.approx([1 - 1 / (1 + math.exp(9)), 1 - quarter, 0.5, quarter], abs=1e-6)
    larger = ideogram4.schedule(spec, 4, 1024 * 1024)  # the odds of each sigma are twice as large
    assert larger[2] == pytest.approx(2 / 3, abs=1e-6) and larger[0] == square[0]
    even = ideogram4.schedule(replace(spec, schedule="even"), 3, 1024 * 1024)
    assert even == pytest.approx([1, 0.5005, 0.001])


@pytest.mark.parametrize(
    ("toolkit", "expected"),
    [
        ("0.10.0", (512, "cfg_always", False, "", "even")),
        ("0.10.11", (3072, "cfg_always", False, "", "even")),
        ("0.10.12", (3072, "cfg_without_text", True, "", "even")),
        ("0.10.13", (3072, "cfg_without_text", True, ideogram4.ROWS[0].unconditional_lora, "even")),
        ("0.10.14", (3072, "cfg_without_text", True, ideogram4.ROWS[0].unconditional_lora, "logit-normal")),
    ],
)
def test_each_version_has_its_own_rules(toolkit: str, expected: tuple[Any, ...]) -> None:
    row = ideogram4.ROWS[0].at(toolkit)
    found = (row.max_sequence_length, row.guidance, row.digests_captions, row.unconditional_lora, row.schedule)
    assert found == expected


# --------------------------------------------------------------------------------------------------- with a miniature


@pytest.fixture(scope="module")
def model() -> Pipeline:
    runner.use_minihub()
    return pipelines.load("ideogram4")


@contextmanager
def reading(model: Pipeline) -> Iterator[list[dict[str, Any]]]:
    """What the denoiser is handed, call by call, and whether its LoRA is on: hooks on a layer besides its own."""
    calls: list[dict[str, Any]] = []
    transformer = model.base.pipe.transformer

    def before(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        calls.append({**kwargs, "hooks": len(transformer.input_proj._forward_hooks)})

    handle = transformer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def render(model: Pipeline, scale: float, **more: Any) -> Any:
    request = Request("a fox", width=64, height=64, steps=2, seed=1, guidance_scale=scale, **more)
    return model.render(resolve(model.spec, request)).media.frames[0]


def test_the_second_pass_sees_the_picture_alone_and_has_a_lora_of_its_own(model: Pipeline) -> None:
    with reading(model) as calls:
        render(model, 3.0, negative="blurry")
    words = calls[0]["hidden_states"].shape[1] - 16
    assert words > 5 and [call["hidden_states"].shape[1] for call in calls] == [words + 16, 16] * 2
    assert not calls[1]["encoder_hidden_states"].any() and calls[0]["encoder_hidden_states"].any()
    least = calls[0]["hooks"]
    assert [call["hooks"] - least for call in calls] == [0, 1, 0, 1]
    assert torch.equal(calls[1]["position_ids"], calls[0]["position_ids"][:, words:])
    assert not model.base.pipe.transformer.layers[0].feed_forward.w1._forward_hooks


def test_at_guidance_1_there_is_one_pass(model: Pipeline) -> None:
    with reading(model) as calls:
        render(model, 1.0)
    assert len(calls) == 2


def test_before_0_10_12_the_second_pass_read_the_negative_prompt() -> None:
    runner.use_minihub()
    older = pipelines.load("ideogram4", toolkit="0.10.11")
    with reading(older) as calls:
        render(older, 0.5, negative="blurry and dark")
    assert len(calls) == 4 and calls[1]["encoder_hidden_states"].any()
    assert {call["hooks"] for call in calls} == {calls[0]["hooks"]}
    with reading(older) as calls:
        render(older, 1.0, negative="blurry and dark")
    assert len(calls) == 2


def test_the_last_layer_is_read_before_the_norm_and_layers_alternate(model: Pipeline) -> None:
    pipe, spec = model.base.pipe, ideogram4.ROWS[0]
    with torch.no_grad():
        found = ideogram4.encode(pipe, spec, "a fox").unflatten(2, (-1, len(spec.encoder_layers)))
        chat = "<|im_start|>user\na fox<|im_end|>\n<|im_start|>assistant\n"
        ids = pipe.tokenizer([chat], return_tensors="pt").input_ids
        output = pipe.text_encoder(ids, output_hidden_states=True)
        assert found.shape[1] == ids.shape[1]
        assert torch.equal(found[..., 1], output.hidden_states[4])
        normed = pipe.text_encoder.language_model.norm(found[..., -1])
    assert torch.allclose(normed, output.last_hidden_state) and not torch.allclose(normed, found[..., -1])


def test_captions_reach_the_encoder_in_their_form(model: Pipeline) -> None:
    pipe, spec, given = model.base.pipe, ideogram4.ROWS[0], json.dumps(caption(aspect_ratio="1:1"), indent=1)
    with torch.no_grad():
        as_given = ideogram4.encode(pipe, replace(spec, digests_captions=False), given)
        assert torch.equal(ideogram4.encode(pipe, spec, given), ideogram4.encode(pipe, spec, digested(given)))
    assert as_given.shape[1] > ideogram4.encode(pipe, spec, given).shape[1]


def test_in_half_precision_only_the_denoisers_frequencies_are_rounded() -> None:
    runner.use_minihub()
    pipe = pipelines.load("ideogram4", dtype="bfloat16").base.pipe
    assert pipe.transformer.rotary_emb.inv_freq.dtype == torch.bfloat16
    assert pipe.text_encoder.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_denoiser_in_parts_is_the_same(model: Pipeline, tmp_path: Path) -> None:
    home = factory.snapshot(factory.default_home(), model.spec.base)
    shutil.copytree(home / "vae", tmp_path / "vae")
    (tmp_path / "transformer").mkdir()
    whole, map_of = load_file(home / ideogram4.ROWS[0].transformer_file), dict[str, str]()
    for number in range(2):
        part = {name: tensor for at, (name, tensor) in enumerate(whole.items()) if at % 2 == number}
        save_file(part, tmp_path / "transformer" / f"part-{number}.safetensors")
        map_of |= dict.fromkeys(part, f"part-{number}.safetensors")
    index = tmp_path / f"{ideogram4.ROWS[0].transformer_file}.index.json"
    index.write_text(json.dumps({"weight_map": map_of}))
    parted = pipelines.load("ideogram4", base=str(tmp_path))
    assert np.array_equal(np.asarray(render(parted, 3.0)), np.asarray(render(model, 3.0)))
    assert parted.base.shapes == model.base.shapes


def test_the_miniatures_float8_is_torchs() -> None:
    drawn = weights.uniform((8, 64), "float8")
    codes, scale = weights.to_float8(drawn)
    expected = (torch.from_numpy(drawn) / torch.from_numpy(scale)[:, None]).to(torch.float8_e4m3fn)
    assert torch.equal(torch.from_numpy(codes).view(torch.float8_e4m3fn).float(), expected.float())


# ----------------------------------------------------------------------------------------------------------- adapters


def test_a_change_underneath_comes_before_a_live_lora_and_behind_a_live_lokr() -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    change = LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)
    lokr = LoKr(torch.ones(2, 2), torch.ones(2, 2), 1.0, (4, 4))
    x = torch.ones(1, 4)
    for other, first in ((change, True), (lokr, False)):
        own = layer.register_forward_hook(live(other, layer, 1.0))
        added = underneath(layer, change, torch.float32)
        assert (next(iter(layer._forward_hooks)) == added.id) == first
        assert torch.allclose(layer(x), x @ layer.weight.T + 8)
        own.remove()
        added.remove()
    assert torch.allclose(layer(x), x @ layer.weight.T)
