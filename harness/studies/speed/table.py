"""The tables of docs/performance.md, from the lines of benchmarks/gpu.py. What was not measured is an empty cell."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lora_drift.harness.studies.speed.accelerators import RECIPES
from lora_drift.pipelines.profiles import PROFILES

Line = Mapping[str, Any]
Row = Callable[[Line], Sequence[str]]
STOCK = "stock Diffusers"
FASTER = (*PROFILES[1:], *RECIPES)
PLACES = {
    "in_pageable_memory": "ours, originals in pageable memory (until 0.1)",
    "in_pinned_memory": "ours, originals in pinned memory (no room on the device)",
    "on_device": "ours, originals on the device",
}
CARDS = (24, 48, 80)
"""Gigabytes of usual graphics cards; what a render takes besides tensors is about one more."""


def render(lines: Sequence[Line]) -> str:
    """Markdown. Of several lines of a model the last one counts."""
    latest = list({line["model"]: line for line in lines}.values())
    parts = [
        ("", [where(latest), *commands(latest)]),
        ("## The same picture?", table(SAME, latest)),
        ("## Seconds", table(SECONDS, [(line, stack) for line in latest for stack in ("trainer", "ours", "plain")])),
        ("## Floor", table(FLOOR, latest)),
        ("## Memory", table(MEMORY, latest)),
        (
            "## Profiles and recipes",
            table(PROFILED, [(line, n) for line in latest for n in FASTER if n in line]),
        ),
        (
            "## Putting in a LoRA",
            table(LORAS, [(line, place) for line in latest for place in (*PLACES, STOCK)]),
        ),
        ("## Not measured", [text for line in latest for text in failures(line)]),
    ]
    return "\n".join("\n".join([*([title, ""] if title else []), *body, ""]) for title, body in parts if body)


def where(lines: Sequence[Line]) -> str:
    """Device, versions and what was rendered."""
    found = []
    for line in lines:
        environment = get(line, "ours", "environment") or {}
        names = ("torch", "diffusers", "transformers")
        versions = ", ".join(f"{name} {environment.get(name)}" for name in names)
        weights = "random weights of the real size" if line["synthetic"] else "miniatures"
        found.append(
            f"{environment.get('gpu', environment.get('device'))}, {environment.get('dtype')}, {versions}; {weights}, "
            f"a merged LoRA of rank {line['rank']}, {line['settings']['steps']} steps."
        )
    return " ".join(dict.fromkeys(found))


def commands(lines: Sequence[Line]) -> list[str]:
    each = (line["command"].replace(f"--model {line['model']} ", "--model MODEL ") for line in lines)
    return ["", *(f"    {command}" for command in dict.fromkeys(each))]


def table(columns: Mapping[str, Callable[[Any], str]], rows: Iterable[Any]) -> list[str]:
    body = [[cell(row) for cell in columns.values()] for row in rows]
    if not any(any(cells[2:]) for cells in body):
        return []
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return [*head, *(f"| {' | '.join(cells)} |" for cells in body if any(cells[2:]))]


def get(line: Any, *path: str) -> Any:
    for name in path:
        line = line.get(name) if isinstance(line, Mapping) else None
    return line


def number(*path: str, digits: str = ".3g") -> Callable[[Line], str]:
    def cell(line: Line) -> str:
        value = get(line, *path)
        return "" if value is None else format(value, digits)

    return cell


def size(line: Line) -> str:
    settings = line["settings"]
    frames = f"x{settings['num_frames']}" if settings["num_frames"] > 1 else ""
    return f"{settings['width']}x{settings['height']}{frames}"


def model(line: Line) -> str:
    return str(line["model"])


def apart(*path: str) -> Callable[[Line], str]:
    """How far two pictures are apart."""

    def cell(line: Line) -> str:
        found = get(line, *path)
        if not found or "pixel_max" not in found:
            return str(get(found, "note") or "")
        if found["equal"] and not found.get("latents_rel_l2"):
            return "equal to the bit"
        latents = f"; {found['latents_rel_l2']:.2g}" if "latents_rel_l2" in found else ""
        return f"{found['pixel_max']:.0f} / {found['pixel_mean']:.2g}{latents}"

    return cell


def noise(line: Line) -> str:
    found = get(line, "trainer", "noise")
    return "" if not found else "equal to the bit" if not any(found) else f"{max(found)}"


SAME = {
    "model": model,
    "size": size,
    "ours and the trainer: pixels max / mean; latents": apart("ours", "against_trainer"),
    "the trainer repeated": noise,
    "ours with deterministic kernels": apart("ours", "deterministic"),
    "stock Diffusers and the trainer": apart("ours", "plain", "against_trainer"),
}


def seconds(stack: str) -> dict[str, tuple[str, ...]]:
    """Stage -> where a line has its seconds."""
    if stack == "trainer":
        return {n: ("trainer", "seconds", n) for n in ("load", "lora", "encode", "step", "decode", "total")}
    timed = {n: ("ours", f"{stack}_seconds", n) for n in ("encode", "step", "decode", "total")}
    if stack == "ours":
        return {"load": ("ours", "load"), "lora": ("ours", "lora", "on_device", "another"), **timed}
    return {"load": ("ours", "plain", "load"), "lora": ("ours", "plain", "lora"), **timed}


def stage(name: str) -> Callable[[tuple[Line, str]], str]:
    return lambda row: number(*seconds(row[1])[name])(row[0])


def ratio(row: tuple[Line, str]) -> str:
    """Ours to this stack: a step, and the picture."""
    line, stack = row
    if stack == "ours":
        return ""
    found = []
    for name in ("step", "total"):
        ours, theirs = (get(line, *seconds(s)[name]) for s in ("ours", stack))
        found.append(f"{ours / theirs:.2f}" if ours and theirs else "")
    return " / ".join(found) if any(found) else ""


SECONDS: dict[str, Callable[[tuple[Line, str]], str]] = {
    "model": lambda row: model(row[0]),
    "stack": lambda row: STOCK if row[1] == "plain" else row[1],
    **{name: stage(name) for name in ("load", "lora", "encode", "step", "decode", "total")},
    "ours / this: step / total": ratio,
}
FLOOR = {
    "model": model,
    "size": size,
    "passes a step": number("ours", "floor", "calls_per_step", digits="g"),
    "10^12 operations a step": number("ours", "floor", "tera_operations_per_step"),
    "10^12 operations a second of a matrix product": number("ours", "floor", "tera_operations_per_second"),
    "floor of a step, s": number("ours", "floor", "seconds"),
    "our step / floor": number("ours", "floor", "step_over_floor", digits=".2f"),
}


def fits(line: Line) -> str:
    """The least that each card needs, of what was measured."""
    ways = {
        "all": get(line, "ours", "first", "peak_gb"),
        "model offload": get(line, "ours", "offload_model", "peak_gb"),
        "group offload": get(line, "ours", "offload_group", "peak_gb"),
    }
    if ways["all"] is None:
        return ""
    without = "not measured" if None in ways.values() else "no"
    found = [next((way for way, gb in ways.items() if gb is not None and gb + 1 < card), without) for card in CARDS]
    return ", ".join(f"{card}: {way}" for card, way in zip(CARDS, found, strict=True))


MEMORY: dict[str, Callable[[Line], str]] = {
    "model": model,
    "size": size,
    "weights, GB": number("ours", "resident_gb", digits=".1f"),
    "most at a render, GB": number("ours", "first", "peak_gb", digits=".1f"),
    "stock, GB": number("ours", "plain_seconds", "peak_gb", digits=".1f"),
    "trainer, GB": number("trainer", "seconds", "peak_gb", digits=".1f"),
    "model offload, GB": number("ours", "offload_model", "peak_gb", digits=".1f"),
    "s a picture": number("ours", "offload_model", "total"),
    "group offload, GB": number("ours", "offload_group", "peak_gb", digits=".1f"),
    "s a picture ": number("ours", "offload_group", "total"),
    "fits in": fits,
}


def faster(name: str) -> Callable[[tuple[Line, str]], str]:
    def cell(row: tuple[Line, str]) -> str:
        line, profile = row
        reference, fast = get(line, "ours", "ours_seconds", name), get(line, profile, "seconds", name)
        return f"{reference / fast:.2f}" if reference and fast else ""

    return cell


def profiled(*path: str, digits: str = ".3g") -> Callable[[tuple[Line, str]], str]:
    return lambda row: number(row[1], *path, digits=digits)(row[0])


PROFILED: dict[str, Callable[[tuple[Line, str]], str]] = {
    "model": lambda row: f"{model(row[0])}, {size(row[0])}",
    "profile": lambda row: row[1],
    "step, s": profiled("seconds", "step"),
    "picture, s": profiled("seconds", "total"),
    "first picture, s": profiled("first", "total", digits=".0f"),
    "reference / this: step": faster("step"),
    "picture": faster("total"),
    "most at a render, GB": profiled("seconds", "peak_gb", digits=".1f"),
    "drift from the reference: pixels max / mean; latents": lambda row: apart(row[1], "first", "drift")(row[0]),
}


def seconds_of_lora(row: tuple[Line, str], *, first: bool) -> float | None:
    """Of stock Diffusers reading and fusing, in one; the first and any other are the same there."""
    line, place = row
    if place == STOCK:
        return get(line, "ours", "plain", "lora")
    put, read = get(line, "ours", "lora", place, "first" if first else "another"), get(line, "ours", "lora", "read")
    return None if put is None else put + read


def lora_cell(*, first: bool, of_load: bool = False) -> Callable[[tuple[Line, str]], str]:
    def cell(row: tuple[Line, str]) -> str:
        value, load = seconds_of_lora(row, first=first), get(row[0], "ours", "load")
        if value is None or (of_load and not load):
            return ""
        return f"{value / load:.0%}" if of_load else f"{value:.3g}"

    return cell


LORAS: dict[str, Callable[[tuple[Line, str]], str]] = {
    "model": lambda row: model(row[0]),
    "stack": lambda row: PLACES.get(row[1], row[1]),
    "the first, s (read and put in)": lora_cell(first=True),
    "another, s": lora_cell(first=False),
    "another / loading our base": lora_cell(first=False, of_load=True),
}


def failures(line: Line) -> list[str]:
    found = []
    for part in ("trainer", "ours", *FASTER):
        notes = line.get(part, {})
        errors = {**notes.get("errors", {}), **({"": notes["ended"]} if "ended" in notes else {})}
        if "lora_error" in notes.get("plain", {}):
            errors["the LoRA in stock Diffusers"] = notes["plain"]["lora_error"]
        found += [f"- {model(line)}, {part}{', ' * bool(name)}{name}: {text}" for name, text in errors.items()]
        found += [f"- {model(line)}, {part}, {name}: no time left" for name in notes.get("skipped", [])]
    return found
