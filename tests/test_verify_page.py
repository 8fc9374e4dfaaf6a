"""The page of a verified job, in a browser: its title, the viewer, samples without their LoRA, a phone, axe."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from typer.testing import CliRunner

from lora_drift.harness.cli.main import app
from lora_drift.harness.paths import ROOT

if TYPE_CHECKING:
    from conftest import Reader

LARGE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


def verified(job: Path, out: Path, *options: str) -> Path:
    done = CliRunner().invoke(app, ["verify", str(job), "--mini", "--diagnose", "none", "--html", str(out), *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return out / "index.html"


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose file was changed after the training, and that has lost a LoRA."""
    folder = tmp_path_factory.mktemp("wrong")
    shutil.copytree(ROOT / "jobs" / "flux", folder / "flux")
    (folder / "flux" / "flux_000000002.safetensors").unlink()
    config = folder / "flux" / "config.yaml"
    config.write_text(config.read_text().replace("guidance_scale: 4", "guidance_scale: 9"))
    return verified(folder / "flux", folder / "report", "--prompt", "0")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video")
    return verified(ROOT / "jobs" / "wan22_14b_t2v", folder)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose samples have sound."""
    folder = tmp_path_factory.mktemp("loud")
    return verified(ROOT / "jobs" / "ltx2", folder)


def test_the_title_says_first_what_is_wrong(reader: Reader, wrong: Path, video: Path) -> None:
    page = reader.open(wrong)
    expect(page.locator("h1")).to_have_text("flux: 2 differ; 0 of 2 samples are reproduced; 1 without their LoRA")
    expect(page).to_have_title(
        "2 differ; 0 of 2 samples are reproduced; 1 without their LoRA · flux · lora-drift verify"
    )
    expect(reader.open(video).locator("h1")).to_have_text("wan22_14b_t2v: 2 of 2 samples are reproduced")


def test_a_sample_without_its_lora_is_shown_alone(reader: Reader, wrong: Path) -> None:
    cell = reader.open(wrong).locator("article", has_text="Step 2 ")
    expect(cell.locator("figure")).to_have_count(1)
    expect(cell.locator("figcaption")).to_have_text("sample")
    expect(cell.get_by_role("button")).to_have_count(0)


def test_the_viewer_compares_the_sample_with_ours(reader: Reader, wrong: Path) -> None:
    page = reader.open(wrong)
    page.get_by_role("button", name="Compare: Step 4").click()
    expect(page.locator(".pane figcaption b")).to_have_text(["sample", "ours", "difference"])
    page.get_by_role("button", name="Slider").click()
    expect(page.locator(".pane figcaption")).to_contain_text("sample on the left, ours on the right")
    page.get_by_role("button", name="Zoom in").click()
    expect(page.locator(".viewer")).to_have_class("viewer zoomed")
    page.get_by_role("button", name="Compare: Step 0").click()
    expect(page.locator(".viewer")).to_have_count(1)
    page.get_by_role("button", name="Compare: Step 0").click()
    expect(page.locator(".viewer")).to_have_count(0)


def test_the_frames_of_a_video_are_gone_through(reader: Reader, video: Path) -> None:
    page = reader.open(video)
    page.get_by_role("button", name="Compare").first.click()
    page.get_by_label("Frame", exact=True).press("ArrowRight")
    expect(page.locator(".viewer")).to_have_attribute("data-frame", "1")


def test_the_sound_of_a_sample_is_played_beside_ours(reader: Reader, loud: Path, video: Path) -> None:
    page = reader.open(loud)
    first = page.locator("article").first
    expect(first.locator(".sounds figcaption")).to_have_text(["sound: sample", "sound: ours"])
    known = """(audio) => audio.readyState ? audio.duration
      : new Promise((done) => { audio.onloadedmetadata = () => done(audio.duration); })"""
    sample, ours = (first.locator("audio").nth(i).evaluate(known) for i in range(2))
    assert ours == pytest.approx(8 / 24, abs=0.05), "9 frames of 24 a second, of which the first stands for itself"
    assert sample == pytest.approx(ours, abs=1024 * 2 / 24000), "AAC ends at a block of 1024"
    found = Axe().run(page).response["violations"]
    assert {f["id"] for f in found if f["impact"] in ("serious", "critical")} == set()
    page.set_viewport_size({"width": PHONE["width"], "height": PHONE["height"]})
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    expect(reader.open(video).locator("audio")).to_have_count(0)


@pytest.mark.parametrize(("scheme", "size"), [("light", LARGE), ("dark", LARGE), ("light", PHONE), ("dark", PHONE)])
def test_axe_finds_nothing_serious_and_the_page_does_not_scroll_sideways(
    reader: Reader, wrong: Path, scheme: str, size: dict[str, int]
) -> None:
    page = reader.open(wrong, color_scheme=scheme, viewport=size)
    page.get_by_role("button", name="Compare: Step 4").click()
    found = Axe().run(page).response["violations"]
    assert {f["id"]: [n["html"] for n in f["nodes"]] for f in found if f["impact"] in ("serious", "critical")} == {}
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    if shots := os.environ.get("LORA_DRIFT_SCREENSHOTS"):
        page.screenshot(path=Path(shots) / f"verify-{size['width']}-{scheme}.png", full_page=True)
