"""The catalogue: a page a model and an index, generated from the table, the cases, the goldens and committed results.

`lora-drift models --write docs/models` writes it; a test fails when a page is not what would be written now.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lora_drift.harness import tags
from lora_drift.harness.check import cases, coverage, sketched, verified_by
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import GOLDENS, content
from lora_drift.harness.check.results import PASSING
from lora_drift.harness.machine import doctor
from lora_drift.harness.native import check, records, unmatched
from lora_drift.harness.paths import ROOT
from lora_drift.harness.report import PAGES, history
from lora_drift.harness.report.scale import ORDER
from lora_drift.pipelines.files import lines_of
from lora_drift.pipelines.profiles import PROFILES
from lora_drift.pipelines.registry import MODELS, ROWS
from lora_drift.pipelines.spec import ModelSpec

REPORTS = ROOT / "reports"
GUIDANCE = {
    "cfg": "two passes above 1",
    "cfg_always": "two passes",
    "cfg_above_zero": "two passes above 0, `pos + g (pos - neg)`",
    "cfg_without_text": "two passes above 1, the second without any text; the negative prompt is ignored",
    "embedded": "one pass; the scale is an input of the model",
}


class Status(NamedTuple):
    """A model at one tag."""

    tag: str
    commit: str
    words: str
    """ "5 of 5 cases match", or why there is nothing to say."""
    pixel_max: float | None = None
    latents: float | None = None
    verdict: str = ""
    change: history.Change | None = None
    """Of the trainer's own pictures, since the tag before."""


class Sensitivity(NamedTuple):
    """What one deliberate mistake does to a model's pictures, over its cases."""

    name: str
    least: float
    most: float
    cases: int
    caught: int


class Shown(NamedTuple):
    """A case as the page lists it."""

    case: Case
    size: str
    """What the trainer rendered: 144x96, 81 frames."""
    origin: str
    lora: str
    verdict: str


class Mutation(NamedTuple):
    """How many of the variations that apply to a model its cases notice."""

    caught: int
    applicable: int
    missed: list[str]
    stages: dict[str, list[str]]
    """Component at which a mistake shows -> those that are noticed there."""


class Profiled(NamedTuple):
    """What a picture took with a profile."""

    name: str
    seconds: float
    peak: float
    """GB of GPU memory."""
    first: float
    """Seconds of the first picture, which waits for the compiler."""
    drift: dict[str, Any]
    """From the reference's picture: pixel_max, pixel_mean, latents_rel_l2."""


class Speed(NamedTuple):
    """What a picture took on a GPU, with the reference and with other profiles."""

    model: str
    reference: float
    """Seconds."""
    peak: float
    """GB of GPU memory."""
    apart: Mapping[str, Any]
    """From the trainer's picture on the same GPU; empty where that was not rendered."""
    profiles: list[Profiled]
    where: str
    """GPU, size, steps and weights."""
    command: str


class InComfyUI(NamedTuple):
    """A model in ComfyUI: what its graph makes, and what the template's settings cost."""

    words: str
    """ "core nodes only", the pack's nodes, or why nothing is known to match."""
    record: records.Record | None
    worst: records.Rendered | None
    """The case that is further from the trainer."""
    stock: records.Distance | None
    """With the template's settings, in the case in which they cost more."""
    causes: list[str]
    """What the template does otherwise."""
    alone: str = ""
    """Where nothing is known to match: what the named cause costs by itself, in our pipeline."""


