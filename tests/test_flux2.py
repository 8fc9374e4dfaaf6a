"""FLUX.2: one model in two file layouts, and keys that are fused in LoRA files."""

from types import ModuleType

import numpy as np
import pytest

from lora_drift.harness import tags
from lora_drift.harness.check import cases, goldens, runner
from lora_drift.harness.minihub import layout
from lora_drift.harness.minihub.repo import Repo
from lora_drift.harness.minihub.repos import flux2
from lora_drift.pipelines.families import chroma
from lora_drift.pipelines.families import flux2 as flux2_family
from lora_drift.pipelines.lora import Target, _stacked


@pytest.mark.parametrize("case_id", [c.id for c in cases.load_all() if c.model == "flux2_diffusers"])
def test_the_folders_are_held_to_the_samples_of_the_single_files(case_id: str) -> None:
    name = case_id.split("/")[1]
    case, twin = (cases.load(cases.CASES / model / f"{name}.yaml") for model in ("flux2_diffusers", "flux2"))
    ours, theirs = (goldens.load(tags.newest(), c, None).artefacts for c in (case, twin))
    assert case.sample == twin.sample
    for name in ("picture", "latents"):
        assert ours[name].sha256 == theirs[name].sha256


@pytest.mark.parametrize("repo", [flux2.KLEIN_4B, flux2.KLEIN_9B, flux2.FLUX2_DEV], ids=lambda repo: repo.id)
def test_the_miniature_folders_have_the_tensors_of_the_real_classes(repo: Repo) -> None:
    for weights in repo.weights:
        if weights.values is not None:
            made = {name: list(array.shape) for name, array in weights.values().items()}
            assert made == layout.load(weights)


@pytest.mark.parametrize("model", ["flux2_klein_4b", "flux2_klein_9b", "flux2"])
def test_both_layouts_hold_the_same_weights(model: str) -> None:
    import torch

    from lora_drift.pipelines.families.flux2 import ROWS, Flux2Files, _files, _folders

    spec = next(row for row in ROWS if row.id == model)
    assert isinstance(spec, Flux2Files)
    for single, folder in zip(_files(spec, spec.base), _folders(spec.base), strict=True):
        one, other = single.state_dict(), folder.state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name].float(), other[name].float()) for name in one)


def test_targets_of_a_fused_key_take_stacked_rows() -> None:
    shapes = {"t": {"q": (4, 8), "k": (2, 8), "v": (2, 8)}}
    found = _stacked([Target(n, component="t") for n in "qkv"], shapes)
    assert [t.rows for t in found] == [slice(0, 4), slice(4, 6), slice(6, 8)]


@pytest.mark.parametrize("family", [flux2_family, chroma])
@pytest.mark.parametrize(
    "name",
    [
        "double_blocks.0.img_attn.qkv", "double_blocks.11.txt_attn.proj", "double_blocks.0.img_mlp.0",
        "double_blocks.0.txt_mlp.2", "single_blocks.20.linear1", "single_blocks.0.linear2", "img_in", "txt_in",
        "time_in.in_layer", "final_layer.linear", "final_layer.adaLN_modulation.1",
        "double_stream_modulation_img.lin", "single_stream_modulation.lin",
        "distilled_guidance_layer.layers.0.in_layer", "distilled_guidance_layer.in_proj",
    ],
)  # fmt: skip
def test_an_old_lokr_with_underscores_for_dots_changes_the_same_modules(family: ModuleType, name: str) -> None:
    assert family.lora_targets(name.replace(".", "_")) == family.lora_targets(name)
    assert family.lora_targets(name) != [Target(name.replace(".", "_"))] or "." not in name


def test_the_schedule_is_the_trainers() -> None:
    from lora_drift.pipelines.families.flux2 import ROWS, schedule

    mu = 0.5  # at 256 tokens
    t = np.array([1, 0.75, 0.5, 0.25])
    assert np.allclose(schedule(ROWS[0], 4, 256), np.exp(mu) / (np.exp(mu) + 1 / t - 1), rtol=1e-6)


def test_the_first_render_reads_the_negative_prompt() -> None:
    """The cases of a model share one loaded pipeline, and the first of them has no negative prompt."""
    case = cases.load(cases.CASES / "flux2_klein_4b" / "reference.yaml")
    golden = goldens.load(tags.newest(), case, None)
    bench = runner.Bench()
    assert case.sample.neg
    ours = bench.render(bench.pipeline(case, golden), bench.settings(case)).latents
    assert np.linalg.norm(ours - golden.latents()) <= 8e-6 * np.linalg.norm(ours)
