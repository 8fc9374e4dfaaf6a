"""The HTTP server as clients of the specification meet it: on a real socket, with real renders on the mini hub."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_drift.harness import tags
from lora_drift.harness.check import sketched
from lora_drift.harness.check.cases import ASSETS
from lora_drift.harness.check.verified_by import covering, vouching
from lora_drift.harness.cli.main import app
from lora_drift.pipelines import MODELS, Pipeline
from lora_drift.pipelines.lora import trainer_of
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.spec import nearest
from lora_drift.server.config import Settings
from lora_drift.server.local import ROOT, LocalServer

LoraOf = Callable[[str], Path]
Body = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, lora_of: LoraOf, golden_of: Any) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("server")
    with LocalServer(folder) as running:
        put(running, "my_lora_job/my_lora_job.safetensors", lora_of("zimage_turbo/lora"))
        put(running, "sd15.safetensors", lora_of("sd15/lora"))
        put(running, "flux.safetensors", lora_of("flux/lora"))
        for expert in ("high", "low"):
            file = golden_of("wan22_14b_t2v/lora").path(f"lora_{expert}")
            put(running, f"my_wan_lora/{expert}_noise.safetensors", file)
        yield running


def put(server: LocalServer, name: str, file: Path) -> None:
    path = server.folder / "loras" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, path)


def body(model: str = "sd15", **fields: Any) -> Body:
    prompt = {"prompt": "a photo of [trigger]", "width": 64, "height": 64, "sample_steps": 2, "seed": 7}
    return {"model": model, "trigger_word": "sks", "loras": [{"path": "sd15.safetensors"}], "prompts": [prompt],
            **fields}  # fmt: skip


def refusal(server: LocalServer, sent: Body, status: int = 400) -> dict[str, Any]:
    answer = server.http.post("/v1/inference", json=sent)
    assert answer.status_code == status, answer.text
    return answer.json()["detail"]["error"]


def curl(server: LocalServer, command: str) -> Any:
    """Run a curl call of the specification against this server."""
    command = command.replace("http://localhost:8000", server.url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


# ----------------------------------------------------------------------------------------------------- specification

INFERENCE = r"""curl -X POST "http://localhost:8000/v1/inference" \
-H "Content-Type: application/json" \
-d '{
"model": "zimage_turbo",
"trigger_word": "sks",
"loras": [{"path": "my_lora_job/my_lora_job.safetensors", "network_multiplier": 1.0}],
"prompts": [
{
"prompt": "[trigger] a photo of a person",
"width": 1024,
"height": 1024,
"seed": 42,
"sample_steps": 8,
"guidance_scale": 1.0,
"neg": ""
}
]
}'"""


def test_the_curl_calls_of_the_specification_work_unchanged(server: LocalServer, pipeline_of: Any) -> None:
    listed = curl(server, "curl http://localhost:8000/v1/models")["models"]
    assert [model["id"] for model in listed] == list(MODELS)
    turbo = next(model for model in listed if model["id"] == "zimage_turbo")
    spec = MODELS["zimage_turbo"]
    assert (turbo["default_steps"], turbo["base_model"]) == (spec.steps, spec.base)

    # The next test queues the call to the letter; rendering 1024 pixels would take two cores a while.
    accepted = curl(server, INFERENCE.replace("1024", "128"))
    assert accepted["status"] in ("in_queue", "in_progress")
    assert accepted["status_url"] == f"{server.url}/v1/requests/{accepted['request_id']}/status"
    while (status := curl(server, f"curl {accepted['status_url']}"))["status"] in ("in_queue", "in_progress"):
        time.sleep(0.1)
    assert status["status"] == "succeeded"
    result = curl(server, f"curl {accepted['result_url']}")
    (picture,) = result["outputs"]["images"]
    assert picture["file_path"] == str(server.folder / "outputs" / f"{accepted['request_id']}_output_0.jpg")
    assert (picture["format"], picture["width"], picture["height"], picture["seed"]) == ("jpeg", 128, 128, 42)
    assert result["outputs"]["videos"] == []
    for moment in (result["created_at"], status["started_at"], result["finished_at"]):
        assert datetime.fromisoformat(moment).tzinfo is not None

    lora = server.folder / "loras/my_lora_job/my_lora_job.safetensors"
    ours: Pipeline = pipeline_of("zimage_turbo").with_lora(lora)
    expected = ours.sample("sks a photo of a person", width=128, height=128, seed=42, steps=8, guidance_scale=1.0)
    buffer = io.BytesIO()
    expected.frames[0].save(buffer, "JPEG", quality=95)
    assert Path(picture["file_path"]).read_bytes() == buffer.getvalue()
    assert {**picture["receipt"], "verified_by": 0} == {**json.loads(json.dumps(expected.receipt)), "verified_by": 0}


