"""What people asked in public, as inputs: each is read, or refused with the reason (docs/field.md has the log).

The files are made here after what the threads show: names of keys, and sections of jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from lora_drift import pipelines
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.jobs import JobError, folder, plan, reader
from lora_drift.pipelines import LoraError, Pipeline

Shape = tuple[int, ...]


@pytest.fixture(scope="module")
def unloaded() -> Callable[[str], Pipeline]:
    return cache(pipelines.load)


LOKR, PEFT, KOHYA = ("lokr_w1", "lokr_w2"), ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
OLDEST = ("down.weight", "up.weight")
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
FUSED = [f"layers.0.attention.to_{part}" for part in "qkv"]

FILES: dict[str, tuple[str, str, tuple[str, str], list[str] | str]] = {
    "Comfy-Org/ComfyUI#1144": ("sdxl", f"{ATTENTION}.processor.to_q_lora", OLDEST, [f"{ATTENTION}.to_q"]),
    "LucianoCirino/efficiency-nodes-comfyui#104": (
        "sdxl", f"unet.{ATTENTION}.processor.to_out_lora", OLDEST, [f"{ATTENTION}.to_out.0"]),
    "ostris/ai-toolkit#67": (
        "flux", "transformer.transformer_blocks.0.norm1.linear", PEFT, ["transformer_blocks.0.norm1.linear"]),
    "ostris/ai-toolkit#349": (
        "wan21_1b", "diffusion_model.blocks.0.cross_attn.k_img", PEFT, "Is it a LoRA for another model?"),
    "ostris/ai-toolkit#372": (
        "qwen_image", "transformer.transformer_blocks.0.attn.to_q", PEFT, ["transformer_blocks.0.attn.to_q"]),
    "black-forest-labs/flux2#33": (
        "flux2_klein_4b", "diffusion_model.double_blocks.0.img_attn.proj", PEFT,
        ["transformer_blocks.0.attn.to_out.0"]),
    "sgl-project/sglang#20200": (
        "flux2_klein_4b", "diffusion_model.single_blocks.0.linear2", PEFT, ["single_transformer_blocks.0.attn.to_out"]),
    "huggingface/diffusers#13261": (
        "flux2_klein_9b", "single_blocks.0.linear1", LOKR, ["single_transformer_blocks.0.attn.to_qkv_mlp_proj"]),
    "huggingface/diffusers#13221": (
        "zimage_turbo", "layers.0.attention.to_out.0", LOKR, ["layers.0.attention.to_out.0"]),
    "huggingface/diffusers#13203": ("zimage_turbo", "lora_unet_layers_0_attention_qkv", KOHYA, FUSED),
    "kohya-ss/musubi-tuner#807": (
        "zimage", "lora_unet_layers_0_attention_to_out_0", KOHYA, ["layers.0.attention.to_out.0"]),
    "Comfy-Org/ComfyUI#11158": ("zimage", "diffusion_model.layers.0.attention.to_v", PEFT, [FUSED[2]]),
    "kijai/ComfyUI-WanVideoWrapper#869": ("wan21_1b", "lora_unet_blocks_0.self_attn.k", KOHYA, ["blocks.0.attn1.to_k"]),
    "kohya-ss/musubi-tuner#124": (
        "wan21_i2v_14b", "diffusion_model.blocks.0.cross_attn.k.img", PEFT, "Is it a LoRA for another model?"),
    "kijai/ComfyUI-WanVideoWrapper#807": (
        "wan21_i2v_14b", "diffusion_model.blocks.0", ("diff_m", "diff_m"), "whole weights"),
    "kijai/ComfyUI-WanVideoWrapper#909": (
        "wan21_i2v_14b", "diffusion_model.blocks.0.cross_attn.k_img", ("lora_down.weight", "diff_b"), "whole weights"),
    "huggingface/diffusers#12040": (
        "wan21_i2v_14b", "blocks.0.attn2.add_k_proj", ("lora_A.lightx2v.weight", "lora_B.lightx2v.bias"),
        "with a bias"),
    "huggingface/diffusers#9914": (
        "flux", "single_blocks.0.processor.qkv_lora", OLDEST,
        [f"single_transformer_blocks.0.attn.to_{part}" for part in "qkv"]),
    "kohya-ss/musubi-tuner#26": (
        "flux", "lora_unet_double_blocks_0_img_mlp_fc1", KOHYA, "kohya's sd-scripts or musubi-tuner"),
    "kohya-ss/sd-scripts#1463": (
        "flux", "lora_unet_single_transformer_blocks_0_attn_to_k_", KOHYA, "kohya's sd-scripts or musubi-tuner"),
}  # fmt: skip
"""Thread -> model, a name in the file, the ends of its keys, and our modules, or what the refusal says."""


def tensors(name: str, ends: tuple[str, str], shapes: list[Shape]) -> dict[str, torch.Tensor]:
    rows, columns = sum(shape[0] for shape in shapes), shapes[0][1:]
    if ends == LOKR:
        return {f"{name}.lokr_w1": torch.ones(1, 1), f"{name}.lokr_w2": torch.ones(rows, *columns)}
    return {f"{name}.{ends[0]}": torch.ones(2, *columns), f"{name}.{ends[1]}": torch.ones(rows, 2)}


@pytest.mark.parametrize("thread", FILES)
def test_a_lora_file_of_a_public_thread(thread: str, unloaded: Callable[[str], Pipeline], tmp_path: Path) -> None:
    model, name, ends, wanted = FILES[thread]
    pipeline = unloaded(model)
    known = pipeline.base.shapes[next(iter(pipeline.spec.denoisers.values()))]
    shapes: list[Shape] = [known[module] for module in wanted] if isinstance(wanted, list) else [(4, 4)]
    save_file(tensors(name, ends, shapes), tmp_path / "theirs.safetensors")
    if isinstance(wanted, str):
        with pytest.raises(LoraError) as refused:
            pipeline.with_lora(tmp_path / "theirs.safetensors")
        assert wanted in str(refused.value) and "allow_partial" not in str(refused.value)
        return
    lora = pipeline.with_lora(tmp_path / "theirs.safetensors").lora
    assert lora is not None and [delta.module for delta in lora.deltas] == wanted


WINDOWS = r"H:\ComfyUI\models\checkpoints\flux1-dev-kontext_fp8_scaled.safetensors"
JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "ostris/ai-toolkit#691": (
        {"model": {"name_or_path": "black-forest-labs/FLUX.2-klein-base-9B", "arch": "flux2_klein_9b", "quantize": True,
                   "quantize_te": True, "model_kwargs": {"match_target_res": False}},
         "sqlite_db_path": r"E:\ai-toolkit\aitk_db.db", "performance_log_every": 10},
        "flux2_klein_9b, quantised"),
    "ostris/ai-toolkit#872": (
        {"model": {"name_or_path": "black-forest-labs/FLUX.2-dev", "arch": "flux2", "quantize": True},
         "network": {"type": "lokr", "lokr_full_rank": True, "lokr_factor": -1}},
        "flux2, quantised"),
    "ostris/ai-toolkit#636": (
        {"model": {"name_or_path": "Tongyi-MAI/Z-Image-Turbo", "arch": "zimage:turbo", "quantize": True,
                   "assistant_lora_path": "ostris/zimage_turbo_training_adapter/adapter_v1.safetensors"}},
        "zimage_turbo, quantised"),
    "ostris/ai-toolkit#589": (
        {"model": {"name_or_path": "Tongyi-MAI/Z-Image-Turbo", "arch": "zimage:turbo", "quantize": True,
                   "qtype": "uint7"},
         "sample": {"guidance_scale": 3, "sample_steps": 20}},
        "zimage_turbo, quantised"),
    "ostris/ai-toolkit#323": (
        {"model": {"name_or_path": WINDOWS, "arch": "flux_kontext", "quantize": True}},
        "is a single file of another machine"),
    "ostris/ai-toolkit#694": (
        {"model": {"name_or_path": "/models/z_image_turbo_bf16.safetensors", "arch": "zimage:turbo",
                   "extras_name_or_path": "Tongyi-MAI/Z-Image-Turbo"}},
        "is a single file of another machine"),
    "ostris/ai-toolkit#416": ({"type": "to_folder", "generate": {"prompts": ["a"]}}, "trains nothing that samples"),
    "ostris/ai-toolkit#173": (
        {"model": {"name_or_path": "black-forest-labs/FLUX.1-dev", "is_flux": True, "quantize": True,
                   "qtype": "qint8"}},
        "this quantisation is not rendered"),
    "ostris/ai-toolkit#19": (
        {"type": "slider", "network": {"type": "lierla", "linear": 8, "linear_alpha": 4},
         "model": {"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0", "is_v2": False, "is_xl": True}},
        "sdxl"),
    "ostris/ai-toolkit#223": (
        {"model": {"name_or_path": "black-forest-labs/FLUX.1-dev", "is_flux": True}, "network": None},
        "a full fine-tune"),
}  # fmt: skip
"""Thread -> sections of the job, and the model that is rendered, or what the refusal says."""


@pytest.mark.parametrize("thread", JOBS)
def test_a_job_of_a_public_thread(thread: str, tmp_path: Path) -> None:
    sections, wanted = JOBS[thread]
    process = {
        "type": "sd_trainer",
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "train": {"dtype": "bf16", "steps": 2000},
        **sections,
        "sample": {"prompts": ["a fox"], **sections.get("sample", {})},
    }
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"job": "extension", "config": {"name": "theirs", "process": [process]}})
    )
    try:
        job = reader.read(tmp_path)
        folder.check_network(job)
        planned = plan.plan(job, None)
    except JobError as error:
        assert wanted in error.problem
        return
    assert planned.model + ", quantised" * planned.quantization.quantize == wanted


def test_the_log_names_every_thread() -> None:
    text = (ROOT / "docs" / "field.md").read_text(encoding="utf-8")
    assert [thread for thread in (*FILES, *JOBS) if thread not in text] == []
