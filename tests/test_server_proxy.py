"""The reverse-proxy recipe of docs/server.md, run by Debian's nginx."""

import re
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx2 as httpx
import pytest
import trustme
from pydantic import SecretStr

from lora_drift.server.local import ROOT
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.store import New
from tests.test_server_network import serving

RECIPE = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "server.md").read_text(encoding="utf-8"), re.DOTALL)
KEY = {"X-API-Key": "the-api-key"}


def test_the_recipe_brings_tls_limits_and_the_clients_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if nginx is None:
        pytest.skip("no nginx on the PATH (apt-get install nginx): the recipe was not run")
    (recipe,) = RECIPE
    authority = trustme.CA()
    certificate = authority.issue_cert("gpu.example")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "gpu.pem"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        outside = probe.getsockname()[1]
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with serving(tmp_path, monkeypatch, api_key=SecretStr(KEY["X-API-Key"]), base_url="https://gpu.example") as (
        port,
        service,
    ):
        text = recipe.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace(
            "listen 443", f"listen 127.0.0.1:{outside}"
        )
        text = re.sub(r"/etc/ssl/gpu.example.(pem|key)", str(tmp_path / "gpu.pem"), text)
        places = "".join(
            f"{what}_temp_path {tmp_path}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = text.replace("http {", f"http {{ access_log off; {places}", 1)
        (tmp_path / "nginx.conf").write_text(f"daemon off; pid {tmp_path}/pid; error_log stderr;\n{text}")
        proxy = subprocess.Popen([nginx, "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
        try:
            sni = {"sni_hostname": "gpu.example"}
            client = httpx.Client(
                base_url=f"https://127.0.0.1:{outside}", verify=trusted, headers={"Host": "gpu.example"}
            )
            deadline = time.monotonic() + 20
            while True:
                try:
                    assert client.get("/healthz", extensions=sni).status_code == 200
                    break
                except httpx.ConnectError:
                    assert proxy.poll() is None and time.monotonic() < deadline
                    time.sleep(0.1)
            assert client.get("/v1/models/sd15", extensions=sni).status_code == 401
            assert client.get("/v1/models/sd15", headers=KEY, extensions=sni).json()["id"] == "sd15"
            large = client.post("/v1/inference", content=b" " * (65 << 20), headers=KEY, extensions=sni)
            assert large.status_code == 413 and "nginx" in large.text
            seen = list[str]()
            monkeypatch.setattr(service, "prepare", lambda _row, address: seen.append(address))
            service.store.add(New(Job(id="one", model="sd15", loras=[], prompts=[], output_folder=""), Secrets()))
            service.dispatcher.wake()
            with client.stream("GET", "/v1/requests/one/events", headers=KEY, extensions=sni) as stream:
                began, steps = time.monotonic(), 0
                for line in stream.iter_lines():
                    steps += line.startswith("data: ")
                    if steps == 3:
                        break
            assert time.monotonic() - began < 10, "events were held back"
            answer = client.post("/v1/inference", json={
                "model": "sd15", "loras": [{"path": "https://192.0.2.1/a"}], "prompts": [{"prompt": "a"}],
            }, headers={**KEY, "X-Forwarded-For": "10.1.1.1"}, extensions=sni)  # fmt: skip
            assert answer.status_code == 200 and answer.json()["status_url"].startswith("https://gpu.example/")
            assert seen == ["127.0.0.1"], "not what the client says of itself"
            codes = [client.get("/healthz", extensions=sni).status_code for _ in range(300)]
            assert codes.count(503) > 20 and codes[0] == 200, "the limit of requests"
        finally:
            proxy.terminate()
            proxy.wait(10)
