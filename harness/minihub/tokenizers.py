"""Miniature tokenizers, written as the plain JSON files that the real repositories hold.

Nothing here imports a tokenizer library: the files are data, and every stack reads them with its own code.
"""

import json
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
