"""Miniature tokenizers, written as the plain JSON files that the real repositories hold.

Nothing here imports a tokenizer library: the files are data, and every stack reads them with its own code.
"""

import json
import struct
from typing import Any

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"

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


def _merges(words: list[str], tail: str) -> list[tuple[str, str]]:
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


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def clip(pad_token: str = CLIP_END) -> tuple[dict[str, str], int]:
    """CLIPTokenizer files (vocab.json, merges.txt, ...) and the vocabulary size."""
    characters = [byte_alphabet()[b] for b in sorted(byte_alphabet(), key=lambda b: byte_alphabet()[b])]
    merges = _merges(WORDS, "</w>")
    tokens = [*characters, *(c + "</w>" for c in characters)]
    tokens += [left + right for left, right in merges if left + right not in tokens]
    vocab = {token: index for index, token in enumerate([*tokens, CLIP_START, CLIP_END])}
    special = {"bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END, "pad_token": pad_token}
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    files = {
        "vocab.json": _json(vocab),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "special_tokens_map.json": _json(special),
        "tokenizer_config.json": _json(config),
    }
    return files, len(vocab)


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
        "tokenizer.json": _json(tokenizer),
        "special_tokens_map.json": _json({**special, "additional_special_tokens": sentinels[::-1]}),
        "tokenizer_config.json": _json(config),
    }
    return files, len(pieces)


def gemma(words: list[str] = WORDS, **config: Any) -> tuple[dict[str, str], int]:
    """GemmaTokenizerFast files (BPE over characters with byte fallback, "▁" for spaces) and the vocabulary size."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    letters = ["▁", *(chr(c) for c in range(ord("!"), ord("~") + 1))]
    merges = _merges(["▁" + word for word in words], "")
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokens = list(dict.fromkeys([*tokens, *(left + right for left, right in merges)]))
    vocab = {token: index for index, token in enumerate(tokens)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    bos_second = {"SpecialToken": {"id": "<bos>", "type_id": 1}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[t], "content": t, **flags} for t in special],
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
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(vocab[t]): {"content": t, **flags} for t in special},
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
    files = {
        "tokenizer.json": _json(tokenizer),
        "special_tokens_map.json": _json(names),
        "tokenizer_config.json": _json(settings),
    }
    return files, len(vocab)


QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_PLAIN = ["<think>", "</think>"]
QWEN3_CHAT = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)


def qwen(chat_template: str = QWEN3_CHAT) -> tuple[dict[str, str], int]:
    """Qwen2Tokenizer files (byte-level BPE with chat tokens) and the vocabulary size."""
    characters = [byte_alphabet()[b] for b in range(256)]
    words = [*("Ġ" + w for w in WORDS), "user", "assistant", "system"]
    merges = _merges(words, "")
    tokens = list(dict.fromkeys([*characters, *(left + right for left, right in merges)]))
    vocab = {token: index for index, token in enumerate(tokens)}
    extra = {token: len(vocab) + i for i, token in enumerate([*QWEN_SPECIAL, *QWEN_PLAIN])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": t, **flags, "special": t in QWEN_SPECIAL} for t, i in extra.items()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": t, **flags, "special": t in QWEN_SPECIAL} for t, i in extra.items()
        },
        "additional_special_tokens": QWEN_SPECIAL[1:],
        "bos_token": None,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    files = {
        "vocab.json": _json(vocab),
        "merges.txt": "".join(f"{left} {right}\n" for left, right in merges),
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json(config),
    }
    return files, len(vocab) + len(extra)


LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
]


def llama3() -> tuple[dict[str, str], int]:
    """PreTrainedTokenizerFast files of Llama 3.1 as unsloth publishes them (left padding), and the vocabulary size."""
    characters = [byte_alphabet()[b] for b in range(256)]
    merges = _merges([*("Ġ" + w for w in WORDS), "user", "assistant", "system"], "")
    tokens = list(dict.fromkeys([*characters, *(left + right for left, right in merges)]))
    vocab = {token: index for index, token in enumerate(tokens)}
    extra = {token: len(vocab) + i for i, token in enumerate(LLAMA3_SPECIAL)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos, eos, pad = LLAMA3_SPECIAL[0], LLAMA3_SPECIAL[-1], LLAMA3_SPECIAL[2]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags} for t, i in extra.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False},
                {**byte_level, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [
                {**byte_level, "trim_offsets": False},
                {
                    "type": "TemplateProcessing",
                    "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [
                        *(start, {"Sequence": {"id": "A", "type_id": 0}}),
                        *({"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}),
                    ],
                    "special_tokens": {bos: {"id": bos, "ids": [extra[bos]], "tokens": [bos]}},
                },
            ],
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    special = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    config = {
        **special,
        "added_tokens_decoder": {str(i): {"content": t, **flags} for t, i in extra.items()},
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    files = {
        "tokenizer.json": _json(tokenizer),
        "special_tokens_map.json": _json(special),
        "tokenizer_config.json": _json(config),
    }
    return files, len(vocab) + len(extra)


def spiece(tokenizer_json: str) -> bytes:
    """spiece.model (a SentencePiece Unigram model) that says what `t5`'s tokenizer.json says, without its sentinels.

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
    normalizer: list[tuple[int, int | bytes]] = [(1, b"identity"), (3, 1), (4, 1), (5, 1)]
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


