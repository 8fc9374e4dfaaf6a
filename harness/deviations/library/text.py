"""What becomes of the prompt's letters before a tokenizer cuts them into tokens."""

from collections.abc import Iterator
from contextlib import ExitStack
from types import MethodType
from typing import Any

from lora_drift.harness.check.divergence import POSITIVE
from lora_drift.harness.deviations.library.base import Subject, patched, variation

WORDS = 8
"""Fewer than most prompts have."""


def _tokenizers(s: Subject, kind: str) -> list[Any]:
    """Those whose class is named after `kind`."""
    parts = [part for role, part in s.pipe.components.items() if role.startswith(("tokenizer", "processor"))]
    inner = [getattr(part, "tokenizer", part) for part in parts if part is not None]
    return [tokenizer for tokenizer in inner if kind in type(tokenizer).__name__]


def _repaired(s: Subject) -> bool:
    import ftfy

    return bool(_tokenizers(s, "CLIP")) and ftfy.fix_text(s.settings.prompt) != s.settings.prompt


@variation(
    "text",
    shows=POSITIVE,
    source="transformers 5's CLIPTokenizer, and 4's where ftfy is not installed; A1111 and ComfyUI have none either",
    applies=_repaired,
)
def clip_without_ftfy(s: Subject) -> Iterator[Subject]:
    """CLIP reads typographic quotes, ligatures, HTML entities and mojibake as they are."""
    with ExitStack() as stack:
        for tokenizer in _tokenizers(s, "CLIP"):
            if "_encode_plus" in vars(tokenizer):  # ours (pipelines/text.py), over that of transformers 5
                stack.enter_context(
                    patched(tokenizer, "_encode_plus", MethodType(type(tokenizer)._encode_plus, tokenizer))
                )
            else:
                stack.enter_context(patched(tokenizer, "fix_text", str))
        yield s


def _normalised(s: Subject) -> list[Any]:
    """T5 tokenizers (not HiDream's, which is SentencePiece) whose normaliser changes the prompt."""
    found = [t for t in _tokenizers(s, "T5") if hasattr(t, "_tokenizer") and "_encode_plus" not in vars(t)]
    normalisers = [(tokenizer, tokenizer._tokenizer.normalizer) for tokenizer in found]
    return [t for t, n in normalisers if n is not None and n.normalize_str(s.settings.prompt) != s.settings.prompt]


@variation(
    "text",
    shows=POSITIVE,
    source="transformers 5 rebuilds T5's tokenizer without it (5.0: always, later: unless it is SentencePiece's table)",
    applies=lambda s: bool(_normalised(s)),
)
def t5_without_its_normaliser(s: Subject) -> Iterator[Subject]:
    """T5 or UMT5 reads full-width signs, ligatures and fractions as they are."""
    changed = [(t._tokenizer, t._tokenizer.normalizer) for t in _normalised(s)]
    for backend, _ in changed:
        backend.normalizer = None
    try:
        yield s
    finally:
        for backend, normaliser in changed:
            backend.normalizer = normaliser


@variation(
    "text",
    shows=POSITIVE,
    source="prompt boxes and tag editors that lower-case; CLIP does it itself, and then for all encoders of a model",
    # CLIP reads no upper case anyway.
    applies=lambda s: s.spec.family != "sd" and s.settings.prompt.lower() != s.settings.prompt,
)
def prompt_lower_cased(s: Subject) -> Iterator[Subject]:
    """The prompt is in lower case."""
    yield s.but(prompt=s.settings.prompt.lower())


@variation(
    "text",
    shows=POSITIVE,
    source="servers and nodes that limit a prompt's length (77 tokens for every encoder, 75 before the trainer's cut)",
    applies=lambda s: len(s.settings.prompt.split()) > WORDS,
)
def prompt_cut(s: Subject) -> Iterator[Subject]:
    """Of a longer prompt eight words are left."""
    yield s.but(prompt=" ".join(s.settings.prompt.split()[:WORDS]))
