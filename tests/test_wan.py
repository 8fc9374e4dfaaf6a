"""Frame rules, and the three kinds of LoRA files of the two-expert models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_drift.pipelines.errors import LoraError
from lora_drift.pipelines.families import wan
from lora_drift.pipelines.lora import read
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.settings import Request, resolve

CONTROL = str(Path(__file__).parent.parent / "cases" / "assets" / "wide.png")
SHAPES = {name: {"blocks.0.attn1.to_q": (6, 6)} for name in ("transformer", "transformer_2")}


def lora_file(path: Path, *modules: str) -> Path:
    halves = {"lora_A": (2, 6), "lora_B": (6, 2)}
    save_file({f"diffusion_model.{m}.{h}.weight": torch.ones(s) for m in modules for h, s in halves.items()}, path)
    return path


@pytest.mark.parametrize(("asked", "pipeline_rule", "floored"), [(1, 1, 1), (4, 5, 1), (5, 5, 5), (7, 5, 5), (8, 9, 5)])
def test_frames_are_rounded_by_the_pipeline_or_floored_before(asked: int, pipeline_rule: int, floored: int) -> None:
    for model, control, expected in (("wan21_14b", (), pipeline_rule), ("wan22_14b_i2v", (CONTROL,), floored)):
        settings = resolve(spec_of(model), Request("a fox", width=64, height=64, num_frames=asked, control=control))
        assert settings.num_frames == expected


def test_a_file_of_both_experts_names_them_in_its_keys(tmp_path: Path) -> None:
    path = lora_file(tmp_path / "both.safetensors", *(f"transformer_{i}.blocks.0.self_attn.q" for i in (1, 2)))
    lora = read({"": path}, spec_of("wan22_14b_t2v"), SHAPES, wan.lora_targets)
    assert {delta.component for delta in lora.deltas} == {"transformer", "transformer_2"}


def test_a_file_of_one_expert_goes_where_it_is_sent_and_nowhere_unasked(tmp_path: Path) -> None:
    path = lora_file(tmp_path / "one.safetensors", "blocks.0.self_attn.q")
    lora = read({"low": path}, spec_of("wan22_14b_t2v"), SHAPES, wan.lora_targets)
    assert [delta.component for delta in lora.deltas] == ["transformer_2"]
    with pytest.raises(LoraError, match="Give the file of one expert as high or low"):
        read({"": path}, spec_of("wan22_14b_t2v"), SHAPES, wan.lora_targets)


def test_a_lokr_in_the_old_format_has_names_that_the_trainer_renamed_in_part(tmp_path: Path) -> None:
    """Of Wan's names it turns those of the attention into the original ones, and leaves the others as Diffusers has
    them, since there are underscores where it looks for dots."""
    modules = {
        "blocks_0_self_attn_q": "blocks.0.attn1.to_q",
        "blocks_0_cross_attn_v": "blocks.0.attn2.to_v",
        "blocks_0_cross_attn_k_img": "blocks.0.attn2.add_k_proj",
        "blocks_0_cross_attn_to_out_0": "blocks.0.attn2.to_out.0",
        "blocks_0_ffn_net_0_proj": "blocks.0.ffn.net.0.proj",
    }
    parts = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3), "alpha": torch.ones(())}
    file = tmp_path / "old.safetensors"
    save_file({f"lycoris_{name}.{part}": value.clone() for name in modules for part, value in parts.items()}, file)
    shapes = {"transformer": dict.fromkeys(modules.values(), (6, 6))}
    lora = read({"": file}, spec_of("wan21_i2v_14b"), shapes, wan.lora_targets)
    assert {delta.module for delta in lora.deltas} == set(modules.values())

    both = tmp_path / "both.safetensors"
    save_file({f"lycoris_transformer_{i}_blocks_0_self_attn_q.{part}": value.clone() for i in (1, 2)
               for part, value in parts.items()}, both)  # fmt: skip
    lora = read({"": both}, spec_of("wan22_14b_t2v"), SHAPES, wan.lora_targets)
    assert {(delta.component, delta.module) for delta in lora.deltas} == {
        ("transformer", "blocks.0.attn1.to_q"),
        ("transformer_2", "blocks.0.attn1.to_q"),
    }
