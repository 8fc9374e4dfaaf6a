"""What a matrix found: for each drift or crash, the first release that shows it."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_drift.harness.studies.matrix.environment import Combination
from lora_drift.harness.studies.matrix.run_cases import Mode, Outcome


class Bisection(BaseModel):
    """The commit of Diffusers with which something begins."""

    model_config = ConfigDict(extra="forbid")

    commit: str
    date: str
    subject: str
    changed: list[str]
    """"class (file)" for what the commit changes in the library."""


class Finding(BaseModel):
    """One drift or crash of a model, with every case and every transformers and torch that shows it alike."""

    model_config = ConfigDict(extra="forbid")

    model: str
    cases: list[str]
    status: str
    first: Combination
    """The first combination, in the order given, that shows it."""
    before: Combination | None
    """The last one that does not, else the same Diffusers among others; None: the oldest given shows it already."""
    transformers: list[str]
    torch: list[str] = []
    """Those asked for; empty: that of the running environment."""
    boundary: str | None = None
    error: float | None = None
    pixel_max: float | None = None
    pixel_mean: float | None = None
    message: str = ""
    settings: str = ""
    script: str | None = None
    bisection: Bisection | None = None
    why_not_bisected: str = ""

    @property
    def size(self) -> str:
        """How large a drift is, in words."""
        if self.status == "crash":
            return self.message
        picture = "a picture of another size" if self.pixel_max is None else (
            f"pixels by up to {self.pixel_max:.0f} of 255, {self.pixel_mean or 0:.2g} on average")  # fmt: skip
        error = "" if self.error is None else f", {self.error:.2g} relative"
        return picture + (f"; first at {self.boundary}{error}" if self.boundary else "")


Chain = list[Outcome]
"""Outcomes of one case over the Diffusers releases, in the order given, all else equal."""


def chains(outcomes: list[Outcome]) -> Iterator[Chain]:
    def what(outcome: Outcome) -> tuple[str, str, str]:
        return outcome.case, outcome.combination.transformers, outcome.combination.torch or ""

    order = {key: number for number, key in enumerate(dict.fromkeys(map(what, outcomes)))}
    for _, chain in groupby(sorted(outcomes, key=lambda o: order[what(o)]), key=what):
        yield list(chain)


def compare_plain(outcomes: list[Outcome]) -> dict[int, Combination]:
    """Turns the status of stock renders that changed since the release before into drift.

    The first release of a chain is compared with the same release in the first chain (other transformers or torch).
    Returns what each such outcome (by `id`) was compared with.
    """
    from lora_drift.harness.studies.stock_diffusers import difference, stored

    first_of: dict[tuple[str, str], Outcome] = {}
    compared: dict[int, Combination] = {}
    for chain in chains(outcomes):
        before: Outcome | None = None
        for outcome in chain:
            if outcome.pictures is None:
                continue
            reference = before or first_of.get((outcome.case, outcome.combination.diffusers))
            first_of.setdefault((outcome.case, outcome.combination.diffusers), outcome)
            before = outcome
            if reference is None or reference.pictures is None:
                continue
            pair = [stored(Path(o.pictures or ""), o.case) for o in (reference, outcome)]
            moved = difference(pair[0], pair[1])
            if not moved["within"]:
                outcome.status, outcome.boundary, outcome.error = "drift", moved["boundary"], moved["error"]
                outcome.pixel_max, outcome.pixel_mean = moved["pixel_max"], moved["pixel_mean"]
                compared[id(outcome)] = reference.combination
    return compared


def find(outcomes: list[Outcome], mode: Mode) -> list[Finding]:
    """Every drift and crash at the release where it begins, alike ones together."""
    compared = compare_plain(outcomes) if mode == "plain" else {}
    findings: dict[tuple[object, ...], Finding] = {}
    green: dict[tuple[str, str], Combination] = {}
    for chain in chains(outcomes):
        before: Outcome | None = None
        for outcome in chain:
            if outcome.status == "not installable":
                continue
            what = outcome.case, outcome.combination.diffusers
            if outcome.status == "green":
                green.setdefault(what, outcome.combination)
            begins = before is None or before.status != outcome.status or id(outcome) in compared
            if outcome.status in ("drift", "crash") and begins:
                well = before is not None and (
                    before.status == "green" or (mode == "plain" and before.status == "drift")
                )
                last = before.combination if before is not None and well else green.get(what)
                _merge(findings, outcome, compared.get(id(outcome), last))
            before = outcome
    return list(findings.values())


def _merge(findings: dict[tuple[object, ...], Finding], outcome: Outcome, before: Combination | None) -> None:
    alike = (outcome.model, outcome.status, before and before.diffusers, outcome.combination.diffusers,
             outcome.boundary, outcome.message if outcome.status == "crash" else None)  # fmt: skip
    finding = findings.get(alike)
    if finding is None:
        finding = findings[alike] = Finding(
            model=outcome.model, cases=[], status=outcome.status, first=outcome.combination, before=before,
            transformers=[], boundary=outcome.boundary, error=outcome.error,
            pixel_max=outcome.pixel_max, pixel_mean=outcome.pixel_mean, message=outcome.message,
            settings=outcome.settings, script=outcome.script,
        )  # fmt: skip
    where = outcome.combination
    for seen, value in (
        (finding.cases, outcome.case), (finding.transformers, where.transformers), (finding.torch, where.torch),
    ):  # fmt: skip
        if value is not None and value not in seen:
            seen.append(value)
