"""What a family hands to Diffusers, and what it computes on the way, where no case's picture shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lora_drift.harness.check import runner
from lora_drift.harness.check.cases import Sample
from lora_drift.harness.check.trace import sketch
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import Pipeline, load, loading
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.families import (
    chroma,
    flux2,
    flux2_rounding,
    hidream,
    krea2,
    omnigen2,
    omnigen2_transformer,
    qwen,
    sd,
    zimage,
)
from lora_drift.pipelines.registry import MODELS, spec_of
from lora_drift.pipelines.schedulers import ScalarsStayOnCPU
from lora_drift.pipelines.settings import Request, resolve


class Called:
    """A pipeline of Diffusers that only notes what it is given."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def __call__(self, **given: Any) -> Any:
        self.given = given
        return SimpleNamespace(images=["picture"])


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_all_that_a_request_says_reaches_stable_diffusion(model: str) -> None:
    spec, pipe = spec_of(model), Called()
    asked = Request("a fox --n blurry", "low quality", 128, 64, 3, 4.5, guidance_rescale=0.5)
    assert sd.render(pipe, spec, resolve(spec, asked), generator="stream").frames == ["picture"]
    both = {"prompt": ["a fox"], "negative_prompt": ["blurry"], "width": 128, "height": 64, "num_inference_steps": 3,
            "guidance_scale": 4.5, "generator": "stream"}  # fmt: skip
    second = {"prompt_2": ["a fox"], "negative_prompt_2": ["low quality"], "guidance_rescale": 0.5}
    assert pipe.given == (both | second if model == "sdxl" else both)


def test_stable_diffusion_loads_no_checker_and_no_watermark_and_cuts_both_tokenizers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[str, Any] = {}

    def pipeline(spec: Any, base: str, dtype: Any, **parts: Any) -> Any:
        told.update(base=base, dtype=dtype, **parts)
        return SimpleNamespace(tokenizer=SimpleNamespace(), tokenizer_2=SimpleNamespace())

    monkeypatch.setattr(loading, "pipeline", pipeline)
    for model, parts in (
        ("sd15", {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}),
        ("sdxl", {"add_watermarker": False}),
    ):
        spec = spec_of(model)
        told.clear()
        pipe = sd.load(spec, "a base", torch.float32)
        assert told == {"base": "a base", "dtype": torch.float32, **parts}
        assert pipe.tokenizer.model_max_length == spec.max_sequence_length
        assert vars(pipe.tokenizer_2) == ({"model_max_length": spec.max_sequence_length} if model == "sdxl" else {})


