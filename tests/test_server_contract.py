"""The specification and the public server's schema against ours, field by field: what of each request is accepted, and
what each answer holds, as docs/server-contract.md lists it.

`python tests/test_server_contract.py` writes that page.
"""

import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import httpx2 as httpx
import pytest
from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError
from starlette.testclient import TestClient

from lora_drift.pipelines import MODELS
from lora_drift.server.app import app, create_app
from lora_drift.server.config import Settings
from lora_drift.server.local import ROOT, LocalServer
from lora_drift.server.schemas import InferenceRequest

PAGE = ROOT / "docs" / "server-contract.md"

PUBLIC: dict[str, tuple[str, tuple[Any, ...]]] = {
    "model": ("string", ("sd15",)),
    "loras": ("list", ()),
    "loras[].path": ("string", ("a.safetensors", "https://a.example/b.safetensors")),
    "loras[].transformer": ("low, high or null", ("low", "high", None)),
    "loras[].network_multiplier": ("-2 to 2, or null", (-2, 2, 0.5, None)),
    "hf_token": ("string or null", ("hf_x", None)),
    "trigger_word": ("string or null", ("sks", None)),
    "kv_cache": ("boolean or null", (False, None)),
    "match_target_res": ("boolean or null", (False, None)),
    "prompts": ("list, 1 or more", ()),
    "prompts[].prompt": ("string", ("a fox",)),
    "prompts[].trigger_word": ("string or null", ("sks", None)),
    "prompts[].width": ("64 to 4096, or null", (64, 4096, None)),
    "prompts[].height": ("64 to 4096, or null", (64, 4096, None)),
    "prompts[].guidance_scale": ("0 to 20, or null", (0, 20, None)),
    "prompts[].sample_steps": ("1 to 150, or null", (1, 150, None)),
    "prompts[].neg": ("string or null", ("", "blurry", None)),
    "prompts[].seed": ("-1 or more, or null", (-1, 0, 2**63, None)),
    "prompts[].sampler": ("string or null", ("euler", None)),
    "prompts[].num_frames": ("1 to 1000, or null", (1, 1000, None)),
    "prompts[].fps": ("1 to 120, or null", (1, 120, None)),
    "prompts[].resolution": ("Default, High or null", ("Default", None)),
    "prompts[].ctrl_img": ("URL or base64, or null", ("aaaa", None)),
    "prompts[].ctrl_img_1": ("URL or base64, or null", ("aaaa", None)),
    "prompts[].ctrl_img_2": ("URL or base64, or null", ("aaaa", None)),
    "prompts[].ctrl_img_3": ("URL or base64, or null", ("aaaa", None)),
}
"""Field of the public server (v0.7.29) -> its values, and examples of them that are accepted here."""

NOTES = {
    "loras": "at most 8",
    "kv_cache": "true is refused: of models that are not here",
    "match_target_res": "true is refused: of models that are not here",
    "prompts": "at most 64",
    "prompts[].width": "null is the model's, not 1024",
    "prompts[].height": "null is the model's, not 1024",
    "prompts[].sampler": "ignored there and here; named in `warnings`",
    "prompts[].resolution": "High is refused: the trainer has no second stage",
}


def request(field: str, value: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "sd15", "loras": [{"path": "a.safetensors"}], "prompts": [{"prompt": "a"}]}
    place, _, name = field.rpartition("[].")
    (body[place][0] if place else body)[name] = value
    return body


@pytest.mark.parametrize("field", PUBLIC)
def test_every_value_of_the_public_server_is_understood(field: str) -> None:
    for value in PUBLIC[field][1]:
        InferenceRequest.model_validate(request(field, value))


# ------------------------------------------------------------------------------------------------------------- answers

Address = Annotated[str, Field(pattern="^http://127.0.0.1:[0-9]+/v1/requests/[0-9a-f-]{36}/(status|result)$")]
State = Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]
Side = Annotated[int, Field(ge=64, le=4096)]
Seed = Annotated[int, Field(ge=0)]
MOMENT = "time, with an offset and a Z: no valid ISO 8601"

