"""Chooses for each stored artefact whether it lies whole or as the difference from another one, so that all take least.

Renders of one seed have much in common also where the case is another: with and without a LoRA, say, or with another
prompt. Each model's artefacts of a kind and their differences make a graph; what is stored is its minimum spanning tree
from "whole" (Prim's algorithm), so nothing is the difference from itself by any way.
"""

import io
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from lora_drift.harness.check import golden_store

QUICK = [{**golden_store.FLOATS[0], "preset": 1}]
"""Packs nearly as tightly, in a tenth of the time: enough to compare."""

GAIN = 0.97
"""What takes no less than this share of what it takes as it lies stays as it lies."""

Tree = dict[str, str | None]
"""Name of an artefact (`objects/<model>/<id>.<ending>`) -> of what it is the difference; None: it lies whole."""


def lay_out(root: Path) -> int:
    """Store the artefacts of all goldens below `root` in the smallest way; returns how many lie otherwise now. If it is
    stopped, every artefact still has its content.

    Raises:
        Damaged: an artefact is not what its name says.
    """
    moved = 0
    for folder in sorted(root.glob("objects/*")):
        for ending in (".png", ".safetensors.xz"):
            # What is the difference from a drawn LoRA takes a few bytes already.
            paths = [path for path in sorted(folder.glob(f"*{ending}")) if golden_store.DRAWN not in path.name]
            moved += _lay_out(root, {_name(path): path for path in paths})
    return moved


def _name(path: Path) -> str:
    ending = ".png" if path.suffix == ".png" else ".safetensors"
    return f"objects/{path.parent.name}/{golden_store.identity(path)}{ending}"


def _lay_out(root: Path, paths: Mapping[str, Path]) -> int:
    """Raises `golden_store.Damaged` if one cannot be read, before or after."""
    contents = {name: golden_store.read(path) for name, path in paths.items()}
    now = {name: None if (base := golden_store.base_of(path)) is None else _name(base) for name, path in paths.items()}
    ways = {
        name: golden_store.smallest(root, name, contents[name], contents.get(base or ""), base)
        for name, base in spanning_tree(contents, now).items()
        if base != now[name]
    }
    others = {name: way for name, way in ways.items() if way[0] != paths[name]}
    # First whole, so that none rests on another while that changes.
    for name in others:
        _replace(paths[name], *golden_store.smallest(root, name, contents[name]))
    for name, (path, packed) in others.items():
        _replace(golden_store.stored(root, name), path, packed)
        golden_store.read(path)
    return len(others)


def _replace(old: Path, new: Path, packed: bytes) -> None:
    golden_store.write_atomically(new, packed)
    if new != old:
        old.unlink()


def spanning_tree(contents: Mapping[str, bytes], now: Tree) -> Tree:
    """What each of `contents` is best the difference of; `now`: what it is the difference of as it lies."""

    def cost(name: str, base: str | None, difference: bytes) -> float:
        return _cost(difference) * (GAIN if now[name] == base else 1)

    nearest: dict[str, tuple[float, str | None]] = {
        name: (cost(name, None, data), None) for name, data in contents.items()
    }
    tree: Tree = {}
    while nearest:
        name = min(nearest, key=lambda name: (nearest[name][0], name))
        tree[name] = nearest.pop(name)[1]
        for other, difference in _differences(contents, name, nearest):
            there = cost(other, name, difference)
            if there < nearest[other][0]:
                nearest[other] = there, name
    return tree


def _differences(contents: Mapping[str, bytes], base: str, names: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        difference = golden_store.taken(contents[name], contents[base])
        if difference is not None:
            yield name, difference


def _cost(data: bytes) -> float:
    """About how many bytes it takes."""
    if not data.startswith(b"P6\n"):
        return len(lzma.compress(data, filters=QUICK))
    # Of a picture the entropy of its values, or of how they differ from the pixel before: PNG does much the same.
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return min(_entropy(pixels), _entropy(np.diff(pixels, axis=1).astype(np.uint8)))


def _entropy(values: np.ndarray) -> float:
    """Bytes that `values`, of one byte each, take at least if none says anything about another."""
    counts = np.bincount(values.ravel(), minlength=256)
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum() / 8 * values.size)
