"""What changed since an earlier summary: the committed one of the same tag, and the previous tag's."""

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from lora_drift.harness import tags
from lora_drift.harness.check.results import PASSING, Result
from lora_drift.harness.paths import ROOT

REPORTS = ROOT / "reports"
CASES = ROOT / "cases"
LIBRARIES = ("torch", "diffusers", "transformers")
WORSE = 2.0
"""Latents whose error grew by this factor are worth a word even within their tolerance."""


class Change(NamedTuple):
    """The difference to one earlier summary, as case names."""

    since: str
    broken: list[str]
    """Passed then, and does not now."""
    mended: list[str]
    added: list[str]
    gone: list[str]
    """Cases of which there is no file any more. One that is there and was not run is not gone."""
    worse: list[str]
    """Still passes, but its latents are further off by a factor of `WORSE`."""
    libraries: list[str]
    """`torch 2.14 → 2.15`: what else changed meanwhile."""

    @property
    def sentence(self) -> str:
        named = [
            f"{len(cases)} {word} ({', '.join(cases[:4])}{', ...' if len(cases) > 4 else ''})"
            for word, cases in zip(("broken", "mended", "new", "gone", "further off"), self[1:6], strict=True)
            if cases
        ]
        return "; ".join([*(named or ["no verdict changed"]), *self.libraries])


def changes(results: list[Result], tag: str, since: Path | None = None, cases: Path = CASES) -> list[Change]:
    """Against `since` (a summary.json) or the summary that git has of this tag; and against the previous tag's.

    `cases`: the folder of the case files that were to choose from.
    """
    found = []
    if since is not None:
        found.append(("the previous run", json.loads(since.read_text(encoding="utf-8"))))
    elif (committed := _committed(tag)) is not None:
        found.append(("the committed run", committed))
    if (previous := _previous_tag(tag)) is not None:
        found.append((previous["tag"], previous))
    return [compare(results, name, summary, cases) for name, summary in found]


def versions(results: list[Result]) -> dict[str, str]:
    """Of the libraries that matter; several where the runs disagree."""
    found = {name: sorted({str(r.environment[name]) for r in results if r.environment.get(name)}) for name in LIBRARIES}
    return {name: " / ".join(values) for name, values in found.items() if values}


def compare(results: list[Result], since: str, summary: dict[str, Any], cases: Path = CASES) -> Change:
    """The difference of `results` to an earlier summary; cases are told apart by name, tier, device and dtype."""
    now = {(r.case, r.tier, r.device, r.dtype): r for r in results}
    then = {(c["case"], c["tier"], c["device"], c["dtype"]): c for c in summary["cases"]}
    models = {r.model for r in now.values()}
    before = summary.get("versions", {})
    libraries = [f"{n} {before[n]} → {v}" for n, v in versions(results).items() if before.get(n, v) != v]
    change = Change(since, [], [], [], [], [], libraries)
    for key, result in sorted(now.items()):
        if key not in then:
            change.added.append(result.case)
            continue
        passed, passes = then[key]["verdict"] in PASSING, result.verdict in PASSING
        if passed and not passes:
            change.broken.append(result.case)
        elif passes and not passed:
            change.mended.append(result.case)
        elif passes and _grew(result, then[key]):
            change.worse.append(result.case)
    absent = [c for key, c in sorted(then.items()) if key not in now and c["model"] in models]
    change.gone.extend(c["case"] for c in absent if cases.is_dir() and not (cases / f"{c['case']}.yaml").is_file())
    return change


def _grew(result: Result, then: dict[str, Any]) -> bool:
    """Are the latents further off than then, and by more than equally correct renders differ?"""
    now = next((m for m in result.metrics if m.name == "latents_rel_l2"), None)
    before = then["metrics"].get("latents_rel_l2", {}).get("value")
    if now is None or now.value is None or before is None:
        return False
    return now.value > WORSE * max(before, now.floor or 0.0)


def _committed(tag: str) -> dict[str, Any] | None:
    """The summary at HEAD: rendering a report twice must not compare it with itself."""
    command = ["git", "-C", str(ROOT), "show", f"HEAD:reports/{tag}/summary.json"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, no repository, or nothing committed for this tag
        return None
    return json.loads(shown.stdout)


def _previous_tag(tag: str) -> dict[str, Any] | None:
    """Summary of the newest older tag that has one."""
    order = [row.tag for row in tags.all_rows()]
    older = order[: order.index(tag)] if tag in order else []
    files = [REPORTS / name / "summary.json" for name in reversed(older)]
    return next((json.loads(f.read_text(encoding="utf-8")) for f in files if f.is_file()), None)