ANSWERS: dict[str, dict[str, tuple[str, Any, str]]] = {
    "POST /v1/inference": {
        "request_id": ("UUID", UUID, ""),
        "status": ("queued", State, "`in_queue`, as the status says; another when an `Idempotency-Key` is used again"),
        "status_url": ("BASE_URL and path", Address, ""),
        "result_url": ("BASE_URL and path", Address, ""),
        "created_at": (MOMENT, AwareDatetime, "valid ISO 8601"),
    },
    "GET /v1/requests/{request_id}/status": {
        "status": ("in_queue, in_progress, succeeded or failed", State, "`canceled` can be reached, too"),
        "created_at": (MOMENT, AwareDatetime, "valid ISO 8601"),
        "started_at": (f"{MOMENT}, or null", AwareDatetime | None, "valid ISO 8601"),
        "finished_at": (f"{MOMENT}, or null", AwareDatetime | None, "valid ISO 8601"),
        "error": ("string if it failed, else null", str | None, "says what to do; no path of the server"),
    },
    "GET /v1/requests/{request_id}/result": {
        "status": ("in_queue, in_progress, succeeded or failed", State, ""),
        "outputs": ("object, or null", dict[str, Any] | None, ""),
        "outputs.images[].format": ("jpeg", Literal["jpeg"], "the one of `output_format`"),
        "outputs.images[].width": ("integer", Side, ""),
        "outputs.images[].height": ("integer", Side, ""),
        "outputs.images[].file_path": ("path on the server", str, ""),
        "outputs.images[].seed": ("integer", Seed, "the one that was drawn, if -1 was asked for"),
        "outputs.videos[].format": ("mp4 or webp", Literal["mp4", "mkv", "webp"], "the one of `output_format`"),
        "outputs.videos[].width": ("integer", Side, ""),
        "outputs.videos[].height": ("integer", Side, ""),
        "outputs.videos[].num_frames": ("integer", Annotated[int, Field(ge=1)], ""),
        "outputs.videos[].fps": ("integer", Annotated[int, Field(ge=1)], ""),
        "outputs.videos[].file_path": ("path on the server", str, ""),
        "outputs.videos[].seed": ("integer", Seed, ""),
        "error": ("string, or null", str | None, ""),
        "created_at": (MOMENT, AwareDatetime, "valid ISO 8601"),
        "finished_at": (f"{MOMENT}, or null", AwareDatetime | None, "valid ISO 8601"),
        "metadata.model": ("string", str, ""),
        "metadata.inference_time": ("seconds", Annotated[float, Field(gt=0)], ""),
        "metadata.timings": ("object", dict[str, Any], "keys of its own: `lora`, `load`, `prompts`, `total`"),
    },
    "GET /v1/models": {
        "models[].id": ("string", str, ""),
        "models[].base_model": ("string", str, ""),
        "models[].resolution_divisor": ("integer", Annotated[int, Field(ge=1)], "the trainer's, where they differ"),
        "models[].default_steps": ("integer", Annotated[int, Field(ge=1)], ""),
        "models[].default_guidance_scale": ("number", float, ""),
        "models[].requires_control_image": ("boolean", bool, ""),
        "models[].is_video_model": ("boolean", bool, ""),
        "models[].default_num_frames": ("integer, or null", int | None, ""),
        "models[].default_fps": ("integer, or null", int | None, ""),
    },
}  # fmt: skip
"""Call -> field of the public server's answer -> (what it is there, what it must be here, a note)."""

Said = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, lora_of: Callable[[str], Path]) -> Said:
    """Call -> what a server answered: for a picture, a video, and a request that failed."""
    found: Said = {call: [] for call in ANSWERS}
    with LocalServer(tmp_path_factory.mktemp("contract")) as server:
        for model in ("sd15", "wan21_1b"):
            shutil.copy(lora_of(f"{model}/lora"), server.folder / "loras" / f"{model}.safetensors")
        size = {"width": 64, "height": 64, "sample_steps": 2}
        picture = {"model": "sd15", "loras": [{"path": "sd15.safetensors"}], "prompts": [{"prompt": "a", **size}]}
        clip = {"model": "wan21_1b", "loras": [{"path": "wan21_1b.safetensors"}],
                "prompts": [{"prompt": "a", **size, "num_frames": 5}]}  # fmt: skip
        wrong = {**picture, "loras": [{"path": "wan21_1b.safetensors"}]}
        for body in (picture, clip, wrong):
            accepted = server.http.post("/v1/inference", json=body).raise_for_status().json()
            at_once = [server.http.get(accepted[url]).json() for url in ("status_url", "result_url")]
            server.wait(accepted["request_id"])
            at_last = [server.http.get(accepted[url]).json() for url in ("status_url", "result_url")]
            for call, answers in zip(found, ([accepted], *zip(at_once, at_last, strict=True)), strict=False):
                found[call] += answers
        found["GET /v1/models"].append(server.http.get("/v1/models").json())
    return found


