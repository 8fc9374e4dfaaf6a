"""The pack in a real ComfyUI, which CI cannot get: `pytest -m comfyui --comfyui=DIR` (docs/comfyui.md).

It starts the checkout on the CPU and the mini hub, with a folder of its own for models, inputs and outputs, and posts
graphs as the browser does. What comes back from the pack's Sample node must equal our own output to the byte; from
ComfyUI's own nodes, what the record of the model says.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from lora_drift import pipelines
from lora_drift.harness import replay
from lora_drift.harness.check import cases, metrics, runner
from lora_drift.harness.native import check, graphs, pack_graphs, records
from lora_drift.harness.paths import ROOT
from lora_drift.harness.studies.comfyui import checkpoints, record, server
from lora_drift.harness.studies.comfyui.server import PATIENCE
from lora_drift.pipelines import MODELS, Output, Pipeline

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.comfyui

contract = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("comfy_contract.py"))))
SECRET = "hf_thisIsATokenOfSomebody"
FIXTURE = Path(record.__file__).with_name("fixture.py")
CONTROLS = {
    "flex2": ("control", "inpaint"),
    "flux2_klein_4b": ("reference", "references"),
    "flux2_klein_9b": ("references",),
    "flux2": ("reference", "references"),
    "flux2_diffusers": ("reference", "references"),
    "qwen_image_edit_plus": ("three",),
    "qwen_image_edit_plus_2511": ("three",),
    "omnigen2": ("control",),
    "wan22_5b": ("base-image", "lora-image"),
    "ltx2": ("i2v",),
    "ltx2.3": ("i2v",),
}
"""Cases with control images of models that also render without, or take more. The others' base and lora have them."""
CASES = [f"{model}/{name}" for model in MODELS for name in ("base", "lora", *CONTROLS.get(model, ()))]
TEMPLATES = [
    ("flux_dev_full_text_to_image", "flux", ["T5 is padded", "no shift by the size"]),
    ("flux_kontext_dev_basic", "flux_kontext", ["T5 is padded", "no shift by the size", "FluxKontextImageScale"]),
    ("image_chroma_text_to_image", "chroma", ["scheduler beta", "no shift by the size", "T5 reads no padding"]),
    ("image_flux2_klein_text_to_image", "flux2_klein_4b", ["Flux2Scheduler"]),
    ("image_flux2_text_to_image_9b", "flux2_klein_9b", ["Flux2Scheduler"]),
    ("image_z_image_turbo", "zimage_turbo", ["res_multistep", "last step changes nothing", "cfg 1", "zeros"]),
    ("image_z_image", "zimage", ["res_multistep", "last step changes nothing"]),
    ("image_qwen_image", "qwen_image", ["ends at 0.02"]),
    ("image_netayume_lumina_t2i", "lumina2", ["shift 4", "res_multistep", "the length of the positive one"]),
    ("image_omnigen2_t2i", "omnigen2", ["shifts times by the size", "template is applied twice"]),
    ("default", "sd15", ["DDPM"]),
    ("sdxl_simple_example", "sdxl", ["DDPM"]),
    ("text_to_video_wan", "wan21_1b", ["sampler uni_pc"]),
    ("video_wan2_2_14B_t2v", "wan22_14b_t2v", ["UniPC has other steps", "2 samplers"]),
]
"""ComfyUI's templates, the model that each is for, and what must be said of it."""
PROBE = """
import sys
from aiohttp import web
from server import PromptServer
NODE_CLASS_MAPPINGS = {}

@PromptServer.instance.routes.get("/held")
async def held(request):
    render, = [m for n, m in sys.modules.items() if n.endswith("lora-drift.render")]
    return web.json_response(render._held is not None and render._held() is not None)
"""
"""Says whether the pack holds a base model."""


class ComfyUI(server.ComfyUI):
    def error(self, graph: dict[str, Any]) -> str:
        """What the user reads of a graph that fails."""
        status = self.result(self.post(graph))["status"]
        (said,) = [data["exception_message"] for kind, data in status["messages"] if kind == "execution_error"]
        return str(said).strip()


