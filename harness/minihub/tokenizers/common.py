"""What the miniature tokenizers are made of: words, bytes and merges."""

import json
from typing import Any

WORDS = [
    *("a", "an", "the", "of", "in", "on", "at", "with", "and", "photo", "picture", "image", "cat", "dog", "fox"),
    *("person", "woman", "man", "house", "tree", "red", "blue", "green", "black", "white", "small", "big", "old"),
    *("new", "night", "day", "light", "dark", "street", "forest", "sea", "blurry", "low", "quality", "style"),
    "portrait",
]
"""Words that get a token of their own, so that prompts differ by more than their letters."""


def byte_alphabet() -> dict[int, str]:
    """GPT-2's reversible byte-to-character table (every byte-level BPE vocabulary begins with it)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        table.setdefault(byte, chr(256 + len(table) - len(printable)))
    return table


def bpe_merges(words: list[str], tail: str) -> list[tuple[str, str]]:
    """BPE merges that build each word from its characters, left to right."""
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + tail]
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
    return merges


def to_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
