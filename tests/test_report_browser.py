"""The report's script, run by a real browser; skipped, with the reason shown, where there is none."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.report.render import render
from harness.results import Result

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: the report's script was not run")

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of three frames that drifted and a still that matches."""
    folder = tmp_path_factory.mktemp("report")
    strip = np.random.default_rng(0).integers(0, 256, (3 * 16, 16, 3), dtype=np.uint8)
    Image.fromarray(strip).save(folder / "golden.png")
    Image.fromarray(strip // 2).save(folder / "output.png")
    fixed = {"tag": "v1", "tier": "mini", "device": "cpu", "dtype": "float32"}
    fixed["golden_picture"] = str(folder / "golden.png")
    video = {"case": "wan/lora", "model": "wan", "verdict": "drift", "output_picture": "output.png", "frames": 3}
    still = {"case": "flux/base", "model": "flux", "verdict": "match", "output_picture": "golden.png"}
    return render([Result.model_validate({**fixed, **case}) for case in (video, still)], "v1", folder, folder)


def dom(url: str, profile: Path) -> str:
    """The page after its script ran; an error on the console fails the test."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line or "Uncaught" in line]
    assert not console, "\n".join(console)
    return done.stdout


def opening_tag(html: str, pattern: str) -> str:
    found = re.search(rf"<[^<>]*{pattern}[^<>]*>", html)
    assert found is not None, pattern
    return found[0]


def test_the_script_runs_without_an_error(report: Path, tmp_path: Path) -> None:
    html = dom(report.as_uri(), tmp_path)
    assert 'data-scrubbers="1"' in opening_tag(html, "<?html lang")
    assert 'data-frame="0"' in opening_tag(html, 'class="pictures video"')
    assert "hidden" not in opening_tag(html, 'class="tools"')
    assert "hidden" not in opening_tag(html, 'class="filter"')


def test_a_deep_link_opens_its_case(report: Path, tmp_path: Path) -> None:
    assert 'open=""' not in opening_tag(dom(report.as_uri(), tmp_path / "a"), 'class="case match"')
    assert 'open=""' in opening_tag(dom(f"{report.as_uri()}#case-flux-base", tmp_path / "b"), 'class="case match"')


def test_scrubbing_flipping_and_filtering(report: Path, tmp_path: Path) -> None:
    """Acts on the page as a reader would, with a second script that the page's own policy would refuse."""
    act = """<script>
      const range = document.querySelector("input[type=range]");
      range.value = 2;
      range.dispatchEvent(new Event("input"));
      document.querySelector(".flip").click();
      const search = document.querySelector("input[type=search]");
      search.value = "MATCH flux";
      search.dispatchEvent(new Event("input"));
      const sources = [...document.querySelectorAll(".pane.golden img, .pane.output img")].map((image) => image.src);
      document.documentElement.dataset.flipped = sources[0] === sources[1];
    </script></body>"""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text(encoding="utf-8"))
    changed = report.with_name("acted.html")
    changed.write_text(html.replace("</body>", act), encoding="utf-8")
    html = dom(changed.as_uri(), tmp_path)
    assert 'data-frame="2"' in opening_tag(html, 'class="pictures video"')
    assert "<output>3 / 3</output>" in html
    assert 'data-flipped="true"' in html
    assert "hidden" in opening_tag(html, 'id="row-case-wan-lora"')
    assert "hidden" not in opening_tag(html, 'id="row-case-flux-base"')