def values(answer: Any, field: str) -> list[Any]:
    """What stands at a place of an answer: once, never (below something that is null), or for each item of a list."""
    name, _, rest = field.partition(".")
    found = answer[name.removesuffix("[]")]
    items = found if name.endswith("[]") else [found]
    if not rest:
        return items
    return [value for item in items if item is not None for value in values(item, rest)]


@pytest.mark.parametrize("call, field", [(call, field) for call, fields in ANSWERS.items() for field in fields])
def test_every_field_of_an_answer_is_there(said: Said, call: str, field: str) -> None:
    found = [value for answer in said[call] for value in values(answer, field)]
    assert found
    for value in found:
        TypeAdapter(ANSWERS[call][field][1]).validate_python(value)


def test_answers_of_every_end_were_seen(said: Said) -> None:
    ends = [answer["status"] for answer in said["GET /v1/requests/{request_id}/status"]]
    assert ends[1::2] == ["succeeded", "succeeded", "failed"]


# ------------------------------------------------------------------------------------------------------------ refusals

LORA = {"path": "a.safetensors"}
MOE = {"model": "wan22_14b_t2v"}
REFUSED: dict[str, tuple[dict[str, Any], str, int]] = {
    "MODEL_NOT_FOUND": ({"model": "sd16"}, "400", 400),
    "LORA_FILE_REQUIRED": ({"loras": []}, "400", 400),
    "MOE_FORMAT_REQUIRED": ({**MOE, "loras": [LORA]}, "500; 400 was promised", 400),
    "SINGLE_MOE_CONFIG_ONLY": ({**MOE, "loras": [{**LORA, "transformer": "low"}] * 2}, "500; 400 was promised", 400),
    "MOE_FORMAT_NOT_SUPPORTED": ({"loras": [{**LORA, "transformer": "low"}]}, "500; 400 was promised", 400),
    "SINGLE_LORA_ONLY": ({"loras": [LORA] * 2}, "500; 400 was promised", 400),
    "LORA_NOT_FOUND": ({"loras": [{"path": "none.safetensors"}]}, "400, with the server's path", 400),
    "CONTROL_IMAGE_REQUIRED": ({"model": "flux_kontext"}, "400", 400),
    "INVALID": ({"prompts": []}, "422", 422),
}
"""Code -> (what brings it about, status there, status here)."""


@pytest.mark.parametrize("code", REFUSED)
def test_a_refusal_has_the_code_and_the_status(client: TestClient, lora_of: Any, tmp_path: Path, code: str) -> None:
    shutil.copy(lora_of("sd15/lora"), tmp_path / "loras" / "a.safetensors")
    change, _, status = REFUSED[code]
    answer = client.post("/v1/inference", json={**request("trigger_word", None), **change})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    if status == 400:
        assert answer.json()["detail"]["error"]["code"] == code and str(tmp_path) not in answer.text


# ------------------------------------------------------------------------------------------------------- specification

SETTINGS = {
    "HOST": "0.0.0.0", "PORT": 8000, "BASE_URL": "http://localhost:8000", "DEVICE": "cuda", "ENABLE_CPU_OFFLOAD": False,
    "WORKFLOWS_BASE_PATH": "/app/ai-toolkit/lora_weights", "OUTPUT_BASE_PATH": "/tmp/inference_output",
    "AI_TOOLKIT_PATH": "auto-detected", "DEBUG": False, "HF_TOKEN": None, "MODEL_CACHE_DIR": None,
    "INFERENCE_TIMEOUT": None,
}  # fmt: skip
"""Those that the specification names, with the defaults that it gives."""

