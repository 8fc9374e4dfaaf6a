"""What a ComfyUI workflow does otherwise than the trainer: nothing in the graphs that were verified, and by name each
cause that a study found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from lora_drift.harness.cli.main import app
from lora_drift.harness.native import check, graphs, page, records
from lora_drift.harness.native.pack_graphs import Graph
from lora_drift.pipelines import MODELS, RequestError
from lora_drift.pipelines.settings import Request, resolve


def verified(model: str, **asked: Any) -> Graph:
    return graphs.build(MODELS[model], resolve(MODELS[model], Request(**{"prompt": "a fox", **asked})))


def said(graph: Graph, model: str) -> list[str]:
    return [finding.said for finding in check.findings(graph, MODELS[model])]


@pytest.mark.parametrize("name", records.CASES)
@pytest.mark.parametrize("model", graphs.RECIPES)
def test_nothing_is_said_of_the_graphs_that_match(model: str, name: str) -> None:
    assert said(records.graph_of(*records.golden_of(model, name)), model) == []


@pytest.mark.parametrize("name", records.CASES)
@pytest.mark.parametrize("model", graphs.RECIPES)
def test_what_makes_a_template_another_picture_is_named(model: str, name: str) -> None:
    """ComfyUI rendered it, and it is levels away: so something must be said."""
    record = records.load(model)
    assert record is not None
    far, graph = record.cases[name].stock, records.stock_of(*records.golden_of(model, name))
    assert (far is None) == (graph is None) == (model in graphs.BLANK or model in graphs.EXPERTS)
    if far is not None and graph is not None:
        assert far.pixel_max > 10 and said(graph, model)


def simple(model: str, text: str = "a fox", **asked: Any) -> Graph:
    """As a template has it: a KSampler between plain loaders."""
    both = {"clip": ["2", 0], "text": text}
    size = {"width": 1024, "height": 1024, "batch_size": 1}
    run = {"model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0], "seed": 1}
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": f"{model}.safetensors"}},
        "2": {"class_type": "CLIPLoader", "inputs": {}},
        "3": {"class_type": "CLIPTextEncode", "inputs": both},
        "4": {"class_type": "CLIPTextEncode", "inputs": {**both, "text": ""}},
        "5": {"class_type": "EmptySD3LatentImage", "inputs": size},
        "6": {
            "class_type": "KSampler",
            "inputs": {**run, "sampler_name": "euler", "scheduler": "simple", "steps": 20, "cfg": 1.0, **asked},
        },
    }


Change = Callable[[Graph], Any]


def between(name: str, kind: str, **inputs: Any) -> Change:
    """A node between the loader and the sampler."""

    def changed(graph: Graph) -> None:
        graph[name] = {"class_type": kind, "inputs": {"model": ["1", 0], **inputs}}
        graph["6"]["inputs"]["model"] = [name, 0]

    return changed


def zeroed(graph: Graph) -> None:
    graph["4"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["3", 0]}}


CAUSES: list[tuple[str, dict[str, Any], Change | None, str]] = [
    ("flux", {}, None, "T5 is padded to 256 tokens"),
    ("flux", {}, None, "no shift by the size of the picture"),
    ("flux", {}, None, "no guidance is said"),
    ("flux", {"cfg": 3.5}, None, "cfg 3.5: the trainer guides by an input"),
    ("flux", {"scheduler": "beta"}, None, "scheduler beta"),
    ("flux", {"sampler_name": "dpmpp_2m"}, None, "sampler dpmpp_2m: the trainer steps with Euler"),
    ("flux", {"steps": 28}, None, "simple takes 28 sigmas from a table of 10000"),
    ("flux", {"text": "a (red:1.4) fox"}, None, "parentheses are weights"),
    (
        "flux",
        {},
        between("7", "ModelSamplingFlux", max_shift=1.15, base_shift=0.5, width=512, height=1024),
        "width 512",
    ),
    ("zimage_turbo", {"steps": 8}, None, "8 steps: the trainer's last step changes nothing, so these are its 9"),
    ("zimage_turbo", {"steps": 8}, None, "cfg 1 guides nothing"),
    ("zimage_turbo", {"steps": 8}, zeroed, "the negative is zeros"),
    ("zimage_turbo", {"sampler_name": "res_multistep"}, None, "sampler res_multistep"),
    ("zimage_turbo", {"steps": 9}, None, "simple takes 9 sigmas from a table of 1000"),
    ("zimage", {}, between("7", "ModelSamplingAuraFlow", shift=6.0), "shift 6: the trainer's is 3"),
    ("zimage", {}, between("7", "ModelSamplingSD3", shift=3.0), "ModelSamplingSD3 counts timesteps"),
    ("qwen_image", {"cfg": 2.5}, None, "ends at 0.02"),
    ("qwen_image", {"cfg": 2.5}, None, "the guided prediction has not the length"),
    ("qwen_image", {"cfg": 2.5}, between("7", "CFGNorm", strength=1.0), "CFGNorm is another formula"),
    ("lumina2", {"cfg": 4.0}, None, "shift 6: the trainer's is 1"),
    ("lumina2", {"cfg": 4.0}, None, "system prompt stands before it"),
    ("lumina2", {}, between("7", "LoraLoaderModelOnly", lora_name="a"), "ComfyUI loads no key"),
    ("omnigen2", {"cfg": 4.0}, None, "template is applied twice"),
    ("chroma", {"cfg": 4.0}, None, "T5 reads no padding here"),
    ("flux2", {}, None, "padding is zeros here"),
    (
        "sd15",
        {"sampler_name": "ddpm", "scheduler": "normal", "cfg": 7.0},
        None,
        "sampler ddpm: the trainer's DDPM draws",
    ),
    ("sdxl", {"sampler_name": "dpmpp_2m"}, between("7", "RescaleCFG", multiplier=0.7), "RescaleCFG is another formula"),
    ("wan21_1b", {"sampler_name": "uni_pc", "cfg": 6.0}, None, "sampler uni_pc: the trainer's UniPC has other steps"),
    ("flex2", {}, None, "further channels"),
]


@pytest.mark.parametrize("model, asked, change, cause", CAUSES, ids=[f"{c[0]}-{c[3][:30]}" for c in CAUSES])
def test_each_cause_is_named(model: str, asked: dict[str, Any], change: Change | None, cause: str) -> None:
    graph = simple(model, **asked)
    if change:
        change(graph)
    assert any(cause in finding for finding in said(graph, model)), said(graph, model)


def changed(graph: Graph, kind: str, **inputs: Any) -> Graph:
    for node in graph.values():
        if node["class_type"] == kind:
            node["inputs"] |= inputs
    return graph


def test_one_change_to_a_graph_that_matches_is_all_that_is_said() -> None:
    (finding,) = said(changed(verified("flux"), "ManualSigmas", sigmas="1.0, 0.5, 0.0"), "flux")
    assert finding == "the sigmas are not those of 2 steps at 1024x1024"
    (finding,) = said(changed(verified("flux"), "EmptySD3LatentImage", width=512), "flux")
    assert "30 steps at 512x1024" in finding or "25 steps at 512x1024" in finding
    (finding,) = said(changed(verified("flux"), "T5TokenizerOptions", min_length=256), "flux")
    assert "T5 is padded" in finding
    (finding,) = said(changed(verified("qwen_image"), "EmptySD3LatentImage", batch_size=4), "qwen_image")
    assert "batch_size 4" in finding
    (finding,) = said(changed(verified("sd15"), "LoraDriftSampler", like="sdxl"), "sd15")
    assert "not like sd15" in finding


def test_flux2s_own_scheduler_is_named() -> None:
    graph = verified("flux2_klein_4b")
    for node in graph.values():
        if node["class_type"] == "ManualSigmas":
            node.update(class_type="Flux2Scheduler", inputs={"steps": 20, "width": 1024, "height": 1024})
    (finding,) = said(graph, "flux2_klein_4b")
    assert "Flux2Scheduler fits the shift to the number of steps" in finding


def test_two_samplers_for_two_experts_are_named() -> None:
    graph = simple("wan22_14b_t2v", cfg=3.5)
    graph["8"] = {**graph["6"], "inputs": {**graph["6"]["inputs"], "latent_image": ["6", 0]}}
    assert any("2 samplers: the second begins" in finding for finding in said(graph, "wan22_14b_t2v"))


def test_clip_skip_is_named() -> None:
    graph = simple("sd15")
    graph["7"] = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["2", 0], "stop_at_clip_layer": -2}}
    graph["3"]["inputs"]["clip"] = ["7", 0]
    assert any("clip skip -2" in finding for finding in said(graph, "sd15"))


def test_numbers_that_other_nodes_compute_are_passed_over() -> None:
    graph = changed(verified("flux"), "EmptySD3LatentImage", width=["99", 0], height=["99", 1])
    assert said(graph, "flux") == []
    graph = simple("zimage", cfg=4.0)
    graph["6"]["inputs"] |= {"steps": ["99", 0], "cfg": ["99", 1]}
    assert said(graph, "zimage") == []


# ------------------------------------------------------------------------------------- workflows as the page keeps them


def widget(name: str, link: int | None = None) -> dict[str, Any]:
    return {"name": name, "type": "*", "widget": {"name": name}, "link": link}


def socket(name: str, kind: str, link: int | None) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link}


INNER: dict[str, Any] = {
    "id": "inner",
    "nodes": [
        {
            "id": 1,
            "type": "KSampler",
            "inputs": [
                socket("model", "MODEL", 1),
                *(widget(name) for name in ("seed", "steps")),
                widget("cfg", 2),
                *(widget(name) for name in ("sampler_name", "scheduler", "denoise")),
            ],
            "widgets_values": [7, "randomize", 20, 99.0, "euler", "simple", 1.0],
        }
    ],
    "links": [
        {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0},
        {"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 1, "target_slot": 3},
        {"id": 3, "origin_id": 1, "origin_slot": 0, "target_id": -20, "target_slot": 0},
    ],
}
PAGE: dict[str, Any] = {
    "nodes": [
        {"id": 1, "type": "UNETLoader", "inputs": [widget("unet_name")], "widgets_values": ["flux.safetensors"]},
        {
            "id": 2,
            "type": "LoraLoaderModelOnly",
            "mode": 4,
            "inputs": [socket("model", "MODEL", 1), widget("lora_name")],
            "outputs": [{"type": "MODEL"}],
            "widgets_values": ["a.safetensors"],
        },
        {"id": 3, "type": "Reroute", "inputs": [socket("", "*", 2)]},
        {"id": 4, "type": "PrimitiveNode", "widgets_values": [3.5, "fixed"]},
        {
            "id": 5,
            "type": "inner",
            "inputs": [socket("model", "MODEL", 3), widget("cfg", 4)],
            "widgets_values": [1.0],
        },
        {"id": 6, "type": "VAEDecode", "inputs": [socket("samples", "LATENT", 5)]},
        {"id": 7, "type": "SaveImage", "mode": 2, "inputs": [socket("images", "IMAGE", 6)]},
        {"id": 8, "type": "MarkdownNote", "widgets_values": ["read me"]},
        {"id": 9, "type": "ModelSamplingFlux", "widgets_values": [1.15, 0.5, 1024, 768]},
    ],
    "links": [
        [1, 1, 0, 2, 0, "MODEL"],
        [2, 2, 0, 3, 0, "MODEL"],
        [3, 3, 0, 5, 0, "MODEL"],
        [4, 4, 0, 5, 1, "FLOAT"],
        [5, 5, 0, 6, 0, "LATENT"],
        [6, 6, 0, 7, 0, "IMAGE"],
    ],
    "definitions": {"subgraphs": [INNER]},
}


def test_a_pages_workflow_is_unfolded_as_the_page_would_send_it() -> None:
    sampler = {"seed": 7, "steps": 20, "cfg": 3.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    assert page.graph_of(PAGE) == {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}},
        "5:1": {"class_type": "KSampler", "inputs": {"model": ["1", 0], **sampler}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5:1", 0]}},
        "9": {
            "class_type": "ModelSamplingFlux",
            "inputs": {"max_shift": 1.15, "base_shift": 0.5, "width": 1024, "height": 768},
        },
    }


def test_a_subgraphs_own_value_counts_where_nothing_is_linked() -> None:
    alone = json.loads(json.dumps(PAGE))
    alone["nodes"][4]["inputs"][1]["link"] = None
    assert page.graph_of(alone)["5:1"]["inputs"]["cfg"] == 1.0


# -------------------------------------------------------------------------------------------------- the command line


def test_the_command_line_reads_what_the_page_saves(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(PAGE))
    told = run("flux", str(file))
    assert told.exit_code == 1 and "5:1 KSampler: cfg 3.5" in told.output


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["comfy-check", *arguments])


def test_the_command_line_reads_a_picture_and_names_node_and_remedy(tmp_path: Path) -> None:
    picture, info = tmp_path / "a.png", PngInfo()
    info.add_text("prompt", json.dumps(simple("flux")))
    Image.new("RGB", (8, 8)).save(picture, pnginfo=info)
    told = run("flux", str(picture))
    assert told.exit_code == 1
    assert "6 KSampler: no shift by the size of the picture (ModelSamplingFlux)" in told.output
    assert "T5TokenizerOptions with min_length 512" in told.output


def test_the_command_line_says_when_there_is_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(verified("flux")))
    told = run("flux", str(file))
    assert told.exit_code == 0 and "nothing that the trainer does otherwise" in told.output


@pytest.mark.parametrize(
    "content, why",
    [
        ("{", "not a workflow"),
        ('{"nodes": [1], "links": []}', "save it with Export"),
        ('{"1": {"class_type": "SaveImage", "inputs": {}}}', "none of the samplers"),
        ("[]", "not a workflow of ComfyUI"),
    ],
)
def test_what_is_no_workflow_is_refused(content: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    told = run("flux", str(file))
    assert told.exit_code == 2 and why in told.output
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "holds no workflow" in run("flux", str(tmp_path / "a.png")).output


def test_a_model_without_a_graph_is_refused() -> None:
    with pytest.raises(RequestError, match="ltx2: no graph"):
        check.findings(simple("ltx2"), MODELS["ltx2"])
