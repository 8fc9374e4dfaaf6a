"""The public server's requests, field by field: what of each is accepted, as docs/server.md lists it.

`python tests/test_server_contract.py` prints the table.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from starlette.testclient import TestClient

from lora_drift.pipelines import MODELS
from lora_drift.server.app import create_app
from lora_drift.server.config import Settings
from lora_drift.server.local import ROOT
from lora_drift.server.schemas import InferenceRequest

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


def table() -> list[str]:
    """Rows of the table: field, values there, values here."""
    schema = InferenceRequest.model_json_schema()
    lines = ["| field | the public server | here |", "|---|---|---|"]
    for field, (there, _) in PUBLIC.items():
        place, _, name = field.rpartition("[].")
        owner = schema if not place else schema["$defs"]["LoraItem" if place == "loras" else "PromptItem"]
        lines.append(f"| `{field}` | {there} | {_values(owner['properties'][name])}"
                     f"{'; ' + NOTES[field] if field in NOTES else ''} |")  # fmt: skip
    return lines


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
        else:
            told.append(str(kind.get("type")))
    return " or ".join(told)


def test_the_documentation_lists_every_field() -> None:
    assert "\n".join(table()) in (ROOT / "docs" / "server.md").read_text(encoding="utf-8")


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
    print("\n".join(table()))
