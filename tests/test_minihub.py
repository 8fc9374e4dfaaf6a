"""The mini hub: the same bytes everywhere, whole or not at all, and loaded unmodified by the installed libraries."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import load_file

from lora_drift.harness.minihub import factory, layout, weights
from lora_drift.harness.minihub.factory import MiniHubError
from lora_drift.harness.minihub.repo import Repo
from lora_drift.harness.minihub.repos import MODELS, REPOS
from lora_drift.pipelines import MODELS as ROWS
from lora_drift.pipelines import Pipeline

CORE = ("sd15", "sdxl", "flux", "zimage_turbo", "wan21_1b")
"""One model of each kind, for what the others would show no better."""
BUILD = "import sys, pathlib; from lora_drift.harness.minihub import factory; factory.build(pathlib.Path(sys.argv[1]))"
NAMES = st.text(max_size=12)
SHAPES = array_shapes(max_dims=4, max_side=5)


PINNED = [0.0652681291103363, -0.5866230130195618, -0.4583607017993927, -0.6916407942771912]


def values(key: Sequence[str], shape: tuple[int, ...]) -> Any:
    repo, file, name = key
    return weights.tensor(repo, file, name, shape)


# ------------------------------------------------------------------------------------------------------------- build


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub that two processes built at the same time."""
    home = tmp_path_factory.mktemp("minihub") / "home"
    both = [subprocess.Popen([sys.executable, "-c", BUILD, str(home)]) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    return home


@pytest.fixture
def hub(built: Path, tmp_path: Path) -> Path:
    """A copy of it, to be tampered with."""
    return Path(shutil.copytree(built, tmp_path / "home"))


def test_two_builds_at_once_leave_one_hub_that_is_as_the_manifest_says(built: Path) -> None:
    assert factory.verify(built) == sum(len(json.loads(p.read_text())) for p in factory.MANIFESTS.glob("*.json"))
    assert [path.name for path in built.parent.iterdir()] == ["home"]


def test_a_built_hub_is_not_built_again(built: Path) -> None:
    before = (built / "complete.json").stat().st_mtime_ns
    assert factory.build(built) == built
    assert (built / "complete.json").stat().st_mtime_ns == before


def test_a_build_that_is_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = factory._write_repo

    def stop(repo: Repo, root: Path) -> None:
        if repo.id == list(REPOS)[1]:
            raise KeyboardInterrupt
        write(repo, root)

    monkeypatch.setattr(factory, "_write_repo", stop)
    with pytest.raises(KeyboardInterrupt):
        factory.build(tmp_path / "home")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MiniHubError, match="lora-drift minihub build"):
        factory.verify(tmp_path / "home")


def test_a_build_that_differs_from_the_manifest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forge(tmp_path / "manifests", "Tongyi-MAI/Z-Image-Turbo", "model_index.json", monkeypatch)
    with pytest.raises(MiniHubError, match=r"Tongyi-MAI/Z-Image-Turbo/model_index.json: other bytes"):
        factory.build(tmp_path / "home")
    assert [path.name for path in tmp_path.iterdir()] == ["manifests"]


