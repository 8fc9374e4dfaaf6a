"""The report in a real browser, opened from the disk as its readers do: views, filter, links, keys, frames, axe.

Skipped, and the reason shown, where there is no Chromium.
"""

from __future__ import annotations

import re
import shutil
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from lora_drift.harness.check import golden_store, wav
from lora_drift.harness.check.results import Control, Diagnosis, Divergence, Excuse, Metric, Result, Suspect
from lora_drift.harness.report.render import INLINE_CASES, render

if TYPE_CHECKING:
    from conftest import Reader

LARGE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script> \u202eright to left\u202c 🦊 " + "x" * 10_000


def ends(address: str) -> re.Pattern[str]:
    """An address that ends so. The browser tells Playwright of a new one a moment after it was set."""
    return re.compile(re.escape(address) + "$")


def result(case: str, verdict: str, **more: Any) -> Result:
    fixed = {"model": case.split("/")[0], "tag": "v1", "tier": "mini", "device": "cpu", "dtype": "float32"}
    return Result.model_validate({**fixed, "case": case, "verdict": verdict, **more})


RATE, SAMPLES = 24000, 12000
"""Half a second."""


def golden_sound(folder: Path, audio: Any) -> str:
    data = safetensors.numpy.save({"audio": audio})
    file = f"objects/wan/{sha256(data).hexdigest()[:16]}.safetensors"
    golden_store.save(folder, file, data, [])
    return str(golden_store.stored(folder, file))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """A drifted video, a still that matches but for a pixel, one of another size, and a hostile error."""
    folder = tmp_path_factory.mktemp("pictures")

    def save(name: str, pixels: Any) -> str:
        Image.fromarray(pixels).save(folder / name)
        return str(folder / name)

    strip = np.random.default_rng(0).integers(0, 200, (3 * 16, 24, 3), dtype=np.uint8)
    strip[16, 0] = (10, 20, 30)  # the upper left pixel of the second frame
    ours, nearly = strip + 5, strip.copy()
    nearly[2, 3, 1] += 1
    golden = save("golden.png", strip)
    audio = np.sin(np.arange(2 * SAMPLES, dtype=np.float32) / 40).reshape(2, SAMPLES) * np.float32(0.3)
    recorded = golden_sound(folder, audio)
    (folder / "ours.wav").write_bytes(wav.encoded(audio / 2, RATE))
    video = result(
        "wan/lora", "drift", golden_picture=golden, output_picture=save("ours.png", ours), frames=3, fps=8,
        message="outside its tolerance", lora="lokr", seconds=2.5,
        first_divergence=Divergence(boundary="step1/latents", error=0.02, gate=1e-5, place="scheduler step: 1"),
        trace={"step0/latents": 1e-7, "step1/latents": 0.02, "decode/out": 0.1},
        metrics=[Metric(name="pixel_max", value=5, gate=1, floor=1, unit="/255")],
        controls=[Control(name="seed + 1", pixel_max=200, latents_rel_l2=1, caught=True)],
        settings={"steps": 3}, golden_settings={"num_inference_steps": 3}, provenance={"commit": "abc"},
        golden_sound=recorded, output_sound=str(folder / "ours.wav"),
        schedule={"timesteps": ([1000.0, 750.5, None], [1000.0, 800.25])},
    )  # fmt: skip
    still = result("flux/base", "match", golden_picture=golden, output_picture=save("nearly.png", nearly),
                   metrics=[Metric(name="pixel_max", value=1, gate=1, unit="/255")])  # fmt: skip
    expired = Excuse(cause="release X", expires=date(2026, 1, 2), expired=True)
    other = result("sd15/size", "drift", golden_picture=golden, output_picture=save("other.png", strip[:, :16]),
                   message="another size", excuse=expired)  # fmt: skip
    suspect = Suspect(name=HOSTILE, about=HOSTILE, distance=1)
    hostile = result("zz/hostile", "error", message=HOSTILE, traceback=f"Traceback\n  in render\n{HOSTILE}",
                     about=HOSTILE, lora=HOSTILE,
                     settings={"prompt": f"{HOSTILE}!"}, golden_settings={"prompt": HOSTILE}, trace={HOSTILE: 1},
                     diagnosis=Diagnosis(headline=HOSTILE, ranking=[suspect]))  # fmt: skip
    return [video, still, other, hostile]


