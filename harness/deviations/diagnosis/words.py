"""A diagnosis in words, for the terminal."""

from __future__ import annotations

from lora_drift.harness.check import results
from lora_drift.harness.deviations.diagnosis.search import Candidate, Diagnosis


def headline(found: Diagnosis) -> str:
    """What explains the picture, in a sentence or two."""
    so_far = "" if found.complete else f"Stopped after {found.tried} tries. So far: "
    if not found.tried and not found.complete:
        return "Stopped before anything was tried."
    if found.reference is None and not found.ranking:
        return so_far + "Nothing in the library makes a picture of that size."
    if found.verdict == "same":
        return "It is the reference: what differs is arithmetic" + (" and the codec." if found.codec_floor else ".")
    if found.verdict == "explained":
        others = "".join(f', or "{c.name}", which makes the same picture' for c in found.best[1:])
        best = found.best[0]
        return f'{so_far}Explained by "{best.name}"{others}: {" ".join(best.about)} {_falls(found, best)}'
    if found.verdict == "ambiguous":
        fitting = [c for c in found.ranking if (c.distance or 0) <= (found.limit or 0)]
        names = ", ".join(f'"{c.name}"' for c in fitting[:8]) + (" and others" if len(fitting) > 8 else "")
        return f"{so_far}Explained by any of {names}: their pictures differ by less than can be told apart here."
    return so_far + _unexplained(found)


def _unexplained(found: Diagnosis) -> str:
    best = found.ranking[0] if found.ranking else None
    nearer = best is not None and (found.reference is None or (best.distance or 0) < found.reference)
    if best is None or not nearer:
        return "Nothing in the library explains it; no variation comes nearer than the reference itself."
    unknown = " (how much of that is the codec cannot be known)" if found.limit is None else ""
    return f'Nothing in the library explains it. The nearest is "{best.name}": {_falls(found, best)}{unknown}'


def _falls(found: Diagnosis, best: Candidate) -> str:
    if found.reference is None:
        return f"At its size the distance is {number(best.distance)}."
    return f"The distance falls from {number(found.reference)} to {number(best.distance)}."


def number(distance: float | None) -> str:
    if distance is None:
        return "-"
    return f"{distance:.1f}" if distance >= 10 else f"{distance:.2g}" if distance else "0"


def text(found: Diagnosis, top: int) -> str:
    """Everything, with the `top` nearest variations."""
    lines = []
    if found.size:
        lines.append(f"Another size: {found.size}.")
    elif found.reference is not None:
        unit = "root mean square, in levels of 255" if found.codec else "relative, of the final latents"
        lines.append(f"Distance from the reference: {number(found.reference)} ({unit}).")
    if found.codec:
        lines.append(f"Codec: {found.codec}." + _codec(found))
    if found.first_divergence:
        lines.append(f"The traces part at: {found.first_divergence}.")
    lines += ["", headline(found), ""]
    rows = found.ranking[:top]
    width = max((len(c.name) for c in rows), default=0)
    for place, candidate in enumerate(rows, 1):
        lines.append(f"{place:>4}  {number(candidate.distance):>7}  {candidate.name:<{width}}  {candidate.about[-1]}")
    failed = [c for c in found.not_compared if c.note.startswith("could not")]
    lines += [f"  {c.name}: {c.note}" for c in failed]
    if rows:
        lines.append("")
    if found.verdict in ("explained", "ambiguous"):
        lines.append(f"Where that was seen: {'; '.join(found.ranking[0].sources)}")
    lines.append(f"{found.tried} tried in {found.seconds:.0f} s. {_limit(found)}")
    return "\n".join(lines)


def for_report(found: Diagnosis, top: int) -> results.Diagnosis:
    """Of a drift's picture, compared with what this checkout renders."""
    said = headline(found)
    if found.verdict == "same":
        said = "This checkout renders that very picture, so it drifts here too: diagnose where the case matches."
    ranking = [
        results.Suspect(name=c.name, about=" ".join(c.about), distance=c.distance)
        for c in found.ranking[:top]
        if c.distance is not None
    ]
    return results.Diagnosis(headline=said, ranking=ranking)


def _codec(found: Diagnosis) -> str:
    if found.codec_floor:
        return f" It alone moves the reference by {number(found.codec_floor)}; candidates are saved the same way first."
    return "" if found.limit is not None else " Candidates are compared as they were rendered."


def _limit(found: Diagnosis) -> str:
    if found.limit is None:
        return ""
    reason = "by the measured gates" if found.measured_limit else "supposed: no gate was measured for this device"
    return f"Up to {number(found.limit)} counts as arithmetic ({reason})."
