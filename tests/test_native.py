"""Graphs of ComfyUI's own nodes: their steps, guidance and sampling against our pipelines, and what ComfyUI made of
them (harness/native/records), which only tests/test_in_comfyui.py can render again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from lora_drift.harness.check import metrics, runner
from lora_drift.harness.cli.main import app
from lora_drift.harness.native import graphs, records, resize, sampling, schedule, unmatched
from lora_drift.harness.studies.comfyui import unmatched as study
from lora_drift.pipelines import MODELS, RequestError, load
from lora_drift.pipelines.settings import Request, Settings, resolve

RECORDED = sorted(path.stem for path in records.RECORDS.glob("*.json"))
ONE_A_FAMILY = (
    "flux",
    "chroma",
    "flux2_klein_4b",
    "zimage_turbo",
    "qwen_image",
    "sd15",
    "sdxl",
    "wan21_1b",
    "wan22_5b",
)


def settings_of(model: str, **asked: Any) -> Settings:
    return resolve(MODELS[model], Request(**{"prompt": "a fox", **asked}))


# ----------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("model", graphs.RECIPES)
def test_comfyui_rendered_the_graph_as_it_is_now_within_one_level_of_the_trainer(model: str) -> None:
    record = records.load(model)
    assert record is not None, "run studies/comfyui/record.py"
    assert records.stale(record) == []
    assert set(record.cases) == set(records.CASES) and record.matches


def test_every_model_has_a_graph_or_a_reason() -> None:
    assert sorted((*graphs.RECIPES, *unmatched.UNMATCHED)) == sorted(MODELS)
    assert list(unmatched.measured()) == list(unmatched.UNMATCHED)


STAGES = {"prompt": "encode/", "schedule": "schedule/", "guidance": "step0/denoiser#1"}
"""What traces call the stages of `unmatched.UNMATCHED`."""


@pytest.mark.parametrize("model", unmatched.UNMATCHED)
def test_the_cause_for_which_no_graph_matches_shows_first_at_its_stage_and_costs_what_is_said(model: str) -> None:
    kept = unmatched.measured()[model]
    found, stage = study.measured(model)
    assert stage.startswith(STAGES[unmatched.UNMATCHED[model].stage])
    assert found.golden == kept.golden, "run studies/comfyui/unmatched.py"
    assert found.pixel_max == pytest.approx(kept.pixel_max, abs=1)
    assert found.pixel_mean == pytest.approx(kept.pixel_mean, rel=0.01) and kept.pixel_max > records.NEAR


def test_no_record_is_of_a_graph_that_is_gone() -> None:
    assert set(RECORDED) <= set(graphs.RECIPES)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"nodes": ["LoraDriftSampler"]}, ["the record was edited", "the pack's nodes changed"]),
        ({"minihub": "0"}, ["the record was edited", "the miniatures changed"]),
        ({"tag": "v0.7.24.202603201"}, ["the record was edited", "another trainer is the newest"]),
    ],
)
def test_a_record_that_was_edited_is_told(change: dict[str, Any], said: list[str]) -> None:
    record = records.load("flux")
    assert record is not None
    assert records.stale(record.model_copy(update=change)) == said


def test_a_record_is_stale_once_its_graph_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    record = records.load("flux")
    assert record is not None
    monkeypatch.setattr(schedule, "sigmas", lambda *_args, **_options: [1.0, 0.5, 0.0])
    assert records.stale(record) == ["base: the graph changed", "lora: the graph changed"]


# ------------------------------------------------------------------------------------------------------------- steps


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(class, timesteps, sigmas) of the schedulers that our pipelines render with."""
    from lora_drift.pipelines import loading

    made: list[Any] = []
    original = loading.scheduler

    def recorded(row: Any) -> Any:
        made.append(original(row))
        return made[-1]

    monkeypatch.setattr(loading, "scheduler", recorded)
    return made


