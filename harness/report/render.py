"""Writes a tag's report: index.html for people, summary.json and .md for git, comment.md and junit.xml for CI."""

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from lora_drift.harness.check.results import Result, Verdict
from lora_drift.harness.paths import ROOT
from lora_drift.harness.report import heading, scale, summary, trend
from lora_drift.harness.report.causes import Cause, by_cause, issue
from lora_drift.harness.report.changes import CASES, Change, changes, compare
from lora_drift.harness.report.details import (
    View,
    as_script_data,
    commands,
    details,
    flatten,
    index_line,
    text,
    views,
)
from lora_drift.harness.report.pictures import INLINE_BUDGET, Album, Comparison, Strip, thumbnail

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("query", "dom", "store", "list", "viewer", "case", "main")
INLINE_CASES = 1000
"""With more cases than this, details and pictures of all go to files beside the page, which stays quick to open."""
BESIDE = "report-files"
"""Folder of the files beside the page; store.js knows it, too."""
CASES_A_FILE = 100
CARDS = 6
"""Causes that the first screen shows."""
PROMPTS = {"Prompt": "prompt", "Negative": "negative_prompt"}
SQUARES = 24
"""A model with more cases than this is counted instead of drawn."""

Trends: TypeAlias = Mapping[tuple[str, ...], list[trend.Point]]


class ModelView(NamedTuple):
    """One model of the overview and its cases, by name."""

    name: str
    worst: Verdict
    counts: dict[Verdict, int]
    cases: list[View]


class Card(NamedTuple):
    """Failing cases with one cause on the first screen, with small pictures of the worst: title -> data URI."""

    cause: Cause
    thumbnails: dict[str, str]


class Static(NamedTuple):
    """What the page holds of a case itself, for its script and for readers without one."""

    view: View
    pictures: Comparison
    strips: dict[str, Strip]
    """Name -> picture that is stored here (and not with an earlier case, or in a file)."""
    sounds: dict[str, Strip]
    """The same of sounds."""
    data: Markup


def render(
    results: list[Result],
    tag: str,
    out_dir: Path,
    base: Path,
    *,
    since: Path | None = None,
    cases: Path = CASES,
    budget: int = INLINE_BUDGET,
) -> Path:
    """Write all files of the report to `out_dir` and return the page's path.

    Args:
        base: folder to which `output_picture` is relative.
        since: summary.json of the run to compare with, in place of the committed one.
        cases: folder of the case files; what it no longer has is gone.
        budget: characters of pictures and sounds that the page may hold.

    Raises:
        ValueError: a result is of another tag.
    """
    if strangers := sorted({result.tag for result in results} - {tag}):
        raise ValueError(f"results of {', '.join(strangers)} in the report of {tag}: render each tag by itself")
    out_dir.mkdir(parents=True, exist_ok=True)
    before = trend.remember(out_dir, results)
    frame, changed = summary.table(results), changes(results, tag, since, cases)
    if before:
        changed.insert(0, compare(results, f"the run of {heading.moment(before[-1]['checked'])}", before[-1], cases))
    content = summary.summarise(frame, tag)
    page = _Page(results, out_dir / BESIDE, base, changed, budget, trend.by_case(before, results) if before else {})
    files = {
        "summary.json": summary.as_json(content),
        "summary.md": summary.as_markdown(content),
        "comment.md": summary.as_comment(frame, tag, changed),
        "junit.xml": summary.as_junit(frame, tag),
        "index.html": page.html(tag),
    }
    for old in (out_dir / "causes").glob("*.md"):
        old.unlink()
    for number, cause in enumerate(by_cause(view for view in page.views if not view.passing), 1):
        files[f"causes/{number:03}.md"] = issue(cause, tag)
    for name, written in files.items():
        (out_dir / name).parent.mkdir(exist_ok=True)
        (out_dir / name).write_text(written, encoding="utf-8")
    return out_dir / "index.html"