@pytest.fixture(scope="module")
def comfyui(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    checkout: Path = request.config.getoption("comfyui").resolve()
    folder = tmp_path_factory.mktemp("comfyui")
    probe = folder / "probe.py"
    probe.write_text(PROBE)
    nodes = {"lora-drift": contract.PACK, "probe.py": probe, "fixture.py": FIXTURE}
    python = request.config.getoption("comfyui_python")
    comfyui = ComfyUI(checkout, python, folder / "home", nodes, record.OPTIONS, {"HF_TOKEN": SECRET})
    shutil.copy(checkout / "input" / pack_graphs.EXAMPLE, comfyui.folder / "input")
    try:
        comfyui.wait()
        yield comfyui
    finally:
        comfyui.close()


def pixels(comfyui: ComfyUI, saved: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(Image.open(comfyui.file(one))) for one in saved["images"]])


_last: dict[str, Pipeline] = {}


def pipeline_of(model: str) -> Pipeline:
    """One at a time: the cases of a model follow each other."""
    if model not in _last:
        _last.clear()
        _last[model] = pipelines.load(model)
    return _last[model]


def ours_and_workflow(
    case: cases.Case, comfyui: ComfyUI, golden: Any, folder: Path
) -> tuple[Output, dict[str, Any], str]:
    """A case rendered here, the workflow of its receipt, and the node of that which renders."""
    files = contract.lora_files(case, golden, comfyui.folder / "models" / "loras")
    for path in case.sample.control:
        shutil.copy(path, comfyui.folder / "input")
    pipeline = pipeline_of(case.model)
    pipeline = pipeline.with_lora(**files) if files else pipeline
    ours = pipeline.sample(**vars(contract.request(case)))
    graph, needs = pack_graphs.of_receipt(replay.read(contract.receipt_file(ours, folder)))
    assert len(needs) == len(files) + len(case.sample.control)
    (rendering,) = [name for name, node in graph.items() if node["class_type"] == "LoraDriftSample"]
    return ours, graph, rendering


@pytest.mark.parametrize("model", graphs.RECIPES)
def test_a_native_graph_renders_as_it_is_recorded(model: str, comfyui: ComfyUI) -> None:
    checkpoints.write(model, comfyui.folder / "models")
    kept = records.load(model)
    assert kept is not None
    for name in records.CASES:
        rendered, nodes = record.measured(comfyui, model, name)
        assert rendered.workflow == kept.cases[name].workflow and set(nodes) <= set(kept.nodes)
        assert rendered.pixel_max <= max(records.NEAR, kept.cases[name].pixel_max)


def test_a_dora_needs_the_node_of_the_pack(comfyui: ComfyUI) -> None:
    """ComfyUI's own reads it without its magnitudes, and says so in its log only."""
    checkpoints.write("flex1", comfyui.folder / "models")
    case, golden = records.golden_of("flex1", "dora")
    (file,) = records.lora_names(case, golden).values()
    shutil.copy(golden.path("lora"), comfyui.folder / "models" / "loras" / file)
    settings = runner.Bench(tag=golden.tag).settings(case)

    def distance(dora: bool) -> float:
        names = records.file_names("flex1")
        graph = graphs.build(MODELS["flex1"], settings, names, {"": file}, dora=dora)
        return metrics.pixel_max(golden.frames(), record.rendered(comfyui, graph)["pixels"])

    assert distance(dora=False) > 50
    assert distance(dora=True) <= records.NEAR


def test_the_check_node_reads_the_graph_that_it_is_in(comfyui: ComfyUI) -> None:
    """Also after another node has changed."""
    checkpoints.write("flux", comfyui.folder / "models")
    graph = records.graph_of(*records.golden_of("flux", "base"))
    graph["check"] = {"class_type": "LoraDriftCheck", "inputs": {"like": "flux"}}
    graph["told"] = {"class_type": "PreviewAny", "inputs": {"source": ["check", 0]}}
    assert comfyui.run(graph)["told"]["text"] == ["nothing that the trainer does otherwise for flux"]
    for node in graph.values():
        if node["class_type"] == "KSamplerSelect":
            node["inputs"]["sampler_name"] = "heun"
    assert "sampler heun" in comfyui.run(graph)["told"]["text"][0]