@pytest.mark.parametrize("model", ONE_A_FAMILY)
def test_steps_are_those_of_the_pipeline(model: str, laid_out: list[Any]) -> None:
    asked: dict[str, Any] = {
        "width": 96,
        "height": 64,
        "steps": 4,
        **({"num_frames": 5} if MODELS[model].kind == "video" else {}),
    }
    pipeline = load(model)
    pipeline.sample("a fox", **asked)
    theirs = laid_out[-1]
    settings = settings_of(model, **asked)
    ours = schedule.scheduler(MODELS[model], 4, settings.width, settings.height)
    assert type(ours) is type(theirs)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    if hasattr(theirs, "sigmas"):
        assert torch.equal(ours.sigmas, theirs.sigmas)


def test_a_last_step_that_changes_nothing_is_left_out() -> None:
    spec = MODELS["zimage_turbo"]
    assert len(schedule.scheduler(spec, 8, 1024, 1024).sigmas) == 9
    assert len(schedule.sigmas(spec, 8, 1024, 1024)) == 8


# ---------------------------------------------------------------------------------------- sampling, on our own models


def test_sampling_from_predictions_gives_the_goldens_latents_of_ddpm(golden_of: Any) -> None:
    """SD 1.5's step noise goes on in the stream of the initial noise."""
    case, golden = records.golden_of("sd15", "base")
    settings = runner.Bench(tag=golden.tag).settings(case)
    pipe = load("sd15").base.pipe
    embeds = torch.cat(
        pipe.encode_prompt([settings.prompt], "cpu", 1, True, [settings.negative_prompt])[::-1]
    )  # negative first

    def predict(latents: torch.Tensor, timestep: float) -> torch.Tensor:
        both = pipe.unet(torch.cat([latents] * 2), torch.tensor(timestep), embeds)[0]
        negative, positive = both.chunk(2)
        return sampling.guided("sd", positive, negative, settings.guidance_scale, 0.0)

    steps: list[int] = []
    with torch.no_grad():
        noise = torch.randn(
            1, 4, settings.height // 8, settings.width // 8, generator=torch.Generator().manual_seed(settings.seed)
        )
        scheduler = schedule.scheduler(MODELS["sd15"], settings.steps, settings.width, settings.height)
        latents = sampling.sample(scheduler, noise, predict, settings.seed, lambda done, _: steps.append(done))
    latents = latents / pipe.vae.config.scaling_factor
    assert metrics.relative_l2(golden.latents(), latents.numpy()) < 1e-5
    assert steps == list(range(1, settings.steps + 1))


def test_guidance_of_sdxl_is_rescaled_as_diffusers_does() -> None:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

    positive, negative = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    combined = negative + 5.0 * (positive - negative)
    theirs = rescale_noise_cfg(combined, positive, guidance_rescale=0.7)
    assert torch.allclose(sampling.guided("sd", positive, negative, 5.0, 0.7), theirs, atol=1e-5)
    assert torch.equal(sampling.guided("sd", positive, negative, 5.0, 0.0), combined)


@pytest.mark.parametrize("frames", [(), (1,)])
def test_guidance_of_qwen_keeps_the_length_of_each_token(frames: tuple[int, ...]) -> None:
    """As QwenImagePipeline has it, on packed tokens."""
    from diffusers import QwenImagePipeline

    positive, negative = torch.randn(2, 1, 16, 8, 6, generator=torch.Generator().manual_seed(1))
    packed = [QwenImagePipeline._pack_latents(x, 1, 16, 8, 6) for x in (positive, negative)]
    combined = packed[1] + 4.0 * (packed[0] - packed[1])
    theirs = combined * (packed[0].norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
    given = [x.reshape(1, 16, *frames, 8, 6) for x in (positive, negative)]
    ours = sampling.guided("qwen", given[0], given[1], 4.0, 0.0)
    assert torch.allclose(QwenImagePipeline._pack_latents(ours.reshape(1, 16, 8, 6), 1, 16, 8, 6), theirs, atol=1e-5)


def test_a_posteriors_sample_is_drawn_right_after_the_noise() -> None:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    mean, spread = torch.randn(2, 1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(7)
    torch.randn(mean.shape, generator=generator)
    theirs = DiagonalGaussianDistribution(torch.cat([mean, spread], dim=1)).sample(generator)
    assert torch.allclose(sampling.posterior_sample(mean, spread, 7), theirs)


# ---------------------------------------------------------------------------------------------------- control images


def gradient(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, rows * columns], axis=-1).astype(np.uint8))


