"""LoRA files of other trainers: what maps exactly is the same change, and what does not is named and left whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_drift import pipelines
from lora_drift.pipelines import LoraError, Pipeline, lora_formats
from lora_drift.pipelines.lora import Lora

PipelineOf = Callable[[str], Pipeline]
LoraOf = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def unloaded() -> PipelineOf:
    return cache(pipelines.load)


def read(
    pipeline: Pipeline, tensors: Tensors, folder: Path, metadata: dict[str, str] | None = None, **options: Any
) -> Lora:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "other.safetensors", metadata)
    lora = pipeline.with_lora(folder / "other.safetensors", **options).lora
    assert lora is not None
    return lora


def same(one: Lora, other: Lora) -> bool:
    a, b = ({(d.component, d.module): d.change for d in lora.deltas} for lora in (one, other))
    return a.keys() == b.keys() and all(
        torch.equal(a[key].weight(), b[key].weight()) and a[key].scale == b[key].scale for key in a
    )


RENAMED: dict[str, tuple[str, Callable[[str], str]]] = {
    "PEFT": ("flux/lora", lambda k: "base_model.model." + k.removeprefix("transformer.")),
    "PEFT around a prefix": ("flux/lora", lambda k: "base_model.model." + k),
    "PEFT with an adapter's name": ("flux/lora", lambda k: re.sub(r"(lora_[AB])\.weight", r"\1.default.weight", k)),
    "no prefix": ("flux/lora", lambda k: k.removeprefix("transformer.")),
    "ComfyUI": ("flux/lora", lambda k: "diffusion_model." + k.removeprefix("transformer.")),
    "OneTrainer": (
        "flux/lora",
        lambda k: "lora_transformer_" + re.sub(r"\.(?=.*\.lora)", "_", k.removeprefix("transformer.")),
    ),
    "kohya's halves": ("flux/lora", lambda k: k.replace("lora_A", "lora_down").replace("lora_B", "lora_up")),
    "Diffusers, of long ago": ("flux/lora", lambda k: k.replace("lora_A", "lora.down").replace("lora_B", "lora.up")),
    "the other prefix": ("qwen_image/lora", lambda k: "base_model.model." + k.partition(".")[2]),
}


def respelled(case: str, rename: Callable[[str], str], unloaded: PipelineOf, lora_of: LoraOf, folder: Path) -> Lora:
    """The trainer's own file of a case, once it is proven to be the same change under other keys."""
    pipeline, file = unloaded(case.partition("/")[0]), lora_of(case)
    original = pipeline.with_lora(file).lora
    tensors = {rename(key): tensor for key, tensor in load_file(file).items()}
    assert tensors.keys() != load_file(file).keys() and original is not None
    assert same(read(pipeline, tensors, folder), original)
    return original


@pytest.mark.parametrize("spelling", RENAMED)
def test_another_spelling_is_the_same_change(
    spelling: str, unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path
) -> None:
    respelled(*RENAMED[spelling], unloaded, lora_of, tmp_path)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_diffusers_names_of_stable_diffusion_are_read(
    model: str, unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path
) -> None:
    pipeline = unloaded(model)
    original = pipeline.with_lora(lora_of(f"{model}/lora-conv")).lora
    assert original is not None
    of_ours = {module.replace(".", "_"): module for module in pipeline.base.shapes["unet"]}
    tensors = {}
    for key, tensor in load_file(lora_of(f"{model}/lora-conv")).items():
        name, _, part = key.removeprefix("lora_unet_").partition(".")
        tensors[f"unet.{of_ours[name]}.{part}"] = tensor
    assert same(read(pipeline, tensors, tmp_path), original)


LDM = {
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "middle_block_1_transformer_blocks_0_attn2_to_k": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_1_0_emb_layers_1": "down_blocks.0.resnets.0.time_emb_proj",
    "output_blocks_0_1_proj_in": "up_blocks.0.attentions.0.proj_in",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
    "output_blocks_5_0_out_layers_3": "up_blocks.1.resnets.2.conv2",
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}
"""Of SDXL, as kohya's scripts write them -> Diffusers' (library/sdxl_model_util.py)."""