@pytest.mark.parametrize("template, model, causes", TEMPLATES)
def test_what_comfyuis_own_templates_do_otherwise_is_named(
    template: str, model: str, causes: list[str], comfyui: ComfyUI, tmp_path: Path
) -> None:
    file = tmp_path / "template.json"
    file.write_text(json.dumps(comfyui.call(f"/templates/{template}.json")))
    said = [finding.said for finding in check.findings(check.read(file), MODELS[model])]
    assert all(any(cause in one for one in said) for cause in causes), said


@pytest.mark.parametrize("name", CASES)
def test_a_case_renders_as_it_does_outside(name: str, comfyui: ComfyUI, golden_of: Any, tmp_path: Path) -> None:
    case = cases.load(cases.CASES / f"{name}.yaml")
    ours, graph, rendering = ours_and_workflow(case, comfyui, golden_of(name), tmp_path)
    every = {"images": [rendering, 0], "filename_prefix": "all"}  # of a video, its frames
    graph["all"] = {"class_type": "SaveImage", "inputs": every}
    if ours.media.audio is not None:
        graph["sound"] = {"class_type": "SaveAudio", "inputs": {"audio": [rendering, 2], "filename_prefix": "all"}}
    outputs = comfyui.run(graph)
    assert np.array_equal(pixels(comfyui, outputs["all"]), contract.frames(ours))
    (text,) = [output["text"][0] for output in outputs.values() if "text" in output]
    assert contract.comparable(json.loads(text)) == contract.comparable(ours.receipt)
    assert json.loads(text)["verified_by"]["verdict"] == "match"
    for video in [output["images"][0] for output in outputs.values() if "animated" in output]:
        read = imageio_ffmpeg.read_frames(str(comfyui.file(video)))
        assert (next(read)["fps"], sum(1 for _ in read)) == (ours.settings.fps, len(ours.frames))
    if "sound" in graph:
        heard = sound(comfyui.file(outputs["sound"]["audio"][0]), ours.media.sample_rate, len(ours.media.audio))
        levels = np.clip(ours.media.audio, -1, 1)
        assert heard.shape == levels.shape and np.abs(heard - levels).max() < 2 / 2**15  # FLAC of 16 bits


def sound(path: Path, rate: int, channels: int) -> np.ndarray[Any, Any]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "f32le", "-ar", str(rate), "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32).reshape(-1, channels).T


JOBS = {"flux": 4, "flux_bf16": 4, "flux_quantized": 4, "ltx2": 2, "qwen_image_edit_plus": 2, "sd15": 4, "sdxl": 4,
        "wan22_14b_t2v": 4}  # fmt: skip
"""Job -> the step of its last LoRA."""


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_prompt_renders_as_it_is_verified(name: str, comfyui: ComfyUI) -> None:
    node = {"folder": str(ROOT / "jobs" / name), "step": -1, "number": 0}
    outputs = comfyui.run(
        {
            "sample": {"class_type": "LoraDriftJob", "inputs": node},
            "picture": {"class_type": "SaveImage", "inputs": {"images": ["sample", 0], "filename_prefix": name}},
            "receipt": {"class_type": "PreviewAny", "inputs": {"source": ["sample", 3]}},
        }
    )
    ours = contract.frames_of_job(ROOT / "jobs" / name, JOBS[name], 0)
    assert np.array_equal(pixels(comfyui, outputs["picture"]), ours)
    assert str(ROOT) not in outputs["receipt"]["text"][0]


