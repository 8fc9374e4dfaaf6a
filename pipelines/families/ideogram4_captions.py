"""Captions of Ideogram 4, which are JSON: brought to the one form in which the model was trained, as the trainer does.

What is no such caption stays as it is, to the letter. Fields that nobody knows are kept, behind those that are known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

PARTS = "compositional_deconstruction"
"""The field without which JSON is no caption."""
MEDIA = {
    "photograph": ("photo",),
    "illustration": (),
    "3d_render": ("3d render", "3d-render", "3drender", "render", "3d"),
    "painting": (),
    "graphic_design": ("graphic design", "graphic-design", "graphic"),
}
"""Medium -> its other spellings, without a full stop and in lower case."""
COLOURS, COLOURS_OF_PART = 16, 5
"""So many are kept of the picture's palette, and of a part's."""


def digested(prompt: str) -> str:
    """The caption in the model's form; any other prompt unchanged."""
    text = prompt.strip()
    if not text.startswith("{"):
        return prompt
    try:
        caption = json.loads(text)
    except (ValueError, RecursionError):
        return prompt
    if not isinstance(caption, dict) or not isinstance(caption.get(PARTS), dict):
        return prompt
    return json.dumps(dict(_caption(caption)), ensure_ascii=False, separators=(",", ":"))


def _caption(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    known = ("high_level_description", "style_description", PARTS)
    for name in known:
        if name in given:
            change = {"style_description": _style, PARTS: _scene}.get(name)
            yield name, dict(change(given[name])) if change and isinstance(given[name], dict) else given[name]
    yield from _rest(given, {*known, "aspect_ratio"})


def _scene(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if "background" in given:
        yield "background", given["background"]
    if isinstance(given.get("elements"), list):
        yield "elements", [dict(_part(part)) if isinstance(part, dict) else part for part in given["elements"]]
    yield from _rest(given, {"background", "elements"})


def _part(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    kind, done = given.get("type", "obj"), {"type", "color_palette"}
    yield "type", kind
    for name in ("bbox", "text", "desc"):
        absent = given.get(name) is None if name == "bbox" else name not in given
        if not absent and (name != "text" or kind == "text"):
            done.add(name)
            yield name, given[name]
    yield from _palette(given, COLOURS_OF_PART)
    yield from _rest(given, done)


def _style(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """`photo` of a photograph, `art_style` of anything else: what one of the two says is taken for the other."""
    medium = _medium(given.get("medium"))
    photo, art = given.get("photo") or None, given.get("art_style") or None
    in_words = isinstance(medium, str) and medium in MEDIA
    photographed = medium == "photograph" if in_words else photo is not None or art is None
    look = ("photo", photo if photo is not None else art) if photographed else (
        "art_style", art if art is not None else photo)  # fmt: skip
    for name in ("aesthetics", "lighting"):
        if name in given:
            yield name, given[name]
    found = [look, ("medium", medium)] if photographed else [("medium", medium), look]
    yield from ((name, value) for name, value in found if value is not None)
    yield from _palette(given, COLOURS)
    yield from _rest(given, {"aesthetics", "lighting", "photo", "art_style", "medium", "color_palette"})


def _medium(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    plain = given.strip().rstrip(".").strip().lower()
    return next((medium for medium, others in MEDIA.items() if plain in (medium, *others)), given.strip())


def _palette(given: dict[str, Any], most: int) -> Iterator[tuple[str, Any]]:
    """Each colour once, as #RRGGBB; what is none is left out, and so is a palette of none."""
    said = given.get("color_palette")
    colours = dict.fromkeys(filter(None, map(_colour, said if isinstance(said, list) else [])))
    if colours:
        yield "color_palette", list(colours)[:most]


def _colour(given: Any) -> str | None:
    if not isinstance(given, str) or not re.fullmatch(r"#([0-9a-fA-F]{3}){1,2}", given.strip()):
        return None
    digits = given.strip()[1:].upper()
    return "#" + (digits if len(digits) == 6 else "".join(digit * 2 for digit in digits))


def _rest(given: dict[str, Any], done: set[str]) -> Iterator[tuple[str, Any]]:
    yield from ((name, value) for name, value in given.items() if name not in done)
