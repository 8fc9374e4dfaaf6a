"""The report as its readers meet it: order, links, pictures, numbers, and nothing that escapes or phones home."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.metrics import pixels
from harness.report import pictures, scale
from harness.report.render import render, side_by_side
from harness.results import IDENTICAL, Control, Divergence, Metric, Result, Verdict

TAG = "v1.2.3"
HOSTILE = "</code><script>alert('x')</script>\"'`<img src=http://evil.example/x>`&amp;"
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """The tags, attributes and text of a page; checks on the way that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
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


def test_every_verdict_renders_worst_first(tmp_path: Path) -> None:
    verdicts = sorted(get_args(Verdict))
    shown = page([result(f"flux/{verdict}", verdict) for verdict in verdicts], tmp_path)
    order = ["error", "corrupt", "missing", "stale", "drift", "known", "match"]
    assert [i for i in shown.all("id") if i.startswith("case-")] == [f"case-flux-{verdict}" for verdict in order]
    assert [i for i in shown.all("id") if i.startswith("row-")] == [f"row-case-flux-{verdict}" for verdict in order]
    assert "1 of 7 cases reproduce the trainer. 5 need attention. 1 known to differ." in shown.text


def test_among_equals_the_furthest_outside_its_gate_comes_first(tmp_path: Path) -> None:
    def drifted(case: str, ssim: float) -> Result:
        return result(case, "drift", metrics=[Metric(name="ssim", value=ssim, gate=0.99, better="higher")])

    shown = page([drifted("a/near", 0.98), drifted("b/far", 0.5), drifted("c/middle", 0.9)], tmp_path)
    assert [i for i in shown.all("id") if i.startswith("case-")] == ["case-b-far", "case-c-middle", "case-a-near"]


