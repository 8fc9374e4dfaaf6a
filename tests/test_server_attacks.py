"""What the server must not do, whoever asks: each safety rule of docs/server.md is attacked here."""

import asyncio
import base64
import io
import json
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from PIL import Image
from starlette.testclient import TestClient

from lora_drift.server import fetch
from lora_drift.server.app import create_app
from lora_drift.server.config import Settings

LoraOf = Callable[[str], Path]
KEY = "the-api-key"
TOKEN = "hf_verysecrettoken"


def settings(folder: Path, **more: Any) -> Settings:
    (folder / "loras").mkdir(exist_ok=True)
    return Settings(
        device="cpu", workflows_base_path=folder / "loras", output_base_path=folder / "outputs", **more
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lora_of: LoraOf) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "loras").mkdir()
    (folder / "loras" / "good.safetensors").write_bytes(lora_of("sd15/lora").read_bytes())
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    """A server as it is by default, with small limits."""
    limits = {"max_body_mb": 2, "max_image_mb": 1, "max_image_megapixels": 1, "max_lora_mb": 0.2}
    with TestClient(create_app(settings(folder, **limits)), "http://localhost") as running:
        yield running


@pytest.fixture(scope="module")
def open_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One that may fetch from this machine, so that what it fetches can be hostile."""
    folder = tmp_path_factory.mktemp("open")
    limits = {"max_lora_mb": 0.2, "max_image_mb": 0.1, "allow_private_urls": True, "download_timeout": 2}
    with TestClient(create_app(settings(folder, **limits)), "http://localhost") as running:
        yield running


def body(path: str = "good.safetensors", **prompt: Any) -> dict[str, Any]:
    model = "flux_kontext" if "ctrl_img" in prompt else "sd15"
    return {"model": model, "loras": [{"path": path}], "prompts": [{"prompt": "a", **prompt}]}


def refused(client: TestClient, sent: dict[str, Any]) -> str:
    answer = client.post("/v1/inference", json=sent)
    assert answer.status_code == 400, answer.text
    return answer.json()["detail"]["error"]["code"]


def ended(client: TestClient, request_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        result: dict[str, Any] = client.get(f"/v1/requests/{request_id}/result").json()
        if result["finished_at"] is not None:
            return result
        time.sleep(0.02)
    raise TimeoutError(result)


def failed(client: TestClient, sent: dict[str, Any]) -> dict[str, Any]:
    """The result of a request that is accepted, and whose download then fails."""
    accepted = client.post("/v1/inference", json=sent)
    assert accepted.status_code == 200, accepted.text
    result = ended(client, accepted.json()["request_id"])
    assert result["status"] == "failed"
    return result


# ------------------------------------------------------------------------------------------------------- local files


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../secret.safetensors", "a/../../secret.safetensors", "..", ".", "link.safetensors",
     "folder-link/secret.safetensors", "..\\secret.safetensors", "good.safetensors\x00.txt", "good.bin",
     "folder.safetensors", "loop.safetensors", "file:///etc/passwd", "~/good.safetensors", "x" * 4000],
)  # fmt: skip
def test_lora_paths_do_not_leave_their_folder(client: TestClient, folder: Path, path: str, lora_of: LoraOf) -> None:
    root, secret = folder / "loras", folder / "secret.safetensors"
    if not secret.exists():
        secret.write_bytes(lora_of("sd15/lora").read_bytes())
        (root / "link.safetensors").symlink_to(secret)
        (root / "folder-link").symlink_to(folder)
        (root / "folder.safetensors").mkdir()
        (root / "loop.safetensors").symlink_to(root / "loop.safetensors")
    assert refused(client, body(path)) in ("LORA_PATH_FORBIDDEN", "LORA_NOT_FOUND", "LORA_FORMAT")


def test_a_link_within_the_folder_is_followed(client: TestClient, folder: Path) -> None:
    (folder / "loras" / "alias.safetensors").symlink_to(folder / "loras" / "good.safetensors")
    accepted = client.post("/v1/inference", json=body("alias.safetensors"))
    assert client.delete(f"/v1/requests/{accepted.json()['request_id']}").status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html>", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"{}",
     struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[99999],"data_offsets":[0,9]}}  '],
    ids=["empty", "a web page", "a huge header", "no tensors", "lying offsets"],
)  # fmt: skip
def test_a_damaged_lora_is_refused_before_it_is_used(client: TestClient, folder: Path, content: bytes) -> None:
    (folder / "loras" / "damaged.safetensors").write_bytes(content)
    assert refused(client, body("damaged.safetensors")) == "LORA_INVALID"


def test_outputs_are_served_by_name_only(client: TestClient) -> None:
    accepted = client.post("/v1/inference", json=body()).json()
    for name in ("..%2f..%2fsecret.safetensors", "%2fetc%2fpasswd", ".server", "queue.sqlite"):
        assert client.get(f"/v1/requests/{accepted['request_id']}/files/{name}").status_code == 404
    client.delete(f"/v1/requests/{accepted['request_id']}")


# --------------------------------------------------------------------------------------------------------- fetching

PRIVATE = ["127.0.0.1", "localhost", "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "[::1]", "[fe80::1]",
           "[fd00::1]", "[fec0::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]",
           "[2002:7f00:1::]", "2130706433", "0x7f.1", "127.1", "100.64.0.1", "224.0.0.1", "a..b", "x" * 64]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_not_fetched_from_however_they_are_written(client: TestClient, host: str) -> None:
    result = failed(client, body(f"https://{host}/lora.safetensors"))
    assert result["error_code"] == "LORA_DOWNLOAD_FAILED"
    assert "private and local addresses" in result["error"] or "no address" in result["error"]
    assert refused(client, body(ctrl_img=f"https://{host}/a.png")) == "CONTROL_IMAGE_UNREACHABLE"


@pytest.mark.parametrize(
    "url",
    ["http://example.com/a", "https://user:word@example.com/a", "https:///a", "https://[::1/a", "https://a:99999/a"],
)
def test_only_plain_https_urls_are_fetched(client: TestClient, url: str) -> None:
    assert refused(client, body(url)) == "LORA_URL_FORBIDDEN"
    assert refused(client, {**body(), "webhook_url": url}) == "WEBHOOK_FORBIDDEN"


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def site(answer: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A web server that answers every GET so; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as http:
        if tls is not None:
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://{host}:{http.server_address[1]}"
        http.shutdown()


def send(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    with suppress(ConnectionError):  # the client may have seen enough
        handler.wfile.write(content)


def test_a_redirect_is_checked_like_the_first_url(monkeypatch: pytest.MonkeyPatch) -> None:
    check = fetch.check_url
    monkeypatch.setattr(fetch, "check_url", lambda url, private: check(url, private=True))  # http, for the test
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")

    async def get(url: str) -> int:
        async with fetch.request("GET", url, private=False, timeout=5) as response:
            return response.status_code

    with site(lambda h: send(h, b"secret"), "127.0.0.2") as inside:
        ways = {f"{inside}/a": "private and local addresses", "file:///etc/passwd": "only https", "/again": "redirects",
                "http://[::1": "no URL"}  # fmt: skip
        for target, message in ways.items():
            redirect = site(lambda h, to=target: send(h, b"", 302, Location=to))  # type: ignore[misc]
            with redirect as outside, pytest.raises(fetch.FetchError, match=message):
                asyncio.run(get(outside))


def test_a_name_that_changes_its_address_after_the_check_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the address that was checked is the one that is connected to."""
    looked_up = []

    async def get(port: int) -> str:
        def look_up(host: str, _port: int) -> list[str]:
            looked_up.append(host)
            return ["127.0.0.1" if len(looked_up) == 1 else "10.0.0.1"]

        monkeypatch.setattr(fetch, "look_up", look_up)
        async with fetch.request("GET", f"http://rebinds.test:{port}/", private=True, timeout=5) as response:
            return (await response.aread()).decode()

    with site(lambda h: send(h, h.headers["Host"].encode())) as url:
        port = url.rpartition(":")[2]
        assert asyncio.run(get(int(port))) == f"rebinds.test:{port}"
    assert looked_up == ["rebinds.test"]