def test_the_curl_call_of_the_specification_queues_any_size(server: LocalServer) -> None:
    accepted = curl(server, INFERENCE)
    canceled = server.http.delete(f"/v1/requests/{accepted['request_id']}").json()
    assert canceled["status"] in ("in_progress", "canceled")
    assert server.wait(accepted["request_id"])["status"] == "canceled"


def test_the_two_expert_request_of_the_specification_makes_an_mp4(server: LocalServer) -> None:
    sent: Body = {
        "model": "wan22_14b_t2v",
        "loras": [
            {"path": "my_wan_lora/low_noise.safetensors", "transformer": "low", "network_multiplier": 1.0},
            {"path": "my_wan_lora/high_noise.safetensors", "transformer": "high", "network_multiplier": 1.0},
        ],
        "prompts": [{"prompt": "a cinematic shot", "width": 64, "height": 64, "seed": 42,
                     "num_frames": 5, "fps": 16, "sample_steps": 2}],
    }  # fmt: skip
    result = server.wait(server.submit(sent))
    (video,) = result["outputs"]["videos"]
    assert result["outputs"]["images"] == []
    assert (video["format"], video["num_frames"], video["fps"]) == ("mp4", 5, 16)
    assert Path(video["file_path"]).name == f"{result['request_id']}_output_0.mp4"
    assert Path(video["file_path"]).read_bytes()[4:8] == b"ftyp"
    weaker = [{**sent["loras"][0], "network_multiplier": 0.5}, sent["loras"][1]]
    (other,) = server.wait(server.submit({**sent, "loras": weaker}))["outputs"]["videos"]
    assert other["sha256"] != video["sha256"]
    assert other["receipt"]["lora"]["strengths"] == {"transformer_2": 0.5}