class _Page:
    """The page and the files beside it."""

    def __init__(
        self, results: list[Result], data: Path, base: Path, changed: list[Change], budget: int, trends: Trends
    ) -> None:
        self.data, self.base, self.budget, self.changes, self.trends = data, base, budget, changed, trends
        for file in data.glob("*.js"):  # of an earlier report; nothing else in that folder is ours to remove
            file.unlink()
        self.views = views(scale.worst_first(results), _changed_cases(changed))
        self.album = Album()
        self.goldens: dict[str, str] = {}
        """Anchor -> key of the golden's picture."""
        self.placed: set[str] = set()
        """Keys of pictures that are in the page or in a file already."""
        self.beside = len(results) > INLINE_CASES

    def html(self, tag: str) -> str:
        counts = Counter(view.result.verdict for view in self.views)
        failing = [view for view in self.views if not view.passing]
        causes = by_cause(failing)
        static = [] if self.beside else [self._static(view) for view in self.views]
        if self.beside:
            self._write_details()
        index = [index_line(view, self._file(i), self.goldens[view.anchor]) for i, view in enumerate(self.views)]
        return environment().get_template("report.html.j2").render(
            tag=tag,
            sentence=heading.sentence([view.result for view in self.views]),
            run=heading.run([view.result for view in self.views]),
            miniatures=heading.MINIATURES if any(view.result.tier == "mini" for view in self.views) else "",
            views=self.views,
            counts={verdict: counts[verdict] for verdict in scale.ORDER if counts[verdict]},
            failing=failing,
            causes=causes,
            cards=[self._card(cause) for cause in causes[:CARDS]],
            excuses=[view for view in self.views if view.result.excuse],
            models=_models(self.views),
            changes=self.changes,
            environment=_common([view.result.environment for view in self.views]),
            static=static,
            index=Markup(as_script_data(index)),
            commands=commands,
            style=style("base", "report", "viewer"),
            **scripts(*SCRIPTS),
        )  # fmt: skip

    def _file(self, position: int) -> str:
        return f"cases-{position // CASES_A_FILE:03}" if self.beside else ""

    def _pictures(self, view: View) -> Comparison:
        golden, output = view.result.golden_picture, view.result.output_picture
        shown = Comparison(
            self.album.strip(ROOT / golden if golden else None),
            self.album.strip(view.result.output_file(output, self.base) if output else None),
            view.result.frames,
        )
        self.goldens[view.anchor] = shown.golden.key
        return shown

    def _sounds(self, view: View) -> dict[str, Strip]:
        golden, output = view.result.golden_sound, view.result.output_sound
        return self.album.sounds(
            ROOT / golden if golden else None, view.result.output_file(output, self.base) if output else None
        )

    def _card(self, cause: Cause) -> Card:
        shown = self._pictures(cause.views[0])
        strips = {"golden": shown.golden, "output": shown.output}
        if shown.comparable and shown.largest:
            strips["difference"] = shown.difference
        return Card(
            cause, {name: _thumbnail(strip, shown.frames) for name, strip in strips.items() if strip.pixels is not None}
        )

    def _static(self, view: View) -> Static:
        shown, heard = self._pictures(view), self._sounds(view)
        told = {**_told(view, shown, heard), "output": shown.output.key}
        strips = {"golden": shown.golden, "output": shown.output}
        if view.passing and shown.comparable:
            told |= {"output": shown.change.key, "change": True}
            strips["output"] = shown.change
        kept = {name: strip for name, strip in strips.items() if self._place(strip)}
        kept_sounds = {name: sound for name, sound in heard.items() if self._place(sound)}
        return Static(view, shown, kept, kept_sounds, Markup(as_script_data(self._details(view, told))))

    def _details(self, view: View, told: dict[str, Any]) -> dict[str, Any]:
        points = self.trends.get(trend.key(view.result), [])
        return {**details(view, told), "trend": points if len(points) > 1 else [], "asked": self._asked(view)}

    def _asked(self, view: View) -> dict[str, Any]:
        """Prompts, and the control images, small."""
        settings = view.result.settings or view.result.golden_settings
        said = {name: str(settings.get(key) or "") for name, key in PROMPTS.items()}
        files = [Path(view.result.root or self.base, path) for path in settings.get("control") or ()]
        images = [(file.name, self.album.control(file)) for file in files]
        return {"words": {n: t for n, t in said.items() if t}, "images": [pair for pair in images if pair[1]]}

    def _place(self, strip: Strip) -> bool:
        """Is it to be written into the page? If not, it is there already, or goes to a file now."""
        if not strip.key or strip.key in self.placed:
            return False
        self.placed.add(strip.key)
        self.budget -= len(strip.data) * 4 // 3
        if self.budget >= 0:
            return True
        self._write(strip.key, "pictures", {strip.key: strip.uri})
        return False

    def _write_details(self) -> None:
        """Files of many cases' details, and one of each picture."""
        self.budget = 0
        for start in range(0, len(self.views), CASES_A_FILE):
            told = {}
            for view in self.views[start : start + CASES_A_FILE]:
                shown, heard = self._pictures(view), self._sounds(view)
                for strip in (shown.golden, shown.output, *heard.values()):
                    self._place(strip)
                told[view.anchor] = self._details(view, {**_told(view, shown, heard), "output": shown.output.key})
            self._write(self._file(start), "cases", told)

    def _write(self, name: str, kind: str, values: dict[str, Any]) -> None:
        self.data.mkdir(exist_ok=True)
        content = f'loraDrift("{kind}",{as_script_data(values)});\n'
        (self.data / f"{name}.js").write_text(content, encoding="utf-8")


