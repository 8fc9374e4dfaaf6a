"""The report as its readers meet it: order, links, pictures, numbers, and nothing that escapes or phones home."""

import io
import json
import math
import re
from base64 import b64decode
from datetime import date
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_drift.harness.check import golden_store
from lora_drift.harness.check.results import (
    IDENTICAL,
    Control,
    Diagnosis,
    Divergence,
    Excuse,
    Metric,
    Result,
    Suspect,
    Verdict,
)
from lora_drift.harness.paths import ROOT
from lora_drift.harness.report import scale
from lora_drift.harness.report.details import side_by_side
from lora_drift.harness.report.render import render
from lora_drift.harness.report.root_cause import SUSPECTS, blame

TAG = "v1.2.3"
HOSTILE = "</code><script>alert('x')</script>\"'`<img src=http://evil.example/x>`&amp;"
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """The tags, attributes and text of a page; checks on the way that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.data: dict[str, Any] = {}
        """Id of a <script> with JSON -> its content: what the page's own script is told."""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(data)
        elif self._open and "id" in self.tags[-1][1]:
            self.data[self.tags[-1][1]["id"]] = json.loads(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]

    def classes(self, tag: str) -> list[set[str]]:
        return [set(attrs.get("class", "").split()) for name, attrs in self.tags if name == tag]


def result(case: str = "flux/lora", verdict: Verdict = "match", **more: Any) -> Result:
    fixed = {"model": case.split("/")[0], "tag": TAG, "tier": "mini", "device": "cpu", "dtype": "float32"}
    return Result.model_validate({**fixed, "case": case, "verdict": verdict, **more})


def page(results: list[Result], out: Path) -> Page:
    return Page(render(results, TAG, out, out).read_text(encoding="utf-8"))


def picture(folder: Path, name: str, frames: Any) -> str:
    """`frames`, uint8 [frames, height, width, 3], as the PNG strip of a result; returns its path below `folder`."""
    Image.fromarray(np.concatenate(list(frames))).save(folder / name)
    return name


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def compared(folder: Path, golden: Any, ours: Any, **more: Any) -> Result:
    golden_picture = str(folder / picture(folder, "golden.png", golden))
    output_picture = picture(folder, "output.png", ours)
    fields = {"golden_picture": golden_picture, "output_picture": output_picture, "frames": len(golden), "fps": 16}
    return result(**{**fields, **more})


def details(shown: Page, anchor: str = "case-flux-lora") -> Any:
    return shown.data[f"data-{anchor}"]


def cases_of(shown: Page) -> list[str]:
    return [line[1] for line in shown.data["index"]]


def test_every_verdict_renders_worst_first(tmp_path: Path) -> None:
    verdicts = sorted(get_args(Verdict))
    shown = page([result(f"flux/{verdict}", verdict) for verdict in verdicts], tmp_path)
    order = ["error", "corrupt", "missing", "stale", "drift", "known", "match"]
    assert [i for i in shown.all("id") if i.startswith("case-")] == [f"case-flux-{verdict}" for verdict in order]
    assert cases_of(shown) == [f"flux/{verdict}" for verdict in order]
    assert (
        "1 of 7 checks match the trainer (miniature models, CPU, float32); 5 need attention; 1 differs as is known."
        in shown.text
    )


def test_among_equals_the_furthest_outside_its_tolerance_comes_first(tmp_path: Path) -> None:
    def drifted(case: str, ssim: float) -> Result:
        return result(case, "drift", metrics=[Metric(name="ssim", value=ssim, gate=0.99, better="higher")])

    shown = page([drifted("a/near", 0.98), drifted("b/far", 0.5), drifted("c/middle", 0.9)], tmp_path)
    assert cases_of(shown) == ["b/far", "c/middle", "a/near"]