@pytest.mark.parametrize("name", ["flux_quantized", "sd15", "wan22_14b_t2v"])
def test_a_job_is_verified_as_on_the_command_line(name: str, comfyui: ComfyUI) -> None:
    job = str(ROOT / "jobs" / name)
    verify = {"class_type": "LoraDriftVerify", "inputs": {"folder": job, "step": "all"}}
    outputs = comfyui.run({"job": verify, "text": {"class_type": "PreviewAny", "inputs": {"source": ["job", 0]}}})
    command = [sys.executable, "-m", "lora_drift", "verify", job, "--mini", "--diagnose", "none"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert outputs["text"]["text"][0].strip() == said.stdout.strip() and "match" in said.stdout


@pytest.mark.parametrize("model", ["sd15", "flux_kontext", "wan22_14b_t2v"])
def test_the_workflow_of_a_model_renders(model: str, comfyui: ComfyUI) -> None:
    graph = pack_graphs.of_model(MODELS[model], "a fox", {})
    small: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}
    small |= {"num_frames": 5} if MODELS[model].kind == "video" else {}
    (rendering,) = [name for name, node in graph.items() if node["class_type"] == "LoraDriftSample"]
    graph[rendering]["inputs"] |= {f"model.{name}": value for name, value in small.items()}
    outputs = comfyui.run(graph)
    (text,) = [output["text"][0] for output in outputs.values() if "text" in output]
    control = [str(comfyui.checkout / "input" / pack_graphs.EXAMPLE)] * MODELS[model].controls[0]
    ours = pipeline_of(model).sample("a fox", control=control, **small)
    assert json.loads(text)["pixels_sha256"] == ours.receipt["pixels_sha256"]


# ------------------------------------------------------------------------------------------------------------ a user


def graph(**inputs: Any) -> dict[str, Any]:
    small = {"model": "sd15", "model.width": 64, "model.height": 64, "model.steps": 4, "prompt": "a fox", "seed": 1}
    return {
        "sample": {"class_type": "LoraDriftSample", "inputs": {**small, **inputs}},
        "picture": {"class_type": "SaveImage", "inputs": {"images": ["sample", 0], "filename_prefix": "x"}},
        "receipt": {"class_type": "PreviewAny", "inputs": {"source": ["sample", 3]}},
    }


def expected(**fields: Any) -> Any:
    asked = {"width": 64, "height": 64, "steps": 4, "seed": 1, **fields}
    return contract.frames(pipeline_of("sd15").sample("a fox", **asked))