def gemma3() -> tuple[dict[str, str], int]:
    """GemmaTokenizerFast files (BPE with "▁" for spaces and byte fallback) and the vocabulary size."""
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    letters = ["▁", *(chr(c) for c in range(ord("!"), ord("~") + 1))]
    merges = [*_merges(["▁" + word for word in WORDS], ""), *_merges([w for w in WORDS if len(w) > 1], "")]
    merges = list(dict.fromkeys(merges))
    tokens = [*special.values(), "<mask>", "<start_of_turn>", "<end_of_turn>"]
    tokens += [*(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokens = list(dict.fromkeys([*tokens, *(left + right for left, right in merges)]))
    ids = {token: index for index, token in enumerate(tokens)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": token, **flags} for i, token in enumerate(tokens[:7])]
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<bos>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [ids["<bos>"]], "tokens": ["<bos>"]}},
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
            "vocab": ids,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }  # fmt: skip
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added},
        **special,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "padding_side": "left",
        "sp_model_kwargs": None,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "use_default_system_prompt": False,
    }
    files = {
        "tokenizer.json": _json(tokenizer),
        "special_tokens_map.json": _json(special),
        "tokenizer_config.json": _json(config),
    }
    return files, len(tokens)


MISTRAL_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


MISTRAL_SPECIAL = [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
]
"""In the order of the real ones: <pad> is 11."""


MISTRAL3_CHAT = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- set text = message.content if message.content is string else message.content | map(attribute='text') | join %}"
    "{%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{%- elif message.role == 'user' %}{{- '[INST]' + text + '[/INST]' }}"
    "{%- else %}{{- text + eos_token }}"
    "{%- endif %}"
    "{%- endfor %}"
)


def mistral3() -> tuple[dict[str, str], int]:
    """PixtralProcessor files (byte-level BPE after Tekken, chat template, image settings) and the vocabulary size.

    tokenizer_config.json names no padding side, so that each library takes its class's own (the trainer's: left).
    """
    characters = [byte_alphabet()[b] for b in range(256)]
    merges = _merges([*("Ġ" + w for w in WORDS), "ĠAI", "Ġobject", "Ġdescriptions"], "")
    tokens = [*MISTRAL_SPECIAL, *characters, *(left + right for left, right in merges)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": MISTRAL_SPLIT}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[t], "content": t, **flags} for t in MISTRAL_SPECIAL],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [vocab["<s>"]], "tokens": ["<s>"]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        **special,
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(vocab[t]): {"content": t, **flags} for t in MISTRAL_SPECIAL},
        "additional_special_tokens": MISTRAL_SPECIAL,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 1000000000000000019884624838656,
        "processor_class": "PixtralProcessor",
        "tokenizer_class": "LlamaTokenizerFast",
    }
    images = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "PixtralImageProcessorFast",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": 14,
        "processor_class": "PixtralProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 1540},
    }
    processor = {
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
        "image_token": "[IMG]",
        "patch_size": 14,
        "processor_class": "PixtralProcessor",
        "spatial_merge_size": 2,
    }
    files = {
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json(config),
        "special_tokens_map.json": _json(special),
        "chat_template.json": _json({"chat_template": MISTRAL3_CHAT}),
        "preprocessor_config.json": _json(images),
        "processor_config.json": _json(processor),
    }
    return files, len(vocab)