def test_every_link_leads_somewhere_and_nowhere_outside(tmp_path: Path) -> None:
    one = compared(tmp_path, noise(1, 16, 16, 3), noise(1, 16, 16, 3) // 2, verdict="drift")
    shown = page([one, result("flux/lora"), result("sd15/base", "missing")], tmp_path)
    ids = shown.all("id")
    assert len(ids) == len(set(ids)), "a case that was checked twice has its own anchor"
    for link in shown.all("href") + shown.all("src"):
        assert link.startswith("data:") or link == "#" or link[1:] in ids, link
    styles = (tmp_path / "index.html").read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in styles and "@import" not in styles
    assert "default-src 'none'" in shown.all("content")[0]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = result(
        f"flux/{HOSTILE}",
        "error",
        message=HOSTILE,
        about=HOSTILE,
        metrics=[Metric(name=HOSTILE, value=None, note=HOSTILE)],
        controls=[Control(name=HOSTILE, pixel_max=1, latents_rel_l2=1, caught=False)],
        trace={HOSTILE: 1.0},
        first_divergence=Divergence(boundary=HOSTILE, error=1, gate=0.1, place=HOSTILE),
        diagnosis=Diagnosis(headline=HOSTILE, ranking=[Suspect(name=HOSTILE, about=HOSTILE, distance=1)]),
        settings={HOSTILE: HOSTILE},
        environment={HOSTILE: HOSTILE},
        provenance={HOSTILE: [HOSTILE]},
        golden_picture=HOSTILE,
        output_picture=HOSTILE,
        excuse=Excuse(cause=HOSTILE, expires=date(2030, 1, 1), expired=False),
    )
    shown = page([hostile], tmp_path)
    tags = [tag for tag, _ in shown.tags]
    assert tags.count("script") == 3 and "img" not in tags, "two blocks of data and the page's own"
    assert shown.text.count("<script>alert('x')</script>") >= 10
    told = next(value for name, value in shown.data.items() if name.startswith("data-"))
    assert told["message"] == told["provenance"][HOSTILE][2:-2].replace('\\"', '"') == HOSTILE
    assert "pytest 'cases/flux/</code><script>alert('\"'\"'x'\"'\"')</script>" in shown.text, "safe in a shell, too"
    table = [line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 3 and "<script>" not in table[2]
    assert "<script>" not in (tmp_path / "comment.md").read_text().replace("\\<script\\>", "")
    [case] = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("testcase")
    assert case[0].attrib["message"] == HOSTILE


def test_the_page_is_the_same_when_rendered_again(tmp_path: Path) -> None:
    results = [compared(tmp_path, noise(1, 16, 16, 3), noise(1, 16, 16, 3) // 2)]
    assert (
        render(results, TAG, tmp_path / "1", tmp_path).read_bytes()
        == render(results, TAG, tmp_path / "2", tmp_path).read_bytes()
    )


def test_a_passing_output_is_stored_as_its_change_from_the_golden(tmp_path: Path) -> None:
    golden = noise(1, 16, 16, 3)
    ours = golden.copy()
    ours[0, 3, 4, 1] ^= 1
    shown = page([compared(tmp_path, golden, ours)], tmp_path)
    told = details(shown)["pictures"]
    stored = {attrs["data-key"]: attrs["src"] for tag, attrs in shown.tags if tag == "img"}
    assert told["change"] is True and set(stored) == {told["golden"], told["output"]}
    change = np.asarray(Image.open(io.BytesIO(b64decode(stored[told["output"]].split(",")[1]))))
    assert (golden[0] + change == ours[0]).all()
    assert "differs by at most 1/255, in 0.4% of pixels" in shown.text


def test_a_drift_shows_both_pictures_and_their_difference_without_a_script(tmp_path: Path) -> None:
    shown = page([compared(tmp_path, noise(1, 16, 16, 3), noise(1, 16, 16, 3) // 2, verdict="drift")], tmp_path)
    alts = [attrs["alt"] for tag, attrs in shown.tags if tag == "img" and attrs["alt"]]
    assert alts == ["golden", "output", "difference, ×2"]
    assert details(shown)["pictures"]["change"] is False


def test_equal_pictures_are_stored_once(tmp_path: Path) -> None:
    same = compared(tmp_path, noise(1, 16, 16, 3), noise(1, 16, 16, 3), verdict="drift")
    shown = page([same, same.model_copy(update={"case": "flux/other"})], tmp_path)
    keys = shown.all("data-key")
    assert len(keys) == len(set(keys)) == 1


def test_pictures_beyond_the_budget_go_to_files_beside_the_page(tmp_path: Path) -> None:
    one = compared(tmp_path, noise(1, 16, 16, 3), noise(1, 16, 16, 3) // 2, verdict="drift")
    html = render([one], TAG, tmp_path, tmp_path, budget=1200).read_text()
    shown = Page(html)
    [inside] = shown.all("data-key")
    told = details(shown)["pictures"]
    assert inside == told["golden"]
    beside = tmp_path / "report-files"
    [file] = beside.iterdir()
    assert file.name == f"{told['output']}.js"
    assert file.read_text().startswith('loraDrift("pictures",{"' + told["output"] + '":"data:image/png;base64,')
    (beside / "mine.txt").write_text("not the report's")
    render([one], TAG, tmp_path, tmp_path)
    assert [path.name for path in beside.iterdir()] == ["mine.txt"], "files of an earlier report do not stay"


def test_other_sizes_and_absent_or_broken_pictures_become_a_message(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but not really")
    golden = str(tmp_path / picture(tmp_path, "golden.png", noise(1, 16, 16, 3)))
    resized = compared(tmp_path, noise(1, 16, 16, 3), noise(1, 16, 24, 3))
    assert "golden 16×16, output 24×16" in page([resized], tmp_path).text
    gone = page([result(golden_picture=golden, output_picture="gone.png")], tmp_path)
    assert details(gone)["pictures"]["problems"] == ["", "file not found: gone.png (FileNotFoundError)"]
    broken = result(golden_picture=golden, output_picture="broken.png")
    assert "golden 16×16, output cannot be read" in page([broken], tmp_path).text
    assert "Golden: no picture. Output: no picture." in page([result()], tmp_path).text


def test_a_golden_that_is_stored_as_a_difference_is_shown_whole(tmp_path: Path) -> None:
    content = []
    for name in ("base.png", "near.png"):
        frames = noise(1, 40, 40, 3)
        frames[0, 3, 4, 0] += name == "near.png"
        content.append(golden_store.content(tmp_path / picture(tmp_path, name, frames)))
    base, near = (f"objects/sd15/{sha256(c).hexdigest()[:16]}.png" for c in content)
    golden_store.save(tmp_path, base, content[0], [])
    golden_store.save(tmp_path, near, content[1], [base])
    stored = golden_store.stored(tmp_path, near)
    assert golden_store.base_of(stored) is not None
    assert "the same pixels" in page([result(golden_picture=str(stored), output_picture="near.png")], tmp_path).text
    golden_store.stored(tmp_path, base).unlink()
    gone = details(page([result(golden_picture=str(stored), output_picture="near.png")], tmp_path))
    assert gone["pictures"]["problems"] == [f"{Path(base).name} was deleted", ""]


def test_a_metric_that_was_not_evaluated_never_looks_passed(tmp_path: Path) -> None:
    metrics = [
        Metric(name="lpips", value=None, gate=0.1, note="not evaluated: pretrained weights not present"),
        Metric(name="flip", value=None, gate=0.1),
        Metric(name="psnr", value=None, gate=50, better="higher", unit="dB", note=IDENTICAL),
        Metric(name="ssim", value=0.5, gate=0.99, floor=0.999, better="higher"),
    ]
    assert [scale.standing(m) for m in metrics] == ["unknown", "unknown", "within", "outside"]
    shown = page([result(metrics=metrics)], tmp_path)
    assert "LPIPS not evaluated: pretrained weights not present (tolerance 0.1)" in shown.text
    told = [[m[key] for key in ("label", "state", "value", "gate", "floor", "note")] for m in details(shown)["metrics"]]
    assert told == [
        ["LPIPS", "unknown", "–", "≤ 0.1", "–", "not evaluated: pretrained weights not present"],
        ["FLIP", "unknown", "–", "≤ 0.1", "–", "not evaluated"],
        ["PSNR", "within", "identical", "≥ 50", "–", "identical"],
        ["SSIM", "outside", "0.5", "≥ 0.99", "0.999", ""],
    ]
    kept = json.loads((tmp_path / "summary.json").read_text())["cases"][0]["metrics"]
    assert kept["lpips"] == {"value": None, "gate": 0.1, "note": "not evaluated: pretrained weights not present"}


def test_distances_that_have_no_number_are_shown_as_the_worst(tmp_path: Path) -> None:
    metrics = [Metric(name="latents_rel_l2", value=math.nan, gate=0.1), Metric(name="flip", value=math.inf, gate=0.1)]
    shown = page([result(verdict="drift", metrics=metrics, trace={"noise": None, "step0/x": 0.1})], tmp_path)
    assert [m["bar"] for m in details(shown)["metrics"]] == [100, 100]
    assert details(shown)["trace"]["noise"] is None
    assert json.loads((tmp_path / "summary.json").read_text())["cases"][0]["metrics"]["flip"]["value"] is None


def test_settings_and_environments_stand_side_by_side() -> None:
    rows = side_by_side(
        {"steps": 4, "guidance": 4, "lora": {"mode": "merged"}, "prompt": "a fox"},
        {"steps": 5, "guidance": 4.0, "lora": {"mode": "live"}, "seed": None},
    )
    assert [tuple(row) for row in rows] == [
        ("lora.mode", "merged", "live", True),
        ("steps", "4", "5", True),
        ("guidance", "4", "4.0", False),
        ("prompt", "a fox", "–", False),
        ("seed", "–", "–", False),
    ]


@pytest.mark.parametrize(
    ("place", "part", "suspect"),
    [
        ("LoRA: transformer_blocks.0.attn.to_q, not applied", "LoRA", "alpha, rank"),
        ("tokens: positive (text_encoder)", "tokens", "its normaliser"),
        ("prompt embeds: negative (text_encoder_2)", "prompt embeds", "negative prompt"),
        ("schedule: sigmas", "schedule", "shift"),
        ("scheduler step: 3", "scheduler step", "its class, order"),
        ("decoder input: scaling of the final latents", "decoder input", "unpacking"),
        ("decoder: VAE", "decoder", "tiling"),
    ],
)
def test_a_place_has_its_usual_suspects(place: str, part: str, suspect: str) -> None:
    first = Divergence(boundary="x", error=1, gate=0.1, place=place)
    why = blame(result(verdict="drift", first_divergence=first))
    assert (why.part, why.began) == (part, place)
    assert why.cause.startswith("Everything before agrees; look at ") and suspect in why.cause


def test_every_place_that_a_deviation_ever_showed_at_has_suspects() -> None:
    models = json.loads((ROOT / "reports" / "mutation.json").read_text())["models"]
    places = {found[1] for model in models.values() for found in model.values() if len(found) == 2}
    strange = [place for place in places if not any(place.startswith(part) for part in SUSPECTS)]
    assert len(places) > 10 and strange == []


def test_a_diagnosis_is_among_the_causes(tmp_path: Path) -> None:
    found = Diagnosis(
        headline='Explained by "guidance one less".',
        ranking=[Suspect(name="guidance one less", about="A scale g means g - 1.", distance=0)],
    )
    drift = result(
        verdict="drift",
        message="outside its tolerance: x; it begins in: guidance: step 0 "
        "[step0/scheduler.prediction: 0.1, tolerance 1e-05]",
        diagnosis=found,
        settings={"steps": 5},
        golden_settings={"steps": 4},
        first_divergence=Divergence(
            boundary="step0/scheduler.prediction", error=0.1, gate=1e-5, place="guidance: step 0"
        ),
    )
    shown = page([drift], tmp_path)
    cause = (
        'Likely cause Settings differ: steps 4 → 5. Explained by "guidance one less" Verdict outside its tolerance: x'
    )
    assert cause in shown.text and "it begins in" not in shown.text
    assert details(shown)["diagnosis"] == [["guidance one less", "A scale g means g - 1.", 0]]


def test_a_traceback_is_there_whole_and_folded(tmp_path: Path) -> None:
    told = (
        f'Traceback (most recent call last):\n  File "flux.py", line 7, in render\n    x = y < z\nValueError: {HOSTILE}'
    )
    shown = page([result(verdict="error", message="ValueError: y", traceback=told), result("a/x")], tmp_path)
    assert details(shown)["traceback"] == told and details(shown, "case-a-x")["traceback"] == ""
    assert shown.text.count("Traceback Traceback (most recent") == 1 and " ".join(told.split()) in shown.text
    folds = [attrs for tag, attrs in shown.tags if tag == "details" and attrs.get("class") == "traceback"]
    assert len(folds) == 1 and "open" not in folds[0]


def test_a_setting_that_differs_is_the_likely_cause(tmp_path: Path) -> None:
    drift = result(
        verdict="drift",
        message="outside its tolerance",
        first_divergence=Divergence(boundary="schedule/sigmas", error=0.1, gate=1e-5, place="schedule: sigmas"),
        settings={"steps": 5, "prompt": "a fox"},
        golden_settings={"num_inference_steps": 4, "prompt": "a fox"},
    )
    shown = page([drift], tmp_path)
    assert "Began at schedule: sigmas schedule/sigmas Likely cause Settings differ: steps 4 → 5" in shown.text
    assert ["steps", "4", "5", True] in details(shown)["settings"]
    assert "Settings differ: steps 4 → 5" in (tmp_path / "comment.md").read_text()


def test_commands_can_be_pasted(tmp_path: Path) -> None:
    drift = result(
        "sd15/base",
        "drift",
        metrics=[Metric(name="flip", value=1)],
        output_picture="a b.png",
        device="cuda",
        dtype="bfloat16",
    )
    text = page([result(), drift], tmp_path).text
    assert f"pytest cases/flux/lora.yaml --drift-tag {TAG}" in text
    assert f"lora-drift check --model flux --tag {TAG}" in text
    assert (
        f"python -m lora_drift.harness.trainer.recorder --trainer DIR --diffusers DIR --tag {TAG} --case flux/lora"
        in text
    )
    assert f"lora-drift known add sd15/base --cause WHY --expires YYYY-MM-DD --tag {TAG} --device cuda" in text
    assert f"lora-drift diagnose --case sd15/base --tag {TAG} --device cuda --image 'a b.png'" in text
    assert f"pytest cases/sd15/base.yaml --drift-tag {TAG} --drift-device cuda --drift-dtype bfloat16" in text
    assert f"lora-drift check --model sd15 --tag {TAG} --device cuda --dtype bfloat16" in text
    assert "known add flux/lora" not in text, "a match needs no excuse"


def test_known_drifts_are_listed_with_cause_and_day_and_expire_loudly(tmp_path: Path) -> None:
    def excused(case: str, verdict: Verdict, expired: bool) -> Result:
        return result(case, verdict, excuse=Excuse(cause=f"why {case}", expires=date(2026, 1, 2), expired=expired))

    shown = page(
        [excused("a/x", "known", False), excused("b/x", "drift", True), excused("c/x", "match", False)], tmp_path
    )
    assert "a/x known 2026-01-02 why a/x" in shown.text
    assert "b/x drift expired 2026-01-02 why b/x" in shown.text
    assert "c/x match no longer needed: remove the entry why c/x" in shown.text


def test_backticks_in_a_message_become_code(tmp_path: Path) -> None:
    html = render([result(verdict="error", message="run `a <b>` now")], TAG, tmp_path, tmp_path).read_text()
    assert "run <code>a &lt;b&gt;</code> now" in html


def test_no_results_are_no_success(tmp_path: Path) -> None:
    shown = page([], tmp_path)
    assert "Nothing was checked." in shown.text
    for name in ("summary.md", "comment.md"):
        assert "nothing was checked" in (tmp_path / name).read_text().lower()


def test_results_of_another_tag_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("results of v9 in the report of v1.2.3")):
        render([result(), result().model_copy(update={"tag": "v9"})], TAG, tmp_path, tmp_path)


positive = st.floats(1e-12, 1e6)


@settings(deadline=None)
@given(positive, positive, positive)
def test_bars_put_the_tolerance_in_the_middle_and_worse_to_the_right(tolerance: float, a: float, b: float) -> None:
    metric = Metric(name="flip", value=a, gate=tolerance)
    assert scale.on_bar(metric, tolerance) == 50
    small, large = sorted((a, b))
    assert 0 <= scale.on_bar(metric, small) <= scale.on_bar(metric, large) <= 100
    assert (scale.on_bar(metric, a) > 50) <= (not metric.within)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 0.999))
def test_a_score_left_of_its_tolerance_is_within_it(value: float, tolerance: float) -> None:
    metric = Metric(name="ssim", value=value, gate=tolerance, better="higher")
    assert (scale.on_bar(metric, value) < 50) <= metric.within


def test_a_tolerance_of_zero_wants_equality() -> None:
    metric = Metric(name="pixel_max", value=1, gate=0)
    assert [scale.on_bar(metric, value) for value in (0, 1)] == [50, 100]


@pytest.mark.parametrize(
    ("name", "better", "unit", "number", "expected"),
    [
        ("flip", "lower", "", 0.0123456, "0.0123"),
        ("flip", "lower", "", 1.23456e-7, "1.23e-7"),
        ("pixel_max", "lower", "/255", 3.0, "3"),
        ("ssim", "higher", "", 0.99962345, "0.999623"),
        ("latents_cosine", "higher", "", 1.0, "1"),
        ("latents_cosine", "higher", "", 1 - 1.234e-12, "1 − 1.23e-12"),
        ("psnr", "higher", "dB", 42.168, "42.2"),
    ],
)
def test_numbers_keep_three_digits_that_matter(name: str, better: Any, unit: str, number: float, expected: str) -> None:
    assert scale.shown(number, Metric(name=name, value=number, better=better, unit=unit)) == expected
