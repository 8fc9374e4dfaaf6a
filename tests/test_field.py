"""What people really bring: jobs as they were found in public threads, each with what its owner expects.

The folders are made here from the jobs that the trainer itself left (jobs/), as people changed theirs.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from typer.main import get_command
from typer.testing import CliRunner, Result

from lora_drift.harness.cli.main import app
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.jobs import plan, reader
from lora_drift.pipelines.families import chroma

JOBS = ROOT / "jobs"
OPTIONS = {
    name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
}
"""Command -> its options."""
SMALL = ("--width", 64, "--height", 64, "--steps", 2)


def lora_drift(command: str, *args: object) -> Result:
    """Runs a command. Whatever it says, it says of options that it has, and without a traceback."""
    done = CliRunner().invoke(app, [command, *map(str, args)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", done.output))
    assert said <= OPTIONS[command], (said - OPTIONS[command], done.output)
    return done


def verify(job: Path, *args: object) -> Result:
    return lora_drift("verify", job, "--mini", "--diagnose", "none", *args)


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., Path]:
    """A copy of one of our jobs, with one of its last samples; `edit` changes the job file's process."""

    def copied(name: str = "sd15", edit: Callable[[dict[str, Any]], object] | None = None) -> Path:
        job = Path(shutil.copytree(JOBS / name, tmp_path / "job"))
        samples = sorted((job / "samples").iterdir(), key=lambda p: p.name.partition("__")[2])
        last = max(sample.name.partition("__")[2][:9] for sample in samples)
        keep = next(sample for sample in samples if f"__{last}_0" in sample.name)
        for sample in samples:
            if sample != keep:
                sample.unlink()
        if edit is not None:
            config = yaml.safe_load((job / "config.yaml").read_text())
            edit(config["config"]["process"][0])
            (job / "config.yaml").write_text(yaml.safe_dump(config))
        return job

    return copied


def set_metadata(path: Path, **changes: str) -> None:
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, **changes})


# --------------------------------------------------------------------------------------------- is the checkpoint whole?


def without_expert(job: Path, expert: str) -> None:
    for file in job.glob(f"*_{expert}_noise.safetensors"):
        file.unlink()


@pytest.mark.parametrize("expert", ["high", "low"])
def test_half_of_a_checkpoint_is_named(job_of: Callable[..., Path], tmp_path: Path, expert: str) -> None:
    job = job_of("wan22_14b_t2v")
    without_expert(job, expert)
    done = verify(job)
    assert done.exit_code == 2 and f"wan22_14b_t2v_{expert}_noise.safetensors is not there" in done.output
    there = {"high": "low", "low": "high"}[expert]
    asked = ("--mini", "--job", job, "-p", "a cat", "--frames", 5, *SMALL, "-o", tmp_path / "o.mkv")
    refused = lora_drift("sample", *asked)
    assert refused.exit_code == 2 and f"_{expert}_noise.safetensors is not there" in refused.output
    alone = lora_drift("sample", *asked, "--lora", f"{there}={next(job.glob(f'*{there}_noise.safetensors'))}")
    assert alone.exit_code == 0, alone.output


def test_one_expert_is_enough_for_a_job_that_trained_one(job_of: Callable[..., Path]) -> None:
    job = job_of("wan22_14b_t2v", lambda p: p["model"].update(model_kwargs={"train_low_noise": False}))
    without_expert(job, "low")
    assert "is not there" not in verify(job).output


def test_a_renamed_lora_is_known_by_what_it_says_itself(job_of: Callable[..., Path]) -> None:
    job = job_of()
    for file in job.glob("*.safetensors"):
        file.rename(job / f"my best {file.stem[-3:]}.safetensors")
    done = verify(job)
    assert done.exit_code == 0 and "1 match" in done.output
    assert "my best d15.safetensors: is read as this job's LoRA of step 4" in done.output


def test_a_lora_of_another_job_is_not_taken_for_this_ones_without_a_word(job_of: Callable[..., Path]) -> None:
    job = job_of()
    for file in job.glob("*.safetensors"):
        set_metadata(file, ss_output_name="another")
    assert "was saved by the job another, says the file itself" in verify(job).output


