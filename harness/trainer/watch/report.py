"""What `trainer-watch` found, in words: a table, JSON, and a page of which each section can be an issue."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lora_drift.harness.trainer.watch.compare import CHANGED, FAILED, Difference
from lora_drift.harness.trainer.watch.history import Commit
from lora_drift.harness.trainer.watch.watcher import Change, Outcome

COMMITS = "https://github.com/ostris/ai-toolkit/commit/"


def told(outcome: Outcome) -> dict[str, Any]:
    """For `--json`."""
    found = dataclasses.asdict(outcome)
    changes = [
        {**dataclasses.asdict(change), "before": change.before._asdict(), "after": change.after._asdict(),
         "differences": [each._asdict() for each in change.differences]}
        for change in outcome.changes
    ]  # fmt: skip
    return {
        **found,
        "tag": outcome.tag.tag,
        "head": outcome.head._asdict(),
        "differences": [each._asdict() for each in outcome.differences],
        "changes": changes,
    }


def counts(outcome: Outcome) -> str:
    found = Counter(each.verdict for each in outcome.differences)
    known = ", ".join(f"{number} {verdict}" for verdict, number in found.most_common())
    return f"{len(outcome.differences)} cases: {known or 'none'}" + (
        f"; {len(outcome.left_out)} left out, without a golden at {outcome.tag.tag}" if outcome.left_out else ""
    )


def text(outcome: Outcome) -> Iterator[str]:
    """For a person at a terminal."""
    yield f"{outcome.head.version} {outcome.head.short} against {outcome.tag.tag}, in {outcome.environment}"
    for each in outcome.differences:
        yield f"  {each.case:34} {each.verdict:9} {_what(each)}".rstrip()
    yield counts(outcome)
    for after, changes in _by_commit(outcome.changes):
        yield f"{_name(changes[0])}: {after.subject}"
        for change in changes:
            for each in change.differences:
                yield f"  {each.case:34} {_what(each)}"
    if outcome.pending and outcome.commits:
        yield f"commits not searched for: {', '.join(outcome.pending)}"


def page(outcome: Outcome) -> str:
    """Markdown: an introduction, and a section for each change."""
    lines = [
        f"# The trainer at {outcome.head.version} ({outcome.head.short}) against {outcome.tag.tag}",
        "",
        f"Recorded by `lora-drift trainer-watch` in `{outcome.environment}` at the trainer's commit {outcome.head.sha} "
        f"of {outcome.head.date}. Of the commits since the tag's, {outcome.commits} touch more than its user interface "
        f"and its pages. {counts(outcome)}.",
        *(f"\nHEAD asks for {line}: what follows may come from that, too." for line in outcome.lacking),
        *_pins("Requirements that are others than at the tag", outcome.requirements),
    ]
    for after, changes in _by_commit(outcome.changes):
        lines += ["", f"## {_title(changes[0])}", "", *_section(after, changes, outcome)]
    for model in outcome.pending:
        those = [each for each in outcome.found if each.model == model and each.verdict == CHANGED]
        lines += ["", f"## The trainer's samples of {model} changed since {outcome.tag.tag}", "",
                  "The commit was not searched for." if outcome.commits else
                  "No commit since then touches what its Python reads: it is the environment.",
                  "", *_table(those)]  # fmt: skip
    failed = [each for each in outcome.differences if each.verdict == FAILED]
    for model in dict.fromkeys(each.model for each in failed):
        lines += ["", f"## The trainer's samples of {model} cannot be recorded any more", ""]
        lines += [f"- `{each.case}`: {each.why}" for each in failed if each.model == model]
    return "\n".join([*lines, ""])


def _by_commit(changes: Sequence[Change]) -> Iterator[tuple[Commit, list[Change]]]:
    """Changes of one commit, or of the same range, together."""
    found: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        found.setdefault((change.after.sha, change.before.sha if change.between > 1 else ""), []).append(change)
    for those in found.values():
        yield those[0].after, those


def _name(change: Change) -> str:
    if change.between == 1:
        return f"{change.after.version} {change.after.short}"
    return f"{change.before.short}..{change.after.short} ({change.between} commits, none between could be recorded)"


def _title(change: Change) -> str:
    if change.between == 1:
        return f"The trainer's samples changed with {change.after.short} ({change.after.version})"
    return f"The trainer's samples changed between {change.before.short} and {change.after.short}"


def _section(after: Commit, changes: Sequence[Change], outcome: Outcome) -> Iterator[str]:
    first = changes[0]
    if first.between == 1:
        yield f"{COMMITS}{after.sha} of {after.date}: {after.subject}"
    else:
        yield (f"One of {first.between} commits, up to {COMMITS}{after.sha} of {after.date}; those between that were "
               "tried could not be recorded.")  # fmt: skip
    yield from _pins("It moves requirements", first.requirements)
    if len(first.environments) > 1:
        yield f"\nRecorded in `{first.environments[0]}` before it, in `{first.environments[1]}` after it."
    yield ""
    yield from _table([each for change in changes for each in change.differences])
    models = {change.model for change in changes}
    shown = {each.case for change in changes for each in change.differences}
    others = [f"`{each.case}`" for each in outcome.found if each.model in models and each.case not in shown]
    if others:
        yield f"\nNot searched for by themselves, but changed since {outcome.tag.tag}: {', '.join(others)}."


def _pins(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"{title}: " + ", ".join(f"`{line}`" for line in lines)] if lines else []


def _table(differences: Sequence[Difference]) -> list[str]:
    rows = [f"| `{each.case}` | {each.place} | {each.size} |" for each in differences]
    return ["| case | first stage that differs | size |", "|---|---|---|", *rows]


def _what(each: Difference) -> str:
    if each.verdict == FAILED:
        return each.why
    return f"{each.place}: {each.size}" if each.place else each.size if each.pixel_max or each.latents else ""
