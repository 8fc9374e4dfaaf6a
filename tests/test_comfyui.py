"""The ComfyUI pack against a stand-in of ComfyUI (comfy_contract.py). On the real one: `pytest -m comfyui`."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import os
import runpy
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomllib
import torch
from packaging.requirements import Requirement
from PIL import Image
from typer.testing import CliRunner

from lora_drift.harness.check import cases
from lora_drift.harness.cli.main import app
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import MODELS, RequestError, load
from lora_drift.pipelines.quantize import Quantization

HERE = Path(__file__).parent
contract = SimpleNamespace(**runpy.run_path(str(HERE / "comfy_contract.py")))
SECRET = "hf_thisIsATokenOfSomebody"


@pytest.fixture
def comfy(tmp_path: Path) -> Any:
    (tmp_path / "loras").mkdir()
    return contract.Comfy(tmp_path / "loras")


@pytest.fixture
def pack(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with contract.loaded(comfy, monkeypatch.setitem) as pack:
        yield pack.nodes


@pytest.fixture
def sample(pack: ModuleType) -> Callable[..., tuple[Any, ...]]:
    """Runs a Sample node."""
    return lambda **inputs: contract.execute(pack.Sample, inputs)


@pytest.fixture(autouse=True)
def kept(pack: ModuleType) -> list[Any]:
    """The node's objects that ComfyUI keeps between the prompts of a graph."""
    return [pack.Sample()]


def case(name: str) -> cases.Case:
    return cases.load(cases.CASES / f"{name}.yaml")


def picture(path: str) -> torch.Tensor:
    """As ComfyUI holds a picture, with its alpha channel."""
    with Image.open(path) as image:
        levels = np.asarray(image.convert("RGBA" if image.mode == "RGBA" else "RGB"))
    return torch.from_numpy(levels.astype(np.float32) / 255)[None]


# ------------------------------------------------------------------------------------------------------------ schema


def test_every_model_has_its_own_widgets_with_its_own_defaults(pack: ModuleType) -> None:
    model = contract.info(pack.Sample)["input"]["required"]["model"][1]
    assert [option["key"] for option in model["options"]] == list(MODELS)
    for option in model["options"]:
        spec, (required, optional) = (
            MODELS[option["key"]],
            (option["inputs"][kind] for kind in ("required", "optional")),
        )
        for name in ("width", "height", "steps", "guidance_scale"):
            assert optional[name][1]["default"] == getattr(spec, name)
        assert (optional["steps"][1]["min"], optional["steps"][1]["max"]) == (spec.fewest_steps, spec.most_steps)
        assert ("negative" in optional) == (spec.guidance != "embedded")
        assert ("num_frames" in optional) == ("fps" in optional) == (spec.kind == "video")
        assert ("control" in required) == (spec.controls != (0, 0))
        if "control" in required:
            slots = required["control"][1]["template"]
            fewest = slots["min"] if slots["input"]["required"] else 0
            assert (fewest, slots["max"]) == spec.controls and slots["min"] > 0
    json.dumps(contract.info(pack.Sample))  # it travels to the browser


async def _nodes(pack: ModuleType) -> list[Any]:
    extension = await pack.comfy_entrypoint()
    nodes: list[Any] = await extension.get_node_list()
    return nodes


def test_ids_are_ours_and_every_input_is_taken(pack: ModuleType) -> None:
    nodes = asyncio.run(_nodes(pack))
    assert [node.define_schema().node_id for node in nodes] == [
        f"LoraDrift{name}"
        for name in (
            *("Model", "Lora", "Sample", "Job", "Verify"),
            *("Sampler", "Noise", "Guidance", "Text", "Patch", "Experts", "Blank", "Resize", "FirstFrame", "Check"),
        )
    ]
    for node in nodes:
        asked = {one.id for one in node.define_schema().inputs}
        assert asked == set(inspect.signature(node.execute).parameters), node


def test_installing_the_pack_changes_no_package_of_comfyui() -> None:
    """It asks for lora-drift in any version, and lora-drift pins nothing either."""
    pack = tomllib.loads((contract.PACK / "pyproject.toml").read_text())
    ours = tomllib.loads((contract.PACK.parent / "pyproject.toml").read_text())
    assert pack["project"]["dependencies"] == ["lora-drift"]
    assert (contract.PACK / "requirements.txt").read_text().split() == ["lora-drift"]
    bounds = [spec.operator for line in ours["project"]["dependencies"] for spec in Requirement(line).specifier]
    assert set(bounds) == {">="}
    assert pack["project"]["urls"]["Repository"] == ours["project"]["urls"]["Homepage"]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lora_drift", None)
    with pytest.raises(ImportError, match=r"-m pip install lora-drift"):
        runpy.run_path(str(contract.PACK / "__init__.py"))


