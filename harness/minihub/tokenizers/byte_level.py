"""Byte-level BPE: Qwen, Llama 3 and Mistral."""

from collections.abc import Sequence

from lora_drift.harness.minihub.tokenizers.common import WORDS, bpe_merges, byte_alphabet, to_text

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
    merges = bpe_merges(words, "")
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
        "vocab.json": to_text(vocab),
        "merges.txt": "".join(f"{left} {right}\n" for left, right in merges),
        "tokenizer.json": to_text(tokenizer),
        "tokenizer_config.json": to_text(config),
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
    merges = bpe_merges([*("Ġ" + w for w in WORDS), "user", "assistant", "system"], "")
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
        "tokenizer.json": to_text(tokenizer),
        "special_tokens_map.json": to_text(special),
        "tokenizer_config.json": to_text(config),
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
    merges = bpe_merges([*("Ġ" + w for w in WORDS), "ĠAI", "Ġobject", "Ġdescriptions"], "")
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
        "tokenizer.json": to_text(tokenizer),
        "tokenizer_config.json": to_text(config),
        "special_tokens_map.json": to_text(special),
        "chat_template.json": to_text({"chat_template": MISTRAL3_CHAT}),
        "preprocessor_config.json": to_text(images),
        "processor_config.json": to_text(processor),
    }
    return files, len(vocab)


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
