"""What a request may cost before it is refused: parsing, answers, memory, the worker's time. No renders here."""

import json
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from lora_drift.server import gate
from lora_drift.server.app import create_app
from lora_drift.server.config import Settings

LoraOf = Callable[[str], Path]
KEY = {"X-API-Key": "the-api-key"}


def settings(folder: Path, **more: Any) -> Settings:
    (folder / "loras").mkdir(exist_ok=True)
    return Settings(device="cpu", workflows_base_path=folder / "loras", output_base_path=folder / "outputs",
                    api_key=SecretStr(KEY["X-API-Key"]), **more)  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, lora_of: LoraOf) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("limits")
    (folder / "loras").mkdir()
    (folder / "loras" / "good.safetensors").write_bytes(lora_of("sd15/lora").read_bytes())
    with TestClient(create_app(settings(folder)), headers=KEY) as running:
        yield running


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "sd15", "loras": [{"path": "good.safetensors"}], "prompts": [{"prompt": "a"}], **fields}


def edit(client: TestClient, fields: dict[str, Any], path: str = "/v1/images/edits") -> dict[str, Any]:
    """The error that a form is answered with."""
    form = {"model": "flux_kontext", "prompt": "a", "size": "64x64", "steps": "1", **fields}
    answer = client.post(path, data=form, files={"image": ("a.png", b"not a picture", "image/png")})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


# --------------------------------------------------------------------------------- a LoRA that is asked for is rendered


ASKED = {
    "as OpenAI's clients flatten it": {"loras[][path]": "no.safetensors"},
    "with an index": {"loras[0][path]": "no.safetensors", "loras[0][network_multiplier]": "1.0"},
    "as JSON": {"loras": '[{"path": "no.safetensors"}]'},
}


@pytest.mark.parametrize("way", ASKED)
def test_a_form_may_name_its_lora(client: TestClient, way: str) -> None:
    assert edit(client, ASKED[way])["code"] == "LORA_NOT_FOUND"


UNCLEAR: dict[str, dict[str, Any]] = {
    "a field of another name": {"lora": "good.safetensors"},
    "a field of another case": {"Loras": '[{"path": "good.safetensors"}]'},
    "a list of texts": {"loras[]": "good.safetensors"},
    "a deeper list": {"loras[][0][path]": "good.safetensors"},
    "the field twice": {"loras": ["[]", '[{"path": "good.safetensors"}]']},
    "both ways at once": {"loras": "[]", "loras[][path]": "good.safetensors"},
    "fields that may be anybody's": {"loras[][path]": ["a", "b"], "loras[][network_multiplier]": "1"},
    "an unknown field of a LoRA": {"loras[][path]": "good.safetensors", "loras[][weight]": "1"},
    "an item without a path": {"loras[][network_multiplier]": "1"},
    "another field twice": {"seed": ["1", "2"]},
}


@pytest.mark.parametrize("way", UNCLEAR)
def test_a_form_is_refused_that_has(client: TestClient, way: str) -> None:
    error = edit(client, UNCLEAR[way])
    assert error["code"] in ("UNKNOWN_FIELD", "FIELD_TWICE", "LORAS_INVALID"), error


def test_a_lora_is_not_lost_in_a_url_or_in_a_second_field(client: TestClient) -> None:
    assert edit(client, {}, '/v1/images/edits?loras=[{"path":"good.safetensors"}]')["code"] == "UNKNOWN_FIELD"
    sent = {"model": "sd15", "prompt": "a", "size": "64x64", "steps": 1}
    answer = client.post("/v1/images/generations?loras=good.safetensors", json=sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UNKNOWN_FIELD")
    twice = '{"loras": [{"path": "good.safetensors"}], ' + json.dumps(sent)[1:-1] + ', "loras": []}'
    for path in ("/v1/images/generations", "/v1/inference"):
        answer = client.post(path, content=twice, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "FIELD_TWICE")


# ------------------------------------------------------------------------------------------------ before a body is read


@pytest.mark.parametrize(
    "path", ["/v1/inference", "/v1/images/generations", "/v1/images/edits", "/metrics", "/nowhere"]
)
def test_nothing_of_a_body_is_read_before_the_key_is_known(client: TestClient, path: str) -> None:
    read = 0

    def pieces() -> Iterator[bytes]:
        nonlocal read
        for _ in range(50):
            read += 1
            yield b"[[]," * 25_000

    app, messages, asked = client.app, list[Any](), list[str]()
    source = pieces()

    async def receive() -> Any:
        asked.append("body")
        return {"type": "http.request", "body": next(source, b""), "more_body": True}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"x-api-key", b"wrong")],
             "server": ("localhost", 80), "client": ("127.0.0.1", 1), "scheme": "http", "root_path": "",
             "http_version": "1.1"}  # fmt: skip
    anyio.run(app, scope, receive, send)
    assert messages[0]["status"] == 401 and not asked and not read


