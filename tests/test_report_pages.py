"""The pages that docs/ shows, in a real browser: a run with an injected drift, and the overview.

`LORA_DRIFT_SCREENSHOTS=docs` takes the pictures.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from typer.testing import CliRunner

from lora_drift.harness.check import cases, results, runner
from lora_drift.harness.check.results import Metric, Result
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.cli.main import app
from lora_drift.harness.paths import ROOT
from lora_drift.harness.report import overview
from lora_drift.harness.report.render import render

if TYPE_CHECKING:
    from conftest import Reader

LARGE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def injected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four real checks; in one of them our side has lost the negative prompt. Then their drifts are explained."""
    folder = tmp_path_factory.mktemp("injected")
    bench = Bench()
    right, found = bench.settings, []
    for case in [c for c in cases.load_all() if c.model == "sd15"]:
        with pytest.MonkeyPatch.context() as patch:
            if case.id == "sd15/lora":
                patch.setattr(bench, "settings", lambda c: replace(right(c), negative_prompt=""))
            found.append(runner.check(bench, case, folder))
    file = folder / "results.jsonl"
    results.write(file, found)
    explained = CliRunner().invoke(app, ["diagnose", "--results", str(file), "--top", "5"])
    assert explained.exit_code == 0, explained.output
    return render(results.read(file), runner.newest_tag(), folder, ROOT)


def test_the_first_screen_names_model_stage_and_cause(reader: Reader, injected: Path) -> None:
    page = reader.open(injected)
    card = page.locator(".card")
    expect(card).to_have_count(1)
    told = ("sd15/lora", "prompt embeds: negative (text_encoder)", 'Explained by "negative prompt ignored"',
            "Settings differ: negative_prompt blurry, low quality → none")  # fmt: skip
    for text in told:
        box = card.get_by_text(text).first.bounding_box()
        assert box is not None and box["y"] + box["height"] < LARGE["height"], text
    checks = len(list((ROOT / "cases" / "sd15").glob("*.yaml")))
    expect(page.locator(".lede")).to_contain_text(
        f"{checks - 1} of {checks} checks match the trainer (miniature models, CPU, float32); 1 needs attention."
    )
    reader.shot(page, "report.png")
    page.get_by_role("link", name="sd15/lora", exact=True).first.click()
    expect(page.locator("#case article")).to_be_visible()
    expect(page.locator("#case article").locator(".diagnosis tbody tr")).to_have_count(5)
    expect(page.locator("#case article").locator(".diagnosis tbody tr").first).to_contain_text(
        "negative prompt ignored"
    )
    page.set_viewport_size({"width": 1280, "height": 1360})
    reader.shot(page, "report-case.png")
    dark = reader.open(injected, "#case-sd15-lora", color_scheme="dark", viewport={"width": 1280, "height": 1000})
    expect(dark.locator("#case article")).to_be_visible()
    dark.keyboard.press("5")
    expect(dark.locator(".pane figcaption b")).to_have_text("heat map")
    reader.shot(dark, "report-dark.png")
    phone = reader.open(injected, viewport=PHONE)
    expect(phone.locator(".card")).to_be_visible()
    reader.shot(phone, "report-phone.png")


MATRIX = {
    "tag": "v1", "mode": "plain", "counts": {"green": 1, "drift": 1, "not installable": 2}, "models": ["flux", "sd15"],
    "combinations": [
        {"diffusers": "0.40.0", "transformers": "5.0", "models": {
            "flux": {"status": "drift", "cases": "1 of 1", "boundary": "schedule/sigmas", "pixel_max": 31.0},
            "sd15": {"status": "lacks", "message": "too old"}}},
        {"diffusers": "0.41.0", "transformers": "4.0", "not_installable": "conflict", "models": {}},
        {"diffusers": "0.9.0", "transformers": "5.0", "models": {"flux": "green", "sd15": "green"}},
    ],
    "findings": [{"model": "flux", "first": {"diffusers": "0.40.0"}, "transformers": ["5.0"], "size": "up to 31",
                  "bisection": {"commit": "0123abc", "date": "2026-05-28", "subject": "Round <sigmas>"},
                  "paragraph": "**flux:** begins with `abc`.\n\n```python\npipe()\n```", "script": "pipe()"}],
}  # fmt: skip


def test_the_overview_has_a_row_a_model_over_tags_and_releases(reader: Reader, tmp_path: Path) -> None:
    def run(folder: str, verdict: str, latents: float) -> None:
        metrics = [Metric(name="latents_rel_l2", value=latents, gate=1e-5), Metric(name="pixel_max", value=1)]
        fixed = {"case": "flux/base", "model": "flux", "tag": "v1", "tier": "mini", "device": "cpu", "dtype": "float32"}
        found = Result.model_validate({**fixed, "verdict": verdict, "metrics": metrics})
        render([found], "v1", tmp_path / folder, tmp_path)

    run("v1", "match", 1e-6)
    run("v1/diffusers-0.40", "drift", 1e-2)
    (tmp_path / "matrix-plain.json").write_text(json.dumps(MATRIX))
    page = reader.open(overview.render(tmp_path, tmp_path))
    versions = page.locator("thead .version").all_text_contents()
    assert versions == ["v1", "v1/diffusers-0.40", "0.9.0 × 5.0", "0.40.0 × 5.0"], "releases by number"
    flux = page.locator("tbody tr", has_text="flux").locator(".cell")
    said = [
        "1/1 1 of 1 pass; largest pixel difference 1 of 255",
        "0/1 0 of 1 pass, the worst is drift",
        "✓ green",
        "31 drifted, 1 of 1",
    ]
    assert all(cell.startswith(start) for cell, start in zip(flux.all_text_contents(), said, strict=True))
    expect(page.get_by_role("img", name="worst latents error from 1e-6 to 0.01")).to_be_visible()
    expect(page.locator("dl.lede")).to_contain_text("1 green, 1 drifted. pip cannot install 0.41.0 × 4.0")
    page.locator(".finding summary").click()
    expect(page.locator(".finding p")).to_have_text(
        ["flux: begins with abc.", "Diffusers' commit of 2026-05-28: Round <sigmas>"]
    )
    link = page.get_by_role("link", name="Round <sigmas>")
    expect(link).to_have_attribute("href", "https://github.com/huggingface/diffusers/commit/0123abc")
    found = Axe().run(page).response["violations"]
    assert [f["id"] for f in found if f["impact"] in ("serious", "critical")] == []
    page.get_by_role("link", name="v1/diffusers-0.40").click()
    expect(page.locator(".lede")).to_contain_text("0 of 1 checks match the trainer")


def test_the_overview_of_what_is_committed(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(overview.render(ROOT / "reports", tmp_path), viewport={"width": 1280, "height": 1000})
    expect(page.locator("tbody th", has_text="flux_kontext")).to_be_visible()
    assert page.locator("thead .version").count() > 12, "releases beside the tags"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    reader.shot(page, "overview.png")
