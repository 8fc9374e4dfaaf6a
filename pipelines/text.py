"""Text as the trainer's tokenizers read it, on every transformers.

Since 0.9.1 the trainer runs on transformers 5.5, whose tokenizers later releases have, too; up to 0.9.0 on 4.57. Some
of that one's tokenizers are the old ones in Python (CLIP, whose text
goes through ftfy; HiDream's T5, which is SentencePiece itself; some Qwens), the others are read whole from
`tokenizer.json`. transformers 5 has neither: CLIP is rebuilt without ftfy, T5 and UMT5 without most of the normaliser
and the word splitter that their file declares. An apostrophe from a phone is then another token, and another picture.
What 4.57 does is put back here.

Follows these of transformers 4.57.3: models/clip/tokenization_clip.py, models/qwen2/tokenization_qwen2.py,
models/t5/tokenization_t5.py and tokenization_t5_fast.py, tokenization_utils.py, tokenization_utils_fast.py and
convert_slow_tokenizer.py.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.spec import ModelSpec

Ids = Callable[[str], list[int]]
"""One text -> its token ids, without the special tokens around it."""


def as_the_trainer(tokenizer: Any, spec: ModelSpec, repo: str, folder: str = "", *, slow: bool = False) -> Any:
    """Make a tokenizer (or the one of a processor) read text as the trainer's transformers does; returns it.

    Args:
        tokenizer: as loaded by any transformers from 4.57 on; changed in place.
        spec: the model, for `tokenization`.
        repo: hub id or folder that it came from.
        folder: where its files lie in there.
        slow: the trainer loads T5 as `T5Tokenizer`, which is SentencePiece, not as `T5TokenizerFast`; or Qwen as
            `Qwen2Tokenizer`, which is written in Python.

    Raises:
        RequestError: ftfy is missing, without which CLIP reads other text; or a file of the tokenizer is; or this
            transformers cannot read as that of a newer trainer.
    """
    import transformers

    old = transformers.__version__.startswith("4.")
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if spec.tokenization == "transformers-5.5":
        # 5.0 loses the table by which T5's own file normalises text.
        without_table = transformers.__version__.startswith(("5.0.", "5.1.", "5.2.", "5.3.", "5.4."))
        t5 = type(inner).__name__.startswith("T5Tokenizer")
        other_in_4 = t5 or slow or type(inner).__name__.startswith("CLIPTokenizer")
        if (old and other_in_4) or (without_table and t5):
            raise RequestError(
                f"trainer {spec.toolkit} reads prompts as transformers 5.5 does, and {transformers.__version__} is "
                "installed. Run `pip install 'transformers>=5.5'`, or render as an older trainer (0.9.0 or before)"
            )
        return tokenizer
    clip = type(inner).__name__ == "CLIPTokenizer"
    if clip:
        fix_text()
    if old:
        return tokenizer
    files = _Files(repo, folder)
    if clip:
        _encode_with(inner, _clip(inner, files), [inner.bos_token_id], inner.eos_token_id)
    elif slow and type(inner).__name__ == "T5Tokenizer":
        _encode_with(inner, _sentencepiece(inner, files), [], inner.eos_token_id, once=True)
    elif slow and files.find("vocab.json") and files.find("merges.txt"):
        _encode_with(inner, _qwen(inner, files), [], None)
    else:
        _restore(inner, files)
    return tokenizer


def fix_text() -> Callable[[str], str]:
    """ftfy's `fix_text`.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise RequestError(
            "package ftfy is missing: the trainer repairs prompts with it (typographic quotes, for one), and without "
            "it they make another picture. Run `pip install ftfy`"
        ) from error
    return ftfy.fix_text