def test_the_stand_in_of_the_other_tests_describes_our_nodes_as_comfyui_does(
    comfyui: ComfyUI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    described: dict[str, Any] = {}
    for name in ("Model", "Lora", "Sample", "Job", "Verify"):
        described |= comfyui.call(f"/object_info/LoraDrift{name}")
    for file in described["LoraDriftLora"]["input"]["required"]["file"][1]["options"][1:]:
        (tmp_path / file).touch()
    with contract.loaded(contract.Comfy(tmp_path), monkeypatch.setitem) as pack:
        nodes = pack.nodes
        for node in (nodes.Model, nodes.Lora, nodes.Sample, nodes.jobs.Job, nodes.jobs.Verify):
            said = json.loads(json.dumps(contract.info(node)))
            real = described[said["name"]]
            assert said == {name: real[name] for name in said}


def test_what_is_wrong_is_told_before_weights_load(comfyui: ComfyUI, lora_of: Any) -> None:
    assert comfyui.error(graph(model="x")).startswith("model: unknown here; choose one of sd15")
    refused = comfyui.call("/prompt", {"prompt": graph(**{"model.steps": 0})})["node_errors"]["sample"]["errors"]
    assert [(e["type"], e["extra_info"]["input_name"]) for e in refused] == [("value_smaller_than_min", "model.steps")]
    refused = comfyui.call("/prompt", {"prompt": graph(model="flux_kontext")})["node_errors"]["sample"]["errors"]
    assert [e["extra_info"]["input_name"] for e in refused] == ["model.control.control0"]

    shutil.copy(lora_of("flux/lora"), comfyui.folder / "models" / "loras" / "flux.safetensors")
    node = {"file": "flux.safetensors", "strength": 1.0, "expert": "all", "mode": "as the trainer"}
    asked = {**graph(lora=["lora", 0]), "lora": {"class_type": "LoraDriftLora", "inputs": node}}
    said = comfyui.error(asked)
    assert "flux.safetensors: 0 of" in said and "keys belong to sd15" in said and "\n" not in said
    stacked = {**asked, "second": {"class_type": "LoraDriftLora", "inputs": {**node, "lora": ["lora", 0]}}}
    stacked["sample"]["inputs"]["lora"] = ["second", 0]
    assert "The trainer samples with one LoRA, and so do these nodes" in comfyui.error(stacked)

    how = {"toolkit": "", "dtype": "as the trainer", "quantize": False, "qtype": "qfloat8", "quantize_te": False,
           "qtype_te": "qfloat8", "offload": False, "base": "nobody/nothing"}  # fmt: skip
    absent = {**graph(loading=["how", 0]), "how": {"class_type": "LoraDriftModel", "inputs": how}}
    said = comfyui.error(absent)
    assert "nobody/nothing" in said and "\n" not in said

    sound = {"class_type": "SaveAudio", "inputs": {"audio": ["sample", 2], "filename_prefix": "x"}}
    silent = {**graph(), "sound": sound}
    assert set(comfyui.run(silent)) == {"picture", "receipt"}  # the browser is told why: "audio: sd15 makes no sound"


def test_stop_ends_a_render_and_the_next_in_the_queue_is_right(comfyui: ComfyUI) -> None:
    long, next_one = comfyui.post(graph(**{"model.steps": 900})), comfyui.post(graph())
    deadline = time.monotonic() + PATIENCE
    while not comfyui.call("/queue")["queue_running"] and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    stopped = time.monotonic()
    comfyui.call("/interrupt", {})
    kinds = [kind for kind, _ in comfyui.result(long)["status"]["messages"]]
    assert kinds[-1] == "execution_interrupted" and time.monotonic() - stopped < 10
    outputs = comfyui.result(next_one)["outputs"]
    assert np.array_equal(pixels(comfyui, outputs["picture"]), expected())


def test_what_did_not_change_is_not_rendered_again_and_a_new_file_is(comfyui: ComfyUI, lora_of: Any) -> None:
    file = comfyui.folder / "models" / "loras" / "again.safetensors"
    shutil.copy(lora_of("sd15/lora"), file)
    node = {"file": file.name, "strength": 1.0, "expert": "all", "mode": "as the trainer"}
    asked = {**graph(seed=3, lora=["lora", 0]), "lora": {"class_type": "LoraDriftLora", "inputs": node}}
    first = comfyui.result(comfyui.post(asked))
    assert "sample" not in cached(first)
    assert "sample" in cached(comfyui.result(comfyui.post(asked)))
    os.utime(file)
    assert "sample" not in cached(comfyui.result(comfyui.post(asked)))


def cached(result: dict[str, Any]) -> list[str]:
    (nodes,) = [data["nodes"] for kind, data in result["status"]["messages"] if kind == "execution_cached"]
    return list(nodes)


def test_weights_go_when_the_user_frees_memory(comfyui: ComfyUI) -> None:
    comfyui.run(graph(seed=4))
    assert comfyui.call("/held") is True
    comfyui.call("/free", {"unload_models": True, "free_memory": True})
    deadline = time.monotonic() + 30
    while comfyui.call("/held") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert comfyui.call("/held") is False
    assert np.array_equal(pixels(comfyui, comfyui.run(graph(seed=5))["picture"]), expected(seed=5))


def test_no_token_and_no_folder_of_this_machine_is_in_a_picture_or_receipt(comfyui: ComfyUI, lora_of: Any) -> None:
    shutil.copy(lora_of("sd15/lora"), comfyui.folder / "models" / "loras" / "secret.safetensors")
    node = {"file": "secret.safetensors", "strength": 1.0, "expert": "all", "mode": "as the trainer"}
    asked = {**graph(seed=6, lora=["lora", 0]), "lora": {"class_type": "LoraDriftLora", "inputs": node}}
    outputs = comfyui.run(asked)
    saved = comfyui.file(outputs["picture"]["images"][0])
    with Image.open(BytesIO(saved.read_bytes())) as image:
        told = json.dumps([image.text, outputs["receipt"]])  # type: ignore[attr-defined]
    assert "LoraDriftSample" in told  # the graph is in the picture
    assert [word for word in (SECRET, str(Path.home()), str(comfyui.folder), "/tmp") if word in told] == []


OPEN = """async (graph) => {
    for (let i = 0; i < 20; i++) {  // while it starts, the page opens a workflow of its own in the place of ours
        window.app.loadApiJson(graph, "x");
        await new Promise(done => setTimeout(done, 3000));
        const opened = (await window.app.graphToPrompt()).output;
        if (Object.keys(graph).every(id => id in opened)) return opened;
    }
}"""
CHOOSE = """async (model) => {
    const node = window.app.graph._nodes.find(node => node.type == "LoraDriftSample");
    const widget = node.widgets.find(widget => widget.name == "model");
    widget.value = model;
    widget.callback(model);
    await new Promise(done => setTimeout(done, 1000));
    return [Object.fromEntries(node.widgets.map(w => [w.name, w.value])), node.inputs.map(input => input.name)];
}"""


@contextmanager
def opened_page(browser: Browser, comfyui: ComfyUI) -> Iterator[Page]:
    """ComfyUI's page, once it knows our nodes; on leaving, nothing may have gone wrong in it."""
    problems: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"http://127.0.0.1:{comfyui.port}")
    page.wait_for_function("!!(window.app?.graph && window.LiteGraph?.registered_node_types['LoraDriftSample'])")
    yield page
    page.close()
    assert problems == []