@pytest.mark.parametrize(
    ("section", "said"), [("", "a full fine-tune"), ("embedding", "trained an embedding"), ("adapter", "an adapter")]
)
def test_a_job_without_a_lora_says_what_it_is(job_of: Callable[..., Path], section: str, said: str) -> None:
    def edit(process: dict[str, Any]) -> None:
        del process["network"]
        if section:
            process[section] = {"trigger": "x"}

    job = job_of(edit=edit)
    for file in job.glob("*.safetensors"):
        file.unlink()
    (job / "sd15_000000004").mkdir()
    for done in (verify(job), lora_drift("sample", "--mini", "--job", job, "-p", "a", "-o", job / "o.png")):
        assert done.exit_code == 2 and "`network` is missing" in done.output and said in done.output


# -------------------------------------------------------------------------------- what an option says, the job does not


@pytest.mark.parametrize(
    ("option", "edit"),
    [
        (("--dtype", "bfloat16"), lambda p: p["train"].update(dtype="fp16")),
        (("--dtype", "float32"), lambda p: p["train"].update(dtype="int3")),
        (("--width", 64), lambda p: p["sample"].update(width="wide")),
        (("--base", "stable-diffusion-v1-5/stable-diffusion-v1-5"), lambda p: p["model"].update(name_or_path="x.ckpt")),
        (("--model", "sd15"), lambda p: p["model"].update(arch="ace_step", name_or_path="x.safetensors")),
        (("--no-quantize",), lambda p: p["model"].update(arch="flux", quantize=True, qtype="qint8")),
        (("--seed", 3), lambda p: p["sample"].update(seed="lucky")),
        (("--step", 0), lambda p: p.pop("network")),
    ],
)
def test_what_an_option_overrides_is_not_looked_at(
    job_of: Callable[..., Path], option: tuple[object, ...], edit: Callable[[dict[str, Any]], object]
) -> None:
    def both(process: dict[str, Any]) -> None:
        edit(process)
        if "arch" in process["model"] and process["model"]["arch"] == "flux":
            process["model"]["name_or_path"] = "black-forest-labs/FLUX.1-dev"

    job = job_of("flux" if option == ("--no-quantize",) else "sd15", both)
    asked = ("--mini", "--job", job, "-p", "a fox", "--steps", 1, "-o", job / "o.png")
    refused = lora_drift("sample", *asked)
    assert refused.exit_code == 2, refused.output
    done = lora_drift("sample", *asked, *option)
    assert done.exit_code == 0, done.output


def test_a_lora_of_any_name_serves_a_job(job_of: Callable[..., Path], tmp_path: Path) -> None:
    job = job_of()
    lora = shutil.copyfile(job / "sd15.safetensors", tmp_path / "last.safetensors")
    for file in job.glob("*.safetensors"):
        file.unlink()
    asked = ("--mini", "--job", job, "-p", "a fox", *SMALL, "-o", tmp_path / "o.png")
    refused = lora_drift("sample", *asked)
    assert refused.exit_code == 2 and "--lora FILE" in refused.output
    done = lora_drift("sample", *asked, "--lora", lora)
    assert done.exit_code == 0, done.output
    assert list(json.loads((tmp_path / "o.png.json").read_text())["lora"]["files"]) == ["last.safetensors"]


@pytest.mark.parametrize("left", [None, {"sample_every": 100}])
def test_a_job_that_never_sampled_can_be_sampled(job_of: Callable[..., Path], tmp_path: Path, left: Any) -> None:
    job = job_of(edit=lambda p: p.pop("sample") if left is None else p.update(sample=left))
    done = lora_drift("sample", "--mini", "--job", job, "-p", "a fox", *SMALL, "-o", tmp_path / "o.png")
    assert done.exit_code == 0, done.output
    assert verify(job).exit_code == 2


# ------------------------------------------------------------------------------------ what nobody reads, nobody refuses


UNREAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "a quantisation that is off": lambda p: p["model"].update(quantize=False, qtype="int8", qtype_te="int4"),
    "a quantisation that sd15 has not": lambda p: p["model"].update(quantize=True, quantize_te=True, qtype="qint8"),
    "a dtype of the file": lambda p: p["save"].update(dtype="float8_e4m3fn"),
    "dtypes of parts": lambda p: p["model"].update(te_dtype="float8", vae_dtype="fp16"),
    "no steps": lambda p: p["train"].update(steps=0),
    "a seed of the training": lambda p: p.update(training_seed=-1),
    "nothing": lambda p: p.update(first_sample=None, datasets=None) or p["sample"].update(fps=None, num_frames=None),
}


