"""What a mutation run found: the table in the terminal, and reports/mutation.{json,md}."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_drift.harness.check import divergence
from lora_drift.harness.deviations.equivalent import EQUIVALENT
from lora_drift.harness.deviations.library import LIBRARY
from lora_drift.harness.deviations.mutation import Outcome
from lora_drift.harness.paths import ROOT
from lora_drift.harness.tags import TagError

REPORT = ROOT / "reports" / "mutation"
LOCATED = 0.95
"""The share of caught variations whose stage the localiser must name."""
PLACES = [value for name, value in vars(divergence).items() if name.isupper() and isinstance(value, str)]
MARKS = {"survived": "SURVIVED", "error": "ERROR", "equivalent": "="}


def passing(outcomes: list[Outcome]) -> bool:
    """No survivor, no error, and the localiser is right often enough."""
    caught = [o for o in outcomes if o.verdict == "caught"]
    right = sum(o.located for o in caught)
    return (
        bool(outcomes)
        and all(o.verdict in ("caught", "equivalent") for o in outcomes)
        and right >= LOCATED * len(caught)
    )


def per_model(outcomes: Iterable[Outcome]) -> dict[str, Counter[str]]:
    """Model -> how many were tried, caught, located, ..."""
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.model, Counter()).update(
            {"tried": 1, outcome.verdict: 1, "located": int(outcome.verdict == "caught" and outcome.located)}
        )
    return dict(sorted(counts.items()))


def show(outcomes: list[Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "variations", "caught", "equivalent", "survived", "error", "stage named", box=None)
    for model, n in per_model(outcomes).items():
        table.add_row(model, str(n["tried"]), *(str(n[k]) for k in ("caught", "equivalent", "survived", "error")),
                      f"{n['located']}/{n['caught']}")  # fmt: skip
    console = Console(width=140)
    console.print(table)
    for title, lines in _lists(outcomes):
        console.print(f"\n{title}:", *lines, sep="\n  ", markup=False, soft_wrap=True)
    console.print(_summary(outcomes), markup=False)


def _summary(outcomes: list[Outcome]) -> str:
    verdicts = Counter(o.verdict for o in outcomes)
    judged = verdicts["caught"] + verdicts["survived"] + verdicts["error"]
    caught = [o for o in outcomes if o.verdict == "caught"]
    right = sum(o.located for o in caught)
    share = f" ({right / len(caught):.1%})" if caught else ""
    return (f"{verdicts['caught']} of {judged} caught, {verdicts['equivalent']} equivalent besides; the stage was "
            f"named rightly for {right} of {len(caught)}{share}")  # fmt: skip


def _lists(outcomes: list[Outcome]) -> list[tuple[str, list[str]]]:
    def lines(verdict: str) -> list[str]:
        return [_line(o) for o in outcomes if o.verdict == verdict]

    misplaced = [f"{o.model}: {o.variation} ({o.case}): {o.truth}, but named {o.named} [{o.boundary}]"
                 for o in outcomes if o.verdict == "caught" and not o.located]  # fmt: skip
    lists = (("Survived", lines("survived")), ("Could not be rendered", lines("error")),
             ("Equivalent", lines("equivalent")), ("Stage named wrongly", misplaced))  # fmt: skip
    return [(title, items) for title, items in lists if items]


def _line(o: Outcome) -> str:
    distance = "" if o.distance is None else f", distance {o.distance:.2g}"
    return f"{o.model}: {o.variation} (largest on {o.case}{distance})" + (f": {o.note}" if o.note else "")


def write(outcomes: list[Outcome], tag: str, variant: str = "", out: Path = REPORT) -> Path:
    """The committed result of a whole run, judged by a `variant` of a tag's goldens ("sm90-bfloat16"); returns the path
    of the Markdown. What float32 judged, the pages of the models read, from JSON."""
    outcomes = sorted(outcomes, key=lambda o: (o.model, list(LIBRARY).index(o.variation)))
    text = out.parent / f"{out.name}{variant and f'-{variant}'}.md"
    if not variant:
        text.with_suffix(".json").write_text(_json(outcomes, tag), encoding="utf-8")
    text.write_text(_markdown(outcomes, f"{tag}{variant and f', {variant}'}"), encoding="utf-8")
    return text


def with_committed(outcomes: list[Outcome], variations: list[str], tag: str, out: Path = REPORT) -> list[Outcome]:
    """The outcomes of a run of some `variations`, and what the committed report says of all others.

    Raises:
        TagError: the report is of another tag.
    """
    report = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    if report["tag"] != tag:
        raise TagError(f"{out.name}.json is of {report['tag']}, this run of {tag}; run all variations")
    kept = [
        _outcome(model, name, row)
        for model, rows in report["models"].items()
        for name, row in rows.items()
        if name in LIBRARY and name not in variations
    ]
    return kept + outcomes


def _outcome(model: str, variation: str, row: list[Any]) -> Outcome:
    """A row of the report, as far as the report is made of it."""
    found: dict[str, Any] = {"model": model, "variation": variation, "case": f"{model}/{row[0]}"}
    shows = LIBRARY[variation].always_shows
    if len(row) == 3:
        reason = EQUIVALENT.get((variation, model)) or EQUIVALENT.get((variation, ""), "")
        note = reason if row[1] == "equivalent" else ""
        return Outcome(verdict=row[1], distance=row[2], truth=shows, note=note, **found)
    misplaced = re.fullmatch(r"(.*) \[(\S+)] \(should be (.*)\)", row[1])
    if misplaced:
        named, boundary, truth = misplaced.groups()
    else:
        named, boundary = row[1], ""
        truth = shows or max((place for place in PLACES if divergence.agrees(named, place)), key=len)
    return Outcome(verdict="caught", named=named, boundary=boundary, truth=truth, **found)


def _json(outcomes: list[Outcome], tag: str) -> str:
    """Model -> variation -> [case, stage that was named]; of what was not caught [case, verdict, distance]."""
    models: dict[str, dict[str, Any]] = {}
    for o in outcomes:
        stem = o.case.partition("/")[2]
        named = o.named.partition(" (")[0] if o.located else f"{o.named} [{o.boundary}] (should be {o.truth})"
        models.setdefault(o.model, {})[o.variation] = (
            [stem, named] if o.verdict == "caught" else [stem, o.verdict, o.distance]
        )
    lines = [f" {json.dumps(model)}: {json.dumps(rows, separators=(',', ':'))}" for model, rows in models.items()]
    return f'{{"tag": {json.dumps(tag)}, "models": {{\n' + ",\n".join(lines) + "\n}}\n"


def _markdown(outcomes: list[Outcome], title: str) -> str:
    rows = ["| model | variations | caught | equivalent | survived | error | stage named |", "|---|" + "---:|" * 6]
    for model, n in per_model(outcomes).items():
        numbers = " | ".join(str(n[k]) for k in ("tried", "caught", "equivalent", "survived", "error"))
        rows.append(f"| {model} | {numbers} | {n['located']}/{n['caught']} |")
    parts = [f"# Mutation score, {title}", _summary(outcomes) + ".", *_equivalents(outcomes), "\n".join(rows)]
    parts += [f"## {heading}\n\n" + "\n".join(f"- {line}" for line in lines)
              for heading, lines in _lists(outcomes) if heading != "Equivalent"]  # fmt: skip
    return "\n\n".join([*parts, "## Which case catches what", _matrix(outcomes)]) + "\n"


def _equivalents(outcomes: list[Outcome]) -> list[str]:
    """One paragraph for each excused variation: the argument, and the largest distance measured."""
    excused: dict[tuple[str, str], list[Outcome]] = {}
    for o in outcomes:
        if o.verdict == "equivalent":
            excused.setdefault((o.variation, o.note), []).append(o)
    return [
        f"**Equivalent: {name}**, on {len(group)} models, at most {max(o.distance or 0 for o in group):.2g} from the "
        f"golden's latents. {reason}"
        for (name, reason), group in excused.items()
    ]


def _matrix(outcomes: list[Outcome]) -> str:
    """Variations by models: the case that caught it (a star: its stage was named wrongly)."""
    cells = {(o.variation, o.model): MARKS.get(o.verdict) or o.case.partition("/")[2] + "*" * (not o.located)
             for o in outcomes}  # fmt: skip
    models = list(per_model(outcomes))
    lines = ["| variation | shows at | " + " | ".join(models) + " |", "|---|---|" + "---|" * len(models)]
    for name in LIBRARY:
        places = sorted({o.truth for o in outcomes if o.variation == name and o.truth})
        if any((name, model) in cells for model in models):
            row = " | ".join(cells.get((name, model), "") for model in models)
            lines.append(f"| {name} | {', '.join(places)} | {row} |")
    return "A cell names the case; `=` equivalent, `*` stage named wrongly, empty: does not apply.\n\n" + "\n".join(
        lines
    )