PROMISES = {
    "`python -m uvicorn src.server:app --host 0.0.0.0 --port 8000`": (
        "`python -m uvicorn lora_drift.server.app:app --host 0.0.0.0 --port 8000`, or `lora-drift serve`",
        "test_uvicorn_starts_it_as_the_specification_starts_its_own"),
    "`curl http://localhost:8000/v1/models`": (
        "the same", "test_the_curl_calls_of_the_specification_work_unchanged"),
    "the curl call of `POST /v1/inference`, then status and result": (
        "the same", "test_the_curl_calls_of_the_specification_work_unchanged"),
    "`[trigger]` in a prompt": ("the same, and the trainer's `[name]`",
                                "test_the_curl_calls_of_the_specification_work_unchanged"),
    "two experts: `transformer` low and high": (
        "the same", "test_the_two_expert_request_of_the_specification_makes_an_mp4"),
    "MoE format for another model, or several LoRAs: 400 with details": (
        "the same", "test_a_wrong_request_is_answered_with_400_and_a_code"),
    "LoRA paths below `WORKFLOWS_BASE_PATH`": ("the same, and nowhere else",
                                               "test_lora_paths_do_not_leave_their_folder"),
    "`loras[].path` can be a URL; downloaded and cached": (
        "https only; asked after each time whether it has changed",
        "test_a_lora_is_downloaded_once_and_asked_after_each_time"),
    "`loras` is required for all requests": ("of `/v1/inference`", "test_a_refusal_has_the_code_and_the_status"),
    "control images required: `ctrl_img`, or `ctrl_img_1` to `ctrl_img_3`": (
        "the same", "test_a_wrong_request_is_answered_with_400_and_a_code"),
    "states `in_queue`, `in_progress`, `succeeded`, `failed`": (
        "and `canceled`", "test_every_field_of_an_answer_is_there"),
    "`{request_id}_output_{i}.jpg` and `.mp4` in `OUTPUT_BASE_PATH`; the result gives `file_path`": (
        "the same, and a URL", "test_the_curl_calls_of_the_specification_work_unchanged"),
    "`GET /docs`, `GET /redoc`": ("the same", "test_the_interactive_documentation_is_served"),
}  # fmt: skip
"""What the specification shows or says of the server -> (what it is here, the test that tries it)."""


def test_uvicorn_starts_it_as_the_specification_starts_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = LocalServer(tmp_path)
    command = [sys.executable, "-m", "uvicorn", "lora_drift.server.app:app", "--host", "127.0.0.1", "--port", port]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=ROOT, env=server.environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=30)
                break
            except httpx.TransportError:
                assert running.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
        assert [model["id"] for model in answer.json()["models"]] == list(MODELS)
    finally:
        running.terminate()
        running.wait(30)


def test_every_promise_has_its_test() -> None:
    tests = "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "tests").glob("test_server*.py")))
    for what, (_, test) in PROMISES.items():
        assert f"def {test}(" in tests, what


# --------------------------------------------------------------------------------------------------------------- page


def page() -> str:
    schema = InferenceRequest.model_json_schema()
    lines = ["# The server's contract, field by field", "",
             "What the specification says, and what the public ai-toolkit-inference server (v0.7.29) has, beside ours.",
             "`python tests/test_server_contract.py` writes this page; the tests in it try every row on a server.",
             "[server.md](server.md#what-is-different-from-the-public-server) sums up the differences.", "",
             "## The specification", "", "| there | here | tried by |", "|---|---|---|"]  # fmt: skip
    lines += [f"| {there} | {here} | `{test}` |" for there, (here, test) in PROMISES.items()]
    lines += ["", "| setting | default there | here |", "|---|---|---|"]
    lines += [f"| `{name}` | {_default(default)} | {_default(Settings.model_fields[name.lower()].default)} |"
              for name, default in SETTINGS.items()]  # fmt: skip
    lines += ["", "Without a `BASE_URL`, it is `http://localhost:PORT`.", "", "## Requests: `POST /v1/inference`", "",
              "| field | the public server | here |", "|---|---|---|"]  # fmt: skip
    for field, (there, _) in PUBLIC.items():
        place, _, name = field.rpartition("[].")
        owner = schema if not place else schema["$defs"]["LoraItem" if place == "loras" else "PromptItem"]
        lines.append(f"| `{field}` | {there} | {_values(owner['properties'][name])}"
                     f"{'; ' + NOTES[field] if field in NOTES else ''} |")  # fmt: skip
    lines += ["", _more(schema, PUBLIC), "", "## Answers"]
    for call, fields in ANSWERS.items():
        whole = _answer_of(call)
        lines += ["", f"### `{call}`", "", "| field | the public server | here |", "|---|---|---|"]
        for field, (there, _, note) in fields.items():
            lines.append(f"| `{field}` | {there} | {_values(_at(whole, field))}{'; ' + note if note else ''} |")
        lines += ["", _more(whole, fields)]
    lines += ["", "## Refusals", "",
              'The body is `{"detail": {"error": {"code", "message", "details"}}}`, as there, and `{"error": {...}}`',
              "beside it, as OpenAI's clients read it.", "",
              "| code | status there | here |", "|---|---|---|"]  # fmt: skip
    lines += [f"| `{code}` | {there} | {here} |" for code, (_, there, here) in REFUSED.items()]
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    return "none" if value in (None, "") else f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def _answer_of(call: str) -> dict[str, Any]:
    """Its schema, with what it refers to."""
    method, path = call.split()
    document = app.openapi()
    found = document["paths"][path][method.lower()]["responses"]["200"]["content"]["application/json"]["schema"]
    return {**found, "$defs": document["components"]["schemas"]}


