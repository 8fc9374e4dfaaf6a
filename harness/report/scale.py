"""What a reader sees of a number: three significant digits, a place on a bar, and which result is worst."""

from collections.abc import Mapping
from math import floor, isfinite, log10
from typing import Any

from lora_drift.harness.check.results import IDENTICAL, Metric, Result, Verdict

ORDER: tuple[Verdict, ...] = ("error", "corrupt", "missing", "stale", "drift", "known", "match")
"""Worst first: where nothing could be compared, then what differs, then what is fine."""

DECADES = 3
"""A metric's bar spans this many powers of ten on either side of its tolerance, so that all tolerances line up."""
ABBREVIATIONS = frozenset(("psnr", "ssim", "flip", "lpips", "l2"))
NINES = 1e-5
"""A score that is nearer to 1 is shown as what is missing: nobody counts nines."""


def rounded(metric: Metric, number: float) -> float:
    """Three significant digits; of a score whose best is 1, three digits of what is missing to 1."""
    counted = abs(1 - number if _is_score(metric) else number)
    if counted == 0 or not isfinite(counted):
        return number
    return round(number, 2 - floor(log10(counted)))


def shown(number: float | None, metric: Metric | None = None) -> str:
    """`number` as text, rounded as its metric asks for: 0.00123, 1.2e-5, 3. None is a stage that our run lacks."""
    if number is None:
        return "absent or of another shape"
    if metric and _is_score(metric) and 0 < 1 - number < NINES:
        return f"1 − {as_text(float(f'{1 - number:.3g}'))}"
    return as_text(rounded(metric, number) if metric else float(f"{number:.3g}"))


def as_text(number: float) -> str:
    """All digits of a rounded number, without the zeros that Python pads: 1e-5, not 1e-05; 3, not 3.0."""
    mantissa, _, exponent = f"{number:.15g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def label(metric: Metric) -> str:
    """ "latents rel L2" for latents_rel_l2, "SSIM mean" for ssim_mean."""
    return " ".join(part.upper() if part in ABBREVIATIONS else part for part in metric.name.split("_"))


def distance(metric: Metric, number: float) -> float:
    """`number` as a distance from perfect, 0 at best, whatever the metric's direction: decibels become a ratio of
    amplitudes, scores what is missing to 1."""
    if metric.better == "lower":
        return number
    return 10 ** (-number / 20) if metric.unit == "dB" else max(1 - number, 0.0)


def perfect(metric: Metric) -> bool:
    """No difference at all, not only one within the tolerance."""
    return metric.note == IDENTICAL if metric.value is None else distance(metric, metric.value) == 0


def on_bar(metric: Metric, number: float) -> float:
    """Where `number` lies on the metric's bar, in percent; the tolerance is at 50, worse is to the right."""
    assert metric.gate is not None
    value, tolerance = distance(metric, number), distance(metric, metric.gate)
    if not isfinite(value):
        return 100.0
    if value == 0 or tolerance == 0:  # no logarithm; a tolerance of 0 wants equality
        return 50.0 if value == tolerance else 0.0 if value == 0 else 100.0
    return min(max(50 + 50 * log10(value / tolerance) / DECADES, 0.0), 100.0)


def standing(metric: Metric) -> str:
    """ "within" or "outside" its tolerance, "free" (has none), or "unknown": not evaluated, which is never a pass."""
    if metric.value is None and metric.note != IDENTICAL:
        return "unknown"
    if metric.gate is None:
        return "free"
    return "within" if metric.within else "outside"


def worst_first(results: list[Result]) -> list[Result]:
    return sorted(results, key=lambda r: (ORDER.index(r.verdict), -_excess(r), r.case, r.device, r.dtype))


def _excess(result: Result) -> float:
    """How far the worst metric lies on its bar; without a tolerance, the largest difference of a pixel in per cent."""
    gated = [on_bar(m, m.value) for m in result.metrics if m.value is not None and m.gate is not None]
    pixel_max = [m.value / 255 * 100 for m in result.metrics if m.name == "pixel_max" and m.value is not None]
    return max(gated or pixel_max, default=0.0)


def _is_score(metric: Metric) -> bool:
    return metric.better == "higher" and metric.unit == ""


def release_name(combination: Mapping[str, Any]) -> str:
    """A column of a matrix.json: "0.42.1 × 5.23.0", Diffusers before transformers."""
    torch = f" × torch {combination['torch']}" if "torch" in combination else ""
    return f"{combination['diffusers'].removeprefix('git:')} × {combination['transformers']}{torch}"
