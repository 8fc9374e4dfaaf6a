"""What becomes of the prompt's letters before a tokenizer cuts them into tokens."""

import html
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import MethodType
from typing import Any

from lora_drift.harness.check.divergence import POSITIVE
from lora_drift.harness.deviations.library.base import Subject, patched, variation
from lora_drift.pipelines.families.ideogram4_captions import digested

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


def _reads_otherwise(change: Callable[[str], str]) -> Callable[[Subject], bool]:
    """Does any tokenizer make other tokens of the prompt that `change` makes?"""

    def applies(s: Subject) -> bool:
        clean = getattr(sys.modules[type(s.pipe).__module__], "prompt_clean", str)  # what Wan's pipeline does first
        text, changed = clean(s.settings.prompt), clean(change(s.settings.prompt))
        return changed != text and any(t(changed).input_ids != t(text).input_ids for t in _tokenizers(s, ""))

    return applies


def _plain(text: str) -> str:
    """Quotes, dashes and ellipses as a typewriter has them."""
    for sign, plain in zip("‘’“”–—…", ("'", "'", '"', '"', "-", "-", "..."), strict=True):
        text = text.replace(sign, plain)
    return text


@variation(
    "text",
    shows=POSITIVE,
    source="prompt boxes and shells that undo typography (ftfy in front of all encoders, Windows' clipboards)",
    applies=_reads_otherwise(_plain),
)
def typography_made_plain(s: Subject) -> Iterator[Subject]:
    """Typographic quotes, dashes and ellipses of the prompt are replaced by those of a keyboard."""
    yield s.but(prompt=_plain(s.settings.prompt))


def _single_spaces(text: str) -> str:
    return " ".join(text.split())


@variation(
    "text",
    shows=POSITIVE,
    source="Diffusers' whitespace_clean, and prompt boxes: spaces at the ends, line breaks and double spaces go",
    applies=_reads_otherwise(_single_spaces),
)
def spaces_collapsed(s: Subject) -> Iterator[Subject]:
    """Between the prompt's words is one space each, and none around them."""
    yield s.but(prompt=_single_spaces(s.settings.prompt))


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


@variation(
    "text",
    shows=POSITIVE,
    source="programs that normalise what is typed to NFKC (Python identifiers, search boxes, SentencePiece's nmt_nfkc)",
    applies=_reads_otherwise(_compatible),
)
def unicode_normalised(s: Subject) -> Iterator[Subject]:
    """Ligatures, full-width signs and accents of the prompt are brought to Unicode's form NFKC."""
    yield s.but(prompt=_compatible(s.settings.prompt))


@variation(
    "text",
    shows=POSITIVE,
    source="Diffusers' basic_clean (html.unescape twice), and servers that take prompts from forms",
    applies=_reads_otherwise(html.unescape),
)
def html_entities_resolved(s: Subject) -> Iterator[Subject]:
    """Entities like &amp; in the prompt become the signs that they stand for."""
    yield s.but(prompt=html.unescape(s.settings.prompt))


WEIGHTED = re.compile(r"(?<!\\)\(([^()]+?)(?::\s*[-+]?\d*\.?\d+)?(?<!\\)\)")


def _unweighted(text: str) -> str:
    """Without the brackets that give words a weight, like (fox:1.2) and ((old))."""
    while (simpler := WEIGHTED.sub(r"\1", text)) != text:
        text = simpler
    return text


@variation(
    "text",
    shows=POSITIVE,
    source="A1111's, Forge's and ComfyUI's prompt weights, where they have no effect (emphasis mode Ignore)",
    applies=_reads_otherwise(_unweighted),
)
def prompt_weights_left_out(s: Subject) -> Iterator[Subject]:
    """Brackets that give words a weight, like (fox:1.2), are taken out of the prompt, weight and all."""
    yield s.but(prompt=_unweighted(s.settings.prompt))


@variation(
    "text",
    shows=POSITIVE,
    source="Diffusers' Ideogram4Pipeline takes captions as they are; trainer toolkit/ideogram_caption.py does not",
    applies=lambda s: s.spec.family == "ideogram4" and digested(s.settings.prompt) != s.settings.prompt,
)
def caption_as_it_is(s: Subject) -> Iterator[Subject]:
    """A caption in JSON is not brought to Ideogram 4's form."""
    yield s.with_spec(digests_captions=False)