def pair(rows: int, columns: tuple[int, ...], rank: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    kernel = columns[1:]
    return {
        "lora_down.weight": torch.randn(rank, *columns, generator=generator),
        "lora_up.weight": torch.randn(rows, rank, *(1 for _ in kernel), generator=generator),
        "alpha": torch.tensor(1.0),
    }


def test_the_original_networks_names_of_sdxl_are_known() -> None:
    modules = dict.fromkeys([*LDM.values(), "down_blocks.0.resnets.1.conv1"], (1, 1))
    schemes = lora_formats.tables("sd", modules)
    for theirs, ours in LDM.items():
        assert lora_formats.looked_up(f"lora_unet_{theirs}", schemes)[1] == (ours,), theirs


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_the_original_networks_names_are_the_same_change(
    model: str, unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path
) -> None:
    pipeline, file = unloaded(model), lora_of(f"{model}/lora-conv")
    original, tensors = pipeline.with_lora(file).lora, load_file(file)
    schemes = lora_formats.tables("sd", pipeline.base.shapes["unet"])
    names = next(names for scheme, names in schemes if "original" in scheme.program)
    of_ours = {ours[0].replace(".", "_"): theirs for theirs, ours in names.items()}
    renamed = {}
    for key, tensor in tensors.items():
        name, _, part = key.removeprefix("lora_unet_").partition(".")
        renamed[f"lora_unet_{of_ours[name]}.{part}"] = tensor
    assert renamed.keys() != tensors.keys() and original is not None
    assert same(read(pipeline, renamed, tmp_path), original)


FUSED = {
    "double_blocks_0_img_attn_qkv": [f"transformer_blocks.0.attn.to_{p}" for p in "qkv"],
    "double_blocks_0_txt_attn_qkv": [f"transformer_blocks.0.attn.add_{p}_proj" for p in "qkv"],
    "double_blocks_0_img_mlp_0": ["transformer_blocks.0.ff.net.0.proj"],
    "double_blocks_0_txt_mod_lin": ["transformer_blocks.0.norm1_context.linear"],
    "single_blocks_0_linear1": [*(f"single_transformer_blocks.0.attn.to_{p}" for p in "qkv"),
                                "single_transformer_blocks.0.proj_mlp"],
    "single_blocks_0_linear2": ["single_transformer_blocks.0.proj_out"],
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model.", ""])
def test_kohyas_and_comfyuis_fused_matrices_of_flux_are_taken_apart(
    prefix: str, unloaded: PipelineOf, tmp_path: Path
) -> None:
    pipeline = unloaded("flux")
    shapes = pipeline.base.shapes["transformer"]
    names = {name: name.replace("_blocks_0_", "_blocks.0.") for name in FUSED}
    native = {name: re.sub(r"(attn|mlp|mod)_", r"\1.", dotted) for name, dotted in names.items()}
    tensors: Tensors = {}
    expected: Tensors = {}
    for name, ours in FUSED.items():
        rows = [shapes[module][0] for module in ours]
        parts = pair(sum(rows), shapes[ours[0]][1:])
        theirs = name if prefix == "lora_unet_" else native[name]
        tensors |= {f"{prefix}{theirs}.{part}": tensor for part, tensor in parts.items()}
        for module, up in zip(ours, parts["lora_up.weight"].split(rows), strict=True):
            split = {**parts, "lora_up.weight": up}
            expected |= {f"transformer.{module}.{part}": tensor.clone() for part, tensor in split.items()}
    found, wanted = read(pipeline, tensors, tmp_path), read(pipeline, expected, tmp_path)
    one, other = ({d.module: d.change for d in lora.deltas} for lora in (found, wanted))
    assert one.keys() == other.keys() and len(one) == 13
    for module, change in one.items():  # a row of a larger product may be summed in another order
        assert torch.allclose(change.weight(), other[module].weight(), atol=1e-5) and change.scale == 0.5


QKV = [f"layers.0.attention.to_{p}" for p in "qkv"]
ADDED_QKV = [f"transformer_blocks.0.attn.add_{p}_proj" for p in "qkv"]
NATIVE: list[tuple[str, str, list[str]]] = [
    ("wan21_1b", "lora_unet_blocks_0_self_attn_q", ["blocks.0.attn1.to_q"]),
    ("wan21_1b", "lora_unet_blocks_0_cross_attn_o", ["blocks.0.attn2.to_out.0"]),
    ("wan21_1b", "diffusion_model.time_projection.1", ["condition_embedder.time_proj"]),
    ("wan21_1b", "blocks.0.ffn.2", ["blocks.0.ffn.net.2"]),
    ("wan21_1b", "head.head", ["proj_out"]),
    ("wan21_i2v_14b", "lora_unet_blocks_0_cross_attn_k_img", ["blocks.0.attn2.add_k_proj"]),
    ("zimage", "lora_unet_layers_0_attention_qkv", QKV),
    ("zimage", "diffusion_model.layers.0.attention.out", ["layers.0.attention.to_out.0"]),
    ("zimage", "layers.0.feed_forward.w1", ["layers.0.feed_forward.w1"]),
    ("lumina2", "diffusion_model.layers.0.attention.qkv", [f"layers.0.attn.to_{p}" for p in "qkv"]),
    ("lumina2", "lora_unet_layers_0_feed_forward_w3", ["layers.0.feed_forward.linear_3"]),
    ("lumina2", "layers.0.adaLN_modulation.1", ["layers.0.norm1.linear"]),
    ("flux2_klein_4b", "lora_unet_double_blocks_0_txt_attn_qkv", ADDED_QKV),
    ("flux2_klein_4b", "single_blocks.0.linear1", ["single_transformer_blocks.0.attn.to_qkv_mlp_proj"]),
    ("chroma", "lora_unet_double_blocks_0_img_mlp_0", ["transformer_blocks.0.ff.net.0.proj"]),
    ("flux", "double_blocks.0.processor.qkv_lora2", ADDED_QKV),
    ("flux", "single_blocks.0.processor.proj_lora", ["single_transformer_blocks.0.proj_out"]),
    ("sd15", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora",
     ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"]),
    ("sd15", "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora",
     ["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]),
]  # fmt: skip
"""Model, a name of another program, our modules. (kohya-ss/musubi-tuner; ComfyUI's Z-Image and Lumina; XLabs' FLUX.1;
Diffusers before 0.20, as in Comfy-Org/ComfyUI#1144.)"""


@pytest.mark.parametrize(("model", "name", "ours"), NATIVE)
def test_names_of_the_original_networks_are_the_same_change(
    model: str, name: str, ours: list[str], unloaded: PipelineOf, tmp_path: Path
) -> None:
    pipeline = unloaded(model)
    shapes = pipeline.base.shapes[next(iter(pipeline.spec.denoisers.values()))]
    rows = [shapes[module][0] for module in ours]
    parts = pair(sum(rows), shapes[ours[0]][1:])
    old = (
        {"lora_down.weight": "down.weight", "lora_up.weight": "up.weight"} if name.endswith(("_lora", "_lora2")) else {}
    )
    tensors = {
        f"{name}.{old.get(part, part)}": tensor for part, tensor in parts.items() if not (old and part == "alpha")
    }
    found = {d.module: d.change for d in read(pipeline, tensors, tmp_path).deltas}
    whole = (parts["lora_up.weight"].flatten(1) @ parts["lora_down.weight"].flatten(1)).split(rows)
    assert list(found) == ours
    for module, wanted in zip(ours, whole, strict=True):
        assert torch.equal(found[module].weight().flatten(1), wanted), module
        assert found[module].scale == (1.0 if old else 0.5)


def test_pefts_scale_is_read_where_diffusers_wrote_it(unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path) -> None:
    pipeline, tensors = unloaded("flux"), load_file(lora_of("flux/lora"))
    said = {"lora_adapter_metadata": '{"transformer.r": 4, "transformer.lora_alpha": 8}'}
    assert read(pipeline, tensors, tmp_path, said).coverage.scales == (2.0,)
    with pytest.raises(LoraError, match="a scale for each module"):
        read(pipeline, tensors, tmp_path, {"lora_adapter_metadata": '{"transformer.alpha_pattern": {"x": 1}}'})


UNREAD = {
    "dora_scale": "a DoRA of another trainer",
    "lora_magnitude_vector.weight": "a DoRA of PEFT",
    "lora_magnitude_vector.default.weight": "a DoRA of PEFT",
    "lora_B.bias": "with a bias",
    "lora_up.bias": "with a bias",
    "lora_mid.weight": "Tucker",
    "diff_b": "whole weights",
    "scalar": "a trained scalar",
    "hada_w1_a": "a LoHa",
}


@pytest.mark.parametrize("part", UNREAD)
def test_half_of_a_change_is_never_applied(part: str, unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path) -> None:
    pipeline, tensors = unloaded("sd15"), load_file(lora_of("sd15/lora"))
    modules = sorted({key.partition(".")[0] for key in tensors})
    with pytest.raises(LoraError, match=UNREAD[part]) as error:  # all modules: nothing is left to apply
        extra = {f"{module}.{part}": torch.ones(1) for module in modules}
        read(pipeline, {**tensors, **extra}, tmp_path, allow_partial=True)
    assert "allow_partial" not in str(error.value)
    one = {**tensors, f"{modules[0]}.{part}": torch.ones(1)}
    with pytest.raises(LoraError, match=UNREAD[part]) as error:
        read(pipeline, one, tmp_path)
    assert "allow_partial" in str(error.value)
    lora = read(pipeline, one, tmp_path, allow_partial=True)
    assert len(lora.deltas) == len(modules) - 1
    assert {key.partition(".")[0] for key in lora.coverage.unmatched} == {modules[0]}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "on the text encoder, which is not applied"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "on the text encoder"),
        ("bundle_emb.sks.clip_l", "trained embeddings"),
    ],
)
def test_what_is_beside_the_denoisers_change_is_named(
    key: str, said: str, unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path
) -> None:
    with pytest.raises(LoraError, match=said):
        read(unloaded("flux"), {**load_file(lora_of("flux/lora")), key: torch.ones(1)}, tmp_path)


ENCODERS: dict[str, tuple[str, Callable[[str], str]]] = {
    "kohya's of Stable Diffusion 1.5": ("sd15/text-encoder", lambda k: k.replace("lora_te_", "lora_te1_")),
    "counted from 0": ("sd15/text-encoder", lambda k: k.replace("lora_te_", "lora_te0_")),
    "Diffusers": ("sdxl/text-encoder", lambda k: re.sub(r"^lora_te([12])_(.*?)\.", _dotted, k)),
}


def _dotted(found: re.Match[str]) -> str:
    name = re.sub(r"(model|encoder|layers|\d|self_attn|mlp)_", r"\1.", found[2]).replace("self.attn", "self_attn")
    return f"text_encoder{'_2' * (found[1] == '2')}.{name}."


@pytest.mark.parametrize("spelling", ENCODERS)
def test_a_text_encoders_change_is_read_in_other_spellings(
    spelling: str, unloaded: PipelineOf, lora_of: LoraOf, tmp_path: Path
) -> None:
    original = respelled(*ENCODERS[spelling], unloaded, lora_of, tmp_path)
    assert {"text_encoder"} < {delta.component for delta in original.deltas}


@pytest.mark.parametrize(
    ("model", "key", "said"),
    [
        ("hidream", "lora_unet_blocks_0_self_attn_q.lora_down.weight", "musubi-tuner, which have converters"),
        ("flux", "diffusion_model.layers.0.x.lora_A.weight", "those of ComfyUI"),
        ("flux", "some.thing.lora_A.weight", 'begin with "transformer."'),
    ],
)
def test_a_format_that_is_not_read_is_named(
    model: str, key: str, said: str, unloaded: PipelineOf, tmp_path: Path
) -> None:
    with pytest.raises(LoraError, match=re.escape(said)) as error:
        read(unloaded(model), {key: torch.ones(2, 2)}, tmp_path)
    assert ".." not in str(error.value).removeprefix(str(tmp_path))