WRONG: dict[str, tuple[Body, str]] = {
    "an unknown model": (body("sd16"), "MODEL_NOT_FOUND"),
    "no LoRA": (body(loras=[]), "LORA_FILE_REQUIRED"),
    "an expert of a model that has none": (
        body(loras=[{"path": "sd15.safetensors", "transformer": "low"}]), "MOE_FORMAT_NOT_SUPPORTED"),
    "several LoRAs": (body(loras=[{"path": "sd15.safetensors"}] * 2), "SINGLE_LORA_ONLY"),
    "no expert where there are two": (
        body("wan22_14b_t2v", loras=[{"path": "my_wan_lora/low_noise.safetensors"}]), "MOE_FORMAT_REQUIRED"),
    "one expert twice": (
        body("wan22_14b_t2v", loras=[{"path": "my_wan_lora/low_noise.safetensors", "transformer": "low"}] * 2),
        "SINGLE_MOE_CONFIG_ONLY"),
    "a missing LoRA": (body(loras=[{"path": "no.safetensors"}]), "LORA_NOT_FOUND"),
    "another LoRA than the hash says": (
        body(loras=[{"path": "sd15.safetensors", "sha256": "0" * 64}]), "LORA_CHANGED"),
    "no control image": (body("flux_kontext"), "CONTROL_IMAGE_REQUIRED"),
    "a control image for a model that takes none": (
        body(prompts=[{"prompt": "a", "ctrl_img": "aaaa"}]), "CONTROL_IMAGE_NOT_SUPPORTED"),
    "frames of a picture": (body(prompts=[{"prompt": "a", "num_frames": 9}]), "PROMPT_INVALID"),
    "a flag that is no number": (body(prompts=[{"prompt": "a --steps many"}]), "PROMPT_INVALID"),
    "more steps than the model has": (body(prompts=[{"prompt": "a", "sample_steps": 1000}]), "PROMPT_INVALID"),
    "a size in a flag above the limit": (body(prompts=[{"prompt": "a --w 16384"}]), "PROMPT_INVALID"),
    "a video of a picture": (body(output_format="mp4"), "OUTPUT_FORMAT"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_answered_with_400_and_a_code(server: LocalServer, what: str) -> None:
    sent, code = WRONG[what]
    error = refusal(server, {**sent})
    assert error["code"] == code
    assert str(server.folder) not in json.dumps(error), "a path of the server"


@pytest.mark.parametrize("field, value", [("stepz", 4), ("width", 8), ("guidance_scale", "NaN"), ("seed", -2)])
def test_a_field_that_is_unknown_or_out_of_range_is_named(server: LocalServer, field: str, value: Any) -> None:
    sent = body(prompts=[{"prompt": "a", field: value}])
    answer = server.http.post("/v1/inference", json=sent)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "prompts", 0, field]


def test_a_request_that_nobody_made_is_not_found(server: LocalServer) -> None:
    for path in ("status", "result", "events"):
        answer = server.http.get(f"/v1/requests/none/{path}")
        assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (404, "REQUEST_NOT_FOUND")


def test_the_interactive_documentation_is_served(server: LocalServer) -> None:
    assert "swagger" in server.http.get("/docs").text
    assert "redoc" in server.http.get("/redoc").text.lower()
    assert "/v1/inference" in server.http.get("/openapi.json").json()["paths"]


# ------------------------------------------------------------------------------------------------- beyond it: results


def test_every_prompt_has_its_own_seed_strength_and_lossless_picture(
    server: LocalServer, pipeline_of: Callable[[str], Pipeline]
) -> None:
    size = {"width": 64, "height": 64, "sample_steps": 2}
    prompts = [{"prompt": "a fox", **size, "network_multiplier": m} for m in (0.0, 1.0, 1.0)]
    result = server.wait(server.submit(body(prompts=prompts, output_format="png")))
    pictures = result["outputs"]["images"]
    assert [p["seed"] for p in pictures] == [42, 43, 44]
    assert len({p["sha256"] for p in pictures}) == 3
    served = server.http.get(pictures[0]["url"])
    assert served.headers["content-type"] == "image/png"
    base = pipeline_of("sd15").sample("a fox", width=64, height=64, steps=2, seed=42)
    assert Image.open(io.BytesIO(served.content)).tobytes() == base.frames[0].tobytes(), "strength 0 is the base model"
    assert result["metadata"]["inference_time"] > 0
    assert len(result["metadata"]["timings"]["prompts"]) == 3


def test_replay_renders_a_servers_receipt_again(server: LocalServer, lora_of: LoraOf) -> None:
    put(server, "kontext.safetensors", lora_of("flux_kontext/lora"))
    wide = ROOT / "cases/assets/wide.png"
    control = base64.b64encode(wide.read_bytes()).decode()
    prompt = {"prompt": "a fox", "width": 64, "height": 64, "sample_steps": 2, "ctrl_img": control}
    edit = body("flux_kontext", loras=[{"path": "kontext.safetensors"}], prompts=[prompt])
    # A server's receipt does not tell where its control images lay.
    asked: Any = ((body(), lora_of("sd15/lora"), []), (edit, lora_of("flux_kontext/lora"), ["--control", str(wide)]))
    for sent, lora, more in asked:
        picture = server.wait(server.submit(sent))["outputs"]["images"][0]["file_path"]
        again = CliRunner().invoke(app, ["replay", picture, "--mini", "--lora", str(lora), *more])
        assert again.exit_code == 0 and "the pixels are the same, bit for bit" in again.stdout, again.output


def test_a_seed_of_minus_one_is_drawn_and_reported(server: LocalServer) -> None:
    prompts = [{"prompt": "a", "width": 64, "height": 64, "sample_steps": 1, "seed": -1}] * 2
    one, two = server.wait(server.submit(body(prompts=prompts)))["outputs"]["images"]
    assert one["seed"] != two["seed"]
    assert one["receipt"]["settings"]["seed"] == one["seed"]


def test_a_lora_for_another_model_is_refused_before_weights_load(server: LocalServer) -> None:
    result = server.wait(server.submit(body("lumina2")))
    assert (result["status"], result["error_code"]) == ("failed", "LORA_INVALID")
    assert "belong to lumina2" in result["error"] and str(server.folder) not in result["error"]
    assert "allow_partial" not in result["error"], "advice that no field of a request follows"


def test_a_render_that_is_not_finite_is_a_failure_not_a_black_picture(server: LocalServer, lora_of: LoraOf) -> None:
    tensors = load_file(lora_of("sd15/lora"))
    up = next(name for name in tensors if "lora_up" in name)
    save_file({**tensors, up: tensors[up].float() * 1e30}, server.folder / "loras" / "absurd.safetensors")
    before = set((server.folder / "outputs").rglob("*"))
    result = server.wait(server.submit(body(loras=[{"path": "absurd.safetensors"}])))
    assert (result["status"], result["error_code"]) == ("failed", "RENDER_FAILED")
    assert "denoising: unet" in result["error"] and "multiplier" in result["error"]
    assert set((server.folder / "outputs").rglob("*")) == before


def test_a_lora_that_was_overwritten_is_rendered_anew_never_from_a_cache(server: LocalServer, lora_of: LoraOf) -> None:
    name = "changing.safetensors"
    sent = body(loras=[{"path": name}])
    digests = []
    for case in ("sd15/lora", "sd15/lora-conv", "sd15/lora"):
        put(server, name, lora_of(case))
        digests.append(server.wait(server.submit(sent))["outputs"]["images"][0]["sha256"])
    assert digests[0] != digests[1]
    assert digests[0] == digests[2], "what was rendered in between left something behind"


def test_a_lora_that_changes_while_its_request_waits_fails_it(server: LocalServer, lora_of: LoraOf) -> None:
    put(server, "waits.safetensors", lora_of("lumina2/lora"))  # which no other test holds in the worker's memory
    long = server.submit(body(prompts=[{"prompt": "a", "width": 256, "height": 256, "sample_steps": 500}]))
    waiting = server.submit(body("lumina2", loras=[{"path": "waits.safetensors"}]))
    put(server, "waits.safetensors", lora_of("lumina2/lokr"))
    server.http.delete(f"/v1/requests/{long}").raise_for_status()
    result = server.wait(waiting)
    assert (result["status"], result["error_code"]) == ("failed", "LORA_CHANGED"), result


def test_a_lora_is_rendered_as_the_trainer_did_that_saved_it(server: LocalServer) -> None:
    """Between two tags, with the LoRA and the picture of that trainer itself (tests/test_bands.py)."""
    kept = sketched.read(sketched.file_of("0.10.20", "zimage_turbo"), ASSETS)
    (sample,) = (sample for sample in kept.samples if sample.case.lora is not None)
    (server.folder / "loras" / "between.safetensors").write_bytes(kept.loras[sample.job]["lora"])
    asked = sample.case.sample
    prompt = {name: getattr(asked, name) for name in ("prompt", "neg", "width", "height", "seed", "sample_steps",
                                                      "guidance_scale", "network_multiplier")}  # fmt: skip
    sent = {"model": "zimage_turbo", "output_format": "png", "prompts": [prompt],
            "trigger_word": sample.case.trigger_word}  # fmt: skip
    found, made, verified = [], [], []
    for file in ("between.safetensors", "my_lora_job/my_lora_job.safetensors", "between.safetensors"):
        answer = server.http.post("/v1/inference", json={**sent, "loras": [{"path": file}]}).json()
        (picture,) = server.wait(answer["request_id"])["outputs"]["images"]
        ours = np.asarray(Image.open(picture["file_path"]).convert("RGB"))[None]
        sketch = sketched.sketches(np.zeros(1), ours, None)[1]
        found.append(float(np.linalg.norm(sketch - sample.sketches[1]) / np.linalg.norm(sample.sketches[1])))
        made.append(picture["receipt"]["reproduces"])
        verified.append((answer["verified"] or {}).get("tag"))
    another = nearest(trainer_of(server.folder / "loras" / "my_lora_job" / "my_lora_job.safetensors"))
    assert made == [f"ostris/ai-toolkit {version}" for version in ("0.10.20", another, "0.10.20")]
    assert max(found[0], found[2]) < 1e-3 < 0.01 < found[1]
    assert verified == [None, vouching(spec_of("zimage_turbo", another)), None]  # no tag has those rules


def test_control_images_come_as_data_and_are_turned_upright(
    server: LocalServer, lora_of: LoraOf, pipeline_of: Callable[[str], Pipeline], tmp_path: Path
) -> None:
    put(server, "kontext.safetensors", lora_of("flux_kontext/lora"))
    upright = Image.open(ROOT / "cases/assets/wide.png").convert("RGB").resize((96, 64))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me clockwise"
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    data = base64.b64encode(buffer.getvalue()).decode()
    prompt = {"prompt": "a fox", "width": 64, "height": 64, "sample_steps": 2, "seed": 1}
    prompts = [{**prompt, "ctrl_img": data}, {**prompt, "ctrl_img_1": f"data:image/png;base64,{data}"}]
    sent = body("flux_kontext", loras=[{"path": "kontext.safetensors"}], prompts=prompts, output_format="png")
    one, two = server.wait(server.submit(sent))["outputs"]["images"]
    upright.save(tmp_path / "control.png")
    ours = pipeline_of("flux_kontext").with_lora(lora_of("flux_kontext/lora"))
    expected = ours.sample("a fox", width=64, height=64, steps=2, seed=1, control=[str(tmp_path / "control.png")])
    assert Image.open(one["file_path"]).tobytes() == expected.frames[0].tobytes()
    assert one["sha256"] == two["sha256"]
    told = [picture["receipt"]["settings"]["control"] for picture in (one, two)]
    assert told == [["prompts[0].ctrl_img"], ["prompts[1].ctrl_img_1"]]


def test_an_unverified_configuration_can_be_refused(server: LocalServer) -> None:
    accepted = server.http.post("/v1/inference", json=body(require_verified=True)).json()
    assert accepted["verified"]["case"].startswith("sd15/") and accepted["verified"]["verdict"] == "match"
    assert server.wait(accepted["request_id"])["verified"] == accepted["verified"]
    unproven = next(model for model in MODELS if covering(model, "live", tags.newest()) is None)
    refused = refusal(server, body(unproven, lora_mode="live", require_verified=True))
    assert (refused["code"], refused["details"]["verified"]) == ("NOT_VERIFIED", None)


def test_what_vouches_has_the_same_kind_of_lora_quantisation_and_size(server: LocalServer, lora_of: LoraOf) -> None:
    put(server, "lokr.safetensors", lora_of("zimage_deturbo/lokr"))
    put(server, "zimage.safetensors", lora_of("zimage_deturbo/lora"))
    put(server, "encoder.safetensors", lora_of("sd15/text-encoder"))

    def vouches(model: str, lora: str, *sizes: int, **fields: Any) -> str | None:
        prompts = [{"prompt": "a fox", "width": size, "height": 64, "sample_steps": 2} for size in sizes or (64,)]
        accepted = server.http.post(
            "/v1/inference", json=body(model, loras=[{"path": lora}], prompts=prompts, **fields)
        )
        server.http.delete(f"/v1/requests/{accepted.json()['request_id']}")
        verified = accepted.json()["verified"]
        return None if verified is None else str(verified["case"])

    assert vouches("zimage_deturbo", "zimage.safetensors") == "zimage_deturbo/lora"
    assert vouches("zimage_deturbo", "lokr.safetensors") == "zimage_deturbo/lokr"
    assert vouches("zimage_deturbo", "zimage.safetensors", 72) == "zimage_deturbo/snapped"
    assert vouches("zimage_deturbo", "lokr.safetensors", 72) is None
    assert vouches("zimage_deturbo", "zimage.safetensors", 64, 72) == "zimage_deturbo/lora"
    assert vouches("zimage_deturbo", "lokr.safetensors", 64, 72) is None, "one of its prompts is vouched for by nothing"
    assert vouches("sd15", "encoder.safetensors", lora_mode="live") == "sd15/text-encoder"
    assert vouches("flux", "flux.safetensors", quantize=True) == "flux/quantized"
    assert vouches("flux", "flux.safetensors", quantize=True, qtype="uint5") is None


def test_a_quantised_base_is_another_base_with_its_own_proof(server: LocalServer) -> None:
    prompt = {"prompt": "a fox", "width": 64, "height": 64, "sample_steps": 2, "seed": 1}
    sent = body("flux", loras=[{"path": "flux.safetensors"}], prompts=[prompt])
    ways: list[Body] = [{}, {"quantize": True}, {"quantize": True, "qtype": "float8"}, {"quantize": True}]
    results = [server.wait(server.submit({**sent, **way})) for way in ways]
    pictures = [result["outputs"]["images"][0] for result in results]
    assert len({picture["sha256"] for picture in pictures}) == 3
    assert pictures[1]["sha256"] == pictures[3]["sha256"]
    assert results[3]["metadata"]["timings"]["base_was_loaded"]
    assert [p["receipt"].get("quantization", {}).get("qtype") for p in pictures[:3]] == [None, "qfloat8", "float8"]
    assert [p["receipt"]["lora"]["mode"] for p in pictures[:2]] == ["merged", "live"]
    assert [r["verified"]["case"] for r in results[:2]] == ["flux/lora", "flux/quantized"]
    assert refusal(server, {**sent, "quantize": True, "lora_mode": "merged"})["code"] == "LORA_MODE_INVALID"


# ------------------------------------------------------------------------------------------------ beyond it: requests


def test_progress_is_told_step_by_step_as_events(server: LocalServer) -> None:
    sent = body(prompts=[{"prompt": "a", "width": 64, "height": 64, "sample_steps": 4}] * 2)
    events = []
    with server.http.stream("GET", f"/v1/requests/{server.submit(sent)}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert events[-1]["status"] == "succeeded"
    steps = [(e["progress"]["prompt"], e["progress"]["step"]) for e in events if e["progress"]]
    assert steps == sorted(steps) and {(0, 1), (1, 4)} & set(steps)
    assert all(e["progress"]["steps"] == 4 and e["progress"]["prompts"] == 2 for e in events if e["progress"])


def test_what_waits_has_a_position_and_what_is_rendered_can_be_canceled(server: LocalServer) -> None:
    long = body(prompts=[{"prompt": "a", "width": 256, "height": 256, "sample_steps": 500}])
    running, second, third = (server.submit(long) for _ in range(3))
    server.until_rendering(running)
    assert [server.get(r, "status")["queue_position"] for r in (running, second, third)] == [None, 1, 2]
    assert server.http.delete(f"/v1/requests/{second}").json()["status"] == "canceled"
    assert server.get(third, "status")["queue_position"] == 1
    for request in (running, third):
        server.http.delete(f"/v1/requests/{request}").raise_for_status()
        assert server.wait(request)["status"] == "canceled"
    again = server.http.delete(f"/v1/requests/{third}")
    assert (again.status_code, again.json()["detail"]["error"]["code"]) == (409, "ALREADY_FINISHED")
    assert not list((server.folder / "outputs").glob(f"{running}*"))


def test_the_same_idempotency_key_queues_once(server: LocalServer) -> None:
    key = {"Idempotency-Key": "once"}
    first = server.submit(body(), **key)
    assert server.submit(body(), **key) == first
    clash = server.http.post("/v1/inference", json=body(trigger_word="other"), headers=key)
    assert (clash.status_code, clash.json()["detail"]["error"]["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    other = server.submit(body())
    assert other != first
    assert {server.wait(request)["status"] for request in (first, other)} == {"succeeded"}


def test_a_request_that_waits_beyond_its_ttl_fails(server: LocalServer) -> None:
    long = server.submit(body(prompts=[{"prompt": "a", "width": 256, "height": 256, "sample_steps": 500}]))
    late = server.wait(server.submit(body(ttl=0.2)))
    assert (late["status"], late["error_code"]) == ("failed", "EXPIRED")
    server.http.delete(f"/v1/requests/{long}").raise_for_status()
    assert server.wait(long)["status"] == "canceled"


def test_operators_see_health_and_metrics(server: LocalServer) -> None:
    assert server.wait(server.submit(body()))["status"] == "succeeded"
    assert server.http.get("/healthz").json() == {"status": "healthy"}
    assert server.http.get("/readyz").json() == {"ready": True, "problem": None}
    page = server.http.get("/metrics").text
    assert float(re.findall(r'lora_drift_requests_total{model="sd15",state="succeeded"} (\S+)', page)[0]) >= 1
    assert "lora_drift_render_seconds_bucket" in page
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    finished = [line for line in lines if line["message"] == "finished"]
    assert {"time", "level", "request_id", "model", "state"} <= set(finished[-1])


def test_importing_the_application_does_not_wait_for_torch() -> None:
    code = "import lora_drift.server.app, sys; print(*{'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_the_settings_of_the_specification_have_its_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where no `.env` is
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    defaults = Settings()
    assert (defaults.port, defaults.url, defaults.device) == (8000, "http://localhost:8000", "cuda")
    assert (defaults.enable_cpu_offload, defaults.debug, defaults.hf_token) == (False, False, None)
    assert defaults.workflows_base_path == Path("/app/ai-toolkit/lora_weights")
    assert defaults.output_base_path == Path("/tmp/inference_output")
    assert defaults.host == "127.0.0.1", "docs/server.md says why it is not 0.0.0.0"
    Path(".env").write_text("BASE_URL=https://gpu.example/\nMODEL_CACHE_DIR=weights\nINFERENCE_TIMEOUT=5\n")
    given = Settings()
    assert (given.url, given.model_cache_dir, given.inference_timeout) == ("https://gpu.example", Path("weights"), 5)


def test_a_wrong_setting_is_named() -> None:
    command = [sys.executable, "-m", "lora_drift", "serve", "--mini", "--port", "99999999999999999999"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "MAX_TRIES": "none"})
    assert done.returncode == 2
    assert "MAX_TRIES" in done.stderr and "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------------------- OpenAI


def test_openai_clients_get_pictures_as_base64_or_url(server: LocalServer, pipeline_of: Any) -> None:
    asked = {"model": "sd15", "prompt": "a fox", "size": "64x64", "n": 2, "seed": 5, "steps": 2}
    images = server.http.post("/v1/images/generations", json=asked).raise_for_status().json()
    assert [image["seed"] for image in images["data"]] == [5, 6]
    expected = pipeline_of("sd15").sample("a fox", width=64, height=64, steps=2, seed=5)
    png = base64.b64decode(images["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(png)).tobytes() == expected.frames[0].tobytes()
    asked |= {"response_format": "url", "output_format": "jpeg", "n": 1, "loras": [{"path": "sd15.safetensors"}]}
    (image,) = server.http.post("/v1/images/generations", json=asked).raise_for_status().json()["data"]
    assert server.http.get(image["url"]).headers["content-type"] == "image/jpeg"
    assert image["receipt"]["lora"]["keys"] > 0
    largest = {"model": "sd15", "prompt": "a", "size": "64x64", "steps": 1, "n": 2, "seed": 2**64 - 1}
    images = server.http.post("/v1/images/generations", json=largest).raise_for_status().json()
    assert [image["seed"] for image in images["data"]] == [2**64 - 1, 0]


def test_openai_clients_edit_an_uploaded_picture(server: LocalServer) -> None:
    picture = (ROOT / "cases/assets/other.png").read_bytes()
    fields = {"model": "flux_kontext", "prompt": "a fox", "size": "64x64", "steps": "2", "seed": "3"}
    answer = server.http.post("/v1/images/edits", data=fields, files={"image": ("a.png", picture, "image/png")})
    (one,) = answer.raise_for_status().json()["data"]
    answer = server.http.post("/v1/images/edits", data=fields, files=[("image[]", ("a.png", picture, "image/png"))])
    (two,) = answer.raise_for_status().json()["data"]
    assert one["b64_json"] == two["b64_json"]


def test_a_lora_that_openais_client_flattens_into_a_form_is_rendered(server: LocalServer, lora_of: LoraOf) -> None:
    """`client.images.edit(..., extra_body={"loras": [...]})`, as openai 3.57 sends it."""
    put(server, "kontext.safetensors", lora_of("flux_kontext/lora"))
    image = {"image": ("a.png", (ROOT / "cases/assets/other.png").read_bytes(), "application/octet-stream")}
    fields = {"model": "flux_kontext", "prompt": "a fox", "size": "64x64", "steps": "2", "seed": "3"}
    lora = {"loras[][path]": "kontext.safetensors", "loras[][network_multiplier]": "1.0"}
    as_json = {"loras": json.dumps([{"path": "kontext.safetensors", "network_multiplier": 1.0}])}
    flat, whole, base = (
        server.http.post("/v1/images/edits", data={**fields, **way}, files=image).raise_for_status().json()["data"][0]
        for way in (lora, as_json, {})
    )
    assert flat["receipt"]["lora"]["keys"] > 0
    assert flat["b64_json"] == whole["b64_json"] != base["b64_json"]


@pytest.mark.parametrize(
    "change, code",
    [({"model": "dall-e-3"}, "MODEL_NOT_FOUND"), ({"size": "1x1"}, "SIZE_INVALID"), ({"n": 99}, "INVALID"),
     ({"model": "wan21_1b"}, "MODEL_NOT_FOUND"), ({"stream": True}, "INVALID")],
)  # fmt: skip
def test_openai_clients_get_errors_of_their_shape(server: LocalServer, change: Body, code: str) -> None:
    answer = server.http.post("/v1/images/generations", json={"model": "sd15", "prompt": "a", **change})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert answer.json()["error"]["type"] == "invalid_request_error"