# ----------------------------------------------------------------------------------------------------------- renders


def test_left_out_inputs_take_the_models_defaults(comfy: Any, sample: Any) -> None:
    *_, receipt = sample(
        **{"model": "sd15", "model.width": 64, "model.height": 64, "model.steps": 2}, prompt="x", seed=1
    )
    settings = json.loads(receipt)["settings"]
    assert settings["guidance_scale"] == MODELS["sd15"].guidance_scale and settings["prompt"] == "x"


def test_the_model_node_says_how_the_base_is_loaded(pack: ModuleType, sample: Any) -> None:
    said = {"toolkit": "0.7.20", "dtype": "bfloat16", "quantize": True, "qtype": "uint4", "quantize_te": False,
            "qtype_te": "qfloat8", "offload": False, "base": ""}  # fmt: skip
    (loading,) = contract.execute(pack.Model, said)
    small = {"model": "flux", "model.width": 64, "model.height": 64, "model.steps": 1}
    *_, receipt = sample(**small, prompt="a fox", seed=1, loading=loading)
    told = json.loads(receipt)
    assert (told["reproduces"], told["dtype"]) == ("ostris/ai-toolkit 0.7.20", "bfloat16")
    assert told["quantization"]["qtype"] == "uint4" and told["quantization"]["quantize_te"] is False
    (plain,) = contract.execute(pack.Model, {**said, "toolkit": "", "dtype": "as the trainer", "quantize": False})
    assert plain == pack.render.Loading()


# -------------------------------------------------------------------------------------------------- memory and caches


SMALL = {"model": "sd15", "model.width": 64, "model.height": 64, "model.steps": 2, "prompt": "a fox", "seed": 1}


def test_one_base_is_held_until_another_is_asked_or_comfyui_drops_the_node(
    comfy: Any, pack: ModuleType, sample: Any, kept: list[Any]
) -> None:
    sample(**SMALL)
    base = weakref.ref(pack.render.held()._pipeline.base)
    sample(**{**SMALL, "prompt": "a dog"})
    assert pack.render.held()._pipeline.base is base() and comfy.unloaded == 1
    sample(**{**SMALL, "model": "flux"})
    assert base() is None and comfy.unloaded == 2
    base = weakref.ref(pack.render.held()._pipeline.base)
    kept.append(pack.Sample())
    assert kept[0].held is kept[1].held
    kept.clear()
    gc.collect()
    assert base() is None


def test_a_lora_that_was_written_anew_is_rendered_anew(comfy: Any, pack: ModuleType) -> None:
    file = comfy.loras / "a.safetensors"
    file.write_bytes(b"x")
    before = pack.Lora.fingerprint_inputs("a.safetensors", strength=1.0)
    assert pack.Lora.fingerprint_inputs("a.safetensors", strength=0.5) == before
    os.utime(file, ns=(1, 1))
    assert pack.Lora.fingerprint_inputs("a.safetensors") != before
    assert pack.Lora.fingerprint_inputs("gone.safetensors") == "missing"
    assert pack.Lora.fingerprint_inputs(pack.BY_PATH, str(file)) == pack.Lora.fingerprint_inputs("a.safetensors")


def test_stop_ends_a_render_after_its_step_and_the_next_one_is_right(comfy: Any, sample: Any) -> None:
    comfy.stop_at = 3
    with pytest.raises(contract.Interrupted):
        sample(**{**SMALL, "model.steps": 400})
    assert len(comfy.progress) == 3
    comfy.stop_at = None
    first, again = sample(**SMALL)[0], sample(**SMALL)[0]
    assert torch.equal(first, again)


# ------------------------------------------------------------------------------------------------------------ errors


def lora(pack: ModuleType, path: Path, **others: Any) -> Any:
    node = {"file": pack.BY_PATH, "path": str(path), "strength": 1.0, "expert": "all", "mode": "as the trainer"}
    return contract.execute(pack.Lora, {**node, **others})[0]


