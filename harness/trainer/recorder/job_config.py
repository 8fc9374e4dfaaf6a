"""From a case to the trainer's own job config: what a user would have put in the YAML that trained the LoRA."""

from pathlib import Path
from typing import Any, NamedTuple

from packaging.version import Version

from lora_drift.harness import tags
from lora_drift.harness.check.cases import NAMED, Case

KREA2_EDIT = {"edit": True, "match_target_res": True, "kv_cache": True}
"""`model.model_kwargs`: reference pictures are given the picture's area, and read each other only."""

# What the trainer's UI writes for each model (ui/src/app/jobs/new/options.ts), with quantisation off: that is the
# case's to say.
MODELS: dict[str, dict[str, Any]] = {
    "sd15": {"arch": "sd15", "name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5"},
    "sdxl": {"arch": "sdxl", "name_or_path": "stabilityai/stable-diffusion-xl-base-1.0"},
    "flux": {"arch": "flux", "name_or_path": "black-forest-labs/FLUX.1-dev"},
    "flux_kontext": {"arch": "flux_kontext", "name_or_path": "black-forest-labs/FLUX.1-Kontext-dev"},
    "flex1": {"arch": "flex1", "name_or_path": "ostris/Flex.1-alpha"},
    "flex2": {"arch": "flex2", "name_or_path": "ostris/Flex.2-preview"},
    "flux2": {"arch": "flux2", "name_or_path": "black-forest-labs/FLUX.2-dev"},
    "flux2_diffusers": {"arch": "flux2", "name_or_path": "black-forest-labs/FLUX.2-dev"},
    "flux2_klein_4b": {"arch": "flux2_klein_4b", "name_or_path": "black-forest-labs/FLUX.2-klein-base-4B"},
    "flux2_klein_9b": {"arch": "flux2_klein_9b", "name_or_path": "black-forest-labs/FLUX.2-klein-base-9B"},
    "chroma": {"arch": "chroma", "name_or_path": "lodestones/Chroma1-Base"},
    "qwen_image": {"arch": "qwen_image", "name_or_path": "Qwen/Qwen-Image"},
    "qwen_image_2512": {"arch": "qwen_image:2512", "name_or_path": "Qwen/Qwen-Image-2512"},
    "qwen_image_edit": {"arch": "qwen_image_edit", "name_or_path": "Qwen/Qwen-Image-Edit"},
    "qwen_image_edit_plus": {"arch": "qwen_image_edit_plus", "name_or_path": "Qwen/Qwen-Image-Edit-2509"},
    "qwen_image_edit_plus_2511": {"arch": "qwen_image_edit_plus:2511", "name_or_path": "Qwen/Qwen-Image-Edit-2511"},
    "zimage": {"arch": "zimage", "name_or_path": "Tongyi-MAI/Z-Image"},
    "zimage_turbo": {"arch": "zimage:turbo", "name_or_path": "Tongyi-MAI/Z-Image-Turbo"},
    "zimage_deturbo": {
        "arch": "zimage:deturbo",
        "name_or_path": "ostris/Z-Image-De-Turbo",
        "extras_name_or_path": "Tongyi-MAI/Z-Image-Turbo",
    },
    "krea2": {"arch": "krea2", "name_or_path": "krea/Krea-2-Raw"},
    "krea2_turbo": {"arch": "krea2:turbo", "name_or_path": "krea/Krea-2-Turbo"},
    "krea2_o_edit": {"arch": "krea2:o_edit", "name_or_path": "krea/Krea-2-Raw", "model_kwargs": KREA2_EDIT},
    "krea2_o_edit_turbo": {
        "arch": "krea2:o_edit_turbo",
        "name_or_path": "krea/Krea-2-Turbo",
        "model_kwargs": KREA2_EDIT,
    },
    "anima": {"arch": "anima", "name_or_path": "circlestone-labs/Anima-Base-v1.0-Diffusers"},
    "ernie_image": {"arch": "ernie_image", "name_or_path": "baidu/ERNIE-Image"},
    "ideogram4": {
        "arch": "ideogram4",
        "name_or_path": "ideogram-ai/ideogram-4-fp8",
        "unconditional_lora_path": "ostris/ideogram_4_unconditional_lora/ideogram_4_unconditional_lora_r16.safetensors",
    },
    "lumina2": {"arch": "lumina2", "name_or_path": "Alpha-VLLM/Lumina-Image-2.0"},
    "omnigen2": {"arch": "omnigen2", "name_or_path": "OmniGen2/OmniGen2"},
    "hidream": {"arch": "hidream", "name_or_path": "HiDream-ai/HiDream-I1-Full"},
    "hidream_e1": {"arch": "hidream_e1", "name_or_path": "HiDream-ai/HiDream-E1-1"},
    "wan21_1b": {"arch": "wan21:1b", "name_or_path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"},
    "wan21_14b": {"arch": "wan21:14b", "name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers"},
    "wan21_i2v_14b": {"arch": "wan21_i2v:14b", "name_or_path": "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers"},
    "wan21_i2v_14b480p": {"arch": "wan21_i2v:14b480p", "name_or_path": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"},
    "wan22_14b_t2v": {
        "arch": "wan22_14b:t2v",
        "name_or_path": "ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16",
        "model_kwargs": {"train_high_noise": True, "train_low_noise": True},
    },
    "wan22_14b_i2v": {
        "arch": "wan22_14b_i2v",
        "name_or_path": "ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16",
        "model_kwargs": {"train_high_noise": True, "train_low_noise": True},
    },
    "wan22_5b": {"arch": "wan22_5b", "name_or_path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"},
    "ltx2": {"arch": "ltx2", "name_or_path": "Lightricks/LTX-2"},
    # The UI names Lightricks' single file, which the trainer converts to this very layout with full-size configs.
    "ltx2.3": {"arch": "ltx2.3", "name_or_path": "diffusers/LTX-2.3-Diffusers"},
}
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
"""Ours -> what the trainer calls it."""
DDPM = {"sd15", "sdxl"}
"""Models whose UI default sampler and training schedule is ddpm; all others use flowmatch."""


class Where(NamedTuple):
    """What the trainer computes on, in which dtype, and which version it is."""

    device: str = "cpu"
    dtype: str = "float32"
    version: str = tags.row(tags.newest()).version


CPU = Where()


def model_section(model: str, version: str) -> dict[str, Any]:
    """The fields of `MODELS` that trainer `version` needs."""
    if model == "ltx2" and Version(version) < Version("0.7.31"):
        # It looks for Gemma in folders that Gemma's repository lacks (ltx2.py: `te_tokenizer_subfolder`); LTX-2's own
        # has them. Since then the field is the root of a repository of Gemma's kind.
        return {**MODELS[model], "te_name_or_path": "Lightricks/LTX-2"}
    return MODELS[model]


def job(case: Case, folder: Path, lora: Path | None, where: Where = CPU) -> dict[str, Any]:
    """The job config (a `run.py` YAML as a dict) that makes the trainer render `case` as its first sample.

    `lora` is the file that the trainer starts from (`network.pretrained_lora_path`); None for the base model, and
    while the LoRA is being made.
    """
    sampler = "ddpm" if case.model in DDPM else "flowmatch"
    process: dict[str, Any] = {
        "type": "sd_trainer",
        "training_folder": str(folder),
        "device": where.device,
        "trigger_word": case.trigger_word,
        "train": {
            "batch_size": 1,
            "steps": 1,
            "train_unet": True,
            "train_text_encoder": case.lora is not None and case.lora.text_encoder,
            "gradient_checkpointing": False,
            "noise_scheduler": sampler,
            "optimizer": "adamw",
            "lr": 1e-4,
            "dtype": DTYPES[where.dtype],
        },
        "model": {**model_section(case.model, where.version), **quantization(case), **case.trainer_model},
        "sample": sample_section(case, sampler),
    }
    if case.lora is not None:
        network = case.lora.network.model_dump(exclude_none=True)
        process["network"] = {**network, **({"pretrained_lora_path": str(lora)} if lora else {})}
        process["save"] = {"dtype": case.lora.save_dtype, "save_every": 10**6, "max_step_saves_to_keep": 1}
    if case.training is not None:
        process |= training_sections(case, process, folder)
    return {"job": "extension", "config": {"name": case.job_name, "process": [process]}, "meta": {"name": "[name]"}}


def quantization(case: Case) -> dict[str, Any]:
    """What the case says of its base, in fields of the `model:` section."""
    base = {"name_or_path": _on_disk(case.base)} if case.base else {}
    if case.quantization is None:
        return {**base, "quantize": False, "quantize_te": False}
    fields = case.quantization.model_dump(exclude_none=True, exclude={"exclude"})
    return {**base, **fields, "quantize_kwargs": {"exclude": list(case.quantization.exclude)}}


def _on_disk(base: str) -> str:
    """A hub id as it is; of a file inside a repository, where it lies: of most models the trainer wants a path."""
    from huggingface_hub import hf_hub_download

    repo, inside = "/".join(base.split("/")[:2]), "/".join(base.split("/")[2:])
    return hf_hub_download(repo, inside) if inside else base


def sample_section(case: Case, sampler: str) -> dict[str, Any]:
    """One sample; with `lora.mode: live` a second one with another multiplier, which keeps the LoRA out of the
    weights for the whole sampling event. (A quantised base does so by itself.)"""
    item = case.sample.model_dump(exclude_unset=True)
    rescale = item.pop("guidance_rescale", 0.0)
    item["prompt"] = NAMED.sub(lambda flag: f"--ctrl_img {case.sample.located[flag[1]]}", item["prompt"])
    # Of this one the trainer reads the section's field only.
    norm = {"do_cfg_norm": item.pop("do_cfg_norm")} if "do_cfg_norm" in item else {}
    samples = [item]
    quantized = case.quantization is not None and case.quantization.quantize
    if case.lora is not None and case.lora.mode == "live" and not quantized:
        controls = {name: path for name, path in item.items() if name.startswith("ctrl_img")}
        samples.append({"prompt": "a", "neg": "", "width": 64, "height": 64, "sample_steps": 2,
                        "network_multiplier": 0.0, **controls})  # fmt: skip
    # num_frames > 1 at config level is what makes the trainer choose the animated format (SampleConfig).
    frames: dict[str, Any] = {key: item[key] for key in ("num_frames", "fps") if key in item}
    return {
        "sampler": sampler,
        "sample_every": 10**6,
        "neg": "",
        "guidance_rescale": rescale,
        "format": "png",
        **norm,
        **frames,
        "samples": samples,
    }


def training_sections(case: Case, process: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A short real training: seeded, on the made-up pictures in `folder`/dataset, sampled at its end only."""
    assert case.training is not None
    train = {"steps": case.training.steps, "lr": case.training.lr, "skip_first_sample": True}
    dataset = {
        "folder_path": str(folder / "dataset"),
        "caption_ext": "txt",
        "cache_latents_to_disk": False,
        "resolution": [case.training.resolution],
        "num_frames": 1,
    }
    return {
        "training_seed": case.training.seed,
        "train": {**process["train"], **train},
        "datasets": [dataset],
    }