@dataclass(frozen=True)
class Catalogue:
    """Everything that the pages are made from; all of it is committed."""

    reports: Path = REPORTS
    goldens: Path = GOLDENS
    cases: list[Case] = field(default_factory=cases.load_all)

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """Tag -> its summary, where there is one."""
        files = {row.tag: self.reports / row.tag / "summary.json" for row in tags.rows()}
        return {tag: json.loads(file.read_text(encoding="utf-8")) for tag, file in files.items() if file.is_file()}

    @cached_property
    def mutants(self) -> dict[str, dict[str, list[Any]]]:
        """Of reports/mutation.json: model -> variation -> [case, stage]; not caught: [case, verdict, distance]."""
        file = self.reports / "mutation.json"
        return json.loads(file.read_text(encoding="utf-8"))["models"] if file.is_file() else {}

    @cached_property
    def speeds(self) -> dict[str, Speed]:
        """Model -> what `benchmarks/gpu.py` measured last, rather with profiles. Of what broke off nothing is told."""
        file = self.reports / "performance.jsonl"
        lines = [json.loads(line) for line in lines_of(file)] if file.is_file() else []
        whole = [line for line in lines if "ours_seconds" in line.get("ours", {})]
        apart = {line["model"]: line["ours"].get("against_trainer", {}) for line in whole if "trainer" in line}
        found = [_speed(line, apart.get(line["model"], {})) for line in whole]
        return {speed.model: speed for speed in sorted(found, key=lambda speed: bool(speed.profiles))}

    def checked(self, tag: str, model: str) -> list[dict[str, Any]]:
        """Cases of a model in the tag's summary."""
        found = self.summaries.get(tag, {}).get("cases", [])
        return [case for case in found if case["model"] == model]

    def rows(self, model: str) -> list[tags.Tag]:
        """The tags that the model's page tells of: those that are recorded, and the one by which a model is held that
        all of these lack."""
        begun = tags.row(tags.newest_of([model]))
        return [*tags.rows(), *([begun] if begun.begun else [])]

    def status(self, model: str, row: tags.Tag) -> Status:
        """How the model stands at one tag."""
        if row.begun:
            own = [case for case in self.cases if case.model == model]
            there = sum(content(row.tag, case.id, self.goldens) is not None for case in own)
            return Status(row.tag, row.commit, f"being recorded, with {there} of {len(own)} cases of this model")
        if model in row.lacks:
            return Status(row.tag, row.commit, "the trainer does not have it yet")
        change = history.change([case for case in self.cases if case.model == model], row.tag, self.goldens)
        if not (found := self.checked(row.tag, model)):
            return Status(row.tag, row.commit, "unverified", change=change)
        worst = min((case["verdict"] for case in found), key=ORDER.index)
        passing = sum(case["verdict"] in PASSING for case in found)
        words = f"{passing} of {len(found)} cases {worst if worst in PASSING else f'pass ({worst})'}"
        pixel_max, latents = _worst(found, "pixel_max"), _worst(found, "latents_rel_l2")
        return Status(row.tag, row.commit, words, pixel_max, latents, worst, change)

    def sensitivity(self, model: str) -> list[Sensitivity]:
        """Of every negative control, at the newest tag; the weakest first."""
        moved: dict[str, list[dict[str, Any]]] = {}
        for case in self.checked(tags.newest(), model):
            for name, control in case["controls"].items():
                moved.setdefault(name, []).append(control)
        found = []
        for name, controls in moved.items():
            sizes = [control["pixel_max"] for control in controls]
            caught = sum(control["caught"] for control in controls)
            found.append(Sensitivity(name, min(sizes), max(sizes), len(sizes), caught))
        return sorted(found, key=lambda s: (s.least, s.name))

    def mutation(self, model: str) -> Mutation | None:
        """Score of the mutation run; None where it was not run."""
        rows = {name: row for name, row in self.mutants.get(model, {}).items() if row[1] != "equivalent"}
        missed = sorted(name for name, row in rows.items() if len(row) > 2)
        stages: dict[str, list[str]] = {}
        for name, row in rows.items():
            if len(row) == 2:
                stages.setdefault(row[1].partition(":")[0], []).append(name)
        return Mutation(len(rows) - len(missed), len(rows), missed, stages) if rows else None

    def shown(self, model: str) -> list[Shown]:
        """The model's cases, with what the trainer made of them at the newest tag."""
        verdicts = {case["case"]: case["verdict"] for case in self.checked(tags.newest(), model)}
        return [
            Shown(case, *self._golden(case), _lora(case), verdicts.get(case.id, "unverified"))
            for case in self.cases
            if case.model == model
        ]

    def _golden(self, case: Case) -> tuple[str, str]:
        """(size, origin) from the golden; dashes where the trainer has not rendered the case."""
        golden = content(tags.newest_of([case.model]), case.id, self.goldens)
        if golden is None:
            return "–", "not recorded"
        out = golden["output"]
        frames = f", {out['frames']} frames" if out["frames"] > 1 else ""
        return f"{out['width']}x{out['height']}{frames}", golden["origin"]