def test_a_lora_of_another_model_is_refused_before_weights_load(pack: ModuleType, sample: Any, lora_of: Any) -> None:
    with pytest.raises(RequestError, match="keys belong to sd15") as caught:
        sample(**SMALL, lora=lora(pack, lora_of("flux/lora")))
    assert "\n" not in str(caught.value) and "allow_partial" not in str(caught.value)
    assert "pipe" not in vars(pack.render.held()._pipeline.base)


def test_two_loras_of_the_same_weights_are_refused(pack: ModuleType, lora_of: Any) -> None:
    first = lora(pack, lora_of("flux/lora"))
    with pytest.raises(RequestError, match=r"change the same weights\. The trainer samples with one LoRA"):
        lora(pack, lora_of("flux/trained"), lora=first)
    high = lora(pack, Path("a"), expert="high")
    assert len(lora(pack, Path("b"), expert="low", lora=high)) == 2
    with pytest.raises(RequestError, match=r"^mode: a and b have different ones"):
        lora(pack, Path("b"), expert="low", mode="live", lora=high)


def test_what_is_missing_is_named(pack: ModuleType, sample: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"gone\.safetensors"):
        sample(**SMALL, lora=lora(pack, tmp_path / "gone.safetensors"))
    with pytest.raises(RequestError, match="choose a file from models/loras"):
        lora(pack, Path(" "))
    with pytest.raises(RequestError, match="nobody/nothing"):
        sample(**SMALL, loading=pack.render.Loading(base="nobody/nothing"))
    with pytest.raises(RequestError, match="Link them to control0"):
        sample(**{**SMALL, "model": "flux_kontext"})
    with pytest.raises(RequestError, match="control0: 2 pictures at once"):
        sample(**{**SMALL, "model": "flux_kontext", "model.control.control0": torch.zeros(2, 8, 8, 3)})
    with pytest.raises(RequestError, match="model: unknown here; choose one of sd15"):
        sample(prompt="a fox", seed=1)


def test_no_picture_of_this_machine_is_read_because_a_prompt_names_it(sample: Any, tmp_path: Path) -> None:
    file = tmp_path / "private.png"
    Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(RequestError, match="prompt flag --ctrl_img"):
        sample(**{**SMALL, "model": "omnigen2", "prompt": f"a fox --ctrl_img {file}"})


# ----------------------------------------------------------------------------------------------------------- secrets