def queued_from(page: Page, comfyui: ComfyUI, graph: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What the graph saves, after the page has opened it as it was written, and queued it."""
    opened = page.evaluate(OPEN, graph)
    for name, node in graph.items():
        assert {key: opened[name]["inputs"].get(key) for key in node["inputs"]} == node["inputs"]
    before = set(comfyui.call("/history"))
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    deadline = time.monotonic() + PATIENCE
    while not (queued := set(comfyui.call("/history")) - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    outputs = comfyui.result(queued.pop())["outputs"]
    (saved,) = [output for output in outputs.values() if "images" in output]
    return pixels(comfyui, saved)


def test_a_browser_opens_a_workflow_and_its_widgets_follow_the_model(
    comfyui: ComfyUI, browser: Browser, golden_of: Any, tmp_path: Path
) -> None:
    case = cases.load(cases.CASES / "flux_kontext" / "lora.yaml")
    ours, graph, _ = ours_and_workflow(case, comfyui, golden_of(case.id), tmp_path)
    with opened_page(browser, comfyui) as page:
        assert np.array_equal(queued_from(page, comfyui, graph), contract.frames(ours))
        for model in ("wan21_1b", "flex2", "sd15"):
            spec = MODELS[model]
            widgets, sockets = page.evaluate(CHOOSE, model)
            length = ["num_frames"] if spec.kind == "video" else []
            for field in ("width", "height", "steps", "guidance_scale", *length):
                assert widgets[f"model.{field}"] == getattr(spec, field)
            assert ("model.num_frames" in widgets) == (spec.kind == "video")
            assert ("model.control.control0" in sockets) == (spec.controls[1] > 0)


@pytest.mark.parametrize("model", ["flux", "qwen_image"])
def test_a_browser_opens_a_native_graph_and_its_picture_is_the_trainers(
    model: str, comfyui: ComfyUI, browser: Browser
) -> None:
    """One of core nodes only, and one with a node of the pack. SaveImage rounds down, which is one level more."""
    checkpoints.write(model, comfyui.folder / "models")
    case, golden = records.golden_of(model, "lora")
    (file,) = records.lora_names(case, golden).values()
    shutil.copy(golden.path("lora"), comfyui.folder / "models" / "loras" / file)
    with opened_page(browser, comfyui) as page:
        saved = queued_from(page, comfyui, records.graph_of(case, golden))
    assert metrics.pixel_max(golden.frames(), saved) <= records.NEAR + 1
