"""Miniature tokenizers, written as the plain JSON files that the real repositories hold.

Nothing here imports a tokenizer library: the files are data, and every stack reads them with its own code.
"""

import json
from collections.abc import Sequence
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


def qwen(
    chat_template: str = QWEN3_CHAT,
    *,
    words: Sequence[str] = (),
    special: Sequence[str] = QWEN_SPECIAL,
    plain: Sequence[str] = QWEN_PLAIN,
) -> tuple[dict[str, str], int]:
    """Qwen2Tokenizer files (byte-level BPE with chat tokens) and the vocabulary size.

    `words` get a token of their own besides the usual ones; "Ġ" stands for a space before them, and words that begin
    with it come first, so that no other merge breaks into them.
    """
    characters = [byte_alphabet()[b] for b in range(256)]
    words = [*("Ġ" + w for w in WORDS), *(w for w in words if w[0] == "Ġ"), "user", "assistant", "system",
             *(w for w in words if w[0] != "Ġ")]  # fmt: skip
    merges = _merges(words, "")
    tokens = list(dict.fromkeys([*characters, *(left + right for left, right in merges)]))
    vocab = {token: index for index, token in enumerate(tokens)}
    extra = {token: len(vocab) + i for i, token in enumerate([*special, *plain])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": t, **flags, "special": t in special} for t, i in extra.items()]
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
        "added_tokens_decoder": {str(i): {"content": t, **flags, "special": t in special} for t, i in extra.items()},
        "additional_special_tokens": list(special[1:]),
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


QWEN_VL_SPECIAL = [
    *QWEN_SPECIAL,
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
QWEN_VL_PLAIN = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"]
QWEN_IMAGE_WORDS = [
    *("Ġimage", "Ġby", "Ġdetailing", "Ġcolor", "Ġshape", "Ġsize", "Ġtexture", "Ġquantity", "Ġtext", "Ġspatial"),
    *("Ġrelationships", "Ġobjects", "Ġbackground", "Ġkey", "Ġfeatures", "Ġinput", "Ġthen", "Ġexplain", "Ġhow"),
    *("Ġuser", "Ġinstruction", "Ġshould", "Ġalter", "Ġor", "Ġmodify", "ĠGenerate", "Ġnew", "Ġthat", "Ġmeets"),
    *("Ġrequirements", "Ġwhile", "Ġmaintaining", "Ġconsistency", "Ġoriginal", "Ġwhere", "Ġappropriate", "Ġ("),
    *("Describe", "color", "'s", "),", "Picture"),
]
"""Words of the system prompts of Qwen-Image (34 tokens) and Qwen-Image-Edit (64), which the pipelines cut off by
their number of tokens."""
QWEN_VL_CHAT = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def qwen_vl() -> tuple[dict[str, str], int]:
    """Qwen2Tokenizer files with Qwen2.5-VL's vision tokens, and the vocabulary size."""
    return qwen(QWEN_VL_CHAT, words=QWEN_IMAGE_WORDS, special=QWEN_VL_SPECIAL, plain=QWEN_VL_PLAIN)
