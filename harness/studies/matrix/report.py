"""The merged report of a matrix: JSON, Markdown, a table for the terminal, and a paragraph for an upstream issue."""

from collections import Counter
from typing import Any

from rich.table import Table

from lora_drift.harness.report.scale import release_name
from lora_drift.harness.studies.matrix.findings import Finding
from lora_drift.harness.studies.matrix.run_cases import Mode, Outcome, Status
from lora_drift.pipelines import MODELS

SCHEMA = 1
NAMED = 6
"""How many of a commit's changes a paragraph names."""
WORST: tuple[Status, ...] = ("not installable", "crash", "drift", "lacks", "green")
COLOURS = {"green": "green", "lacks": "yellow", "drift": "red", "crash": "red", "not installable": "magenta"}
WELL: frozenset[Status] = frozenset({"green", "lacks"})
"""What leaves the exit code at 0. `lacks`: the model's row in the table rules the release out."""


def merge(
    outcomes: list[Outcome], findings: list[Finding], *, tag: str, mode: Mode, base: dict[str, Any]
) -> dict[str, Any]:
    """JSON-safe content of matrix.json. Green cells are a word; others say how many cases, and why."""
    combinations = list(dict.fromkeys(o.combination for o in outcomes))
    models = list(dict.fromkeys(o.model for o in outcomes))
    cells = {c: {m: [o for o in outcomes if (o.combination, o.model) == (c, m)] for m in models} for c in combinations}
    counts = Counter(worst(cells[c][m]) for c in combinations for m in models)
    refused = {o.combination: o.message for o in outcomes if o.status == "not installable"}
    return {
        "schema": SCHEMA,
        "tag": tag,
        "mode": mode,
        "otherwise": base,
        "cases": len({o.case for o in outcomes}),
        "models": models,
        "counts": {status: counts[status] for status in reversed(WORST) if counts[status]},
        "combinations": [
            {
                **combination.model_dump(exclude_none=True),
                **({"not_installable": refused[combination]} if combination in refused else {}),
                "models": {m: _cell(cells[combination][m]) for m in models} if combination not in refused else {},
            }
            for combination in combinations
        ],
        "findings": [
            {**f.model_dump(mode="json", exclude_defaults=True), "size": f.size, "paragraph": paragraph(f, mode)}
            for f in findings
        ],
    }


def worst(cell: list[Outcome]) -> Status:
    return next(status for status in WORST if any(o.status == status for o in cell))


def _cell(cell: list[Outcome]) -> dict[str, Any] | str:
    status = worst(cell)
    if status == "green":
        return status
    shown = [o for o in cell if o.status == status]
    first = shown[0]
    details = {"cases": f"{len(shown)} of {len(cell)}", "case": first.case, "boundary": first.boundary,
               "error": first.error, "pixel_max": first.pixel_max, "message": first.message[:300]}  # fmt: skip
    return {"status": status, **{name: value for name, value in details.items() if value not in (None, "")}}


def exit_code(outcomes: list[Outcome]) -> int:
    return 0 if all(o.status in WELL for o in outcomes) else 1