class _Files:
    """The files of one tokenizer, in a folder or a hub repository."""

    def __init__(self, repo: str, folder: str) -> None:
        self.repo, self.folder = repo, folder

    def find(self, name: str) -> Path | None:
        """Where `name` is; None if the repository has no such file (or, offline, the cache)."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if Path(self.repo).is_dir():
            path = Path(self.repo, self.folder, name)
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.repo, f"{self.folder}/{name}".lstrip("/")))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None

    def get(self, name: str) -> Path:
        """Where `name` is.

        Raises:
            RequestError: it is not there.
        """
        found = self.find(name)
        if found is None:
            where = f"{self.repo}/{self.folder}".rstrip("/")
            raise RequestError(f"tokenizer of {where}: {name} is missing, from which the trainer reads it. Download "
                               "the repository again, or give a base that has it")  # fmt: skip
        return found

    def json(self, name: str) -> Any:
        return json.loads(self.get(name).read_text(encoding="utf-8"))

    def settings(self) -> dict[str, Any]:
        """Of tokenizer_config.json, which a repository may lack."""
        return dict(self.json("tokenizer_config.json")) if self.find("tokenizer_config.json") else {}


# ---- slow tokenizers: the ids are computed here


def _encode_with(tokenizer: Any, ids: Ids, head: list[int], end: int | None, *, once: bool = False) -> None:
    """Let `tokenizer(...)` take its ids from `ids`: cut, put between `head` and `end`, padded, as its caller asks.

    `once`: an `end` that the text brings along is not doubled (T5).
    """

    def row(text: str, special: bool, longest: int | None) -> list[int]:
        before = head if special else []
        after = [end] if special and end is not None else []
        found = ids(text)
        if longest is not None:
            found = found[: max(longest - len(before) - len(after), 0)]
        return [*before, *found, *([] if once and found[-1:] == after else after)]

    def encode(
        text: str | list[str],
        text_pair: None = None,
        add_special_tokens: bool = True,
        padding_strategy: Any = False,
        truncation_strategy: Any = "do_not_truncate",
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = None,
        **_: Any,
    ) -> Any:
        assert text_pair is None, "no text encoder of ours reads pairs"
        cut = getattr(truncation_strategy, "value", truncation_strategy) != "do_not_truncate"
        longest = max_length if cut else None
        single = isinstance(text, str)
        texts = [text] if isinstance(text, str) else text
        rows = [row(t, add_special_tokens, longest) for t in texts]
        return tokenizer.pad(
            {"input_ids": rows[0] if single and return_tensors is None else rows},
            padding=padding_strategy,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    tokenizer._encode_plus = encode
    tokenizer.tokenize = lambda text: tokenizer.convert_ids_to_tokens(ids(text))  # Diffusers looks for added ones


def _around(tokenizer: Any) -> tuple[dict[str, int], Callable[[str], list[str]]]:
    """The tokens that are never split (-> id), and what cuts a text at them: they stay as parts of their own, and take
    the spaces beside them if they are said to (`PreTrainedTokenizer.tokenize`)."""
    added = {token.content: (index, token) for index, token in tokenizer.added_tokens_decoder.items() if token.content}
    pattern = re.compile(f"({'|'.join(re.escape(name) for name in sorted(added, key=len, reverse=True))})")

    def split(text: str) -> list[str]:
        parts = [part for part in pattern.split(text) if part]
        for at, part in enumerate(parts):
            if part not in added:
                before, after = (added.get(p) for p in (parts[at - 1] if at else "", "".join(parts[at + 1 : at + 2])))
                part = part.lstrip() if before and before[1].rstrip else part
                parts[at] = part.rstrip() if after and after[1].lstrip else part
        return [part for part in parts if part]

    return {name: index for name, (index, _) in added.items()}, split


def _clip(tokenizer: Any, files: _Files) -> Ids:
    import regex

    repair = fix_text()
    lines = files.get("merges.txt").read_text(encoding="utf-8").strip().split("\n")[1 : 49152 - 256 - 2 + 1]
    special = ("<|startoftext|>", "<|endoftext|>")
    pieces = _byte_pairs(tokenizer, files, lines, "</w>", special)
    added, split = _around(tokenizer)
    # IGNORECASE folds more than lower case: the long s of "'ſ" is an s here.
    words = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
    )

    def ids(text: str) -> list[int]:
        found: list[int] = []
        for part in split(text):
            if part in added:
                found.append(added[part])
            else:
                clean = regex.sub(r"\s+", " ", repair(part)).strip().lower()
                found += [index for word in words.findall(clean) for index in pieces(word)]
        return found

    return ids


def _qwen(tokenizer: Any, files: _Files) -> Ids:
    """Unlike `tokenizer.json`, by the `regex` package, which knows the newest letters of Unicode."""
    import unicodedata

    import regex

    lines = files.get("merges.txt").read_text(encoding="utf-8").split("\n")
    pieces = _byte_pairs(
        tokenizer, files, [line for line in lines if line.strip() and not line.startswith("#version:")]
    )
    added, split = _around(tokenizer)
    words = regex.compile(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )

    def ids(text: str) -> list[int]:
        found: list[int] = []
        for part in split(unicodedata.normalize("NFC", text)):
            found += [added[part]] if part in added else [i for word in words.findall(part) for i in pieces(word)]
        return found

    return ids


def _byte_pairs(
    tokenizer: Any, files: _Files, lines: list[str], tail: str = "", whole: tuple[str, ...] = ()
) -> Callable[[str], list[int]]:
    """A word -> ids: its bytes, joined as `lines` of merges say. `tail` marks a word's end; `whole` are never cut."""
    vocab: dict[str, int] = files.json("vocab.json")
    ranks = {(left, right): rank for rank, (left, right) in enumerate(line.split() for line in lines)}
    letters = _byte_letters()

    @lru_cache(maxsize=10_000)
    def pieces(word: str) -> list[int]:
        spelled = [letters[byte] for byte in word.encode("utf-8")]
        parts = (word,) if word in whole else merged((*spelled[:-1], spelled[-1] + tail), ranks)
        return [vocab[part] if part in vocab else vocab[tokenizer.unk_token] for part in parts]

    return pieces