def test_over_tls_the_checked_address_is_connected_to_and_the_name_is_verified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority, asked_for = trustme.CA(), []
    authority.cert_pem.write_to_path(str(tmp_path / "ours.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours.pem"))  # as a company with an authority of its own does
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")

    async def get(host: str, port: int) -> str:
        answers = iter(["127.0.0.1", "10.0.0.1"])  # a second look-up would lead inside

        monkeypatch.setattr(fetch, "look_up", lambda _host, _port: [next(answers)])
        async with fetch.request("GET", f"https://{host}:{port}/", private=False, timeout=5) as response:
            return (await response.aread()).decode()

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("rebinds.test").configure_cert(tls)
    tls.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    with site(lambda h: send(h, h.headers["Host"].encode()), tls=tls) as url:
        port = int(url.rpartition(":")[2])
        assert asyncio.run(get("rebinds.test", port)) == f"rebinds.test:{port}"
        with pytest.raises(fetch.FetchError, match="ConnectError"):
            asyncio.run(get("somebody-else.test", port))
    assert asked_for == ["rebinds.test", "somebody-else.test"]


def test_a_token_is_not_sent_on_to_where_a_redirect_leads() -> None:
    seen = []

    async def get(url: str) -> None:
        async with fetch.request("GET", url, private=True, timeout=5, token=TOKEN) as response:
            assert response.status_code == 200

    def note(handler: BaseHTTPRequestHandler, status: int = 200, **headers: str) -> None:
        seen.append(handler.headers.get("Authorization"))
        send(handler, b"", status, **headers)

    with site(note) as other, site(lambda h: note(h, 302, Location=other)) as first:
        asyncio.run(get(first))
    assert seen == [f"Bearer {TOKEN}", None]