def _rows(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header, and a row a model: the status in each combination."""
    combinations = content["combinations"]
    head = ["model", *(release_name(c) for c in combinations)]
    return head, [[m, *(_word(c, m) for c in combinations)] for m in content["models"]]


def _word(combination: dict[str, Any], model: str) -> str:
    if "not_installable" in combination:
        return "not installable"
    cell = combination["models"][model]
    return cell if isinstance(cell, str) else str(cell["status"])


def table(content: dict[str, Any]) -> Table:
    head, rows = _rows(content)
    shown = Table(head[0], *(title.replace(" × ", "\n") for title in head[1:]), box=None)
    for model, *words in rows:
        shown.add_row(model, *(f"[{COLOURS[word]}]{word.replace('not installable', '–')}[/]" for word in words))
    return shown


def markdown(content: dict[str, Any]) -> str:
    stock = content["mode"] == "plain"
    what = "stock Diffusers, each release compared with the one before" if stock else (
        "our pipelines compared with the trainer")  # fmt: skip
    counts = ", ".join(f"{count} {status}" for status, count in content["counts"].items())
    head, rows = _rows(content)
    lines = [f"# Release matrix: {what}", ""]
    versions = ", ".join(f"{name} {version}" for name, version in content["otherwise"].items())
    lines += [f"{content['tag']}, {content['cases']} cases; cells: {counts}. Columns: Diffusers × transformers. "
              f"Everything else: {versions}.", ""]  # fmt: skip
    lines += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    refused = [c for c in content["combinations"] if "not_installable" in c]
    if refused:
        why_not = [f"- {release_name(c)}: {_inline(c['not_installable'])}" for c in refused]
        lines += ["", "## Not installable", "", *why_not]
    lacking = {
        model: cell["message"] for c in content["combinations"] for model, cell in c["models"].items()
        if isinstance(cell, dict) and cell["status"] == "lacks"
    }  # fmt: skip
    if lacking:
        lines += ["", "## Lacks", "", *(f"- {model}: {_inline(message)}" for model, message in lacking.items())]
    if content["findings"]:
        lines += ["", "## Findings", *(f"\n{finding['paragraph']}" for finding in content["findings"])]
    return "\n".join(lines) + "\n"


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("<", "\\<").replace("|", "\\|")


def paragraph(finding: Finding, mode: Mode) -> str:
    """Ready to paste into an upstream issue."""
    what = "The picture" if mode == "plain" else "The picture of our reference pipeline"
    happened = f"{what} changed ({finding.size})" if finding.status == "drift" else f"It fails with `{finding.size}`"
    settings = f" ({finding.settings})" if finding.settings else ""
    where = ", ".join([finding.cases[0] + settings, *finding.cases[1:]])
    torch = f", torch {', '.join(finding.torch)}" if finding.torch else ""
    seen = f"Seen with transformers {', '.join(finding.transformers)}{torch}, float32 on the CPU, in {where}."
    return f"**{finding.model}, {_since(finding)}:** {happened}. {seen}{_because(finding)}{_again(finding, mode)}"


def _since(finding: Finding) -> str:
    before, first = finding.before, finding.first
    if before is None:
        return f"Diffusers {first.diffusers} (the oldest tried)"
    if before.diffusers == first.diffusers:
        return f"{before.name} → {first.name}"
    return f"Diffusers {before.diffusers} → {first.diffusers}"


def _because(finding: Finding) -> str:
    if finding.bisection is None:
        return f" Not bisected: {finding.why_not_bisected}." if finding.why_not_bisected else ""
    bisection = finding.bisection
    row = MODELS[finding.model]

    def nearness(change: str) -> int:
        """The model's own classes first, then what it is made of, then helpers."""
        name, _, place = change.partition(" (")
        folder = (place or name).split("/")[0]
        known = ["pipelines", "schedulers", "models"]
        return 0 if name in (row.pipeline, row.scheduler.name) else 1 + (known.index(folder) if folder in known else 3)

    changed = sorted(bisection.changed, key=nearness)
    shown = ", ".join(changed[:NAMED]) + (f" and {len(changed) - NAMED} more" if len(changed) > NAMED else "")
    return f" Begins with {bisection.commit} ({bisection.date}, “{bisection.subject}”), which changes {shown}."


def _again(finding: Finding, mode: Mode) -> str:
    pair = [combination for combination in (finding.before, finding.first) if combination]
    releases = {
        "diffusers": [combination.diffusers for combination in pair],
        "transformers": [combination.transformers for combination in pair],
        "torch": [combination.torch for combination in pair if combination.torch],
    }
    options = [f" --{name} {' '.join(dict.fromkeys(given))}" for name, given in releases.items() if given]
    option = " --stock" if mode == "plain" else ""
    script = f"\n\n```python\n{finding.script}\n```" if finding.script else ""
    return (
        f" Reproduce (without weights): `lora-drift matrix{option}{''.join(options)} --case {finding.cases[0]}`{script}"
    )