def _at(whole: dict[str, Any], field: str) -> dict[str, Any]:
    """The schema of a field, below those that hold it."""
    found, defs = whole, whole["$defs"]
    for name in field.split("."):
        kinds = found.get("anyOf", [found])
        owner = next((defs[kind["$ref"].rpartition("/")[2]] for kind in kinds if "$ref" in kind), found)
        if "properties" not in owner:  # `metadata`, which no schema describes
            return {"type": "any"}
        found = owner["properties"][name.removesuffix("[]")]
        found = found["items"] if name.endswith("[]") else found
    return found


def _more(whole: dict[str, Any], known: Any) -> str:
    """What is here and not there."""
    places = sorted({"", *(field.rpartition(".")[0] for field in known)}, key=lambda place: (place.count("."), place))
    more = []
    for place in places:
        owner = _at(whole, place) if place else whole
        if "$ref" in owner:
            owner = whole["$defs"][owner["$ref"].rpartition("/")[2]]
        names = {f[len(place) :].lstrip(".").partition(".")[0].removesuffix("[]") for f in known if f.startswith(place)}
        more += [f"`{place}{'.' if place else ''}{name}`" for name in owner.get("properties", {}) if name not in names]
    return textwrap.fill(f"Here also: {', '.join(more)}.", 118)


def _values(schema: dict[str, Any]) -> str:
    kinds = schema.get("anyOf", [schema])
    told = []
    for kind in kinds:
        low, high = kind.get("minimum"), kind.get("maximum", kind.get("exclusiveMaximum"))
        if "enum" in kind:
            told.append(", ".join(kind["enum"]))
        elif low is not None:
            told.append(f"{low:g} to {'2^64 - 1' if high == 2**64 else f'{high:g}'}")
        elif kind.get("type") == "string" and "maxLength" in kind:
            told.append(f"string, at most {kind['maxLength']}")
        elif "$ref" in kind:
            told.append("object")
        else:
            told.append(str(kind.get("type")))
    return " or ".join(told)