def in_comfyui(model: str) -> InComfyUI:
    if model in unmatched.UNMATCHED:
        stage, why = unmatched.UNMATCHED[model]
        return InComfyUI(f"{stage}: {why}", None, None, None, [], unmatched.size(model))
    record = records.load(model)
    if record is None:
        return InComfyUI("not rendered", None, None, None, [])
    worst = max(record.cases.values(), key=lambda case: (case.pixel_max, case.pixel_mean))
    stocks = {name: case.stock for name, case in record.cases.items() if case.stock}
    words = ", ".join(f"`{node}`" for node in record.nodes) or "core nodes only"
    if not stocks:
        return InComfyUI(words, record, worst, None, [])
    name, stock = max(stocks.items(), key=lambda item: item[1].pixel_max)
    graph = records.stock_of(*records.golden_of(model, name))
    found = check.findings(graph, MODELS[model]) if graph else []
    return InComfyUI(words, record, worst, stock, list(dict.fromkeys(finding.said for finding in found)))


def pages(catalogue: Catalogue | None = None) -> dict[str, str]:
    """File name -> Markdown of every page and of the index, README.md."""
    catalogue = catalogue or Catalogue()
    environment = _environment()
    template = environment.get_template("model.md.j2")
    found = {f"{id}.md": template.render(_page(catalogue, spec)) for id, spec in ROWS.items()}
    lines = [_page(catalogue, spec) for spec in ROWS.values()]
    found["README.md"] = environment.get_template("index.md.j2").render(models=lines, tags=tags.rows())
    return found


def write(folder: Path) -> list[Path]:
    """Write every page to `folder`, and remove pages of models that there are no more; beside docs/models also
    verified.json and peaks.json, which are made from the same results. Returns what changed."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    changed = [path for path in folder.glob("*.md") if path.name not in wanted]
    for path in changed:
        path.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    data = {verified_by.VERIFIED: verified_by.wanted(), doctor.PEAKS: peaks()}
    for path, text in data.items() if folder.resolve() == PAGES.resolve() else ():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def peaks() -> str:
    """What peaks.json holds: the memory that `lora-drift doctor` compares a GPU's with."""
    found = {model: round(speed.peak, 1) for model, speed in Catalogue().speeds.items()}
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def _page(catalogue: Catalogue, spec: ModelSpec) -> dict[str, Any]:
    """What the templates read of one model."""
    return {
        "spec": spec,
        "guidance": GUIDANCE[spec.guidance],
        "repositories": _repositories(spec),
        "size": _size(spec),
        "controls": _controls(spec),
        "statuses": [catalogue.status(spec.id, row) for row in reversed(catalogue.rows(spec.id))],
        "sensitivity": catalogue.sensitivity(spec.id),
        "mutation": catalogue.mutation(spec.id),
        "speed": catalogue.speeds.get(spec.id),
        "cases": catalogue.shown(spec.id),
        "coverage": coverage.measure(spec.id, catalogue.cases).words,
        "drawn": _drawn(spec.id, catalogue.cases),
        "command": _command(spec),
        "quantised": _quantised(spec),
        "newest": tags.row(tags.newest_of([spec.id])),
        "comfyui": in_comfyui(spec.id) if spec.id in MODELS else None,
    }


def _drawn(model: str, known: list[Case]) -> str:
    """What the samples of random jobs add to the inputs that the cases visit."""
    drawn = sketched.cases_of(tags.newest(), model)
    return f"{len(drawn)} samples of random jobs: {coverage.measure(model, [*known, *drawn]).words}" if drawn else ""


def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"cell": _cell, "number": lambda n: "–" if n is None else f"{n:.3g}"}
    return found


