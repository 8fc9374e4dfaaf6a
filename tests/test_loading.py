"""Which base a model takes, before and while its parts are loaded."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lora_drift.harness.minihub import factory
from lora_drift.pipelines import RequestError, loading
from lora_drift.pipelines.families import qwen, wan
from lora_drift.pipelines.lora import Target
from lora_drift.pipelines.registry import spec_of


def test_a_base_of_another_kind_is_refused_by_hub_id_and_as_a_folder() -> None:
    sd15, sdxl = spec_of("sd15"), spec_of("sdxl")
    for base in (sdxl.base, str(factory.snapshot(factory.build(), sdxl.base))):
        with pytest.raises(RequestError, match="is a StableDiffusionXLPipeline, but sd15 renders with a StableDiff"):
            loading._check_kind(sd15, base)
        loading._check_kind(sdxl, base)
        loading._check_kind(spec_of("hidream_e1"), base)  # pipelines of ours take parts of anybody's
    loading._check_kind(sd15, "neither a folder nor a hub id")
    loading._check_kind(sd15, "org/nowhere")


def test_the_commit_of_a_repository_is_that_of_a_file_inside_it() -> None:
    repo = spec_of("sd15").base
    commit = loading.revision(repo)
    assert commit and commit == loading.revision(f"{repo}/folder/model.safetensors")
    assert loading.revision("org/nowhere") is None


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_what_qwens_text_encoder_sees_is_as_bright_as_the_row_says(white: float) -> None:
    row = spec_of("qwen_image_edit")
    assert isinstance(row, qwen.QwenEdit)
    spec = replace(row, seen_white=white)
    pixels = np.arange(30, dtype=np.uint8).reshape(2, 5, 3) * 8
    pipe = SimpleNamespace(_execution_device=torch.device("cpu"), transformer=SimpleNamespace(dtype=torch.float32))
    seen = qwen._tensor(spec, Image.fromarray(pixels), pipe)
    assert seen.shape == (1, 3, 2, 5)
    assert torch.allclose(seen[0].permute(1, 2, 0), torch.from_numpy(pixels).float() / 255 * white)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("self_attn.q", "attn1.to_q"), ("self_attn.k", "attn1.to_k"), ("self_attn.v", "attn1.to_v"),
        ("self_attn.o", "attn1.to_out.0"), ("cross_attn.q", "attn2.to_q"), ("cross_attn.o", "attn2.to_out.0"),
        ("cross_attn.k_img", "attn2.add_k_proj"), ("cross_attn.v_img", "attn2.add_v_proj"),
        ("ffn.0", "ffn.net.0.proj"), ("ffn.2", "ffn.net.2"),
    ],
)  # fmt: skip
def test_every_module_of_wan_has_its_name_for_either_expert(theirs: str, ours: str) -> None:
    name = f"blocks.3.{theirs}"
    assert wan.lora_targets(name) == [Target(f"blocks.3.{ours}")]
    for expert, component in (("transformer_1", "transformer"), ("transformer_2", "transformer_2")):
        assert wan.lora_targets(f"{expert}.{name}") == [Target(f"blocks.3.{ours}", component=component)]


def test_the_commit_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("c0ffee\n")
    assert loading.revision("org/name") == "c0ffee"