@pytest.fixture(scope="module")
def report(few: list[Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These, and so many more that the list is not shown at once."""
    more = [result(f"m{i:03}/x", "match", seconds=i) for i in range(150)]
    folder = tmp_path_factory.mktemp("report")
    return render([*few, *more], "v1", folder, folder)


def case_of(page: Page) -> Locator:
    return page.locator("#case article")


def pixel(page: Page, pane: int, x: int, y: int) -> list[int]:
    """Colour of one pixel of the picture in a pane."""
    canvas = "document.querySelectorAll('.pane canvas')[pane]"
    script = f"([pane, x, y]) => [...{canvas}.getContext('2d').getImageData(x, y, 1, 1).data]"
    return page.evaluate(script, [pane, x, y])[:3]


def sometime(page: Page, selector: str, text: str) -> None:
    """Waits for a text that stands for moments only: `expect` looks once a second, and could miss it for ever."""
    look = "s.textContent === text ? done() : Date.now() > end ? fail(text + ' was never there') : setTimeout(look, 20)"
    wait = (
        f"(done, fail) => {{ const look = () => {{ const s = document.querySelector(selector); {look}; }}; look(); }}"
    )
    page.evaluate(
        f"([selector, text]) => {{ const end = Date.now() + 60000; return new Promise({wait}); }}", [selector, text]
    )


@pytest.mark.parametrize(("scheme", "size"), [("light", LARGE), ("dark", LARGE), ("light", PHONE)])
def test_axe_finds_nothing_serious(
    reader: Reader, few: list[Result], tmp_path: Path, scheme: str, size: dict[str, int]
) -> None:
    file = render(few, "v1", tmp_path, tmp_path)
    more = ("#case-sd15-size", "#case-zz-hostile", "#q=nonsense%3A1") if (scheme, size) == ("light", LARGE) else ()
    for hash in ("", "#case-wan-lora", *more):
        page = reader.open(file, hash, color_scheme=scheme, viewport=size)
        page.wait_for_selector("html[data-ready]")
        found = Axe().run(page).response["violations"]
        serious = {f["id"]: [n["html"] for n in f["nodes"]] for f in found if f["impact"] in ("serious", "critical")}
        assert serious == {}, hash


def test_the_page_never_scrolls_sideways_on_a_phone(reader: Reader, report: Path) -> None:
    for hash in ("", "#case-wan-lora", "#case-zz-hostile"):
        page = reader.open(report, hash, viewport=PHONE)
        page.wait_for_selector("html[data-ready]")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], hash


def test_side_by_side_shows_golden_output_and_their_difference(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-wan-lora")
    expect(page.locator(".pane")).to_have_count(3)
    golden, output, difference = (pixel(page, pane, 1, 1) for pane in range(3))
    assert [b - a for a, b in zip(golden, output, strict=True)] == [5, 5, 5]
    assert difference == [255, 255, 255], "5 of 255, amplified 51 times"
    expect(page.locator(".pane figcaption").last).to_contain_text("×51 · largest 5/255 · 100.0% of pixels")


def heard(page: Page, player: Locator) -> tuple[float, float]:
    """(seconds, loudest level of 1) of what a player plays, as the browser decodes it."""
    decode = """async (audio) => {
      const known = (done, fail) => { audio.onloadedmetadata = done; audio.onerror = fail; };
      if (audio.readyState < 1) await new Promise(known);
      const binary = atob(audio.src.split(",")[1]);
      const bytes = Uint8Array.from(binary, (c) => c.charCodeAt(0));
      const sound = await new OfflineAudioContext(2, 1, 24000).decodeAudioData(bytes.buffer);
      return [audio.duration, Math.max(...sound.getChannelData(0).map(Math.abs))];
    }"""
    seconds, loudest = player.evaluate(decode)
    return seconds, loudest


def test_the_goldens_sound_is_played_beside_the_outputs(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-wan-lora")
    players = case_of(page).locator(".sounds audio")
    expect(players).to_have_count(2)
    expect(case_of(page).locator(".sounds figcaption")).to_have_text(["sound: golden", "sound: output"])
    (seconds, loud), (same, half) = heard(page, players.nth(0)), heard(page, players.nth(1))
    assert seconds == same == SAMPLES / RATE
    assert abs(loud - 0.3) < 1e-3 and abs(half - 0.15) < 1e-3, "each plays its own"
    players.nth(0).evaluate("(audio) => { audio.loop = true; return audio.play(); }")
    players.nth(1).evaluate("(audio) => audio.play()")
    page.wait_for_function("document.querySelector('.sounds audio').paused")
    silent = reader.open(report, "#case-flux-base")
    expect(silent.locator(".pane").first).to_be_visible()
    expect(silent.locator(".sounds")).to_have_count(0)


def test_both_schedules_are_listed_where_they_differ(reader: Reader, report: Path) -> None:
    table = case_of(reader.open(report, "#case-wan-lora")).locator("details.beside", has_text="Schedule")
    expect(table).to_have_attribute("open", "")
    expect(table.locator("tbody tr.differs")).to_have_text(["timesteps 1750.5800.25 (differs)",
                                                            "timesteps 2not told by the trace– (differs)"])  # fmt: skip


def test_a_passing_output_is_put_together_again_to_the_bit(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-flux-base")
    expect(page.locator(".pane figcaption").last).to_contain_text("largest 1/255")
    golden, output = pixel(page, 0, 3, 2), pixel(page, 1, 3, 2)
    assert [b - a for a, b in zip(golden, output, strict=True)] == [0, 1, 0]
    assert pixel(page, 0, 4, 2) == pixel(page, 1, 4, 2)


def test_slider_onion_blink_and_heat_map(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-wan-lora")
    expect(page.locator(".pane")).to_have_count(3)
    golden, output = pixel(page, 0, 20, 1), pixel(page, 1, 20, 1)
    page.get_by_role("button", name="Slider").click()
    knob = page.get_by_label("Divide")
    assert pixel(page, 0, 20, 1) == output, "the right half is the output's"
    knob.fill("1000")
    assert pixel(page, 0, 20, 1) == golden
    knob.fill("500")
    box = page.locator(".viewport").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.95, box["y"] + 20)
    page.mouse.up()
    assert pixel(page, 0, 20, 1) == golden, "dragged to the right"

    page.get_by_role("button", name="Onion").click()
    page.get_by_role("slider", name="Output").fill("0")
    assert pixel(page, 0, 20, 1) == golden
    page.get_by_role("slider", name="Output").fill("1000")
    assert pixel(page, 0, 20, 1) == output

    page.get_by_role("button", name="Blink").click()
    caption = page.locator(".pane figcaption b")
    for name in ("output", "golden"):
        sometime(page, ".pane figcaption b", name)
    page.get_by_role("button", name="Pause").click()
    seen = caption.text_content()
    page.wait_for_timeout(700)
    assert caption.text_content() == seen

    page.get_by_role("button", name="Heat map").click()
    assert pixel(page, 0, 1, 1) not in ([0, 0, 0], golden)
    expect(page.locator(".pane figcaption")).to_contain_text("largest 5/255")


def test_a_reader_who_wants_less_motion_gets_no_blinking(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-wan-lora", reduced_motion="reduce")
    page.get_by_role("button", name="Blink").click()
    page.wait_for_timeout(700)
    expect(page.locator(".pane figcaption b")).to_have_text("golden")
    page.locator(".viewer").get_by_role("button", name="Blink").last.click()
    expect(page.locator(".pane figcaption b")).to_have_text("output")


def test_zoom_and_pixel_are_shared_by_the_panes(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-wan-lora")
    first, second = page.locator(".viewport").nth(0), page.locator(".viewport").nth(1)
    box = first.bounding_box()
    assert box is not None
    scale = box["width"] / 24
    page.mouse.move(box["x"] + 3.5 * scale, box["y"] + 2.5 * scale)
    golden, output = pixel(page, 0, 3, 2), pixel(page, 1, 3, 2)
    said = " ".join(map(str, golden)), " ".join(map(str, output))
    expect(page.locator(".readout")).to_have_text(f"x 3, y 2 · golden {said[0]} · output {said[1]} · difference 5 5 5")
    expect(second.locator(".cursor")).to_be_visible()

    first.dblclick(position={"x": 3.5 * scale, "y": 2.5 * scale})
    expect(page.locator(".viewer.zoomed")).to_be_visible()
    widths = page.evaluate("[...document.querySelectorAll('.pane canvas')].map((c) => c.getBoundingClientRect().width)")
    assert len({round(width) for width in widths}) == 1 and widths[0] > 2 * box["width"]
    before = page.locator(".pane canvas").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 - 30, box["y"] + 30)
    page.mouse.up()
    after = page.locator(".pane canvas").nth(1).bounding_box()
    assert before is not None and after is not None
    assert round(after["x"] - before["x"]) == -30, "dragging one pane moves the others"
    page.get_by_role("button", name="Fit the picture").click()
    expect(page.locator(".viewer.zoomed")).to_have_count(0)

    first.focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    expect(page.locator(".readout")).to_contain_text("x ")
    page.keyboard.press("0")
    canvas = page.locator(".pane canvas").nth(0).bounding_box()
    assert canvas is not None and round(canvas["width"]) == round(box["width"])


def test_frames_are_scrubbed_in_all_panes_at_once(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-wan-lora")
    page.get_by_label("Frame", exact=True).fill("1")
    expect(page.locator(".count")).to_have_text("2 / 3")
    assert pixel(page, 0, 0, 0) == [10, 20, 30] and pixel(page, 1, 0, 0) == [15, 25, 35]
    page.locator("h2#case-title").focus()
    page.keyboard.press(".")
    expect(page.locator(".count")).to_have_text("3 / 3")
    page.keyboard.press(",")
    expect(page.locator(".count")).to_have_text("2 / 3")
    page.get_by_role("button", name="Play").click()
    sometime(page, ".count", "1 / 3")
    page.get_by_role("button", name="Pause").click()


def test_pictures_of_other_sizes_stand_side_by_side_only(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-sd15-size")
    expect(page.locator(".pane")).to_have_count(2)
    expect(page.locator(".pane figcaption").last).to_contain_text("16×48")
    expect(page.get_by_role("button", name="Slider")).to_be_disabled()


QUERIES = {
    "model:wan": ["wan/lora"],
    "status:drift": ["sd15/size", "wan/lora"],
    "status:drift -model:wan": ["sd15/size"],
    "status:drift|error model:=zz": ["zz/hostile"],
    "step:<3 lora:lokr": ["wan/lora"],
    "at:latents verdict:drift": ["wan/lora"],
    "max:>=5": ["wan/lora"],
    '"everything before"': ["wan/lora"],
    "part:scheduler": ["wan/lora"],
    "seconds:>148": ["m149/x"],
    "kind:image model:flux": ["flux/base"],
    "FLUX base": ["flux/base"],
}


def test_the_query_language(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    for query, names in QUERIES.items():
        page.get_by_role("searchbox").fill(query)
        expect(page.get_by_role("status"), query).to_have_text(f"{len(names)} of 154 cases")
        assert sorted(page.locator("table.list tbody th a").all_text_contents()) == names, query


def test_a_mistake_in_a_query_is_named(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    page.get_by_role("searchbox").fill("modle:wan")
    expect(page.get_by_role("status")).to_contain_text("unknown field “modle”; there are case, model")
    page.get_by_role("searchbox").fill("step:soon")
    expect(page.get_by_role("status")).to_have_text("step: wants a number, such as step:<3")


def test_columns_are_sorted_both_ways_and_back(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    first = page.locator("table.list tbody th a").first
    heading = page.locator("th[data-field=seconds]")
    expect(first).to_have_text("zz/hostile")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    expect(first).to_have_text("zz/hostile")  # 0 s, and first among equals as before
    heading.get_by_role("button").click()
    expect(first).to_have_text("m149/x")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "none")


def test_a_long_list_grows_as_it_is_read(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    rows = page.locator("table.list tbody tr")
    page.wait_for_selector("html[data-ready]")
    assert rows.count() < 154
    page.mouse.wheel(0, 100_000)
    expect(rows).to_have_count(154)


def test_everything_can_be_reached_from_the_keyboard(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    page.wait_for_selector("html[data-ready]")
    page.keyboard.press("/")
    page.keyboard.type("status:drift")
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    expect(case_of(page)).to_be_visible()
    opened = page.locator("#case-title").text_content()
    expect(page.locator(".position")).to_have_text("1 of 2")
    page.keyboard.press("j")
    expect(page.locator(".position")).to_have_text("2 of 2")
    page.keyboard.press("k")
    expect(page.locator("#case-title")).to_have_text(opened or "")
    for key, view in (("2", "slider"), ("3", "blink"), ("4", "onion"), ("5", "heat"), ("1", "side")):
        if opened == "wan/lora":
            page.keyboard.press(key)
            expect(page.locator(".viewer")).to_have_attribute("data-view", view)
    page.keyboard.press("Escape")
    expect(page.locator("#overview")).to_be_visible()
    focused = page.evaluate("document.activeElement.textContent")
    assert focused == opened, "back where the reader was"
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()


def test_links_lead_to_a_case_and_to_a_filter(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-flux-base")
    expect(page.locator("#case-title")).to_have_text("flux/base")
    assert page.title() == "flux/base: match"
    page.get_by_role("link", name="All cases").click()
    expect(page.locator("#overview")).to_be_visible()
    page.locator(".counts a", has_text="drift").click()
    expect(page.get_by_role("status")).to_have_text("2 of 154 cases")
    expect(page).to_have_url(ends("#q=status%3Adrift"))
    page.go_back()
    page.go_back()
    expect(page.locator("#case-title")).to_have_text("flux/base")


def test_a_case_shows_its_numbers_trace_and_commands(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-wan-lora")
    case = case_of(page)
    expect(case.locator("dl.message")).to_contain_text("scheduler step: 1 step1/latents (error 0.02, tolerance 1e-5)")
    expect(case.locator("tr.outside").first).to_contain_text("pixel max5/255 outside≤ 11")
    bar = case.locator(".bar")
    tolerance, floor, fill = (bar.locator(f".{name}").bounding_box() for name in ("gate", "floor", "fill"))
    assert tolerance is not None and floor is not None and fill is not None
    assert abs(tolerance["x"] - floor["x"]) < 3 and fill["x"] + fill["width"] > tolerance["x"] + 10
    columns = case.locator(".errors i").evaluate_all("all => all.map((i) => i.className)")
    assert columns == ["", "first", "after"]
    expect(case.locator(".controls")).to_contain_text("seed + 1")
    expect(case.locator(".beside", has_text="Settings")).to_contain_text("1 rows, none differs")
    case.locator(".beside summary", has_text="Provenance").click()
    expect(case.locator(".facts")).to_contain_text("abc")
    commands = case.locator(".commands code").all_text_contents()
    assert commands[0] == "pytest cases/wan/lora.yaml --drift-tag v1"
    case.get_by_role("button", name="Copy: Reproduce").click()
    expect(case.get_by_role("button", name="Copy: Reproduce")).to_have_text("Copied")
    assert page.evaluate("getSelection().toString()") == commands[0]


def test_hostile_text_is_only_text(reader: Reader, report: Path) -> None:
    page = reader.open(report, "#case-zz-hostile")
    parts = ("dl.message", ".traceback pre", "p.about", ".diagnosis", ".trace .strip", ".beside tr.differs")
    for part in parts:
        shown = case_of(page).locator(part)
        text = shown.inner_html() if part == ".trace .strip" else shown.text_content() or ""
        assert "onerror=alert(1)" in text and "🦊" in text, part
    assert (case_of(page).locator(".beside tr.differs td").first.text_content() or "") == HOSTILE
    page.keyboard.press("Escape")
    expect(page.locator(".card", has_text="zz/hostile")).to_contain_text("<img src=x onerror=alert(1)></script>")
    assert page.locator("img[src=x], script:not([type])").count() == 1, "the page's own script"


def test_a_traceback_is_folded_until_it_is_asked_for(reader: Reader, report: Path) -> None:
    case = case_of(reader.open(report, "#case-zz-hostile"))
    expect(case.locator(".traceback pre")).to_be_hidden()
    case.locator(".traceback summary").click()
    expect(case.locator(".traceback pre")).to_be_visible()
    assert (case.locator(".traceback pre").text_content() or "").startswith("Traceback\n  in render\n")
    page = reader.open(report, "#case-wan-lora")
    expect(case_of(page).locator("dl.message")).to_be_visible()
    expect(case_of(page).locator(".traceback")).to_have_count(0)


def test_a_known_drift_is_shown_with_cause_and_day_and_nothing_accepts_a_golden(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    expect(page.locator("section[aria-labelledby=known] tbody tr")).to_have_text(
        "sd15/sizedriftexpired 2026-01-02release X"
    )
    page.locator("section[aria-labelledby=known]").get_by_role("link", name="sd15/size").click()
    expect(case_of(page).locator(".excuse")).to_have_text("The known drift expired on 2026-01-02. Cause: release X")
    expect(page.get_by_role("button", name=re.compile("accept|approve|update", re.IGNORECASE))).to_have_count(0)


def test_light_and_dark_can_be_chosen(reader: Reader, report: Path) -> None:
    page = reader.open(report, color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Theme").click()
    dark = page.evaluate(background)
    assert light != dark
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(background) == light


def test_filter_and_theme_are_in_the_address_and_survive_a_reload(reader: Reader, report: Path) -> None:
    page = reader.open(report, color_scheme="light")
    page.wait_for_selector("html[data-ready]")
    page.get_by_role("searchbox").fill("status:drift")
    expect(page).to_have_url(ends("#q=status%3Adrift"))
    page.get_by_role("button", name="Theme").click()
    expect(page).to_have_url(ends("#q=status%3Adrift&theme=dark"))
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.reload()
    expect(page.get_by_role("status")).to_have_text("2 of 154 cases")
    assert page.evaluate(background) == dark
    page.locator("table.list tbody th a").first.click()
    expect(case_of(page)).to_be_visible()
    page.wait_for_selector("#case[data-ready]")  # keys are heard from then on
    expect(page).to_have_url(ends("&theme=dark"))
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("2 of 154 cases")
    expect(page).to_have_url(ends("#q=status%3Adrift&theme=dark"))
    page.get_by_role("searchbox").fill("")
    expect(page).to_have_url(ends("#&theme=dark"))


def test_thumbnails_are_the_goldens_and_open_their_case(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("table.list .thumb").first).to_be_hidden()
    page.get_by_role("button", name="Thumbnails").click()
    row = page.locator("#row-case-wan-lora")
    row.scroll_into_view_if_needed()
    expect(row.locator(".thumb")).to_have_attribute("height", "16")  # one frame of three
    expect(row.locator(".thumb")).to_have_attribute("width", "24")
    row.get_by_role("link").click()
    expect(case_of(page)).to_be_visible()


def test_without_a_script_table_and_pictures_are_there(reader: Reader, report: Path) -> None:
    page = reader.open(report, java_script_enabled=False)
    expect(page.locator("noscript table tbody tr")).to_have_count(154)
    drift = page.locator("details#case-wan-lora")
    expect(drift.get_by_role("img", name="difference")).to_be_visible()
    expect(drift).to_contain_text("differs by at most 5/255, in 100.0% of pixels")
    expect(page.get_by_role("searchbox")).to_be_hidden()


def test_many_cases_load_their_details_and_pictures_when_opened(
    reader: Reader, few: list[Result], tmp_path: Path
) -> None:
    shown = few[0].model_dump(include={"golden_picture", "output_picture", "frames"})
    many = [result(f"m/c{i:05}", "match", **shown) for i in range(INLINE_CASES + 1)]
    page_file = render(many, "v1", tmp_path, tmp_path)
    assert page_file.stat().st_size < 2_000_000
    assert len(list((tmp_path / "report-files").iterdir())) == INLINE_CASES // 100 + 1 + 2
    page = reader.open(page_file, "#case-m-c00777")
    expect(page.locator(".pane")).to_have_count(3)
    assert [b - a for a, b in zip(pixel(page, 0, 1, 1), pixel(page, 1, 1, 1), strict=True)] == [5, 5, 5]
    shutil.rmtree(tmp_path / "report-files")
    alone = reader.open(page_file, "#case-m-c00001")
    expect(alone.locator("#case .message")).to_contain_text(
        "report-files/cases-000.js could not be loaded: it belongs beside"
    )
    reader.problems.clear()  # the browser's own word for the missing file
