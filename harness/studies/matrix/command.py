"""Behind `lora-drift matrix`: checks what is asked, runs, finds, bisects, and writes the report."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lora_drift.harness import tags
from lora_drift.harness.check import cases
from lora_drift.harness.report.scale import release_name
from lora_drift.harness.studies.matrix import checkouts, report
from lora_drift.harness.studies.matrix.bisect import Bisector, NotBisected
from lora_drift.harness.studies.matrix.checkouts import CheckoutError
from lora_drift.harness.studies.matrix.environment import FROM_GIT, Combination, NotInstallable
from lora_drift.harness.studies.matrix.findings import Finding, find
from lora_drift.harness.studies.matrix.run import Matrix, Note
from lora_drift.harness.studies.matrix.run_cases import Mode, Outcome

BORROWED = ("torch", "torchvision", "accelerate", "peft", "safetensors", "numpy")


def combinations(diffusers: list[str], transformers: list[str], torch: list[str]) -> list[Combination]:
    """Every combination, Diffusers in the order given within each of the others."""
    torches: list[str | None] = [*torch] or [None]
    others = product(torches, transformers or [version("transformers")])
    found = [Combination(diffusers=d, transformers=t, torch=o) for o, t in others for d in diffusers]
    return list(dict.fromkeys(found))


def run(
    wanted: list[Combination],
    models: list[str],
    only: list[str],
    *,
    tag: str | None,
    stock: bool,
    checkout: Path | None,
    workers: int,
    json_file: Path | None,
    folder: Path | None,
) -> int:
    """Returns the exit code.

    Raises:
        CaseError, TagError, CheckoutError: a name in the request means nothing.
    """
    tag = tags.row(tag).tag if tag else tags.newest()
    mode: Mode = "plain" if stock else "golden"
    refs = [c.diffusers.removeprefix(FROM_GIT) for c in wanted if c.diffusers.startswith(FROM_GIT)]
    if refs and checkout is None:
        raise CheckoutError(f"--diffusers {FROM_GIT}{refs[0]} is a commit of a checkout: give --checkout DIR")
    if checkout is not None:
        for ref in refs or ["HEAD"]:
            checkouts.resolve(checkout, ref)
    matrix = Matrix(
        cases.choose(cases.load_all(), models, only, tag=tag), wanted, tag=tag, mode=mode, checkout=checkout
    )
    with progress() as note:
        outcomes = matrix.run(workers, note)
        findings = find(outcomes, mode)
        if checkout is not None:
            explain(findings, outcomes, Bisector(checkout, tag=tag, mode=mode), note)
    tried = ("torch", "torchvision") if any(combination.torch for combination in wanted) else ()
    base = {name: version(name) for name in BORROWED if name not in tried}
    content = report.merge(outcomes, findings, tag=tag, mode=mode, base=base)
    show(content)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = "matrix-plain" if stock else "matrix"
        (folder / f"{name}.md").write_text(report.markdown(content), encoding="utf-8")
        json_file = json_file or folder / f"{name}.json"
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report.exit_code(outcomes)


def explain(findings: list[Finding], outcomes: list[Outcome], bisector: Bisector, note: Note) -> None:
    """Bisects each finding, or notes in it why that cannot be."""
    for number, finding in enumerate(findings):
        note(number, len(findings), f"bisecting {finding.model}, {finding.first.name}")
        reference = next(
            (o for o in outcomes if o.combination == finding.before and o.case == finding.cases[0]), None
        )  # fmt: skip
        try:
            finding.bisection = bisector.explain(finding, reference)
        except (NotBisected, CheckoutError, NotInstallable) as error:
            finding.why_not_bisected = str(error)


def show(content: dict[str, object]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(report.table(content))
    for combination in content["combinations"]:  # type: ignore[attr-defined]
        if "not_installable" in combination:
            console.print(f"{release_name(combination)}: not installable: {combination['not_installable']}",
                          markup=False, soft_wrap=True)  # fmt: skip
    for finding in content["findings"]:  # type: ignore[attr-defined]
        console.print(f"\n{finding['paragraph']}", markup=False, soft_wrap=True)
    counts = content["counts"]
    console.print("\n" + ", ".join(f"{count} {status}" for status, count in counts.items()))  # type: ignore[attr-defined]


@contextmanager
def progress() -> Iterator[Note]:
    """A bar on a terminal; elsewhere a line for each case."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("")

        def note(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)
            if not console.is_terminal:
                print(f"[{done}/{total}] {what}", file=sys.stderr, flush=True)

        yield note
