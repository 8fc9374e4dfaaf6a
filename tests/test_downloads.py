"""`lora-drift download` and `doctor`, against a hub on this machine that counts what is asked of it."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from lora_drift.harness.machine import doctor, downloads
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import MODELS, RequestError
from lora_drift.pipelines.registry import ROWS

SOON = 3.0
"""Seconds in which a cause is to be said, without what Python takes to start, which is much on a busy machine."""
SHARED = ("sd15", "zimage_turbo")
"""Rendered from what was downloaded; others only compare the table with what they open."""


class Hub(BaseHTTPRequestHandler):
    """The part of huggingface.co's API that downloads use, over the files of the mini hub."""

    root: ClassVar[Path]
    gated: ClassVar[set[str]] = set()
    fetched: ClassVar[list[tuple[str, str]]] = []

    def snapshot(self, repo: str) -> Path:
        return factory.snapshot(self.root, repo)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.api("/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts:
            self.file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self.send_error(404)

    def api(self, repo: str, rest: list[str]) -> None:
        if not (self.root / "hub" / f"models--{repo.replace('/', '--')}").is_dir():
            self.answer(401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"})
        elif rest == ["auth-check"] and repo in self.gated:
            self.refuse(repo)
        else:
            folder = self.snapshot(repo)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if rest[:1] == ["tree"]:
                entries = [(str(f.relative_to(folder)), f.stat().st_size) for f in files]
                self.answer(200, [{"type": "file", "path": p, "size": size, "oid": "0"} for p, size in entries])
                return
            self.answer(200, {
                "_id": "1", "id": repo, "modelId": repo, "sha": folder.name, "private": False, "disabled": False,
                "gated": "auto" if repo in self.gated else False, "downloads": 0, "likes": 0, "tags": [],
                "cardData": {"license": "a-licence"},
                "siblings": [{"rfilename": str(f.relative_to(folder)), "size": f.stat().st_size} for f in files],
            })  # fmt: skip

    def refuse(self, repo: str) -> None:
        self.answer(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"{repo} is gated"})

    def file(self, repo: str, name: str) -> None:
        path = self.snapshot(repo) / name
        if repo in self.gated:
            self.refuse(repo)
        elif not path.is_file():
            self.answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": path.parent.name})
        else:
            content = path.read_bytes()
            start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", self.snapshot(repo).name)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if self.command == "GET":
                self.fetched.append((repo, name))
                self.wfile.write(content[start:])

    def answer(
        self, status: int, said: dict[str, Any] | list[dict[str, Any]], headers: dict[str, str] | None = None
    ) -> None:
        content = json.dumps(said).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    """Address of a hub that holds the mini hub's repositories."""
    Hub.root = factory.build()
    Hub.gated, Hub.fetched = set(), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def lora_drift(*args: object, endpoint: str, home: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """The command with a cache and a hub of its own. HF_HUB_OFFLINE and tokens of this machine do not count."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LORA_DRIFT_OWN", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}
    command = [sys.executable, "-m", "lora_drift.harness.cli.main", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def files_in(home: Path) -> set[tuple[str, str]]:
    """(repository, file), of a cache."""
    return {
        (path.parts[0].removeprefix("models--").replace("--", "/", 1), "/".join(path.parts[3:]))
        for path in (file.relative_to(home / "hub") for file in (home / "hub").glob("models--*/snapshots/*/**/*"))
        if (home / "hub" / path).is_file()
    }


# ------------------------------------------------------------------------------------------------------------ the list


@pytest.mark.parametrize("model", [pytest.param(m, marks=() if m in SHARED else pytest.mark.slow) for m in MODELS])
def test_the_list_is_what_loading_and_rendering_open(model: str, tmp_path: Path) -> None:
    out = tmp_path / "downloads.json"
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "record_downloads.py", model, "--out", out],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text()) == {model: downloads.table()[model]}


def test_every_model_has_its_list() -> None:
    assert set(downloads.table()) == set(ROWS)


@pytest.mark.parametrize("model", SHARED)
def test_a_downloaded_model_renders_without_the_hub_and_holds_nothing_else(
    model: str, hub: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    done = lora_drift("download", model, endpoint=hub, home=home)
    assert done.returncode == 0, done.stderr
    got = {(repo, downloads.whole(name)) for repo, name in files_in(home)}
    listed = {(repo, name) for repo, names in downloads.table()[model].items() for name in names}
    assert listed <= got
    assert {name for _, name in got - listed} <= {"tokenizer/merges.txt", "tokenizer/vocab.json"}, "of older releases"
    ask = ("sample", "-m", model, "-p", "a fox", "--width", 64, "--height", 64, "--steps", 2)
    full = lora_drift(*ask, "-o", tmp_path / "full.png", endpoint="http://127.0.0.1:9", home=home, HF_HUB_OFFLINE="1")
    assert full.returncode == 0, full.stderr
    mini = lora_drift(*ask, "--mini", "-o", tmp_path / "mini.png", endpoint=hub, home=home)
    assert mini.returncode == 0, mini.stderr
    pixels = [json.loads((tmp_path / f"{name}.png.json").read_text())["pixels_sha256"] for name in ("full", "mini")]
    assert pixels[0] == pixels[1]
    Hub.fetched.clear()
    again = lora_drift("download", model, endpoint=hub, home=home)
    assert (again.returncode, Hub.fetched) == (0, [])
    assert "all of it in the cache" in again.stdout


# -------------------------------------------------------------------------------------------------------- what it says


def test_a_dry_run_says_how_much_and_fetches_nothing(hub: str, tmp_path: Path) -> None:
    done = lora_drift("download", "sd15", "--dry-run", "--json", endpoint=hub, home=tmp_path)
    (said,) = json.loads(done.stdout)
    (part,) = said["repositories"]
    folder = factory.snapshot(factory.build(), MODELS["sd15"].base)
    assert said["bytes"] == said["missing_bytes"] == sum((folder / f["path"]).stat().st_size for f in part["files"])
    assert (part["licence"], part["gated"], part["page"]) == ("a-licence", False, f"{hub}/{MODELS['sd15'].base}")
    assert not any("safety_checker" in file["path"] for file in part["files"])
    text = lora_drift("download", "sd15", "--dry-run", endpoint=hub, home=tmp_path).stdout
    assert text.startswith(f"sd15: {len(part['files'])} files, ")
    assert "unet/diffusion_pytorch_model.safetensors" in text
    assert (Hub.fetched, files_in(tmp_path)) == ([], set())


def test_an_interrupted_download_goes_on(hub: str, tmp_path: Path) -> None:
    assert lora_drift("download", "sd15", endpoint=hub, home=tmp_path).returncode == 0
    (lost,) = (tmp_path / "hub").glob("models--*/snapshots/*/unet/*.safetensors")
    lost.unlink()
    Hub.fetched.clear()
    assert lora_drift("download", "sd15", endpoint=hub, home=tmp_path).returncode == 0
    assert {name for _, name in Hub.fetched} <= {"unet/diffusion_pytorch_model.safetensors"}
    assert lost.is_file()


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


FLUX = ("sample", "-m", "flux", "-p", "a fox", "-o", "out.png")


@pytest.mark.parametrize("command", [("download", "flux"), FLUX], ids=["download", "sample"])
def test_without_a_network_the_cause_comes_first_and_soon(command: tuple[str, ...], tmp_path: Path) -> None:
    endpoint, begun = closed_port(), time.monotonic()
    done = lora_drift(*command, endpoint=endpoint, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {endpoint} cannot be reached (")
    assert "Retrying" not in done.stderr
    assert time.monotonic() - begun < SOON + started()


@pytest.mark.parametrize("command", [("download", "flux"), FLUX], ids=["download", "sample"])
def test_a_gated_repository_is_named_with_the_page_to_accept(
    command: tuple[str, ...], hub: str, tmp_path: Path
) -> None:
    Hub.gated = {MODELS["flux"].base}
    begun = time.monotonic()
    done = lora_drift(*command, endpoint=hub, home=tmp_path)
    assert (done.returncode, done.stdout, Hub.fetched) == (2, "", [])
    page = f"{hub}/{MODELS['flux'].base}"
    assert done.stderr == (
        f"error: {MODELS['flux'].base} is gated: accept its licence at {page}, and then run `hf auth login`.\n"
    )
    assert time.monotonic() - begun < SOON + started()
    granted = lora_drift(*command, endpoint=hub, home=tmp_path, HF_TOKEN="hf_secret")
    assert "wait until access is granted" in granted.stderr
    assert "hf_secret" not in granted.stderr


def started() -> float:
    """Seconds that this machine takes now for a command that asks nobody and imports as much."""
    begun = time.monotonic()
    lora_drift("doctor", endpoint="http://127.0.0.1:9", home=Path("nowhere"))
    return time.monotonic() - begun


def test_a_repository_that_is_not_there_is_said(hub: str, tmp_path: Path) -> None:
    done = lora_drift(*FLUX, "--base", "no/such", endpoint=hub, home=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no/such: the hub has no such repository, or it is private")


def test_a_folder_that_is_not_there_is_no_repository(tmp_path: Path) -> None:
    done = lora_drift(*FLUX, "--base", "./no such folder", endpoint=closed_port(), home=tmp_path)
    assert done.returncode == 2
    assert "neither a folder that is here nor a hub id" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = downloads.Part("a/b", f"{hub}/a/b", "mit", False, (downloads.File("x", 5_000_000_000, False),))
    monkeypatch.setattr(downloads, "free_space", lambda: 1_000_000_000)
    with pytest.raises(RequestError, match=r"no space: 5.0 GB are to be fetched, and .* has 1.0 GB left"):
        downloads.check_space([part])
    downloads.check_space([downloads.Part("a/b", "", "mit", False, (downloads.File("x", 5_000_000_000, True),))])


def test_shards_of_the_real_repository_are_fetched_and_other_precisions_are_not() -> None:
    there = ["t/w.safetensors.index.json", "t/w-00001-of-00002.safetensors", "t/w-00002-of-00002.safetensors",
             "t/w.fp16.safetensors", "t/config.json", "t/w.bin", "tok/tokenizer_config.json", "tok/added_tokens.json",
             "README.md", "v/w.safetensors", "v/w-00001-of-00001.safetensors"]  # fmt: skip
    wanted = ["t/w.safetensors", "t/config.json", "tok/tokenizer_config.json", "v/w.safetensors"]
    assert set(downloads._chosen(wanted, there)) == {
        *there[:3], "t/config.json", "tok/tokenizer_config.json", "tok/added_tokens.json", "v/w.safetensors",
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- doctor


def test_what_a_model_takes_is_computed_from_the_headers_of_its_files(hub: str, tmp_path: Path) -> None:
    """Nothing is stored, and a model that is gated for this account says so in its line."""
    asked = ("models", "sd15", "--fits", "24", "--json")
    (told,) = json.loads(lora_drift(*asked, endpoint=hub, home=tmp_path).stdout)
    stored = sum(f["bytes"] for r in told["repositories"] for f in r["files"] if f["path"].endswith(".safetensors"))
    assert told["gb"]["weights"] == pytest.approx(stored / 2e9, rel=0.1), "stored in float32"
    assert told["fits"] == "whole" and told["repositories"][0]["licence"] == "a-licence"
    assert list(tmp_path.rglob("*.safetensors")) == []
    Hub.gated = {told["repositories"][0]["repo"]}
    (told,) = json.loads(lora_drift(*asked, endpoint=hub, home=tmp_path).stdout)
    assert "gated" in told["problem"] and told["fits"] is None


def test_the_doctor_tells_what_is_here_and_keeps_the_token_to_itself(tmp_path: Path) -> None:
    done = lora_drift("doctor", "--json", endpoint="http://127.0.0.1:9", home=tmp_path / "none", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["hub"] == {"endpoint": "http://127.0.0.1:9", "offline": False, "token": True}
    assert found["cache"]["folder"] == str(tmp_path / "none" / "hub")
    assert (found["cache"]["exists"], found["models_in_cache"]) == (False, [])
    assert found["cache"]["free"] > 0 and found["cpu"]["cores"] == os.cpu_count()
    assert {"lora-drift", "torch", "diffusers", "transformers"} <= set(found["versions"])


def test_the_doctor_sees_models_that_are_whole(tmp_path: Path) -> None:
    done = lora_drift("doctor", "--json", endpoint="http://127.0.0.1:9", home=factory.build(), HF_HUB_OFFLINE="1")
    found = json.loads(done.stdout)
    assert found["models_in_cache"] == list(MODELS)
    assert found["hub"] == {"endpoint": "http://127.0.0.1:9", "offline": True, "token": False}
    text = lora_drift("doctor", endpoint="http://127.0.0.1:9", home=tmp_path).stdout
    assert "token absent" in text and "! no token: gated models" in text


def test_what_fits_is_what_was_measured_to_fit() -> None:
    assert set(doctor.peaks()) <= set(MODELS)
    assert [model for model, peak in doctor.peaks().items() if peak < 24] == [
        "sdxl", "flux2_klein_4b", "wan21_1b", "zimage_turbo",
    ]  # fmt: skip