def environment() -> Environment:
    """Templates, with everything escaped that is not marked as safe."""
    found = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    numbers = {"shown": scale.shown, "label": scale.label}
    found.filters |= {**numbers, "code_spans": code_spans}
    found.globals |= {"standing": scale.standing, "SQUARES": SQUARES}
    return found


def scripts(*names: str) -> dict[str, str]:
    """These files as `script`, and the `script_hash` that a page's security policy allows."""
    script = "\n".join((PAGE / f"{name}.js").read_text(encoding="utf-8") for name in names)
    return {"script": Markup(script), "script_hash": b64encode(sha256(script.encode()).digest()).decode()}


def style(*names: str) -> Markup:
    return Markup("\n".join((PAGE / f"{name}.css").read_text(encoding="utf-8") for name in names))


def code_spans(text: str) -> Markup:
    """Escaped `text` in which `backticks` become <code>."""
    parts = [Markup("<code>{}</code>" if i % 2 else "{}").format(part) for i, part in enumerate(text.split("`"))]
    return Markup("").join(parts)


def _told(view: View, shown: Comparison, heard: dict[str, Strip]) -> dict[str, Any]:
    return {
        "golden": shown.golden.key,
        "change": False,
        "frames": view.result.frames,
        "fps": view.result.fps,
        "problems": [shown.golden.problem, shown.output.problem],
        "sounds": [[name, sound.key, sound.problem] for name, sound in heard.items()],
    }


def _thumbnail(strip: Strip, frames: int) -> str:
    """The first frame, small."""
    assert strip.pixels is not None
    return thumbnail(Image.fromarray(strip.pixels[: strip.pixels.shape[0] // frames]))


def _changed_cases(found: Iterable[Change]) -> dict[str, str]:
    """Case -> what became of it since the earlier runs; what broke says most, and is therefore said last."""
    changed: dict[str, str] = {}
    for change in found:
        words = {"further off": change.worse, "new": change.added, "mended": change.mended, "broken": change.broken}
        for word, cases in words.items():
            changed |= dict.fromkeys(cases, word)
    return changed


def _models(found: list[View]) -> list[ModelView]:
    """By each model's worst verdict, then by name, so that a quiet morning looks like the last one."""
    grouped: dict[str, list[View]] = {}
    for view in found:
        grouped.setdefault(view.result.model, []).append(view)
    models = []
    for name, group in grouped.items():
        counts = Counter(view.result.verdict for view in group)
        ordered: dict[Verdict, int] = {verdict: counts[verdict] for verdict in scale.ORDER if counts[verdict]}
        models.append(ModelView(name, next(iter(ordered)), ordered, sorted(group, key=lambda view: view.anchor)))
    return sorted(models, key=lambda model: (scale.ORDER.index(model.worst), model.name))


def _common(environments: list[dict[str, Any]]) -> dict[str, str]:
    """The runs' environment: a key on which they disagree shows every value."""
    values: dict[str, set[str]] = {}
    for found in environments:
        for key, value in flatten(found).items():
            values.setdefault(key, set()).add(text(value))
    return {key: " / ".join(sorted(found)) for key, found in sorted(values.items())}