@pytest.mark.parametrize("unread", UNREAD)
def test_a_field_that_the_trainer_does_not_read_is_not_refused(job_of: Callable[..., Path], unread: str) -> None:
    done = verify(job_of(edit=UNREAD[unread]))
    assert done.exit_code == 0 and "1 match" in done.output, done.output


def test_a_quantisation_that_is_not_rendered_has_a_remedy(job_of: Callable[..., Path]) -> None:
    job = job_of("flux", lambda p: p["model"].update(quantize=True, qtype="qint8"))
    done = verify(job)
    assert done.exit_code == 2 and "qtype 'qint8'" in done.output and "--no-quantize" in done.output
    assert verify(job, "--no-quantize").exit_code in (0, 1)


@pytest.mark.parametrize("neg", [None, False, ""])
def test_no_negative_prompt_is_an_empty_one(job_of: Callable[..., Path], tmp_path: Path, neg: Any) -> None:
    job = job_of(edit=lambda p: p["sample"].update(neg=neg))
    done = lora_drift("sample", "--mini", "--job", job, "-p", "a fox", *SMALL, "-o", tmp_path / "o.png")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "o.png.json").read_text())["settings"]["negative_prompt"] == ""


def test_several_frames_are_an_animated_webp_whatever_the_format_says(job_of: Callable[..., Path]) -> None:
    done = verify(job_of("wan22_14b_t2v", lambda p: p["sample"].update(format="mp4")))
    assert done.exit_code == 0 and "1 match" in done.output, done.output


# ---------------------------------------------------------------------------------------------------------- drawn seeds


@pytest.mark.parametrize(
    ("edit", "verdict"),
    [
        (lambda s: s.update(seed=-1, walk_seed=False), "unpaired"),
        (lambda s: s.update(seed=-1), "unpaired"),
        (lambda s: s.update(samples=[{"prompt": "a", "seed": -1}]), "unpaired"),
        (lambda s: s.update(seed=-1, prompts=[f"{prompt} --seed 42" for prompt in s["prompts"]]), "match"),
    ],
)
def test_a_drawn_seed_is_no_seed(
    job_of: Callable[..., Path], edit: Callable[[dict[str, Any]], object], verdict: str
) -> None:
    done = verify(job_of(edit=lambda p: edit(p["sample"])))
    assert f"1 samples: 1 {verdict}" in done.output
    assert ("seed -1, for which the trainer draws one" in done.output) == (verdict == "unpaired")


def test_a_case_needs_a_seed(job_of: Callable[..., Path], tmp_path: Path) -> None:
    job = job_of(edit=lambda p: p["sample"].update(seed=-1))
    done = CliRunner().invoke(app, ["case", "from-job", str(job), "-o", str(tmp_path / "sd15" / "x.yaml")])
    assert done.exit_code == 2 and "seed of prompt 0 is -1" in done.output


# ------------------------------------------------------------------------------------------------ metadata of any shape


