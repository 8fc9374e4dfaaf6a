"""T5, UMT5 (Unigram) and Gemma (BPE with byte fallback)."""

import json
import struct
from typing import Any

from lora_drift.harness.minihub.tokenizers.common import WORDS, bpe_merges, to_text


def t5(extra_ids: int = 100) -> tuple[dict[str, str], int]:
    """T5TokenizerFast files (a Unigram tokenizer.json) and the vocabulary size. Used for T5 and UMT5."""
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [("▁" + word, -3.0 - 0.01 * i) for i, word in enumerate(WORDS) if len(word) > 1]
    pieces += [(letter, -6.0 - 0.01 * i) for i, letter in enumerate(letters)]
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
    pieces += [(token, 0.0) for token in sentinels]
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}

    def added(token: str) -> dict[str, Any]:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {"id": ids[token], "content": token, **flags}

    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    eos = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(t) for t in ("<pad>", "</s>", "<unk>", *sentinels)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, eos],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, eos, {"Sequence": {"id": "B", "type_id": 0}}, eos],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [ids["</s>"]], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": ids["<unk>"], "vocab": pieces, "byte_fallback": False},
    }
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {
        **special,
        "extra_ids": extra_ids,
        "additional_special_tokens": sentinels[::-1],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": True,
        "tokenizer_class": "T5Tokenizer",
    }
    files = {
        "tokenizer.json": to_text(tokenizer),
        "special_tokens_map.json": to_text({**special, "additional_special_tokens": sentinels[::-1]}),
        "tokenizer_config.json": to_text(config),
    }
    return files, len(pieces)


SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def gemma(words: list[str] = WORDS, **config: Any) -> tuple[dict[str, str], int]:
    """GemmaTokenizerFast files of Gemma 2 and the vocabulary size; `config` goes to tokenizer_config.json."""
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(i): {"content": token, **FLAGS} for i, token in enumerate(SPECIAL)},
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "use_default_system_prompt": False,
        **names,
        **config,
    }
    return _gemma(bpe_merges(["▁" + word for word in words], ""), names, settings)


def gemma3() -> tuple[dict[str, str], int]:
    """GemmaTokenizerFast files of Gemma 3 and the vocabulary size. A word that begins a text is one token too."""
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    merges = [*bpe_merges(["▁" + word for word in WORDS], ""), *bpe_merges([w for w in WORDS if len(w) > 1], "")]
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(i): {"content": token, **FLAGS} for i, token in enumerate(SPECIAL)},
        **names,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "padding_side": "left",
        "sp_model_kwargs": None,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "use_default_system_prompt": False,
    }
    return _gemma(list(dict.fromkeys(merges)), names, settings)


def _gemma(
    merges: list[tuple[str, str]], names: dict[str, str], settings: dict[str, Any]
) -> tuple[dict[str, str], int]:
    """BPE over characters with byte fallback, "▁" for spaces: the files and the vocabulary size."""
    letters = ["▁", *(chr(c) for c in range(ord("!"), ord("~") + 1))]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokens = list(dict.fromkeys([*tokens, *(left + right for left, right in merges)]))
    vocab = {token: index for index, token in enumerate(tokens)}
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    bos_second = {"SpecialToken": {"id": "<bos>", "type_id": 1}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[t], "content": t, **FLAGS} for t in SPECIAL],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, bos_second, second],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocab["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }  # fmt: skip
    files = {
        "tokenizer.json": to_text(tokenizer),
        "special_tokens_map.json": to_text(names),
        "tokenizer_config.json": to_text(settings),
    }
    return files, len(vocab)


def spiece(tokenizer_json: str, charsmap: bytes = b"") -> bytes:
    """spiece.model (a SentencePiece Unigram model) that says what `t5`'s tokenizer.json says, without its sentinels.

    `charsmap`: what SentencePiece compiled of a normaliser's rules; none: nothing is normalised.

    The protobuf is written out here (sentencepiece_model.proto: ModelProto with pieces 1, trainer_spec 2 and
    normalizer_spec 3), so that the bytes depend on no installed version.
    """
    normal, unknown, control = 1, 2, 3
    kinds = {"<pad>": control, "</s>": control, "<unk>": unknown}
    vocab = json.loads(tokenizer_json)["model"]["vocab"]
    pieces = [(piece, score) for piece, score in vocab if not piece.startswith("<extra_id_")]
    model = b"".join(
        _field(1, _field(1, piece.encode()) + _field(2, float(score)) + _field(3, kinds.get(piece, normal)))
        for piece, score in pieces
    )
    # model_type Unigram, vocab_size, and the ids of <unk>, none, </s>, <pad>; identity normalisation with "▁" in front.
    trainer: list[tuple[int, int]] = [(3, 1), (4, len(pieces)), (40, 2), (41, -1), (42, 1), (43, 0)]
    rules: list[tuple[int, int | bytes]] = [(1, b"user_defined"), (2, charsmap)] if charsmap else [(1, b"identity")]
    normalizer: list[tuple[int, int | bytes]] = [*rules, (3, 1), (4, 1), (5, 1)]
    model += _field(2, b"".join(_field(number, value) for number, value in trainer))
    return model + _field(3, b"".join(_field(number, value) for number, value in normalizer))


def _field(number: int, value: int | float | bytes) -> bytes:
    """One protobuf field: varint (integers), 32 bits (floats) or length and bytes."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    value %= 2**64
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])
