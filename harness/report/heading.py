"""What a report says before anything else: how many checks match, when, of which commit, where and with what."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lora_drift.harness.check.results import PASSING, Result
from lora_drift.harness.report.changes import versions

MINIATURES = (
    "The models here are miniatures with random weights, so pictures look like noise by design. Equal noise needs the "
    "same arithmetic."
)
"""For who sees such a page for the first time."""


def sentence(results: list[Result]) -> str:
    """ "All 177 checks match the trainer (miniature models, CPU, float32)." """
    if not results:
        return "Nothing was checked."
    total, where = len(results), f"({_where(results)})"
    failing = sum(r.verdict not in PASSING for r in results)
    known = sum(r.verdict == "known" for r in results)
    also = [f"{failing} need{'s' if failing == 1 else ''} attention"] if failing else []
    also += [f"{known} differ{'s' if known == 1 else ''} as is known"] if known else []
    if also:
        return f"{total - failing - known} of {total} checks match the trainer {where}; {'; '.join(also)}."
    return f"The check matches the trainer {where}." if total == 1 else f"All {total} checks match the trainer {where}."


def run(results: list[Result], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Facts about the run, as far as the results say them: date, commit, machine, versions, and CI's page."""
    facts = {
        "checked": moment(max((r.made.at.isoformat() for r in results if r.made), default="")),
        "commit": _all(results, lambda r: r.made.commit if r.made else ""),
        "machine": _all(results, lambda r: ", ".join(filter(None, _machine(r.environment)))),
        "versions": ", ".join(f"{name} {version}" for name, version in versions(results).items()),
        "CI run": _ci(environment),
    }
    return {name: said for name, said in facts.items() if said}


def _where(results: list[Result]) -> str:
    tiers = {"mini": "miniature models", "full": "real weights"}
    devices = sorted({"CPU" if r.device == "cpu" else "GPU" for r in results})
    return ", ".join([
        " and ".join(words for tier, words in tiers.items() if any(r.tier == tier for r in results)),
        " and ".join(devices),
        " and ".join(sorted({r.dtype for r in results})),
    ])  # fmt: skip


def _machine(environment: Mapping[str, Any]) -> Iterable[str]:
    yield from (str(environment.get(name) or "") for name in ("gpu", "cpu", "platform"))


def _all(results: list[Result], of: Callable[[Result], str]) -> str:
    return " / ".join(sorted({said for result in results if (said := of(result))}))


def moment(time: str) -> str:
    """ "2026-11-30 07:05 UTC" of an ISO time in UTC."""
    return time.replace("T", " ")[:16] + " UTC" if time else ""


def _ci(environment: Mapping[str, str]) -> str:
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    server, repository, number = (environment.get(name, "") for name in names)
    return f"{server}/{repository}/actions/runs/{number}" if number else ""