def endless(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"")
    with suppress(ConnectionError):
        for _ in range(1000):
            handler.wfile.write(b"x" * 100_000)


def slow(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"x")
    time.sleep(4)


HOSTILE: dict[str, tuple[Answer, str]] = {
    "announces more than the limit": (lambda h: send(h, b"", Content_Length="99999999"), "larger than"),
    "never ends": (endless, "larger than"),
    "trickles": (slow, "not finished after"),
    "is a web page": (lambda h: send(h, b"<html>log in</html>"), "not a whole safetensors file"),
    "is compressed": (lambda h: send(h, zlib.compress(b"x" * 10**6), Content_Encoding="deflate"), "compressed"),
    "is not there": (lambda h: send(h, b"", 404), "answered 404"),
    "breaks off": (lambda h: send(h, b"x", Content_Length="1000"), "RemoteProtocolError"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_download_that(open_client: TestClient, what: str) -> None:
    answer, message = HOSTILE[what]
    app_settings: Settings = open_client.app.state.settings  # type: ignore[attr-defined]
    kept = set((app_settings.state / "loras").iterdir())
    with site(answer) as url:
        result = failed(open_client, body(f"{url}/lora.safetensors?signature={TOKEN}"))
    assert result["error_code"] == "LORA_DOWNLOAD_FAILED" and message in result["error"]
    assert TOKEN not in json.dumps(result)
    assert set((app_settings.state / "loras").iterdir()) == kept, "something was left behind"


def test_a_download_with_another_hash_is_refused(open_client: TestClient, lora_of: LoraOf) -> None:
    content = lora_of("sd15/lora").read_bytes()
    with site(lambda h: send(h, content)) as url:
        sent = body()
        sent["loras"] = [{"path": f"{url}/lora.safetensors", "sha256": "0" * 64}]
        assert "sha256" in failed(open_client, sent)["error"]


# ---------------------------------------------------------------------------------------------------- control images


def picture(format: str = "PNG", size: tuple[int, int] = (64, 64), exif: bytes = b"") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, format, exif=exif)
    return base64.b64encode(buffer.getvalue()).decode()


def bomb(side: int) -> str:
    """A small PNG of side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compressobj(9)
    rows = b"".join(pixels.compress(bytes(side // 8 + 1)) for _ in range(side)) + pixels.flush()
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return base64.b64encode(png + chunk(b"IDAT", rows) + chunk(b"IEND", b"")).decode()


IMAGES = {
    "a bomb": bomb(20_000),
    "too many pixels": picture(size=(1001, 1000)),
    "too many bytes": base64.b64encode(bytes(1_100_000)).decode(),
    "another format": picture("TIFF"),
    "yet another": picture("ICO"),
    "cut off": picture()[:60],
    # To be turned, and as wide as "hi": Pillow raises a struct.error.
    "lying in its EXIF": picture(
        exif=bytes.fromhex("4d4d002a00000008000201000002000000036869000001120003000000010006000000000000")
    ),
    "SVG": base64.b64encode(b"<svg/>").decode(),
    "a path": "/etc/passwd",
    "a path above": "../../etc/passwd",
    "a file URL": "file:///etc/passwd",
    "no base64": "data:image/png;base64,????",
}


@pytest.mark.parametrize("what", IMAGES)
def test_a_control_image_is_refused_that_is(client: TestClient, folder: Path, what: str) -> None:
    started = time.monotonic()
    assert refused(client, body(ctrl_img=IMAGES[what])) == "CONTROL_IMAGE_INVALID"
    assert time.monotonic() - started < 5
    assert not list(folder.rglob("controls/*/*")), "something was left behind"


# ------------------------------------------------------------------------------------------- bodies, keys and secrets


def test_a_body_above_the_cap_is_refused_even_without_a_length(client: TestClient) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 100_000

    assert client.post("/v1/inference", content=b" " * 3_000_000).status_code == 413
    assert client.post("/v1/inference", content=pieces()).status_code == 413
    assert client.post("/v1/images/edits", content=pieces()).status_code in (413, 400)


IMPOSSIBLE = {
    "not a number": b'"ttl": NaN',
    "infinity": b'"ttl": 1e999',
    "a number of 5000 digits": b'"ttl": ' + b"9" * 5000,
    "half a character in a name": b'"\\ud800": 1',
    "half a character in a value": b'"trigger_word": "\\udfff"',
    "half a character in a path": b'"loras": [{"path": "\\ud800.safetensors"}]',
    "half a character in a URL": b'"webhook_url": "https://a.example/\\ud800"',
    "half a character in an image's URL": b'"model": "flux_kontext", "prompts": [{"prompt": "a", "ctrl_img": '
    b'"https://127.0.0.1/\\ud800"}]',
    "half a character in a token": b'"hf_token": "\\ud800"',
    "a zero in a token": b'"hf_token": "a\\u0000"',
    "another type": b'"hf_token": ["secret"]',
    "depth": b"[" * 100_000,
    "no UTF-8": b"\xff",
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_body_is_refused_and_not_echoed_that_has(client: TestClient, what: str) -> None:
    sent = json.dumps(body()).encode()[:-1] + b", " + IMPOSSIBLE[what] + b"}"
    answer = client.post("/v1/inference", content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and answer.json()["detail"]
    assert "input" not in answer.text and "secret" not in answer.text


def test_no_other_origin_may_read_unless_configured(client: TestClient, tmp_path: Path) -> None:
    evil = {"Origin": "https://evil.example"}
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=evil).headers
    configured = TestClient(create_app(settings(tmp_path, cors_origins="https://good.example")), "http://localhost")
    good = configured.get("/healthz", headers={"Origin": "https://good.example"})
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-credentials" not in good.headers
    assert "access-control-allow-origin" not in configured.get("/healthz", headers=evil).headers


@pytest.mark.parametrize(
    "headers, code",
    [({"Host": "rebinds.example:8000"}, "HOST_UNKNOWN"), ({"Host": "127.0.0.1.rebinds.example"}, "HOST_UNKNOWN"),
     ({"Origin": "https://evil.example"}, "ORIGIN_FORBIDDEN"), ({"Origin": "http://localhost:9"}, "ORIGIN_FORBIDDEN"),
     ({"Origin": "null"}, "ORIGIN_FORBIDDEN")],
)  # fmt: skip
def test_a_web_page_neither_asks_nor_reads_through_its_reader_where_no_key_is_set(
    client: TestClient, headers: dict[str, str], code: str
) -> None:
    """By a form, which no browser asks leave for, or by a name that is let lead to this machine."""
    form = {"model": "sd15", "prompt": "a", "image": "x"}
    for answer in (client.post("/v1/images/edits", data=form, headers=headers),
                   client.get("/v1/models", headers=headers)):  # fmt: skip
        assert answer.status_code == 403 and code in answer.text


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://localhost"}, {"Host": "192.168.1.5:8000"}, {"Host": "[::1]:8000"}, {"Host": "gpu.example"},
     {"Host": "gpu-box:8000"},
     {"Host": "10.0.0.1:8000", "Origin": "https://gpu.example"}],
)  # fmt: skip
def test_ones_own_names_and_pages_may_ask_without_a_key(tmp_path: Path, headers: dict[str, str]) -> None:
    with TestClient(create_app(settings(tmp_path, base_url="https://gpu.example/api")), "http://localhost") as mine:
        assert mine.get("/v1/models", headers=headers).status_code == 200


def test_everything_but_health_and_documentation_wants_the_api_key(tmp_path: Path) -> None:
    with TestClient(create_app(settings(tmp_path, api_key=KEY))) as locked:
        paths = locked.get("/openapi.json").json()["paths"]
        for path, methods in paths.items():
            for method in methods:
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": KEY + "x"}):
                    status = locked.request(method, path, headers=headers).status_code
                    assert status == 401 or path in ("/", "/healthz", "/readyz"), (method, path)
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}):
            assert locked.get("/v1/models", headers=headers).status_code == 200


def test_secrets_are_in_no_answer_log_or_file_when_a_request_has_ended(
    client: TestClient, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hook, signed = "https://127.0.0.1/hooks/T0KEN?key=T0KEN", "https://10.0.0.1/lora.safetensors?signature=T0KEN"
    sent = {**body(signed), "hf_token": TOKEN, "webhook_url": hook}
    seen = json.dumps(failed(client, sent))
    accepted = client.post("/v1/inference", json={**body(), "hf_token": TOKEN})
    request_id = accepted.json()["request_id"]
    client.delete(f"/v1/requests/{request_id}")
    assert ended(client, request_id)["status"] == "canceled"
    seen += accepted.text + client.get(f"/v1/requests/{request_id}/status").text + client.get("/metrics").text
    time.sleep(2.5)  # the webhook's first try, and the next tidying
    seen += "".join(capfd.readouterr())
    assert TOKEN not in seen and "T0KEN" not in seen
    state = folder / "outputs" / ".server"
    assert state.stat().st_mode & 0o077 == 0 and (state / "queue.sqlite").stat().st_mode & 0o077 == 0
    kept = b"".join(file.read_bytes() for file in state.rglob("*") if file.is_file())
    assert TOKEN.encode() not in kept, "an ended request's token was kept"
    assert b"signature" not in kept, "an ended request's signed URL was kept"