def forge(folder: Path, repo: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a copy of the manifests in which one file of one repository has another hash."""
    shutil.copytree(factory.MANIFESTS, folder)
    path = folder / f"{repo.replace('/', '--')}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), file: "0" * 64}))
    monkeypatch.setattr(factory, "MANIFESTS", folder)


# ------------------------------------------------------------------------------------------------------------ verify

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "other bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "other bytes"),
    ],
    ids=["deleted", "edited", "truncated"],
)
def test_verify_names_a_damaged_file(damage: Callable[[Path], object], state: str, hub: Path) -> None:
    repo = ROWS["sd15"].base
    damage(factory.snapshot(hub, repo) / UNET)
    with pytest.raises(MiniHubError, match="in 1 file") as error:
        factory.verify(hub)
    assert f"{repo}/{UNET}: {state}" in str(error.value)


def test_verify_names_a_file_that_does_not_belong(hub: Path) -> None:
    (factory.snapshot(hub, ROWS["flux"].base) / "vae" / "extra.json").write_text("{}")
    with pytest.raises(MiniHubError, match=r"FLUX.1-dev/vae/extra.json: not in the manifest"):
        factory.verify(hub)


def test_verify_names_a_repository_that_is_gone(hub: Path) -> None:
    shutil.rmtree(factory.snapshot(hub, ROWS["flux"].base).parent.parent)
    with pytest.raises(MiniHubError, match=r"FLUX.1-dev: missing"):
        factory.verify(hub)


def test_verify_names_a_repository_without_its_ref(hub: Path) -> None:
    (factory.snapshot(hub, ROWS["flux"].base).parent.parent / "refs" / "main").unlink()
    with pytest.raises(MiniHubError, match=r"FLUX.1-dev"):
        factory.verify(hub)


def test_each_models_goldens_depend_on_its_own_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {model: factory.manifest_sha256(model) for model in MODELS}
    forge(tmp_path / "manifests", ROWS["flux"].base, "vae/config.json", monkeypatch)
    assert {model for model in MODELS if factory.manifest_sha256(model) != before[model]} == {"flux"}


# ----------------------------------------------------------------------------------------------------------- weights


@given(st.lists(NAMES, min_size=3, max_size=3), st.integers(0, 2), NAMES, SHAPES)
def test_weights_depend_on_repository_file_and_name(
    key: list[str], part: int, other: str, shape: tuple[int, ...]
) -> None:
    shape = (16, *shape)
    changed = [*key[:part], other, *key[part + 1 :]]
    assert np.array_equal(values(key, shape), values(key, shape))
    assert np.array_equal(values(key, shape), values(changed, shape)) == (changed == key)


def test_where_one_part_of_the_key_ends_matters() -> None:
    assert not np.array_equal(values(["a", "bc", "d"], (16,)), values(["ab", "c", "d"], (16,)))


@given(SHAPES)
def test_weights_have_the_shape_and_the_size_that_keep_activations_in_range(shape: tuple[int, ...]) -> None:
    found = values(["repo", "unet", "conv.weight"], shape)
    assert (found.shape, found.dtype) == (shape, np.float32)
    if len(shape) == 1:
        assert np.all(np.abs(found - 1) <= 0.1)
    else:
        assert np.all(np.abs(found) <= np.sqrt(3 / np.prod(shape[1:])) * 1.0001)


def test_the_generator_has_not_changed() -> None:
    """In case the manifest is ever written anew without a look."""
    found = values(["repo", "unet", "conv.weight"], (2, 2)).ravel().tolist()
    assert found == pytest.approx(PINNED, abs=1e-7)


@given(arrays(np.float32, array_shapes(max_side=8), elements=st.floats(width=32, allow_nan=False)))
def test_bfloat16_rounds_as_torch_does(floats: Any) -> None:
    theirs = torch.from_numpy(floats).to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(weights.to_bfloat16(floats), theirs.view(np.uint16))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_written_files_are_read_by_the_safetensors_library(dtype: str, tmp_path: Path) -> None:
    tensors = {name: values(["repo", "file", name], (3, 5)) for name in ("b", "a.weight")}
    weights.write_safetensors(tmp_path / "x.safetensors", tensors, dtype)
    found = load_file(tmp_path / "x.safetensors")
    expected = {name: torch.from_numpy(value).to(getattr(torch, dtype)) for name, value in tensors.items()}
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# ----------------------------------------------------------------------------------------------- installed libraries

COMPONENTS = {f"{repo.id}/{w.folder}": (repo.id, w) for model in CORE for repo in MODELS[model] for w in repo.weights}


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_weight_is_known_to_the_installed_class_and_none_is_missing(component: str) -> None:
    repo, w = COMPONENTS[component]
    library, name = w.cls.split(".")
    if library == "stable_diffusion":
        library = "diffusers.pipelines.stable_diffusion.safety_checker"
    cls = getattr(importlib.import_module(library), name)
    _, found = cls.from_pretrained(repo, subfolder=w.folder, output_loading_info=True)
    assert {kind: list(keys) for kind, keys in found.items() if keys} == {}


@pytest.mark.parametrize("model", CORE)
def test_every_tokenizer_gives_a_prompt_back(model: str, pipeline_of: Callable[[str], Pipeline]) -> None:
    tokenizers = {
        name: part for name, part in pipeline_of(model).base.pipe.components.items() if name.startswith("tokenizer")
    }
    assert tokenizers
    for tokenizer in tokenizers.values():
        for prompt in ("a photo of a red fox in the forest", "sks, 2 zebras & a xylophone?"):
            ids = tokenizer(prompt).input_ids
            assert len(ids) > 5
            told = tokenizer.decode(ids, skip_special_tokens=True)
            assert told.replace(" ", "") == prompt.replace(" ", "")


NAMES = st.from_regex(r"(blocks|x)(\.([0-3]|2-1|norm)){1,3}\.(weight|bias)", fullmatch=True)


@given(st.dictionaries(NAMES, st.sampled_from(["4", "4x4"])))
def test_names_of_blocks_that_are_alike_are_one_line_and_come_back(shapes: dict[str, str]) -> None:
    folded = layout.folded(shapes)
    assert {name: shape for one, shape in folded.items() for name in layout.unfolded(one)} == shapes


def test_layouts_say_in_one_line_what_many_blocks_have() -> None:
    assert layout.folded({f"b.{n}.w": "4" for n in range(48)} | {"b.9.c": "1"}) == {"b.{0-47}.w": "4", "b.9.c": "1"}
    for path in layout.LAYOUTS.glob("*.json"):
        said = json.loads(path.read_text())
        whole = {name: shape for one, shape in said.items() for name in layout.unfolded(one)}
        assert layout.folded(whole) == said, f"{path.name}: not as read_layouts writes it"


def test_every_pipelines_repositories_are_in_the_hub() -> None:
    for model, spec in ROWS.items():
        assert {spec.base, *spec.components.values()} <= {repo.id for repo in MODELS[model]}
