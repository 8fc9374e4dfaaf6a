"""The documentation site: every page is in it, links lead somewhere, search finds every model, axe finds nothing."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe

from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import MODELS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LARGE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
BIN = Path(sys.executable).parent


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "mkdocs"), "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the site is made from, to be changed."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for path in ROOT.iterdir():
        if path.is_dir() and not (tmp_path / path.name).exists() and path.name != "build":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "LICENSE").touch()
    return tmp_path


def test_links_that_lead_nowhere_and_pages_that_the_navigation_lacks_are_errors(checkout: Path) -> None:
    (checkout / "docs" / "new.md").write_text("# New\n")
    wrong = {
        "docs/report.md": "nowhere.md",
        "docs/matrix.md": "glossary.md#no-such-word",
        "README.md": "docs/models/no-such-model.md",
        "docs/models/flux.md": "../../cases/flux/no-such-case.yaml",
    }
    for page, link in wrong.items():
        with (checkout / page).open("a") as file:
            file.write(f"\n[there]({link})\n")
    done = build(checkout, checkout / "out")
    assert done.returncode == 1
    for said in ("new.md", "nowhere.md", "no-such-word", "no-such-model.md", "no-such-case.yaml"):
        assert said in done.stderr, done.stderr


def test_search_finds_every_model(site: Path) -> None:
    found = {entry["location"] for entry in json.loads((site / "search" / "search_index.json").read_text())["docs"]}
    assert [model for model in MODELS if f"models/{model}/" not in found] == []


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


PLACES = ("", "models/", "models/flux/", "report/", "server/", "install/", "comfyui/", "diagnose/",
          "tutorials/serve/")  # fmt: skip
"""Pages with all kinds of content: tables, pictures, and code in each language."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LARGE, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious_and_nothing_is_asked_of_others(
    browser: Browser, address: str, scheme: str, size: dict[str, int]
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport=size)  # type: ignore[arg-type]
    asked: list[str] = []
    for place in PLACES:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address + place)
        found = Axe().run(page).response["violations"]
        serious = {f["id"]: [n["html"] for n in f["nodes"]] for f in found if f["impact"] in ("serious", "critical")}
        assert serious == {}, place
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], place
        if shots := os.environ.get("LORA_DRIFT_SCREENSHOTS"):
            page.screenshot(
                path=Path(shots) / f"site-{place.strip('/').replace('/', '-')}-{size['width']}-{scheme}.png"
            )
    context.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