HARMFUL = {
    "lists": b"[" + b"[]," * 700_000 + b"0]",
    "objects": b"[" + b"{}," * 700_000 + b"0]",
    "numbers": b"[" + b"1," * 1_000_000 + b"0]",
    "texts": b"[" + b'"",' * 700_000 + b"0]",
    "names": b"{" + b",".join(b'"%d":0' % i for i in range(200_000)) + b"}",
    "depth": b"[" * 30 + b"]" * 30,
    "lists behind a quote that is no end": b'["\\"",' + b"[]," * 700_000 + b"0]",
    "lists behind a backslash that is no escape": b'["\\\\",' + b"[]," * 700_000 + b"0]",
    "UTF-16, in which a letter hides a quote": ('["∢",' + "[]," * 300_000 + "0]").encode("utf-16-le"),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_a_body_is_measured_before_it_is_parsed(client: TestClient, what: str) -> None:
    tracemalloc.start()
    began = time.process_time()
    answer = client.post("/v1/inference", content=HARMFUL[what], headers={"Content-Type": "application/json"})
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status_code == 400 and answer.json()["error"]["code"] in ("BODY_TOO_COMPLEX", "BODY_NOT_UTF8")
    assert len(answer.content) < 2000
    # Copies of the body itself, of which there are a handful; parsed, it would be 20 times as large and more.
    assert peak < 12 * len(HARMFUL[what]) + 2_000_000 and seconds < 2


def test_a_text_may_hold_any_number_of_brackets(client: TestClient) -> None:
    sent = body(prompts=[{"prompt": '[{,"\\' * 3000, "seed": 1}])
    assert client.post("/v1/inference", json=sent).status_code == 200
    assert gate.parse(json.dumps(sent).encode()) == sent


# -------------------------------------------------------------------------------------------------------------- answers


LONG = "x" * 2_000_000
NOISY: dict[str, dict[str, Any]] = {
    "bad LoRAs": {"loras": [{"path": "", "transformer": "x", "sha256": "y"}] * 2500},
    "an unknown model": {"model": LONG},
    "an unknown field": {LONG: 1},
    "a path": {"loras": [{"path": "a" * 4000 + ".bin"}]},
    "bad prompts": {"prompts": [{"prompt": "a", "width": 1, "height": 1, "seed": -9, "stepz": 1}] * 64},
    "a flag": {"prompts": [{"prompt": "--steps " + "9x" * 9000}]},
    "a control image": {"model": "flux_kontext", "prompts": [{"prompt": "a", "ctrl_img": "https://" + LONG}]},
    "a webhook": {"webhook_url": "http://" + "a" * 4000},
    "a sampler": {"prompts": [{"prompt": "a", "sampler": LONG}]},
}


@pytest.mark.parametrize("what", NOISY)
@pytest.mark.parametrize("path", ["/v1/inference", "/v1/images/generations"])
def test_an_answer_is_short_however_long_the_question_was(client: TestClient, what: str, path: str) -> None:
    sent = {**body(), **NOISY[what]}
    if path != "/v1/inference":
        sent = {**sent, "prompt": "a"}
    answer = client.post(path, json=sent)
    assert answer.status_code in (400, 422), answer.text[:500]
    assert len(answer.content) < 20_000


# -------------------------------------------------------------------------------------------------------- amplification


@pytest.mark.parametrize("where", ["request", "prompt"])
@pytest.mark.parametrize("mark", ["[trigger]", "[name]"])
def test_a_prompt_is_bounded_after_its_trigger_is_put_in(client: TestClient, where: str, mark: str) -> None:
    prompt, trigger = mark * (20_000 // len(mark)), {"trigger_word": "x" * 20_000}
    sent = body(prompts=[{"prompt": prompt, **(trigger if where == "prompt" else {})}])
    began = time.process_time()
    answer = client.post("/v1/inference", json={**sent, **(trigger if where == "request" else {})})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "PROMPT_INVALID")
    assert re.search(r"\d{8} characters", answer.text) and time.process_time() - began < 1


def test_a_trigger_that_holds_a_mark_is_counted_as_the_trainer_puts_it_in(client: TestClient) -> None:
    """`[name]` becomes the trigger first, and the `[trigger]` in it then becomes the trigger once more."""
    sent = body(trigger_word="[trigger]" * 40, prompts=[{"prompt": "[name]" * 40}])
    answer = client.post("/v1/inference", json=sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "PROMPT_INVALID")
