"""What several test modules share: miniature models, loaded once, the goldens of the newest tag, and a browser."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from installed import built as built
from installed import rendering as rendering
from installed import whole as whole

from lora_drift import pipelines
from lora_drift.harness import tags
from lora_drift.harness.check import cases, goldens
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import Pipeline
from lora_drift.server.local_postgres import LocalPostgres, binaries

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

SCREENSHOTS = os.environ.get("LORA_DRIFT_SCREENSHOTS")
COLOURS, OWN = 64, 24
"""Of a screenshot, and how many of them belong to the page itself."""
PATIENCE = 60_000.0
"""Of the browser, in milliseconds: a busy machine is no failure."""

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # a busy machine is no failure


@pytest.fixture(scope="session")
def pipeline_of() -> Callable[[str], Pipeline]:
    """Model id -> its pipeline, without a LoRA."""
    return cache(pipelines.load)


@pytest.fixture(scope="session")
def golden_of() -> Callable[[str], Golden]:
    """Case id -> its golden at the newest tag."""

    @cache
    def golden(case_id: str) -> Golden:
        case = cases.load(cases.CASES / f"{case_id}.yaml")
        return goldens.load(tags.newest_of([case.model]), case, factory.manifest_sha256(case.model, case.extras))

    return golden


@pytest.fixture(scope="session")
def lora_of(golden_of: Callable[[str], Golden]) -> Callable[[str], Path]:
    """Case id -> the LoRA file that the trainer saved for it."""
    return lambda case_id: golden_of(case_id).path("lora")


@pytest.fixture(scope="session")
def postgres() -> Iterator[LocalPostgres]:
    """Debian's Postgres; CI installs it (.ci/run)."""
    if binaries() is None:
        pytest.skip("no postgres here (apt-get install postgresql): the queue was not tried in it")
    with LocalPostgres() as running:
        yield running


Queues = Callable[[], "Path | str"]


@pytest.fixture(params=["sqlite", "postgres"])
def new_queue(request: pytest.FixtureRequest, tmp_path: Path) -> Queues:
    """Where a `Store` is to be opened; another, empty one each time."""
    count = itertools.count()
    if request.param == "sqlite":
        return lambda: tmp_path / f"queue-{next(count)}.sqlite"
    database: LocalPostgres = request.getfixturevalue("postgres")
    return lambda: database.create(f"q{uuid.uuid4().hex}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; CI installs it (.ci/run)."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the PATH (apt-get install chromium): nothing was opened in a browser")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


class Reader:
    """Opens pages; on leaving, nothing may have gone wrong in them or reached for the network."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.problems: list[str] = []
        self.contexts: list[BrowserContext] = []

    def open(self, page_file: Path, hash: str = "", **options: Any) -> Page:
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(PATIENCE)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.said(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: self.check(request.url))
        page.goto(page_file.as_uri() + hash)
        return page

    def said(self, text: str) -> None:
        if "willReadFrequently" not in text:  # advice about the reading that a test of pixels does
            self.problems.append(text)

    def check(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.problems.append(f"request to {url}")

    def shot(self, page: Page, name: str) -> None:
        """A picture for docs/, when asked for: of few colours, because it stays in git; the page's own first."""
        from PIL import Image

        if SCREENSHOTS is None:
            return
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        counted: list[Any] = sorted(image.getcolors(image.width * image.height) or [], reverse=True)
        own = [level for _, colour in counted[:OWN] for level in colour]
        others = np.array([c for n, c in counted[OWN:] for _ in range(min(n, 20))], np.uint8).reshape(1, -1, 3)
        rest = Image.fromarray(others).quantize(COLOURS - OWN).getpalette() or []
        palette = Image.new("P", (1, 1))
        palette.putpalette([*own, *rest][: 3 * COLOURS])
        image.quantize(palette=palette, dither=Image.Dither.NONE).save(ROOT / SCREENSHOTS / name, optimize=True)


@pytest.fixture
def reader(browser: Browser) -> Iterator[Reader]:
    reader = Reader(browser)
    yield reader
    for context in reader.contexts:
        context.close()
    assert reader.problems == []