SHAPES: dict[str, dict[str, str]] = {
    "software is null": {"software": "null"},
    "software is a list": {"software": '["ai-toolkit"]'},
    "a version that is a number": {"software": '{"version": 7}'},
    "training_info is a text": {"training_info": "step 4"},
    "training_info is a number": {"training_info": "4"},
    "the step is null": {"training_info": '{"step": null}'},
    "the step is a text": {"training_info": '{"step": "4"}'},
    "half a surrogate pair": {"software": '{"version": "\\ud800"}', "note": '"\\ud800"'},
    "a name that is no text": {"ss_output_name": "3"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_metadata_of_another_shape_is_as_not_said(job_of: Callable[..., Path], tmp_path: Path, shape: str) -> None:
    job = job_of()
    for file in job.glob("*.safetensors"):
        set_metadata(file, **SHAPES[shape])
    done = verify(job, "--json", tmp_path / "r.json", "--html", tmp_path / "html")
    assert done.exit_code == 0 and "1 match" in done.output, done.output
    sampled = lora_drift("sample", "--mini", "--job", job, "-p", "a fox", *SMALL, "-o", tmp_path / "o.png")
    assert sampled.exit_code == 0, sampled.output


# ------------------------------------------------------------------------------------------------------ paths and bases


@pytest.mark.parametrize("style", [r"C:\ai-toolkit\controls\{}", "C:/ai-toolkit/controls/{}", r"controls\{}",
                                   r"\\server\share\{}", "/workspace/controls/{}"])  # fmt: skip
def test_control_images_are_found_by_their_names(job_of: Callable[..., Path], style: str) -> None:
    def edit(process: dict[str, Any]) -> None:
        for item in process["sample"]["samples"]:
            for name in ("ctrl_img_1", "ctrl_img_2", "ctrl_img_3"):
                if name in item:
                    item[name] = style.format(Path(item[name]).name)

    job = job_of("qwen_image_edit_plus", edit)
    refused = verify(job)
    assert "no such file. Copy the job's control images into its folder" in refused.output
    for picture in (JOBS / "inputs" / "controls").glob("*.png"):
        shutil.copyfile(picture, job / picture.name)
    done = verify(job)
    assert "no such file" not in done.output and done.exit_code == 0, done.output


def test_an_edit_job_without_control_images_says_where_they_belong(job_of: Callable[..., Path]) -> None:
    def edit(process: dict[str, Any]) -> None:
        for item in process["sample"]["samples"]:
            for name in [name for name in item if name.startswith("ctrl_img")]:
                del item[name]

    job = job_of("qwen_image_edit_plus", edit)
    assert "Name them in the job's samples" in verify(job).output
    done = lora_drift("sample", "--mini", "--job", job, "-p", "a fox", *SMALL, "-o", job / "o.png")
    assert done.exit_code == 2 and "--control FILE" in done.output


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("/workspace/models/some.safetensors", "is a single file of another machine"),
        (r"D:\models\some.safetensors", "is a single file of another machine"),
        ("https://civitai.com/models/1/some", "is a link"),
        ("Lightricks/LTX-9/ltx-9.safetensors", "is a file inside the repository Lightricks/LTX-9"),
        ("/workspace/models/some", "is a folder that is not on this machine"),
        ("", "names no model"),
        ("no/such", "base 'no/such': found no unet/config.json there"),
    ],
)
def test_a_base_that_is_not_read_is_named_with_a_remedy(job_of: Callable[..., Path], named: str, said: str) -> None:
    job = job_of(edit=lambda p: p["model"].update(name_or_path=named))
    done = verify(job)
    assert done.exit_code == 2 and said in done.output and "--base" in done.output, done.output
    assert "Repo id must" not in done.output
    mended = verify(job, "--base", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert mended.exit_code == 0 and "1 match" in mended.output, mended.output


@pytest.fixture
def single_file(tmp_path: Path) -> Path:
    """The miniature's fine-tune in one file, as a file of this machine."""
    repo, name = "lora-drift/sd15-fine-tune", "sd15-fine-tune.safetensors"
    found = next((factory.repo_folder(factory.build(), repo) / "snapshots").glob(f"*/{name}"))
    return Path(shutil.copyfile(found, tmp_path / "my model.safetensors"))


def test_a_single_file_of_this_machine_is_a_base(
    job_of: Callable[..., Path], single_file: Path, tmp_path: Path
) -> None:
    job = job_of(edit=lambda p: p["model"].update(name_or_path=str(single_file)))
    done = verify(job)  # the sample is the usual base's
    assert done.exit_code == 1 and "1 differs" in done.output, done.output
    asked = ("--mini", "-p", "a fox", *SMALL, "--seed", 1, "-o", tmp_path / "o.png")
    pictures = []
    for base in (("--job", job, "--step", 0), ("-m", "sd15", "--base", single_file, "--guidance", 6, "--negative",
                                               "blurry"), ("--job", job_of_usual(job), "--step", 0)):  # fmt: skip
        done = lora_drift("sample", *asked, *base)
        assert done.exit_code == 0, done.output
        pictures.append(json.loads((tmp_path / "o.png.json").read_text())["pixels_sha256"])
    assert pictures[0] == pictures[1] != pictures[2]


def job_of_usual(job: Path) -> Path:
    """The same job on the usual base."""
    other = Path(shutil.copytree(job, job.with_name("usual")))
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["config"]["process"][0]["model"]["name_or_path"] = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    return other


def test_a_single_file_of_another_model_is_refused_before_it_is_read(
    job_of: Callable[..., Path], single_file: Path, tmp_path: Path
) -> None:
    asked = ("--mini", "-m", "sdxl", "-p", "a fox", *SMALL, "-o", tmp_path / "o.png", "--base")
    done = lora_drift("sample", *asked, single_file)
    assert done.exit_code == 2 and "is no Stable Diffusion XL in one file" in done.output, done.output
    (tmp_path / "broken.safetensors").write_bytes(single_file.read_bytes()[:1000])
    done = lora_drift("sample", *asked, tmp_path / "broken.safetensors")
    assert done.exit_code == 2 and "not a whole safetensors file" in done.output, done.output
    done = lora_drift("sample", *asked, "no/such/file.safetensors")
    assert done.exit_code == 2 and "no such file here, nor inside a repository" in done.output, done.output
    (tmp_path / "model.ckpt").write_bytes(b"x")
    job = job_of(edit=lambda p: p["model"].update(name_or_path=str(tmp_path / "model.ckpt")))
    assert "is a single file; we read" in verify(job).output


@pytest.mark.parametrize(
    ("named", "base"),
    [("lodestones/Chroma1-HD", "lodestones/Chroma1-HD"), ("lodestones/Chroma/v28", "lodestones/Chroma/v28")],
)
def test_a_checkpoint_of_chroma_is_named_as_the_trainer_names_it(
    job_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, named: str, base: str
) -> None:
    job = reader.read(job_of(edit=lambda p: p.update(model={"name_or_path": named, "arch": "chroma"})))
    assert plan.plan(job, None).base == base
    asked: list[tuple[str, str]] = []

    def downloaded(repo: str, file: str) -> str:
        asked.append((repo, file))
        return file

    monkeypatch.setattr("huggingface_hub.hf_hub_download", downloaded)
    chroma.checkpoint(base)
    files = {"lodestones/Chroma1-HD": ("lodestones/Chroma1-HD", "Chroma1-HD.safetensors"),
             "lodestones/Chroma/v28": ("lodestones/Chroma", "chroma-unlocked-v28.safetensors")}  # fmt: skip
    assert asked == [files[named]]


# ---------------------------------------------------------------------------------------------- LoRAs on text encoders


@pytest.mark.parametrize(("model", "prefixes"), [("sd15", ("lora_te_",)), ("sdxl", ("lora_te1_", "lora_te2_"))])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_lora_on_the_text_encoder_is_applied(
    job_of: Callable[..., Path], model: str, prefixes: tuple[str, ...], strength: float
) -> None:
    job = job_of(model, lambda p: p["train"].update(train_text_encoder=True))
    for file in job.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        for prefix in prefixes:
            name = f"{prefix}text_model_encoder_layers_0_self_attn_q_proj"
            width = 32
            tensors |= {
                f"{name}.lora_down.weight": np.ones((2, width), np.float32),
                f"{name}.lora_up.weight": np.full((width, 2), strength, np.float32),
                f"{name}.alpha": np.array(2.0, np.float32),
            }
        save_file(tensors, file, metadata)
    done = verify(job)
    assert "not honoured" not in done.output and "error" not in done.output, done.output
    assert f"1 {'differs' if strength else 'match'}" in done.output, done.output


def test_a_lora_on_another_models_text_encoder_is_said_to_be_left_out(job_of: Callable[..., Path]) -> None:
    job = job_of("flux", lambda p: p["train"].update(train_text_encoder=True))
    assert "LoRAs on the text encoders of flux are not applied" in verify(job).output


def test_a_job_without_an_arch_says_what_it_is_read_as(job_of: Callable[..., Path]) -> None:
    job = job_of(edit=lambda p: p.update(model={"name_or_path": "Qwen/Qwen-Image-Edit-2509", "is_qwen": True}))
    done = verify(job)
    assert done.exit_code == 2 and "`model.arch` is missing, so this is read as sd15" in done.stderr


def test_the_uis_default_of_ltx23_is_read(job_of: Callable[..., Path]) -> None:
    base = "Lightricks/LTX-2.3/ltx-2.3-22b-dev.safetensors"
    job = job_of("ltx2", lambda p: p.update(model={"name_or_path": base, "arch": "ltx2.3"}))
    done = verify(job)  # the sample is LTX-2's
    assert done.exit_code == 1 and "LTX-2.3 (ltx2.3)" in done.output and "1 differs" in done.output, done.output


# ------------------------------------------------------------------------------------------------------ saying is doing


def test_a_cached_prompt_keeps_its_trigger_as_the_note_says(job_of: Callable[..., Path], tmp_path: Path) -> None:
    job = job_of(edit=lambda p: p["train"].update(cache_text_embeddings=True))
    asked = ("--mini", "--job", job, "-p", "a photo of [trigger]", *SMALL, "-o", tmp_path / "o.png")

    def prompt() -> str:
        return str(json.loads((tmp_path / "o.png.json").read_text())["settings"]["prompt"])

    assert (
        "prompts are cached: the trainer encoded them without putting in the trigger"
        in lora_drift("sample", *asked).output
    )
    assert prompt() == "a photo of [trigger]"
    assert "prompts are cached" not in lora_drift("sample", *asked, "--trigger", "sks").output
    assert prompt() == "a photo of sks"


NOTED: dict[str, tuple[Callable[[dict[str, Any]], object], str, Callable[[dict[str, Any]], bool]]] = {
    "a sampler": (
        lambda p: p["sample"].update(sampler="euler"),
        "sd15 is rendered with ddpm",
        lambda r: "DDPM" in r["scheduler"]["class"],
    ),
    "normalised guidance": (
        lambda p: p["sample"].update(do_cfg_norm=True),
        "guidance is not normalised",
        lambda r: r["settings"]["do_cfg_norm"] is False,
    ),
    "another text encoder": (
        lambda p: p["model"].update(te_name_or_path="my/clip"),
        "all parts are taken from the base model",
        lambda r: list(r["base"]) == ["stable-diffusion-v1-5/stable-diffusion-v1-5"],
    ),
    "dtypes of parts": (
        lambda p: p["model"].update(vae_dtype="fp16"),
        "all parts are in float32",
        lambda r: r["dtype"] == "float32",
    ),
    "no sampling": (
        lambda p: p.pop("sample"),
        "guidance are those that sd15 has",
        lambda r: r["settings"]["guidance_scale"] == 6.0,
    ),
    "a newer trainer": (
        lambda p: p["model"].update(block_compile=True),
        "rendered as by 0.7.29",
        lambda r: r["reproduces"] == "ostris/ai-toolkit 0.7.29",
    ),
}


@pytest.mark.parametrize("noted", NOTED)
def test_what_a_note_says_is_what_the_receipt_says(job_of: Callable[..., Path], tmp_path: Path, noted: str) -> None:
    edit, note, done_so = NOTED[noted]
    done = lora_drift("sample", "--mini", "--job", job_of(edit=edit), "-p", "a fox", *SMALL, "-o", tmp_path / "o.png")
    assert done.exit_code == 0 and note in done.output, done.output
    assert done_so(json.loads((tmp_path / "o.png.json").read_text()))


# ------------------------------------------------------------------------------------------- versions and process kinds


@pytest.mark.parametrize(
    ("said", "field", "note"),
    [
        (True, "guidence", "model.guidence: unknown to trainer 0.7.29, which ignores it (misspelt?)"),
        (
            False,
            "guidence",
            "unknown to trainer 0.7.29, as which this is rendered (the newest: no LoRA file says which)",
        ),
        (False, "in_context", "model.in_context is read by trainers from 0.9.4 on, so the job is of such a one"),
        (True, "in_context", "model.in_context: trainers read it from 0.9.4 on; rendered as by 0.7.29"),
    ],
)
def test_the_version_is_said_with_how_it_is_known(
    job_of: Callable[..., Path], said: bool, field: str, note: str
) -> None:
    job = job_of(edit=lambda p: p["model"].update({field: True}))
    if not said:
        for file in job.glob("*.safetensors"):
            set_metadata(file, software="null")
    done = verify(job)
    assert note in done.output, done.output
    assert "(the LoRA files say so)" in done.output if said else "(the newest" in done.output


def test_a_concept_slider_is_a_trainer_that_samples(job_of: Callable[..., Path]) -> None:
    job = job_of(edit=lambda p: p.update(type="concept_slider", slider={"positive_prompt": "old"}))
    done = verify(job)
    assert done.exit_code == 0 and "1 match" in done.output, done.output


def test_the_process_that_samples_is_found_among_others(job_of: Callable[..., Path]) -> None:
    job = job_of()
    config = yaml.safe_load((job / "config.yaml").read_text())
    config["config"]["process"].insert(0, {"type": "to_folder", "output_folder": "x"})
    (job / "config.yaml").write_text(yaml.safe_dump(config))
    done = verify(job)
    assert done.exit_code == 0 and "only process 1 is read, of type sd_trainer; not to_folder" in done.output