def test_a_receipt_holds_no_token_and_no_folder_of_this_machine(
    pack: ModuleType, sample: Any, lora_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    from huggingface_hub import snapshot_download

    base = snapshot_download(MODELS["flux_kontext"].base)
    asked = {**SMALL, "model": "flux_kontext", "model.control.control0": picture(str(cases.ASSETS / "wide.png"))}
    loading = pack.render.Loading(base=base)
    *_, receipt = sample(**asked, lora=lora(pack, lora_of("flux_kontext/lora")), loading=loading)
    assert [word for word in (SECRET, str(Path.home()), "/tmp") if word in receipt] == []
    assert Path(base).name in json.loads(receipt)["base"]


# -------------------------------------------------------------------------------------------------------------- jobs


def of_job(pack: ModuleType, folder: str | Path, **others: Any) -> tuple[Any, ...]:
    node = {"folder": str(folder), "step": pack.jobs.LAST, "number": 0}
    outputs: tuple[Any, ...] = contract.execute(pack.jobs.Job, {**node, **others})
    return outputs


def levels(image: torch.Tensor) -> Any:
    return (image * 255).round().to(torch.uint8).numpy()


@pytest.mark.parametrize(("name", "step", "number"), [("sd15", 4, 1), ("sd15", 2, 0), ("wan22_14b_t2v", 4, 0)])
def test_a_jobs_prompt_is_rendered_as_it_is_verified(name: str, step: int, number: int, pack: ModuleType) -> None:
    asked = pack.jobs.LAST if step == 4 else step
    image, *_, receipt = of_job(pack, ROOT / "jobs" / name, step=asked, number=number)
    assert np.array_equal(levels(image), contract.frames_of_job(ROOT / "jobs" / name, step, number))
    told = json.loads(receipt)
    assert told["job"] == {"name": name, "not_honoured": []} and str(ROOT) not in receipt


def test_another_prompt_has_the_jobs_settings_as_on_the_command_line(pack: ModuleType, tmp_path: Path) -> None:
    job, prompt, file = ROOT / "jobs" / "flux", "a photo of [trigger] in the rain --seed 7", tmp_path / "rain.png"
    command = [sys.executable, "-m", "lora_drift", "sample", "--mini", "--job", str(job), "-p", prompt, "-o", str(file)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    image, *_, receipt = of_job(pack, job, prompt=prompt)
    with Image.open(file) as theirs:
        assert np.array_equal(levels(image)[0], np.asarray(theirs))
    theirs_told = json.loads(file.with_name("rain.png.json").read_text())
    assert {**theirs_told, "job": json.loads(receipt)["job"]} == json.loads(receipt)


def test_a_job_is_verified_in_words(comfy: Any, pack: ModuleType) -> None:
    (text,) = contract.execute(pack.jobs.Verify, {"folder": str(ROOT / "jobs" / "sd15"), "step": "all"})
    assert text.startswith("sd15: Stable Diffusion 1.5 (sd15), as trainer 0.7.29") and "samples: 6 match" in text
    assert comfy.progress[-1] == (6, 6)
    comfy.progress.clear()
    comfy.stop_at = 1
    with pytest.raises(contract.Interrupted):
        contract.execute(pack.jobs.Verify, {"folder": str(ROOT / "jobs" / "sd15"), "step": "2"})


def test_what_is_wrong_with_a_job_is_named(pack: ModuleType, tmp_path: Path) -> None:
    for folder, words in (("", "folder: say where"), (str(tmp_path), "config.yaml"), (str(tmp_path / "x"), "x")):
        with pytest.raises(RequestError, match=words):
            of_job(pack, folder)
        with pytest.raises(RequestError, match=words):
            contract.execute(pack.jobs.Verify, {"folder": folder, "step": "all"})
    with pytest.raises(RequestError, match="number 2: the job has 2 prompts, counted from 0"):
        of_job(pack, ROOT / "jobs" / "sd15", number=2)
    with pytest.raises(RequestError, match="the job has LoRAs of the steps 2, 4"):
        of_job(pack, ROOT / "jobs" / "sd15", step=3)
    shutil.copy(ROOT / "jobs" / "sd15" / "config.yaml", tmp_path)
    with pytest.raises(RequestError, match="Give step 0 to render the base model"):
        of_job(pack, tmp_path)


def test_a_training_that_goes_on_is_looked_at_again(pack: ModuleType, tmp_path: Path) -> None:
    job = pack.jobs.Job
    before = job.fingerprint_inputs(str(tmp_path), step=-1, number=0)
    (tmp_path / "a_000000002.safetensors").touch()
    assert job.fingerprint_inputs(str(tmp_path), step=-1, number=0) != before


# --------------------------------------------------------------------------------------------------------- workflows


def workflow(tmp_path: Path, *what: object) -> dict[str, Any]:
    """What `lora-drift comfy` writes."""
    done = CliRunner().invoke(app, ["comfy", *map(str, what), "-o", str(tmp_path / "workflow.json")])
    assert done.exit_code == 0, done.output
    graph: dict[str, Any] = json.loads((tmp_path / "workflow.json").read_text())
    return graph


def run(pack: ModuleType, graph: dict[str, Any]) -> tuple[Any, ...]:
    """The outputs of the node of a workflow that renders."""
    nodes = {node.define_schema().node_id: node for node in asyncio.run(_nodes(pack))}

    def outputs(name: str) -> tuple[Any, ...]:
        kind, given = graph[name]["class_type"], graph[name]["inputs"]
        if kind == "LoadImage":
            return picture(str(cases.ASSETS / given["image"]))[..., :3], name
        if kind == "JoinImageWithAlpha":
            return (picture(str(cases.ASSETS / graph[given["alpha"][0]]["inputs"]["image"])),)
        assert kind in nodes, kind
        linked = {key: outputs(v[0])[v[1]] if isinstance(v, list) else v for key, v in given.items()}
        return tuple(contract.execute(nodes[kind], linked))

    (renders,) = [name for name, node in graph.items() if node["class_type"] in ("LoraDriftSample", "LoraDriftJob")]
    return outputs(renders)


@pytest.mark.parametrize(
    "name",
    ["sdxl/lora", "flux/quantized", "flux_kontext/base", "flex2/inpaint", "wan22_14b_t2v/lora", "ltx2/i2v"],
)
def test_a_receipts_workflow_renders_it_again(
    name: str, comfy: Any, pack: ModuleType, golden_of: Any, tmp_path: Path
) -> None:
    asked = case(name)
    quantization = Quantization(**asked.quantization.model_dump()) if asked.quantization else None
    pipeline, files = (
        load(asked.model, quantization=quantization),
        contract.lora_files(asked, golden_of(name), comfy.loras),
    )
    pipeline = pipeline.with_lora(**files) if files else pipeline
    expected = pipeline.sample(**vars(contract.request(asked)))
    image, video, audio, receipt = run(pack, workflow(tmp_path, contract.receipt_file(expected, tmp_path)))
    assert np.array_equal(levels(image), contract.frames(expected))
    told, steps = json.loads(receipt), expected.settings.steps
    assert contract.comparable(told) == contract.comparable(expected.receipt)
    assert told["verified_by"]["verdict"] == "match"
    assert told["settings"]["control"] == [f"control{i}" for i in range(len(asked.sample.control))]
    assert comfy.progress == [(i + 1, steps) for i in range(steps)]
    if MODELS[asked.model].kind == "video":
        parts = video.get_components()
        assert parts.images is image and parts.frame_rate == asked.sample.fps
    else:
        assert video.message == f"video: {asked.model} made one picture, which is in image"
    if expected.media.audio is None:
        assert audio.message == f"audio: {asked.model} makes no sound"
    else:
        assert np.array_equal(audio["waveform"][0].numpy(), expected.media.audio) and audio["waveform"].dim() == 3
        assert parts.audio is audio


def test_a_jobs_workflow_renders_its_first_prompt(pack: ModuleType, tmp_path: Path) -> None:
    place = ROOT / "jobs" / "sd15"
    image, *_ = run(pack, workflow(tmp_path, place, "--step", 2))
    assert np.array_equal(levels(image), contract.frames_of_job(place, 2, 0))
    kinds = [node["class_type"] for node in workflow(tmp_path, ROOT / "jobs" / "ltx2").values()]
    assert kinds == ["LoraDriftJob", "SaveVideo", "PreviewAny"]


def test_every_models_workflow_has_inputs_that_its_nodes_take(pack: ModuleType, tmp_path: Path) -> None:
    schema = contract.info(pack.Sample)["input"]
    options = {option["key"]: option["inputs"] for option in schema["required"]["model"][1]["options"]}
    for spec in MODELS.values():
        loras = ["--lora", "high=a.safetensors", "--lora", "low=b.safetensors"] if len(spec.denoisers) > 1 else []
        graph = workflow(tmp_path, spec.id, *loras)
        (sample,) = [node["inputs"] for node in graph.values() if node["class_type"] == "LoraDriftSample"]
        assert {key for key in sample if "." not in key} <= {*schema["required"], *schema["optional"]}
        control = [key for key in sample if key.startswith("model.control.")]
        assert len(control) == spec.controls[0] and bool(spec.controls[1]) == (
            "control" in options[spec.id]["required"]
        )
        assert ("SaveVideo" in {node["class_type"] for node in graph.values()}) == (spec.num_frames > 1)
    chain = [
        node["inputs"]
        for node in workflow(tmp_path, "wan22_14b_t2v", *["--lora", "high=a", "--lora", "low=b"]).values()
    ]
    assert [one.get("expert") for one in chain[:2]] == ["high", "low"] and chain[1]["lora"] == ["1", 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "unknown model 'nothing'"),
        (["sd15", "--step", "2"], "--step 2: chooses one of a job's LoRAs"),
        (["jobs/sd15", "--lora", "a.safetensors"], "--lora belongs to a model"),
        (["jobs/sd15", "--step", "3"], "the job has LoRAs of the steps 2, 4"),
    ],
)
def test_what_no_workflow_can_be_written_for_is_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    given = [str(ROOT / word) if word.startswith("jobs/") else word for word in arguments]
    done = CliRunner().invoke(app, ["comfy", *given, "-o", str(tmp_path / "x.json")])
    assert done.exit_code == 2 and words in done.output and not (tmp_path / "x.json").exists()


def test_a_receipt_of_what_no_node_has_is_refused(tmp_path: Path, pipeline_of: Any) -> None:
    output = pipeline_of("sd15").sample("a fox", width=64, height=64, steps=1)
    file = output.save(tmp_path / "out.png")
    receipt = json.loads((tmp_path / "out.png.json").read_text())
    (tmp_path / "out.png.json").write_text(json.dumps({**receipt, "profile": "fast"}))
    done = CliRunner().invoke(app, ["comfy", f"{file}.json", "-o", str(tmp_path / "x.json")])
    assert done.exit_code == 2 and "profile is not as usual there" in done.output
