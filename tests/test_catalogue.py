"""The catalogue says what the committed data say, and nothing older."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_drift.harness import tags
from lora_drift.harness.check import cases, verified_by
from lora_drift.harness.check.divergence import LORA
from lora_drift.harness.cli.main import app
from lora_drift.harness.deviations import mutation_report
from lora_drift.harness.deviations.mutation import Outcome
from lora_drift.harness.machine import doctor
from lora_drift.harness.paths import ROOT
from lora_drift.harness.report import catalogue, history
from lora_drift.harness.report.catalogue import Catalogue
from lora_drift.pipelines import MODELS
from lora_drift.pipelines.registry import ROWS

DOCS = ROOT / "docs" / "models"
NEWEST = tags.newest()


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """One case of flux, checked at the newest tag."""
    control = {"one step fewer": {"pixel_max": 31, "caught": True}, "seed + 1": {"pixel_max": 200, "caught": True}}
    case = {"case": "flux/base", "model": "flux", "verdict": "match", "controls": control,
            "metrics": {"pixel_max": {"value": 1, "gate": 1}, "latents_rel_l2": {"value": 1e-6}}}  # fmt: skip
    folder = tmp_path / "reports" / NEWEST
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"tag": NEWEST, "cases": [case]}))
    return folder.parent


def run(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_no_page_is_stale() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    wanted = catalogue.pages()
    stale = sorted(name for name in written.keys() | wanted.keys() if written.get(name) != wanted.get(name))
    assert stale == [], "write them again: lora-drift models --write docs/models"
    assert verified_by.VERIFIED.read_text(encoding="utf-8") == verified_by.wanted(), "so is verified.json"
    assert doctor.PEAKS.read_text(encoding="utf-8") == catalogue.peaks(), "and peaks.json"


def test_every_model_has_a_page_that_the_index_links() -> None:
    index = catalogue.pages()["README.md"]
    assert all(f"[{model}]({model}.md)" in index for model in MODELS)


def test_a_model_without_results_is_unverified(reports: Path) -> None:
    page = catalogue.pages(Catalogue(reports))["sd15.md"]
    assert f"[{NEWEST}]" in page and "| unverified | – | – |" in page
    assert "cases match" not in page and "Not measured." in page


def test_a_page_tells_status_and_sensitivity_as_measured(reports: Path) -> None:
    page = catalogue.pages(Catalogue(reports))["flux.md"]
    assert "| 1 of 1 cases match | 1/255 | 1e-06 |" in page
    assert "| one step fewer | 31/255 | 1 of 1 |" in page
    assert page.index("one step fewer") < page.index("seed + 1"), "the weakest first"


def test_a_drift_is_no_match(reports: Path) -> None:
    file = reports / NEWEST / "summary.json"
    file.write_text(file.read_text().replace('"match"', '"drift"'))
    assert "| 0 of 1 cases pass (drift) |" in catalogue.pages(Catalogue(reports))["flux.md"]


def test_a_model_that_an_older_trainer_lacks_is_not_unverified_there() -> None:
    assert "the trainer does not have it yet" in catalogue.pages()["ltx2.3.md"]


def test_what_a_trainer_version_changed_is_measured_on_its_own_pictures() -> None:
    def change(model: str) -> str:
        return str(history.change([case for case in cases.load_all() if case.model == model], "v0.7.29.202603241"))

    assert change("flux") == "the same bytes"
    assert re.fullmatch(r"(\d) of \1 cases differ, up to \d\d+/255", change("wan21_1b")), (
        "UniPC's steps begin elsewhere"
    )
    assert history.change(cases.load_all(), "v0.7.19.202601281") is None, "nothing is older"


def test_the_mutation_score_is_shown_once_it_was_measured(reports: Path) -> None:
    (reports / "mutation.json").unlink(missing_ok=True)
    assert "realistic deviations" not in catalogue.pages(Catalogue(reports))["flux.md"]
    defaults = {"case": "flux/base", "truth": LORA, "named": LORA, "distance": 0.1}
    caught: dict[str, Any] = {"verdict": "caught", **defaults}
    found = [
        Outcome(model="flux", variation="shift dropped", **caught),
        Outcome(model="flux", variation="alpha ignored", **{**caught, "verdict": "survived"}),
        Outcome(model="flux", variation="live for merged", **{**caught, "verdict": "equivalent"}),
        Outcome(model="sd15", variation="shift dropped", **caught),
    ]
    mutation_report.write(found, "v1", out=reports / "mutation")
    pages = catalogue.pages(Catalogue(reports))
    assert "the cases notice 1 (`lora-drift mutate`); not alpha ignored. If your picture" in pages["flux.md"]
    assert "the cases notice 1 (`lora-drift mutate`). If your picture" in pages["sd15.md"]
    assert f"| {LORA} | shift dropped |" in pages["flux.md"]


def test_speed_and_drift_of_profiles_are_shown_beside_each_other_once_measured(reports: Path) -> None:
    assert "## Speed" not in catalogue.pages(Catalogue(reports))["flux.md"]
    environment = {"gpu": "NVIDIA H100", "device": "cuda", "dtype": "bfloat16", "torch": "2.11", "diffusers": "0.42.1"}
    settings = {"width": 1024, "height": 768, "num_frames": 1, "steps": 28}
    drift = {"equal": False, "pixel_max": 9, "pixel_mean": 0.4321, "latents_rel_l2": 0.0123}
    whole: dict[str, Any] = {
        "model": "flux", "synthetic": True, "command": "python benchmarks/gpu.py ...", "settings": settings, "rank": 32,
        "ours": {"environment": environment, "ours_seconds": {"total": 6.0, "peak_gb": 36.31}},
        "compiled": {
            "first": {"total": 21.4, "drift": drift | {"pixel_max": 3}}, "seconds": {"total": 5.0, "peak_gb": 36.34},
        },
        "fast": {"first": {"total": 31.4, "drift": drift}, "seconds": {"total": 4.0, "peak_gb": 45.0}},
    }  # fmt: skip
    failed = whole | {"model": "sd15", "compiled": {}, "fast": {"ended": "1: out of memory"}}
    beside = {"pixel_max": 0.0, "equal": True, "latents_rel_l2": 0.0}
    reference = {key: whole[key] for key in ("model", "synthetic", "command", "settings", "rank")}
    reference |= {
        "trainer": {},
        "ours": whole["ours"] | {"against_trainer": beside, "ours_seconds": {"total": 7.0, "peak_gb": 1}},
    }
    broken = {"model": "sdxl", "ours": {}, "fast": {}}
    lines = [json.dumps(line) for line in (whole, failed, reference, broken)]
    (reports / "performance.jsonl").write_text("\n".join(lines) + "\n")
    pages = catalogue.pages(Catalogue(reports))
    assert "| reference | 6.00 | | |" in pages["flux.md"]
    assert (
        "| fast | 4.00 (1.50 times as fast) | 31, compiling | 9/255 at most, 0.43/255 in the mean;" in pages["flux.md"]
    )
    assert "| compiled | 5.00 (1.20 times as fast) | 21, compiling | 3/255 at most," in pages["flux.md"]
    said = "Peak of GPU memory: 36.3 GB with the reference profile, 36.3 GB with compiled, 45.0 GB with fast"
    assert said in pages["flux.md"]
    assert "NVIDIA H100, torch 2.11" in pages["flux.md"] and "1024x768, 28 steps" in pages["flux.md"]
    assert "the trainer's on the same GPU are equal to the bit." in pages["flux.md"]  # from the line without profiles
    assert "| reference | 6.00 | | |" in pages["sd15.md"] and "| fast" not in pages["sd15.md"]
    assert "on the same GPU" not in pages["sd15.md"] and "## Speed" not in pages["sdxl.md"]


def test_pages_are_written_once_and_those_of_models_that_are_gone_removed(tmp_path: Path) -> None:
    (tmp_path / "gone.md").write_text("an old model")
    first = run("models", "--write", tmp_path)
    assert first.exit_code == 0 and len(first.output.split()) == len(ROWS) + 2
    assert not (tmp_path / "gone.md").exists()
    assert run("models", "--write", tmp_path).output == f"{tmp_path} is up to date\n"


def test_the_terminal_shows_the_same_page() -> None:
    shown = run("models", "flux_kontext")
    assert shown.exit_code == 0
    for text in ("FLUX.1 Kontext dev", "cases match", "another control image", "lora-drift check --model flux_kontext"):
        assert text in shown.output
    unknown = run("models", "flux9")
    assert unknown.exit_code == 2 and "flux9" in unknown.output


def test_links_of_a_page_lead_to_files() -> None:
    for name in ("flux.md", "wan22_14b_i2v.md", "README.md"):
        text = (DOCS / name).read_text(encoding="utf-8")
        links = [part.split(")")[0] for part in text.split("](")[1:]]
        local = [link for link in links if not link.startswith(("https://", "#"))]
        assert local and all((DOCS / link).is_file() for link in local)