def merged(word: tuple[str, ...], ranks: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    """Byte pair encoding: the pair of the lowest rank is joined, everywhere, until none is left."""
    while len(word) > 1:
        pair = min(itertools.pairwise(word), key=lambda pair: ranks.get(pair, len(ranks)))
        if pair not in ranks:
            break
        joined: list[str] = []
        at = 0
        while at < len(word):
            if word[at : at + 2] == pair:
                joined.append(pair[0] + pair[1])
                at += 2
            else:
                joined.append(word[at])
                at += 1
        word = tuple(joined)
    return word


def _byte_letters() -> dict[int, str]:
    """GPT-2's letter of each byte: itself where it can be printed, else one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _sentencepiece(tokenizer: Any, files: _Files) -> Ids:
    import sentencepiece

    model: Any = sentencepiece.SentencePieceProcessor()
    model.Load(str(files.get("spiece.model")))
    config = files.settings()
    if config.get("legacy") is False:
        raise RequestError(f"tokenizer of {files.repo}/{files.folder}: `legacy` is false in tokenizer_config.json. "
                           "HiDream's own, which the trainer reads, is a legacy one")  # fmt: skip
    added, split = _around(tokenizer)

    def ids(text: str) -> list[int]:
        found: list[int] = []
        for part in split(text):
            found += [added[part]] if part in added else model.encode(part, out_type=int)
        return found

    return ids


# ---- fast tokenizers: as their file says


def _restore(tokenizer: Any, files: _Files) -> None:
    """Give a tokenizer what its file declares, all of it: normaliser, word splitter, model and special tokens.

    T5's is converted from SentencePiece instead where its settings name `add_prefix_space`, or where there is no
    tokenizer.json (`T5TokenizerFast.__init__`).
    """
    from tokenizers import Tokenizer

    config = files.settings()
    path = files.find("tokenizer.json")
    if type(tokenizer).__name__ == "T5Tokenizer" and (path is None or config.get("add_prefix_space") is not None):
        backend = _converted_t5(files, config)
    else:
        backend = Tokenizer.from_file(str(path or files.get("tokenizer.json")))
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([t for _, t in sorted(tokenizer.added_tokens_decoder.items()) if t.content not in known])
    backend.no_truncation()
    backend.no_padding()
    tokenizer._tokenizer = backend


def _converted_t5(files: _Files, config: Mapping[str, Any]) -> Any:
    """T5's SentencePiece model as `T5Converter` of 4.57 turns it into a fast tokenizer."""
    import sentencepiece.sentencepiece_model_pb2 as messages
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    proto = messages.ModelProto()  # type: ignore[attr-defined]  # made at import
    proto.ParseFromString(files.get("spiece.model").read_bytes())
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(config.get("extra_ids", 100)))]
    vocab = [*((piece.piece, piece.score) for piece in proto.pieces), *((token, 0.0) for token in sentinels)]
    backend = Tokenizer(models.Unigram(vocab, unk_id=proto.trainer_spec.unk_id, byte_fallback=False))
    control, user_defined = 3, 4
    backend.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == control)
            for piece in proto.pieces
            if piece.type in (control, user_defined)
        ]
    )
    charsmap = proto.normalizer_spec.precompiled_charsmap
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    backend.normalizer = normalizers.Sequence(steps)
    prefixed = config.get("add_prefix_space") is not False  # None, too: the slow class's default is true
    scheme = ("first" if config.get("legacy") is False else "always") if prefixed else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    ends = [("</s>", backend.token_to_id("</s>"))]
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=ends
    )
    return backend