def test_kontext_sees_its_control_image_resized_twice() -> None:
    """To what was asked, and to what the model's rule makes of it."""
    picture = gradient(150, 90)
    found, _ = resize.resized(MODELS["flux_kontext"], picture, 120, 64)
    once = picture.resize((120, 64), Image.Resampling.BILINEAR)
    assert found.size == (112, 64) and found.tobytes() == once.resize((112, 64), Image.Resampling.LANCZOS).tobytes()


@pytest.mark.parametrize("size", [(64, 80), (80, 64), (96, 96)])
def test_clip_sees_the_first_frame_as_transformers_prepares_it(size: tuple[int, int]) -> None:
    import transformers

    picture = gradient(150, 90)
    frame, seen = resize.resized(MODELS["wan21_i2v_14b"], picture, *size)
    assert frame.tobytes() == picture.resize(size, Image.Resampling.LANCZOS).tobytes()
    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    theirs = getattr(transformers, name)(do_normalize=False, do_rescale=False)(frame, return_tensors="np")
    assert np.array_equal(theirs["pixel_values"][0].transpose(1, 2, 0), np.asarray(seen))


def test_a_model_that_is_not_shown_a_picture_like_this_is_refused() -> None:
    with pytest.raises(ValueError, match="flux: its control images"):
        resize.resized(MODELS["flux"], gradient(64, 64), 64, 64)


# ------------------------------------------------------------------------------------------------------------ graphs


def node(graph: Any, kind: str) -> dict[str, Any]:
    (found,) = [node["inputs"] for node in graph.values() if node["class_type"] == kind]
    return dict(found)


def test_guidance_is_said_in_comfyuis_convention() -> None:
    def cfg(model: str, scale: float) -> float:
        graph = graphs.build(MODELS[model], settings_of(model, guidance_scale=scale))
        return float(node(graph, "CFGGuider")["cfg"])

    assert cfg("zimage", 3.0) == 4.0 and cfg("zimage", 0.0) == 1.0
    assert cfg("qwen_image", 3.0) == 3.0
    assert cfg("qwen_image", 0.5) == 1.0, "the trainer does not guide at 1 or less"
    graph = graphs.build(MODELS["qwen_image"], settings_of("qwen_image", guidance_scale=1.0))
    assert graphs.nodes_of_pack(graph) == []


def test_parentheses_of_a_prompt_are_no_weights() -> None:
    graph = graphs.build(MODELS["flux"], settings_of("flux", prompt="a (red:1.4) fox"))
    assert node(graph, "CLIPTextEncode")["text"] == r"a \(red:1.4\) fox"
    chroma = graphs.build(MODELS["chroma"], settings_of("chroma", prompt="a (red:1.4) fox"))
    texts = [n["inputs"]["text"] for n in chroma.values() if n["class_type"] == "LoraDriftText"]
    assert texts == ["a (red:1.4) fox", ""], "the node escapes by itself"


def test_the_loras_of_two_experts_go_to_their_experts() -> None:
    loras = {"high": "h.safetensors", "low": "l.safetensors"}
    graph = graphs.build(MODELS["wan22_14b_t2v"], settings_of("wan22_14b_t2v", multiplier=0.5), loras=loras)
    both = node(graph, "LoraDriftExperts")
    for expert, file in loras.items():
        lora = graph[both[expert][0]]["inputs"]
        assert (lora["lora_name"], lora["strength_model"]) == (file, 0.5)
        assert expert in graph[lora["model"][0]]["inputs"]["unet_name"]


