"""Rendered fuzzing: jobs drawn for each model in turn, rendered by the trainer and by us, compared; differences shrunk.

What was drawn and what came of it is kept in a file of the scratch folder, a job a line, so that a run goes on where
another one ended. A job in which something differed is rendered again then: it may have been mended.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_drift.harness.check import cases, control_pictures, coverage
from lora_drift.harness.check.cases import Case
from lora_drift.harness.trainer.fuzz import kept, shrink
from lora_drift.harness.trainer.fuzz.draw import Drawer
from lora_drift.harness.trainer.fuzz.side_by_side import Ask, Bench, Outcome
from lora_drift.pipelines.files import lines_of
from lora_drift.pipelines.registry import spec_of

COMPARED = ("same", "refused by both", "differs")


class Finding(NamedTuple):
    """A difference, as small as it was found."""

    kind: str
    models: list[str]
    """All in whose jobs it was met."""
    told: str
    case: Case
    file: Path | None
    """None: it needs the other samples of its job, which a case file cannot have."""


class Scratch:
    """The folder of a run: control pictures and case files in `cases`, what was drawn in `drawn.jsonl`, LoRAs of the
    trainer in `loras`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cases, self.file = folder, folder / "cases", folder / "drawn.jsonl"
        self.assets = self.cases / "assets"
        self.pictures = control_pictures.write(self.assets)
        self.jobs: dict[tuple[str, int], list[Outcome]] = {}
        for line in lines_of(self.file) if self.file.is_file() else ():
            entry = json.loads(line)
            self.jobs[entry["model"], entry["job"]] = [self._outcome(one) for one in entry["samples"]]

    def _outcome(self, entry: dict[str, Any]) -> Outcome:
        case = Case.model_validate(entry.pop("case"), context={"assets": self.assets})
        return Outcome(case, **entry)

    def loras(self, model: str, job: int) -> Path:
        """The folder of the files that the trainer saved in a job."""
        return self.folder / "loras" / f"{model}-{job}"

    def keep(self, model: str, job: int, outcomes: Sequence[Outcome], loras: Path) -> None:
        self.jobs[model, job] = list(outcomes)
        if loras.is_dir():
            shutil.copytree(loras, self.loras(model, job), dirs_exist_ok=True)
        samples = [{**one._asdict(), "case": shrink.content(one.case)} for one in outcomes]
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"model": model, "job": job, "samples": samples}) + "\n")

    def of(self, model: str) -> dict[int, list[Outcome]]:
        return {job: outcomes for (name, job), outcomes in self.jobs.items() if name == model}

    def compared(self, model: str) -> int:
        return sum(one.verdict in COMPARED for outcomes in self.of(model).values() for one in outcomes)


class Fuzzer:
    """Draws, renders and compares, fair over models."""

    def __init__(
        self, ask: Ask, bench: Bench, scratch: Scratch, models: Sequence[str], seed: int, note: Callable[[str], None]
    ) -> None:
        """`note` is told what goes on, a line at a time."""
        self._ask, self._bench, self._scratch, self._note = ask, bench, scratch, note
        self.models = list(models)
        self.findings: list[Finding] = []
        known = cases.load_all()
        self._drawers: dict[str, Drawer] = {}
        for model in models:
            spec = spec_of(model, bench.toolkit)
            drawer = Drawer(spec, scratch.assets, scratch.pictures, str(seed))
            drawn = [one.case for outcomes in scratch.of(model).values() for one in outcomes if kept.fit(one)]
            for case in [*(case for case in known if case.model == model), *drawn]:
                drawer.visit(case)
            self._drawers[model] = drawer

    def run(self, examples: int, more: Callable[[], bool]) -> None:
        """Until each model has `examples` compared, while there is `more` time; jobs that differed come first."""
        for (model, job), outcomes in list(self._scratch.jobs.items()):
            if model in self.models and any(one.verdict == "differs" for one in outcomes) and more():
                self._job(model, job, [one.case for one in outcomes])
        while more():
            left = [model for model in self.models if self._scratch.compared(model) < examples]
            if not left:
                return
            for model in sorted(left, key=self._scratch.compared):  # whoever was left behind by another run
                if not more():
                    return
                job = max(self._scratch.of(model), default=-1) + 1
                self._job(model, job, self._drawers[model].job(job))

    def _job(self, model: str, number: int, drawn: Sequence[Case]) -> None:
        started = time.monotonic()
        outcomes = self._outcomes(drawn)
        for one in outcomes:
            if one.verdict in COMPARED:
                self._drawers[model].visit(one.case)
        self._scratch.keep(model, number, outcomes, self._scratch.folder / "job" / "loras")
        counts = Counter(one.verdict for one in outcomes)
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        self._note(f"{model} {self._scratch.compared(model)}: {told} ({time.monotonic() - started:.0f} s)")
        for one in outcomes:
            if one.verdict == "differs":
                self._found(one, drawn)

    def _outcomes(self, drawn: Sequence[Case]) -> list[Outcome]:
        out = self._scratch.folder / "job"
        told = self._ask(drawn, out)
        return [self._bench.outcome(case, out / case.id, told[case.id]) for case in drawn]

    def _found(self, one: Outcome, job: Sequence[Case]) -> None:
        """Shrink it, unless one of its kind and family was."""
        spec = spec_of(one.case.model, self._bench.toolkit)
        for before in self.findings:
            if before.kind == one.kind and spec_of(before.case.model, self._bench.toolkit).family == spec.family:
                if one.case.model not in before.models:
                    before.models.append(one.case.model)
                return
        self._note(f"{one.case.id}: {one.kind}: {one.told[:300]}")

        def differs(case: Case) -> bool:
            found = self._outcomes([case])[0]
            return (found.verdict, found.kind) == ("differs", one.kind)

        file, case = None, one.case
        if len(job) == 1 or differs(case):
            case = shrink.smallest(case, differs, spec, self._scratch.assets)
            file = shrink.write(
                case, f"Found by lora-drift fuzz: {one.kind}.", self._scratch.cases, self._scratch.assets
            )
        told = self._outcomes([case])[0].told if file else one.told
        self.findings.append(Finding(one.kind, [case.model], told, case, file))
        self._note(f"  smallest: {file or json.dumps([shrink.content(sample) for sample in job])}")


def figures(scratch: Scratch, models: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(model, what came of its samples, and which pairs of values they and the cases visit)."""
    known = cases.load_all()
    for model in models:
        outcomes = [one for drawn in scratch.of(model).values() for one in drawn]
        counts = Counter(one.verdict for one in outcomes)
        drawn = [one.case for one in outcomes if one.verdict in COMPARED]
        before, after = coverage.measure(model, known), coverage.measure(model, [*known, *drawn])
        yield (
            model,
            {
                "drawn": len(outcomes),
                "compared": sum(counts[verdict] for verdict in COMPARED),
                **{
                    verdict: counts[verdict]
                    for verdict in ("same", "refused by both", "differs", "rounding decides", "both fail", "not made")
                },
                "pixel_max": max((one.pixel_max or 0 for one in outcomes if one.verdict == "same"), default=0),
                "latents_rel_l2": max(
                    (one.latents_rel_l2 or 0 for one in outcomes if one.verdict == "same"), default=0
                ),
                "pairs": [before.visited_pairs, after.visited_pairs, after.pairs],
            },
        )
