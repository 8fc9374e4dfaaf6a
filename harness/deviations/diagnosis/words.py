"""A diagnosis in words, for the terminal."""

from __future__ import annotations

from lora_drift.harness.check import results
from lora_drift.harness.deviations.diagnosis.search import Candidate, Diagnosis


def headline(diagnosis: Diagnosis) -> str:
    """What explains the picture, in a sentence or two."""
    so_far = "" if diagnosis.complete else f"Stopped after {diagnosis.tried} tries. So far: "
    if not diagnosis.tried and not diagnosis.complete:
        return "Stopped before anything was tried."
    if diagnosis.reference is None and not diagnosis.ranking:
        return so_far + "Nothing in the library makes a picture of that size."
    if diagnosis.verdict == "same":
        return "It is the reference: what differs is arithmetic" + (" and the codec." if diagnosis.codec_floor else ".")
    if diagnosis.verdict == "explained":
        others = "".join(f', or "{c.name}", which makes the same picture' for c in diagnosis.best[1:])
        best = diagnosis.best[0]
        return f'{so_far}Explained by "{best.name}"{others}: {" ".join(best.about)} {_falls(diagnosis, best)}'
    if diagnosis.verdict == "ambiguous":
        fitting = [c for c in diagnosis.ranking if (c.distance or 0) <= (diagnosis.limit or 0)]
        names = ", ".join(f'"{c.name}"' for c in fitting[:8]) + (" and others" if len(fitting) > 8 else "")
        return f"{so_far}Explained by any of {names}: their pictures differ by less than can be told apart here."
    return so_far + _unexplained(diagnosis)


def _unexplained(diagnosis: Diagnosis) -> str:
    best = diagnosis.nearest
    if best is None:
        return "Nothing in the library explains it; no variation takes away as much as a fifth of the distance."
    unknown = " (how much of that is the codec cannot be known)" if diagnosis.limit is None else ""
    return f'Nothing in the library explains it. The nearest is "{best.name}": {_falls(diagnosis, best)}{unknown}'


def _falls(diagnosis: Diagnosis, best: Candidate) -> str:
    if diagnosis.reference is None:
        return f"At its size the distance is {number(best.distance)}."
    return f"The distance falls from {number(diagnosis.reference)} to {number(best.distance)}."


def number(distance: float | None) -> str:
    if distance is None:
        return "-"
    return f"{distance:.1f}" if distance >= 10 else f"{distance:.2g}" if distance else "0"


def text(diagnosis: Diagnosis, top: int) -> str:
    """Everything, with the `top` nearest variations."""
    lines = []
    if diagnosis.size:
        lines.append(f"Another size: {diagnosis.size}.")
    elif diagnosis.reference is not None:
        unit = "root mean square, in levels of 255" if diagnosis.codec else "relative, of the final latents"
        lines.append(f"Distance from the reference: {number(diagnosis.reference)} ({unit}).")
    if diagnosis.codec:
        lines.append(f"Codec: {diagnosis.codec}." + _codec(diagnosis))
    if diagnosis.first_divergence:
        lines.append(f"The traces part at: {diagnosis.first_divergence}.")
    lines += ["", headline(diagnosis), ""]
    rows = diagnosis.ranking[:top]
    width = max((len(c.name) for c in rows), default=0)
    for place, candidate in enumerate(rows, 1):
        lines.append(f"{place:>4}  {number(candidate.distance):>7}  {candidate.name:<{width}}  {candidate.about[-1]}")
    failed = [c for c in diagnosis.not_compared if c.note.startswith("could not")]
    lines += [f"  {c.name}: {c.note}" for c in failed]
    if rows:
        lines.append("")
    if diagnosis.verdict in ("explained", "ambiguous"):
        lines.append(f"Where that was seen: {'; '.join(diagnosis.ranking[0].sources)}")
    lines.append(f"{diagnosis.tried} tried in {diagnosis.seconds:.0f} s. {_limit(diagnosis)}")
    return "\n".join(lines)


def for_report(diagnosis: Diagnosis, top: int) -> results.Diagnosis:
    """Of a drift's picture, compared with what this checkout renders."""
    said = headline(diagnosis)
    if diagnosis.verdict == "same":
        said = "This checkout renders that very picture, so it drifts here too: diagnose where the case matches."
    ranking = [
        results.Suspect(name=c.name, about=" ".join(c.about), distance=c.distance)
        for c in diagnosis.ranking[:top]
        if c.distance is not None
    ]
    return results.Diagnosis(headline=said, ranking=ranking)


def _codec(diagnosis: Diagnosis) -> str:
    if diagnosis.codec_floor:
        moved = number(diagnosis.codec_floor)
        return f" It alone moves the reference by {moved}; candidates are saved the same way first."
    return "" if diagnosis.limit is not None else " Candidates are compared as they were rendered."


def _limit(diagnosis: Diagnosis) -> str:
    if diagnosis.limit is None:
        return ""
    reason = (
        "by the measured tolerances"
        if diagnosis.measured_limit
        else "assumed: no tolerance was measured for this device"
    )
    return f"Up to {number(diagnosis.limit)} counts as arithmetic ({reason})."