@pytest.mark.parametrize("seed", [-5, 2**64 - 1])
def test_a_seed_that_comfyui_cannot_have_is_refused(seed: int) -> None:
    settings = settings_of("flux", seed=seed)
    if seed < 0:
        with pytest.raises(RequestError, match=r"seed -5: ComfyUI takes"):
            graphs.build(MODELS["flux"], settings)
    else:
        assert node(graphs.build(MODELS["flux"], settings), "RandomNoise")["noise_seed"] == seed


# -------------------------------------------------------------------------------------------------- the command line


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["comfy", *arguments])


def test_the_command_line_writes_the_graph_and_says_what_it_needs(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    core = run("flux", "--native", "-p", "a fox", "-o", str(out))
    assert core.exit_code == 0, core.output
    assert json.loads(out.read_text()) == graphs.build(MODELS["flux"], settings_of("flux"))
    assert "flux1-dev.safetensors in models/diffusion_models" in core.output
    assert "All its nodes are ComfyUI's own." in core.output
    pack = run("sd15", "--native", "-p", "a fox", "-o", str(out))
    assert "the pack's node LoraDriftSampler" in pack.output and "ComfyUI's own" not in pack.output


def test_a_dora_gets_the_node_that_reads_its_magnitudes(lora_of: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    plain = run("flex1", "--native", "--lora", str(lora_of("flex1/lora")), "-o", str(out))
    assert plain.exit_code == 0 and "ComfyUI's own" in plain.output
    dora = run("flex1", "--native", "--lora", str(lora_of("flex1/dora")), "-o", str(out))
    assert dora.exit_code == 0 and node(json.loads(out.read_text()), "LoraDriftPatch")["like"] == "flex1"
    with pytest.raises(RequestError, match="sd15: ComfyUI would read a DoRA without its magnitudes"):
        graphs.build(MODELS["sd15"], settings_of("sd15"), loras={"": "a.safetensors"}, dora=True)
    broken = run("flex1", "--native", "--lora", __file__, "-o", str(out))
    assert broken.exit_code == 2 and "not a whole safetensors file" in broken.output


@pytest.mark.parametrize("version, other", [("0.12.26", "scheduler, guidance"), ("0.7.24", "another guidance than")])
def test_a_lora_of_a_trainer_that_samples_otherwise_is_refused(version: str, other: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    software = {"software": json.dumps({"name": "ai-toolkit", "version": version})}
    save_file({"a": torch.zeros(1)}, file, software)
    told = run("zimage", "--native", "--lora", str(file), "-o", str(tmp_path / "out.json"))
    assert told.exit_code == 2 and f"made by ai-toolkit {version}" in " ".join(told.output.split())
    assert other in " ".join(told.output.split())
    assert run("flux", "--native", "--lora", str(file), "-o", str(tmp_path / "out.json")).exit_code == 0


def test_a_graph_with_a_control_image_begins_with_one_that_comfyui_has(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    written = run("wan21_i2v_14b", "--native", "-o", str(out))
    assert written.exit_code == 0, written.output
    assert node(json.loads(out.read_text()), "LoadImage")["image"] == "example.png"
    assert "clip_vision_h.safetensors in models/clip_vision" in written.output


def test_flex2_with_a_control_image_is_refused() -> None:
    with pytest.raises(RequestError, match="flex2: with a control image"):
        graphs.build(MODELS["flex2"], replace(settings_of("flex2"), control=("a.png",)))


def test_the_command_line_refuses_where_nothing_matches(tmp_path: Path) -> None:
    unknown = run("ltx2", "--native", "-o", str(tmp_path / "out.json"))
    assert unknown.exit_code == 2 and "ltx2: no graph of ComfyUI's nodes is known" in unknown.output
    job = run(str(tmp_path), "--native", "-o", str(tmp_path / "out.json"))
    assert job.exit_code == 2 and "--native belongs to a model" in job.output
