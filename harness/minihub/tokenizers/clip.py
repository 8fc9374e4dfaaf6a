"""CLIP."""

from lora_drift.harness.minihub.tokenizers.common import WORDS, bpe_merges, byte_alphabet, to_text

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"


def clip(pad_token: str = CLIP_END) -> tuple[dict[str, str], int]:
    """CLIPTokenizer files (vocab.json, merges.txt, ...) and the vocabulary size."""
    characters = [byte_alphabet()[b] for b in sorted(byte_alphabet(), key=lambda b: byte_alphabet()[b])]
    merges = bpe_merges(WORDS, "</w>")
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
        "vocab.json": to_text(vocab),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "special_tokens_map.json": to_text(special),
        "tokenizer_config.json": to_text(config),
    }
    return files, len(vocab)