def test_every_link_leads_somewhere_and_nowhere_outside(tmp_path: Path) -> None:
    one = compared(tmp_path, noise(1, 16, 16, 3), noise(1, 16, 16, 3) // 2, verdict="drift")
    shown = page([one, result("flux/lora"), result("sd15/base", "missing")], tmp_path)
    ids = shown.all("id")
    assert len(ids) == len(set(ids)), "a case that was checked twice has its own anchor"
    for link in shown.all("href") + shown.all("src"):
        assert link.startswith("data:") or link[1:] in ids, link
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
        first_divergence=Divergence(boundary=HOSTILE, error=1, gate=0.1),
        settings={HOSTILE: HOSTILE},
        environment={HOSTILE: HOSTILE},
        provenance={HOSTILE: [HOSTILE]},
        golden_picture=HOSTILE,
        output_picture=HOSTILE,
    )
    shown = page([hostile], tmp_path)
    tags = [tag for tag, _ in shown.tags]
    assert tags.count("script") == 1 and "img" not in tags
    assert shown.text.count("<script>alert('x')</script>") >= 10
    assert "pytest 'cases/flux/</code><script>alert('\"'\"'x'\"'\"')</script>" in shown.text, "safe in a shell, too"
    table = [line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 3 and "<script>" not in table[2]


def test_the_committed_summary_depends_on_nothing_but_the_code(tmp_path: Path) -> None:
    metric = Metric(name="latents_rel_l2", value=1.23456e-5, gate=1e-4)
    ssim = Metric(name="ssim", value=0.99962345, better="higher")
    first = [result("b/x", metrics=[metric, ssim], seconds=1.0), result("a/x", "drift", message="on host one")]
    second = [
        result("a/x", "drift", message="on host two", environment={"cpu": "another"}),
        result("b/x", seconds=7.0, metrics=[metric.model_copy(update={"value": 1.23401e-5}), ssim]),
    ]
    for folder, results in (("one", first), ("two", second)):
        render(results, TAG, tmp_path / folder, tmp_path)
    for name in ("summary.json", "summary.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["verdicts"] == {"drift": 1, "match": 1}
    assert [case["case"] for case in summary["cases"]] == ["a/x", "b/x"]
    assert summary["cases"][1]["metrics"] == {
        "latents_rel_l2": {"value": 1.23e-5, "gate": 1e-4},
        "ssim": {"value": 0.999623, "gate": None},
    }
    table = (tmp_path / "one" / "summary.md").read_text()
    assert "| b/x | mini | cpu float32 | match | – | 1.23e-5 (0.0001) | 0.999623 | – | – |" in table


def test_the_page_is_the_same_when_rendered_again(tmp_path: Path) -> None:
    results = [compared(tmp_path, noise(1, 16, 16, 3), noise(1, 16, 16, 3) // 2)]
    assert (
        render(results, TAG, tmp_path / "1", tmp_path).read_bytes()
        == render(results, TAG, tmp_path / "2", tmp_path).read_bytes()
    )


def test_identical_pictures_are_called_so_and_stored_once(tmp_path: Path) -> None:
    shown = page([compared(tmp_path, noise(1, 16, 16, 3), noise(1, 16, 16, 3))], tmp_path)
    assert "identical no pixel of the picture differs" in shown.text
    assert len(shown.all("src")) == 1


def test_a_small_difference_is_amplified_and_says_by_how_much(tmp_path: Path) -> None:
    golden = noise(1, 16, 16, 3) // 2
    ours = golden.copy()
    ours[0, 3, 4, 1] += 3
    shown = page([compared(tmp_path, golden, ours, verdict="drift")], tmp_path)
    assert "×85 · largest 3/255 · 0.4% of pixels" in shown.text
    assert len(shown.all("src")) == 3


def test_other_sizes_and_absent_or_broken_pictures_become_a_message(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but not really")
    golden = str(tmp_path / picture(tmp_path, "golden.png", noise(1, 16, 16, 3)))
    resized = compared(tmp_path, noise(1, 16, 16, 3), noise(1, 16, 24, 3))
    assert "sizes differ: golden 16×16, output 24×16" in page([resized], tmp_path).text
    gone = result(golden_picture=golden, output_picture="gone.png")
    assert "file not found: gone.png" in page([gone], tmp_path).text
    broken = result(golden_picture=golden, output_picture="broken.png")
    assert "cannot be read: broken.png (UnidentifiedImageError)" in page([broken], tmp_path).text
    assert "Golden: no picture. Output: no picture." in page([result()], tmp_path).text


def test_a_picture_too_large_for_the_page_is_shown_as_a_preview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "INLINE_LIMIT", 1000)
    monkeypatch.setattr(pictures, "JPEG_MAX_SIDE", 100)
    shown = page([compared(tmp_path, noise(4, 64, 64, 3), noise(4, 64, 64, 3) // 2)], tmp_path)
    assert all(uri.startswith("data:image/jpeg") for uri in shown.all("src"))
    assert shown.text.count("compressed preview") == 3


def test_a_video_has_one_scrubber_for_its_panes(tmp_path: Path) -> None:
    golden = noise(5, 16, 24, 3)
    shown = page([compared(tmp_path, golden, golden // 2, metrics=pixels(golden, golden // 2))], tmp_path)
    ranges = [attrs for _, attrs in shown.tags if attrs.get("type") == "range"]
    assert [(r["min"], r["max"]) for r in ranges] == [("0", "4")]
    assert "aspect-ratio:24/16" in shown.all("style")
    assert "temporal" in shown.text and "frame" in shown.text
    still = page([compared(tmp_path, golden[:1], golden[:1] // 2)], tmp_path)
    assert not [attrs for _, attrs in still.tags if attrs.get("type") == "range"]


def test_a_metric_that_was_not_evaluated_never_looks_passed(tmp_path: Path) -> None:
    metrics = [
        Metric(name="lpips", value=None, gate=0.1, note="not evaluated: pretrained weights not present"),
        Metric(name="flip", value=None, gate=0.1),
        Metric(name="psnr", value=None, gate=50, better="higher", unit="dB", note=IDENTICAL),
        Metric(name="ssim", value=0.5, gate=0.99, floor=0.999, better="higher"),
    ]
    assert [scale.standing(m) for m in metrics] == ["unknown", "unknown", "within", "outside"]
    shown = page([result(metrics=metrics)], tmp_path)
    assert "LPIPS not evaluated: pretrained weights not present – ≤ 0.1" in shown.text
    assert "FLIP not evaluated – ≤ 0.1" in shown.text
    assert "PSNR identical ≥ 50" in shown.text
    assert "SSIM 0.5 outside ≥ 0.99 0.999" in shown.text
    rows = [row for row in shown.classes("tr") if row & {"within", "outside", "unknown"}]
    assert rows == [{"unknown"}, {"unknown"}, {"within"}, {"outside"}]
    kept = json.loads((tmp_path / "summary.json").read_text())["cases"][0]["metrics"]
    assert kept["lpips"] == {"value": None, "gate": 0.1, "note": "not evaluated: pretrained weights not present"}


def test_distances_that_have_no_number_are_shown_as_the_worst(tmp_path: Path) -> None:
    metrics = [Metric(name="latents_rel_l2", value=math.nan, gate=0.1), Metric(name="flip", value=math.inf, gate=0.1)]
    shown = page([result("a/nan", "drift", metrics=metrics, trace={"noise": None, "step0/x": 0.1})], tmp_path)
    assert shown.all("style").count("width:100.0%") == 3
    assert "noise absent or of another shape" in shown.text
    assert json.loads((tmp_path / "summary.json").read_text())["cases"][0]["metrics"]["flip"]["value"] is None


def test_controls_count_what_was_caught(tmp_path: Path) -> None:
    controls = [
        Control(name=name, pixel_max=9, latents_rel_l2=0.5, caught=caught)
        for name, caught in (("lora off", True), ("seed + 1", False))
    ]
    shown = page([result(controls=controls)], tmp_path)
    assert "1/2" in shown.text
    assert "seed + 1 9 0.5 not caught" in shown.text


def test_the_trace_names_where_the_run_left_its_golden(tmp_path: Path) -> None:
    trace = {"encode/t5#0": 0.0, "step0/latents": 1e-7, "step1/latents": 0.02, "decode/in": 0.03}
    first = Divergence(boundary="step1/latents", error=0.02, gate=1e-5)
    shown = page([result(verdict="drift", trace=trace, first_divergence=first)], tmp_path)
    assert "First leaves the golden at step1/latents : error 0.02 , gate 1e-5." in shown.text
    assert shown.classes("i") == [set(), set(), {"first"}, {"after"}]
    assert "3 boundaries with an error of 4" in shown.text
    assert "Every boundary is equal." in page([result(trace={"decode/in": 0.0})], tmp_path).text


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


def test_differing_rows_are_highlighted_and_counted(tmp_path: Path) -> None:
    ours, golden = {"torch": "2.15", "cpu": "x"}, {"torch": "2.9", "cpu": "x"}
    shown = page([result(environment=ours, golden_environment=golden)], tmp_path)
    assert "Environment 1 of 2 differ" in shown.text
    assert shown.classes("tr").count({"differs"}) == 1


def test_commands_can_be_pasted(tmp_path: Path) -> None:
    text = page([result()], tmp_path).text
    assert f"pytest cases/flux/lora.yaml --drift-tag {TAG}" in text
    assert f"lora-drift check --model flux --tag {TAG}" in text
    assert f"python -m harness.recorder --trainer DIR --tag {TAG} --case flux/lora" in text


def test_backticks_in_a_message_become_code(tmp_path: Path) -> None:
    html = render([result(verdict="error", message="run `a <b>` now")], TAG, tmp_path, tmp_path).read_text()
    assert "run <code>a &lt;b&gt;</code> now" in html


def test_no_results_are_no_success(tmp_path: Path) -> None:
    shown = page([], tmp_path)
    assert "Nothing was checked." in shown.text
    assert "nothing was checked" in (tmp_path / "summary.md").read_text()


def test_results_of_another_tag_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("results of v9 in the report of v1.2.3")):
        render([result(), result().model_copy(update={"tag": "v9"})], TAG, tmp_path, tmp_path)


positive = st.floats(1e-12, 1e6)


@settings(deadline=None)
@given(positive, positive, positive)
def test_bars_put_the_gate_in_the_middle_and_worse_to_the_right(gate: float, a: float, b: float) -> None:
    metric = Metric(name="flip", value=a, gate=gate)
    assert scale.on_bar(metric, gate) == 50
    small, large = sorted((a, b))
    assert 0 <= scale.on_bar(metric, small) <= scale.on_bar(metric, large) <= 100
    assert (scale.on_bar(metric, a) > 50) <= (not metric.within)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 0.999))
def test_a_score_left_of_its_gate_is_within_it(value: float, gate: float) -> None:
    metric = Metric(name="ssim", value=value, gate=gate, better="higher")
    assert (scale.on_bar(metric, value) < 50) <= metric.within


def test_a_gate_of_zero_wants_equality() -> None:
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
        ("psnr", "higher", "dB", 42.168, "42.2"),
    ],
)
def test_numbers_keep_three_digits_that_matter(name: str, better: Any, unit: str, number: float, expected: str) -> None:
    assert scale.shown(number, Metric(name=name, value=number, better=better, unit=unit)) == expected