def test_the_page_is_as_it_is_written() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python tests/test_server_contract.py"
    assert re.search(r"\]\(server-contract\.md\)", (ROOT / "docs" / "server.md").read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------------------- what differs


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    yield from _client(tmp_path)


@pytest.fixture
def lenient(tmp_path: Path) -> Iterator[TestClient]:
    yield from _client(tmp_path, strict=False)


def _client(folder: Path, **more: Any) -> Iterator[TestClient]:
    (folder / "loras").mkdir()
    settings = Settings(device="cpu", workflows_base_path=folder / "loras", output_base_path=folder / "outputs", **more)
    with TestClient(create_app(settings), "http://localhost") as running:
        yield running


@pytest.mark.parametrize(
    "field, value, code",
    [("kv_cache", True, "FIELD_NOT_SUPPORTED"), ("match_target_res", True, "FIELD_NOT_SUPPORTED"),
     ("prompts[].resolution", "High", "RESOLUTION_NOT_SUPPORTED")],
)  # fmt: skip
def test_what_would_change_the_picture_and_is_not_here_is_refused(
    client: TestClient, field: str, value: Any, code: str
) -> None:
    answer = client.post("/v1/inference", json=request(field, value))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_unknown_fields_are_ignored_and_named_where_that_is_wanted(
    lenient: TestClient, lora_of: Any, tmp_path: Path
) -> None:
    (tmp_path / "loras" / "a.safetensors").write_bytes(lora_of("sd15/lora").read_bytes())
    sent = {**request("prompts[].stepz", 4), "priority": "high"}
    accepted = lenient.post("/v1/inference", json=sent)
    assert accepted.status_code == 200, accepted.text
    told = [f"{name} is ignored: there is no such field" for name in ("prompts[0].stepz", "priority")]
    assert accepted.json()["warnings"] == told
    for unclear in ({"lora": "b"}, {"Lora_Path": "b"}):
        assert lenient.post("/v1/inference", json={**request("trigger_word", "a"), **unclear}).status_code == 422
    assert lenient.post("/v1/inference", json=request("loras[].weight", 1)).status_code == 422
    form = {"model": "flux_kontext", "prompt": "a", "lora": "b"}
    answer = lenient.post("/v1/images/edits", data=form, files={"image": b"no picture"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UNKNOWN_FIELD")
    answer = lenient.post("/v1/images/edits", data={"model": "flux_kontext", "prompt": "a", "loras": "[]", "mood": "b"},
                          files={"image": b"no picture"})  # fmt: skip
    assert answer.json()["error"]["code"] == "CONTROL_IMAGE_INVALID"


def test_a_model_can_be_asked_for_by_its_name(client: TestClient) -> None:
    for model in ("sd15", "ltx2.3"):
        assert client.get(f"/v1/models/{model}").json()["base_model"] == MODELS[model].base
    missing = client.get("/v1/models/gpt-4")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "MODEL_NOT_FOUND")


def test_openais_clients_find_the_message_in_every_error(tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    locked = create_app(Settings(device="cpu", workflows_base_path=tmp_path / "loras", max_body_mb=0.01,
                                 output_base_path=tmp_path / "outputs", api_key="key"))  # type: ignore[arg-type]  # fmt: skip
    with TestClient(locked) as client:
        answers = [client.get("/v1/models")]
        client.headers["Authorization"] = "Bearer key"
        answers += [client.get("/v1/nowhere"), client.put("/v1/models"), client.get("/v1/requests/none/status"),
                    client.post("/v1/images/generations", content=b" " * 20_000),
                    client.post("/v1/images/generations", json={}), client.post("/v1/inference", json={})]  # fmt: skip
    assert [answer.status_code for answer in answers] == [401, 404, 405, 404, 413, 400, 422]
    for answer in answers:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["code"]
    assert answers[0].json()["error"]["type"] == "authentication_error"


def test_openai_fields_that_mean_nothing_here_are_accepted(client: TestClient) -> None:
    fields = {"model": "none", "prompt": "a", "partial_images": 0, "stream": False, "moderation": "low", "user": "u"}
    answer = client.post("/v1/images/generations", json=fields)
    assert answer.json()["error"]["code"] == "MODEL_NOT_FOUND", answer.text
    form = {**fields, "stream": "false", "input_fidelity": "high"}
    answer = client.post("/v1/images/edits", data=form, files={"image": b"x"})
    assert answer.json()["error"]["code"] == "MODEL_NOT_FOUND", answer.text


def test_settings_of_the_public_server_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFLOAD_MODE", "model")
    monkeypatch.setenv("LORA_DOWNLOAD_CACHE_DIR", str(tmp_path / "cache"))
    settings = Settings(device="cpu", output_base_path=tmp_path / "outputs", workflows_base_path=tmp_path)
    assert settings.offload
    with TestClient(create_app(settings), "http://localhost") as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        assert service.downloads.folder == tmp_path / "cache" and (tmp_path / "cache").is_dir()
    monkeypatch.setenv("OFFLOAD_MODE", "sequential")
    with pytest.raises(ValidationError, match="use model"):
        Settings()
    monkeypatch.setenv("OFFLOAD_MODE", "none")
    assert not Settings().offload and Settings(enable_cpu_offload=True).offload
    assert TypeAdapter(bool).validate_python(Settings(strict="false").strict) is False  # type: ignore[arg-type]


def test_the_front_page_says_what_this_is(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200 and answer.json()["documentation"] == "/docs"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
