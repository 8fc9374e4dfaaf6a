"""How long the report takes and how large it is: one of every golden that is committed, and one of ten thousand cases.

    python benchmarks/report_size.py [RESULTS.jsonl]

With a results file, its cases (repeated under other names) are the ten thousand; without one they are made of the
goldens alone. Prints processor time and time on the clock, sizes, and, with a Chromium, how long the page takes to open
and how long a key press in the filter.
"""

import shutil
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from lora_drift.harness import tags
from lora_drift.harness.check import goldens, results
from lora_drift.harness.check.cases import load_all
from lora_drift.harness.check.results import Metric, Result
from lora_drift.harness.paths import ROOT
from lora_drift.harness.report.render import render

MANY = 10_000
TYPED = "status:match model:flux -lora:lokr max:<2"
TYPE = """(text) => {
  const input = document.querySelector("input[type=search]");
  input.value = text;
  input.dispatchEvent(new Event("input"));
  document.body.offsetHeight; // lays the list out
}"""


def from_goldens() -> list[Result]:
    """A match of every golden of the newest tag with itself."""
    found, tag = [], tags.newest()
    for case in load_all():
        golden = goldens.load(tag, case, None)
        picture = str(golden.stored("picture").relative_to(ROOT))
        metric = Metric(name="pixel_max", value=0, gate=1, floor=1, unit="/255")
        found.append(Result(case=case.id, model=case.model, tag=tag, tier="mini", device="cpu", dtype="float32",
                            verdict="match", about=case.about, metrics=[metric], frames=golden.output["frames"],
                            golden_picture=picture, output_picture=picture))  # fmt: skip
    return found


def many(some: list[Result], folder: Path) -> list[Path]:
    """Ten thousand results in ten shards."""
    shards = []
    copies = enumerate(islice(cycle(some), MANY))
    lines = [r.model_copy(update={"case": f"{r.case}-{i}"}).model_dump_json() for i, r in copies]
    for shard in range(10):
        path = folder / f"shard-{shard}.jsonl"
        path.write_text("\n".join(lines[shard::10]) + "\n", encoding="utf-8")
        shards.append(path)
    return shards


def browse(page_file: Path) -> str:
    """Seconds to open, and the longest key press in the filter."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return "no chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        clock = page.context.new_cdp_session(page)
        clock.send("Performance.enable", {"timeDomain": "threadTicks"})

        def busy() -> float:
            """Processor seconds of the page's main thread so far: a busy machine does not count."""
            found = {m["name"]: m["value"] for m in clock.send("Performance.getMetrics")["metrics"]}
            return float(found["TaskDuration"])

        started = time.perf_counter()
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready]")
        opened, thread = time.perf_counter() - started, busy()
        keys = []
        for length in range(1, len(TYPED) + 1):
            before = busy()
            page.evaluate(TYPE, TYPED[:length])
            keys.append(busy() - before)
        browser.close()
    keys.sort()
    pressed = f"{1000 * keys[len(keys) // 2]:.0f} ms median, {1000 * keys[-1]:.0f} ms longest"
    return f"opened in {opened:.2f} s ({thread:.2f} s of processor); a key press takes {pressed}"


def measure(name: str, shards: list[Path], out: Path) -> None:
    started, wall = time.process_time(), time.perf_counter()
    found = results.merge(shards)
    page = render(found, found[0].tag, out, ROOT)
    cpu, wall = time.process_time() - started, time.perf_counter() - wall
    beside = sum(file.stat().st_size for file in out.rglob("report-files/*"))
    sizes = f"page {page.stat().st_size / 1e6:.1f} MB, beside it {beside / 1e6:.1f} MB"
    print(f"{name}: {len(found)} cases, {cpu:.1f} s of processor ({wall:.1f} s), {sizes}; {browse(page)}", flush=True)


def main() -> None:
    given = [Path(argument) for argument in sys.argv[1:]]
    some = results.merge(given) if given else from_goldens()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        one = folder / "all.jsonl"
        one.write_text("".join(r.model_dump_json() + "\n" for r in some), encoding="utf-8")
        measure("every case", [one], folder / "all")
        measure("many cases", many(some, folder), folder / "many")


if __name__ == "__main__":
    main()