def _speed(line: Mapping[str, Any], apart: Mapping[str, Any]) -> Speed:
    """From a line of benchmarks/gpu.py."""
    settings, environment = line["settings"], line["ours"]["environment"]
    frames = f", {settings['num_frames']} frames" if settings["num_frames"] > 1 else ""
    where = (
        f"{environment.get('gpu', environment['device'])}, torch {environment['torch']}, Diffusers "
        f"{environment['diffusers']}, {environment['dtype']}, {settings['width']}x{settings['height']}{frames}, "
        f"{settings['steps']} steps, a LoRA of rank {line['rank']}, "
        + ("random weights of the real size" if line["synthetic"] else "a miniature")
    )
    found = [
        Profiled(
            name, part["seconds"]["total"], part["seconds"]["peak_gb"], part["first"]["total"], part["first"]["drift"]
        )
        for name in PROFILES[1:]
        if "seconds" in (part := line.get(name, {}))
    ]
    ours = line["ours"]["ours_seconds"]
    return Speed(line["model"], ours["total"], ours["peak_gb"], apart, found, where, line["command"])


def _worst(found: list[dict[str, Any]], metric: str) -> float | None:
    values = [case["metrics"].get(metric, {}).get("value") for case in found]
    return max((value for value in values if value is not None), default=None)


def _repositories(spec: ModelSpec) -> dict[str, list[str]]:
    """Hub id -> the components that come from it."""
    found = {spec.base: ["the base model"]}
    for component, repository in spec.components.items():
        found.setdefault(repository, []).append(component)
    return found


def _size(spec: ModelSpec) -> str:
    rule = "floored to" if spec.size_rule == "floor" else "refused unless"
    return f"{spec.width}x{spec.height}; {rule} multiples of {spec.size_divisor}"


def _controls(spec: ModelSpec) -> str:
    least, most = spec.controls
    if most == 0:
        return "none"
    count = str(least) if least == most else f"{least} to {most}"
    return f"{count}; Pillow 13 resizes some otherwise than 12 did (`--resize-order`)"


def _quantised(spec: ModelSpec) -> str:
    row = spec.quantizes
    if row is None:
        return "none: a job may ask for it, and nothing comes of it but a live LoRA"
    on = " and ".join(f"`{name}`" for name, on in zip(("quantize", "quantize_te"), row.by_default, strict=True) if on)
    encoders = ", ".join(f"`{name}`" for name in row.encoders)
    also = {
        "adapter": "; reads accuracy-recovery adapters",
        "exclude": "; reads `quantize_kwargs.exclude`",
        "neither": "; reads neither an accuracy-recovery adapter nor `quantize_kwargs`",
    }[row.reads]
    return f"the trainer's UI sets {on} (qfloat8); of the encoders {encoders}, as `{row.encoder_qtype}` says{also}"


def _lora(case: Case) -> str:
    if case.lora is None:
        return "–"
    conv = ", conv" if case.lora.network.conv else ""
    return f"{case.lora.network.type}{conv}, {case.lora.mode}, x {case.sample.network_multiplier:g}"


def _command(spec: ModelSpec) -> str:
    """Renders with the defaults of the row."""
    parts = [f"lora-drift sample --model {spec.id}"]
    parts += ["--lora high=HIGH.safetensors --lora low=LOW.safetensors" if len(spec.denoisers) > 1
              else "--lora my.safetensors"]  # fmt: skip
    parts += ["--control picture.png"] * max(spec.controls[0], 1 if spec.kind == "edit" else 0)
    parts += ['--prompt "a photo of [trigger]" --trigger sks --seed 42']
    return " \\\n    ".join([*parts, f"-o out.{'mkv' if spec.num_frames > 1 else 'png'}"])


def _cell(text: object) -> str:
    """Text that cannot end its table cell; of a mapping, `key value` pairs."""
    if isinstance(text, Mapping):
        text = ", ".join(f"{key} {value}" for key, value in text.items())
    return str(text).replace("|", "\\|").replace("\n", " ")