@pytest.mark.parametrize(
    ("model", "name"), [("sd15", "StableDiffusionPipeline"), ("sdxl", "StableDiffusionXLPipeline")]
)
def test_a_single_file_is_read_with_the_configs_of_the_usual_base(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    told: dict[str, Any] = {}

    def from_single_file(file: str, **options: Any) -> Any:
        told.update(file=file, **options)
        raise LookupError

    monkeypatch.setattr(getattr(diffusers, name), "from_single_file", from_single_file)
    file = tmp_path / "model.safetensors"
    file.touch()
    spec = spec_of(model)
    with pytest.raises(LookupError):
        loading.pipeline(spec, str(file), torch.bfloat16, extra=1)
    assert told["file"] == str(file) and told["config"] == spec.base and told["extra"] == 1
    assert torch.bfloat16 in told.values() and type(told["scheduler"]).__name__ == spec.scheduler.name


@pytest.mark.parametrize("whole", [False, True])
def test_de_turbo_takes_the_text_encoder_of_its_folder_if_there_is_one(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    told: list[Any] = []
    monkeypatch.setattr(loading, "pipeline", lambda spec, base, dtype, **parts: told.append((spec, base, parts)))
    monkeypatch.setattr(diffusers.ZImageTransformer2DModel, "from_pretrained", lambda *at, **options: (at, options))
    spec = spec_of("zimage_deturbo")
    assert isinstance(spec, zimage.ZImage)
    home = spec.components["text_encoder"]
    if whole:
        (tmp_path / "text_encoder").mkdir()
    zimage.load(spec, str(tmp_path), torch.bfloat16)
    ((found, base, parts),) = told
    if whole:
        assert (found, base, parts) == (spec, str(tmp_path), {})
    else:
        transformer = ((str(tmp_path),), {"subfolder": "transformer", "torch_dtype": torch.bfloat16})
        assert (base, parts) == (home, {"transformer": transformer})
        assert found == replace(spec, components={n: r for n, r in spec.components.items() if r != home})


@pytest.mark.parametrize(
    ("model", "euler", "unipc"), [("wan21_1b", 3.0, 3.0), ("wan21_i2v_14b", 3.0, 3.0), ("wan22_14b_t2v", 5.0, 3.0),
                                  ("wan22_14b_i2v", 5.0, 3.0), ("wan22_5b", 5.0, 5.0)],
)  # fmt: skip
def test_the_steps_of_wan_are_shifted_as_in_each_trainer(model: str, euler: float, unipc: float) -> None:
    assert spec_of(model, "0.12.26").scheduler.config["shift"] == euler
    for toolkit, name in (("0.7.29", "UniPCWithSigmasOnCPU"), ("0.7.24", "FlowUniPCFromBelowOne")):
        scheduler = spec_of(model, toolkit).scheduler
        assert (scheduler.name, scheduler.config["flow_shift"]) == (name, unipc)


def test_as_intended_qwen_shows_its_text_encoder_upright_bright_pictures_with_places() -> None:
    for model in ("qwen_image_edit", "qwen_image_edit_plus", "qwen_image_edit_plus_2511"):
        spec = spec_of(model, "0.7.24").intended()
        assert isinstance(spec, qwen.Seen)
        assert (spec.seen_sides_swapped, spec.seen_in_place, spec.seen_white) == (False, True, 255.0)


@pytest.mark.parametrize(("toolkit", "less"), [("0.7.29", 0.0), ("0.12.26", 1.0)])
def test_the_guidance_that_reaches_z_image_depends_on_the_trainer(toolkit: str, less: float) -> None:
    spec = spec_of("zimage", toolkit)
    assert isinstance(spec, zimage.ZImage)
    for scale in (0.5, 1.0, 4.0):
        pipe = Called()
        zimage.render(pipe, spec, resolve(spec, Request("a fox", steps=4, guidance_scale=scale)))
        assert pipe.given["guidance_scale"] == max(0.0, spec.pipeline_scale(scale) - less)
        assert pipe.given["sigmas"] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_references_of_omnigen2_shrink_to_pixels_and_longest_side_and_never_grow() -> None:
    spec = MODELS["omnigen2"]
    assert isinstance(spec, omnigen2.OmniGen2)
    divisor, most = spec.render_divisor, spec.most_pixels
    assert omnigen2._render_size(spec, 10 * divisor + 1, 7 * divisor - 1) == (10 * divisor, 6 * divisor)
    height, width = omnigen2._render_size(spec, 4000, 2000)
    assert (height % divisor, width % divisor) == (0, 0) and 0.97 * most < height * width <= most
    assert height / width == pytest.approx(2, rel=0.02)
    longest = 20 * divisor
    assert omnigen2._render_size(spec, 40 * divisor, 10 * divisor, longest) == (longest, longest // 4)
    assert omnigen2._render_size(spec, 10 * divisor, 40 * divisor, longest) == (longest // 4, longest)


def test_references_of_krea_2_get_the_area_of_the_picture_and_in_older_trainers_a_megapixel_at_most() -> None:
    now, then = spec_of("krea2_o_edit"), spec_of("krea2_o_edit", "0.10.21")
    assert isinstance(now, krea2.Krea2Edit) and isinstance(then, krea2.Krea2Edit)
    picture = 512 * 512
    assert krea2.reference_size(now, 100, 400, picture) == (256, 1024) == krea2.reference_size(now, 800, 3200, picture)
    assert krea2.reference_size(then, 100, 400, picture) == (96, 400)
    assert krea2.reference_size(then, 1024, 4096, picture) == (512, 2048)
    # 40 and 56 lie between two multiples of 16: to the even one, as Python rounds
    assert krea2.reference_size(then, 40, 56, picture) == (32, 64)
    assert krea2.reference_size(then, 3, 4096, picture) == (16, 4096)


def test_references_of_krea_2_before_0_10_22_are_read_as_the_trainer_reads_them_without_kv_cache() -> None:
    recorded = json.loads((ROOT / "tests" / "krea2_references.json").read_text(encoding="utf-8"))
    asked, golden = Sample.model_validate(recorded["sample"]), np.array(recorded["latents"])
    runner.use_minihub()
    far = {}
    for toolkit in ("0.10.21", "0.10.22"):
        pipeline = load("krea2_o_edit", toolkit=toolkit)
        settings = resolve(
            pipeline.spec,
            Request(asked.prompt, asked.neg, asked.width, asked.height, asked.sample_steps, asked.guidance_scale,
                    seed=asked.seed, control=asked.control),
        )  # fmt: skip
        ours = sketch(runner.Bench.render(pipeline, settings).latents)
        far[toolkit] = np.linalg.norm(ours - golden) / np.linalg.norm(golden)
    assert far["0.10.21"] < 5e-5 and far["0.10.22"] > 0.5


@pytest.mark.parametrize("in_float32", [True, False])
@pytest.mark.parametrize("channel_first", [True, False])
def test_norms_of_an_autoencoder_run_over_channels_in_the_wanted_dtype(in_float32: bool, channel_first: bool) -> None:
    class WanRMS_norm(torch.nn.Module):
        """With the fields of Diffusers'."""

        def __init__(self) -> None:
            super().__init__()
            self.channel_first, self.scale, self.bias = channel_first, 6**0.5, 0.25
            shape = (6, 1, 1) if channel_first else (6,)
            self.gamma = torch.linspace(0.5, 2, 6).view(shape)

    vae = torch.nn.Sequential(WanRMS_norm())
    loading.normalize(vae, in_float32=in_float32)
    x = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
    axis = 1 if channel_first else 3
    wide = x.float() if in_float32 else x
    length = wide.norm(dim=axis, keepdim=True)
    expected = (wide / length).to(x.dtype) * vae[0].scale * vae[0].gamma + 0.25
    assert torch.equal(vae(x), expected)


def test_chroma_is_laid_out_by_whole_numbers() -> None:
    shapes = {
        "img_in.weight": [48, 64], "txt_in.weight": [48, 40], "distilled_guidance_layer.in_proj.weight": [12, 8],
        "double_blocks.0.img_attn.norm.query_norm.scale": [24], "double_blocks.1.a": [1], "single_blocks.0.a": [1],
        "distilled_guidance_layer.layers.0.a": [1],
    }  # fmt: skip
    found = chroma.sizes(shapes)
    assert found["axes_dims_rope"] == (3, 10, 10) and {type(n) for n in found["axes_dims_rope"]} == {int}
    assert (found["num_layers"], found["num_single_layers"], found["approximator_layers"]) == (2, 1, 1)
    assert (found["in_channels"], found["num_attention_heads"], found["joint_attention_dim"]) == (64, 2, 40)
    assert (found["approximator_num_channels"], found["approximator_hidden_dim"]) == (8, 12)
    with pytest.raises(RequestError, match=r"no tensor 'img_in.weight'"):
        chroma.sizes({})


def test_an_editing_model_refuses_more_tokens_than_its_padding_has_room_for() -> None:
    spec = MODELS["hidream_e1"]
    assert isinstance(spec, hidream.HiDreamE1)
    from diffusers import HiDreamImageTransformer2DModel

    config = HiDreamImageTransformer2DModel.load_config(spec.base, subfolder="transformer")
    height, width = config["max_resolution"]
    most = height * width // config["patch_size"] ** 2

    def check(width: int, height: int) -> None:
        settings = SimpleNamespace(width=width, height=height)
        hidream.check(spec, spec.base, settings)  # type: ignore[arg-type]

    rows = 4
    columns = most // rows // 2  # of the picture; the control image has as many
    check(16 * columns // 2 * 2, 16 * rows)
    with pytest.raises(RequestError, match=f"this model takes {most}"):
        check(16 * (columns + 1), 16 * rows)
    check(16 * most, 32 * most)  # as many rows as both have columns: square, which needs no padding
    hidream.check(MODELS["hidream"], "no such base", SimpleNamespace())  # type: ignore[arg-type]


def test_flux2_reads_the_step_rounded_once() -> None:
    exact = torch.linspace(999.3, 10.7, 60, dtype=torch.float64)
    changed = 0
    for index in range(len(exact)):
        pipe = SimpleNamespace(scheduler=SimpleNamespace(timesteps=exact, step_index=index))
        before = flux2_rounding._time(pipe)
        given = (exact[index].bfloat16() / 1000).expand(2)  # as Diffusers hands it over
        once = (exact[index] / 1000).bfloat16().expand(2)
        args, kwargs = before(None, (1,), {"timestep": given, "other": 2})
        assert args == (1,) and kwargs["other"] == 2
        assert torch.equal(kwargs["timestep"], once)
        changed += int(not torch.equal(given, once))
        elsewhere = torch.tensor([0.25, 0.75], dtype=torch.bfloat16)  # what somebody put there instead
        assert torch.equal(before(None, (), {"timestep": elsewhere})[1]["timestep"], elsewhere)
    assert changed


def test_flux2_rounds_as_the_trainers_network_in_every_layer(pipeline_of: Callable[[str], Pipeline]) -> None:
    pipe = pipeline_of("flux2_klein_4b").base.pipe
    norms = [module for module in pipe.transformer.modules() if isinstance(module, nn.RMSNorm)]
    assert norms and {type(norm) for norm in norms} == {flux2_rounding.RMSNorm}
    assert len(pipe.transformer._forward_pre_hooks) == 1  # by which the step is rounded once
    kinds = {type(module) for module in pipe.vae.modules()}
    assert nn.SiLU not in kinds and flux2_rounding.Swish in kinds
    x = torch.linspace(-4, 4, 64).bfloat16()
    norm = flux2_rounding.RMSNorm(64, eps=1e-6).bfloat16()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.3, 1.7, 64))
        first = (x.float() / (x.float().square().mean() + 1e-6).sqrt()).bfloat16()
        assert torch.equal(norm(x), first * norm.weight)


@pytest.mark.parametrize("tall", [False, True])
def test_flux2_takes_the_references_that_the_trainer_takes(tall: bool, tmp_path: Path) -> None:
    spec = spec_of("flux2")
    assert isinstance(spec, flux2.Flux2)
    least, ratio = spec.smallest_reference_side, spec.longest_reference_ratio

    def check(width: int, height: int) -> None:
        path = tmp_path / "reference.png"
        Image.new("RGB", (height, width) if tall else (width, height)).save(path)
        flux2.check(spec, spec.base, SimpleNamespace(control=(str(path),)))  # type: ignore[arg-type]

    check(least, least)
    check(int(ratio * least), least)
    for size in ((2 * least, least - 1), (int(ratio * least) + 1, least)):
        with pytest.raises(RequestError, match=f"at least {least} pixels a side"):
            check(*size)


def test_what_a_text_encoder_says_is_cut_to_the_models_length() -> None:
    """None of them has one today; a row may."""
    spec = replace(MODELS["qwen_image_edit"], max_sequence_length=5)
    assert isinstance(spec, qwen.QwenEdit)
    longest = 5
    said = torch.randn(1, longest + 3, 4)

    def pipe(mask: torch.Tensor | None) -> Any:
        return SimpleNamespace(
            encode_prompt=lambda prompt, image, device: (said, mask),
            transformer=SimpleNamespace(dtype=torch.bfloat16),
            _execution_device=torch.device("cpu"),
        )

    hidden = torch.zeros(1, longest + 3, dtype=torch.int64)
    for mask in (None, hidden):
        found = qwen._embeds(pipe(mask), spec, "negative_prompt", "a fox", None)
        assert torch.equal(found["negative_prompt_embeds"], said[:, :longest].bfloat16())
        assert found["negative_prompt_embeds_mask"].shape == (1, longest)
        assert found["negative_prompt_embeds_mask"].dtype == torch.int64
        assert bool(found["negative_prompt_embeds_mask"].all()) == (mask is None)


def test_single_numbers_stay_on_the_cpu_while_a_scheduler_steps() -> None:
    elsewhere = torch.device("meta")
    one, several = torch.tensor(2.0), torch.ones(3)
    with ScalarsStayOnCPU(elsewhere):
        assert one.to(elsewhere).device.type == "cpu"
        assert several.to(elsewhere).device == elsewhere
        assert one.to(torch.float64).dtype == torch.float64
        assert torch.stack([one, one]).device == elsewhere
        assert torch.stack([several, several]).device.type == "cpu"
        there = torch.empty((), device="meta")
        assert there.to(torch.device("meta")) is not one and there.to(elsewhere).device == elsewhere
    assert one.to(elsewhere).device == elsewhere


def test_omnigen2s_norms_keep_what_they_divide_by(pipeline_of: Callable[[str], Pipeline]) -> None:
    from diffusers.models.normalization import RMSNorm

    model = nn.Module()
    model.first = RMSNorm(8, eps=0.25)
    omnigen2_transformer._round_once(model)
    assert isinstance(model.first, omnigen2_transformer.RoundedOnce)
    assert model.first.eps == 0.25 and tuple(model.first.normalized_shape) == (8,)
    kept = [m for m in pipeline_of("omnigen2").base.pipe.transformer.modules() if isinstance(m, nn.RMSNorm)]
    assert kept


def test_rows_say_which_encoders_a_job_quantises_and_how_a_lora_names_the_denoiser() -> None:
    chroma_row, (full, edit) = MODELS["chroma"], (MODELS[model] for model in ("hidream", "hidream_e1"))
    assert chroma_row.quantizes is not None and chroma_row.quantizes.encoders == ("text_encoder",)
    assert edit.quantizes is not None and edit.quantizes == full.quantizes
    for row in MODELS.values():
        experts = set(row.denoisers)
        assert experts in ({""}, {"high", "low"}), row.id
        assert row.kind in ("image", "edit", "video"), row.id
        assert spec_of(row.id) == row
