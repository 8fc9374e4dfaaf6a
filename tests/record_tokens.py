"""The token ids that the environment of a trainer makes of texts: prints what `xz -9e` packs as tokens-4.57.json.xz, or
for a tag of 0.9.1 or later as tokens-5.5.json.xz.

Run it with the Python of the trainer's environment: `PYTHONPATH=. python tests/record_tokens.py --tag TAG --trainer DIR
--diffusers DIR`, which proves the pins as the recorder does. Tests read the texts and the tokenizers from here, too.

Besides the mini hub's tokenizers there are some that hide nothing: any two bytes that reach the same word are one
token, and T5 knows what its normaliser replaces. Their files are of the kinds that the real repositories hold
(docs/text.md).
"""

import argparse
import base64
import json
import random
import re
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from lora_drift.harness.minihub import factory, tokenizers
from lora_drift.harness.minihub.tokenizers import sentencepiece
from lora_drift.harness.minihub.tokenizers.common import byte_alphabet, to_text

HERE = Path(__file__).parent
COUNT = 2000
SEED = 16

AWKWARD = {
    "an apostrophe from a phone": "it’s a fox",
    "typographic quotes, dashes and an ellipsis": "“a” ‘b’ – c — d… ‹e›",
    "ligatures": "ﬁn ﬂat ﬃ ĳ",
    "full width": "Ｆｏｘ，１２％　！",
    "compatibility signs": "½ ① № ™ ℃ ㎏ ㍿ ² ﷺ",
    "composed and decomposed": "caf\u00e9 cafe\u0301 \u1100\u1161\u11a8 각 ÅÅ",
    "combining marks": "Z\u0351\u036b\u0343a\u0300\u0323l\u0321g\u0489o",
    "Chinese, Japanese, Korean": "红色的狐狸 赤いキツネ ｶﾞ 붉은 여우",
    "right to left": "שועל אדום مرحبا \u202eabc\u202c",
    "Indic and Thai": "क्षत्रिय ราตรี",
    "emoji with joiners": "👩\u200d👩\u200d👧 🏳️\u200d🌈 👍🏽 🇩🇪 ☺\ufe0f",
    "outside the basic plane": "𝒳 𝟙 𐐀 𠀀",
    "control characters": "a\x00b\x07c\x1bd\x7fe\x85f\x9fg",
    "zero width": "a\u200bb\u2060c\ufeffd\u00ade",
    "a byte-order mark in front": "\ufeffa fox",
    "kinds of space": "a\tb\nc\r\nd\u00a0e\u2003f\u2028g\u3000h\u1680i\u202fj",
    "many spaces": "a  b   c    \n\n d",
    "spaces around": "  a fox  ",
    "nothing but spaces": " \t ",
    "nothing": "",
    "upper case": "A RED Fox, STRASSE straße İstanbul ΣΑΣ ſ K ǅ",
    "HTML entities": "a &amp; b &lt;c&gt; &quot;d&quot; &#39; &amp;amp; &nbsp;",
    "mojibake": "cafÃ© itâ€™s Ã¼ber ï»¿",
    "contractions": "I'm you'RE it'S don'T we'll 'ſ",
    "digits": "1234567 3.14 1,000 ١٢٣ Ⅷ",
    "punctuation": "a,b;c:d!?(e)[f]{g}<h>/i\\j|k~l^m`n@o#p$q%r&s*t+u=v_w-x!!!",
    "an underline of SentencePiece": "▁a ▁▁ b▁",
    "control tokens of CLIP": "a <|startoftext|> b<|endoftext|>c <|ENDOFTEXT|>",
    "control tokens of T5": "a </s> b<pad>c <unk> d <extra_id_0> e<extra_id_99></s>",
    "control tokens of Qwen and Llama": "a <|im_start|>user<|im_end|> <|eot_id|> <think> </think>",
    "control tokens of Gemma and Mistral": "a <bos> b<eos> <start_of_turn>c [INST] d [/INST] </s>",
    "emphasis": "(a fox:1.3), [b], <lora:c:0.8>, \\(d\\)",
    "longer than any limit": "A red fox’s tail, " * 400,
    "one long word": "fox" * 700,
}
"""What is in a text -> the text."""

BLOCKS = [
    *[(0x20, 0x7E)] * 6, (0, 0x1F), (0x7F, 0xA0), (0xA1, 0xFF), (0x100, 0x24F), (0x250, 0x36F), (0x370, 0x3FF),
    (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF),
    (0x2000, 0x206F), (0x2070, 0x20CF), (0x2100, 0x218F), (0x2460, 0x24FF), (0x2600, 0x27BF), (0x3000, 0x30FF),
    (0x3200, 0x33FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE00, 0xFEFF),
    (0xFF00, 0xFFEF), (0x10000, 0x103FF), (0x1D400, 0x1D7FF), (0x1F000, 0x1FAFF), (0xE0000, 0xE01FF),
    (0x20000, 0x2FFFF), (0, 0xD7FF), (0xE000, 0x10FFFF),
]  # fmt: skip


@cache
def texts() -> list[str]:
    """`COUNT` texts of letters from all of Unicode and of what people and tokenizers stumble over."""
    whole = [text for text in AWKWARD.values() if len(text) < 200]

    def text(rng: random.Random) -> str:
        parts = []
        for _ in range(rng.randrange(1, 9)):
            if rng.random() < 0.3:
                piece = rng.choice(whole)
                start = rng.randrange(len(piece) + 1)
                parts.append(piece[start : start + rng.randrange(1, 20)])
            else:
                low, high = rng.choice(BLOCKS)
                parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 6))))
            parts.append(" " * rng.choice((0, 0, 1, 1, 2)))
        return "".join(parts)

    return [text(random.Random(f"{SEED}:{number}")) for number in range(COUNT)]


# ---- tokenizers that hide nothing

BYTES = [*range(0x20, 0x7F), *range(0x80, 0x90), 0xA0, 0xC2, 0xC3, 0xCC, 0xE2, 0xE3, 0xF0]
"""Any two of these that reach the same word make a token."""


def clip(pad_token: str = tokenizers.CLIP_END) -> dict[str, str]:
    """CLIP, with the special tokens as openai/clip-vit-large-patch14 declares them."""
    files, _ = tokenizers.clip(pad_token)
    letters = byte_alphabet()
    merges = [(letters[a], letters[b] + tail) for a in BYTES for b in BYTES for tail in ("</w>", "")]
    random.Random(SEED).shuffle(merges)
    vocab = [letters[b] + tail for tail in ("", "</w>") for b in range(256)] + [a + b for a, b in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    config = json.loads(files["tokenizer_config.json"])
    flags = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config |= {name: {**flags, "content": config[name]} for name in ("bos_token", "eos_token", "unk_token")}
    return files | {
        "vocab.json": to_text({token: index for index, token in enumerate(vocab)}),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "tokenizer_config.json": to_text(config),
    }


def byte_level(files: dict[str, str]) -> dict[str, str]:
    """Qwen, Llama or Mistral, whose files these are, with a token for any two bytes."""
    letters = byte_alphabet()
    merges = [(letters[a], letters[b]) for a in BYTES for b in BYTES]
    random.Random(SEED).shuffle(merges)
    tokenizer, config = json.loads(files["tokenizer.json"]), json.loads(files["tokenizer_config.json"])
    special = [token["content"] for token in tokenizer["added_tokens"]]
    head = [token for token in special if token in tokenizer["model"]["vocab"]]  # Mistral's are the first of its words
    words = dict.fromkeys([*head, *(letters[b] for b in range(256)), *(a + b for a, b in merges)])
    ids = {token: index for index, token in enumerate([*words, *(s for s in special if s not in head)])}
    tokenizer["model"] |= {
        "vocab": {word: ids[word] for word in words}, "merges": [f"{left} {right}" for left, right in merges]
    }  # fmt: skip
    tokenizer["added_tokens"] = [token | {"id": ids[token["content"]]} for token in tokenizer["added_tokens"]]
    for entry in tokenizer["post_processor"].get("special_tokens", {}).values():
        entry["ids"] = [ids[token] for token in entry["tokens"]]
    for processor in tokenizer["post_processor"].get("processors", []):
        for entry in processor.get("special_tokens", {}).values():
            entry["ids"] = [ids[token] for token in entry["tokens"]]
    config["added_tokens_decoder"] = {str(ids[t["content"]]): t for t in config["added_tokens_decoder"].values()}
    made = {"tokenizer.json": to_text(tokenizer), "tokenizer_config.json": to_text(config)}
    if "vocab.json" in files:
        made["vocab.json"] = to_text(tokenizer["model"]["vocab"])
        made["merges.txt"] = "".join(f"{left} {right}\n" for left, right in merges)
    return files | made


def gemma(files: dict[str, str]) -> dict[str, str]:
    """Gemma, whose files these are, with a token for any two ASCII signs."""
    tokenizer = json.loads(files["tokenizer.json"])
    signs = ["▁", *(chr(c) for c in range(ord("!"), ord("~") + 1))]
    merges = [(a, b) for a in signs for b in signs]
    random.Random(SEED).shuffle(merges)
    vocab = dict.fromkeys([*tokenizer["model"]["vocab"], *(a + b for a, b in merges)])
    tokenizer["model"] |= {
        "vocab": {token: index for index, token in enumerate(vocab)}, "merges": [f"{a} {b}" for a, b in merges]
    }  # fmt: skip
    return files | {"tokenizer.json": to_text(tokenizer)}


def t5(extra_ids: int = 100, *, converted: bool = False, spiece: bool = False) -> dict[str, str | bytes]:
    """T5 or UMT5 as the real files are: the normaliser is SentencePiece's own table (a small one here), and words are
    not split at white space first.

    `converted`: tokenizer_config.json names `add_prefix_space`, as FLUX.1's does, so that transformers 4 does not
    read tokenizer.json. `spiece`: with the SentencePiece model.
    """
    files, _ = tokenizers.t5(extra_ids)
    tokenizer, config = json.loads(files["tokenizer.json"]), json.loads(files["tokenizer_config.json"])
    charsmap = base64.b64decode((HERE / "charsmap.txt").read_text())
    old = tokenizer["model"]["vocab"]
    letters = sorted({c for low, high in BLOCKS[6:-2] for c in map(chr, range(low, min(high, low + 600) + 1))
                      if unicodedata.category(c)[0] in "LNPSMZ" and c not in " ▁"})  # fmt: skip
    known = {piece for piece, _ in old}
    pieces = [entry for entry in old if not entry[0].startswith("<extra_id_")]
    pieces += [[letter, -7.0 - 0.001 * i] for i, letter in enumerate(letters) if letter not in known]
    pieces += [[f"▁{letter}", -7.5 - 0.001 * i] for i, letter in enumerate(letters[::3])]
    pieces += [["▁▁", -3.5], ["▁ ", -3.6], ["  ", -3.7], ["...", -5.0], ["1/2", -5.0], ["fi", -5.0], ["’s", -5.0]]
    sentinels = [[f"<extra_id_{i}>", 0.0] for i in reversed(range(extra_ids))]
    vocab = [*pieces, *sentinels]
    ids = {piece: index for index, (piece, _) in enumerate(vocab)}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    tokenizer["added_tokens"] = [token | {"id": ids[token["content"]]} for token in tokenizer["added_tokens"]]
    tokenizer["normalizer"]["normalizers"] = [
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()},
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
    ]
    tokenizer["pre_tokenizer"] = metaspace
    tokenizer["model"]["vocab"] = vocab
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config["added_tokens_decoder"] = {
        str(t["id"]): {"content": t["content"], **flags} for t in tokenizer["added_tokens"]
    }
    config["legacy"] = True
    if converted:
        config["add_prefix_space"] = True
    made: dict[str, str | bytes] = {
        **files, "tokenizer.json": to_text(tokenizer), "tokenizer_config.json": to_text(config)
    }  # fmt: skip
    if converted or spiece:
        made["spiece.model"] = sentencepiece.spiece(tokenizer_json=to_text(tokenizer), charsmap=charsmap)
    return made


# ---- which tokenizers, and how the trainer loads them


class Encoder(NamedTuple):
    """A tokenizer: from the mini hub (repository, folder), or from files made here."""

    cls: str
    """The class of transformers that the trainer names (of a processor: the one that it makes its tokenizer with)."""
    limit: int
    """Tokens that its text encoder reads at most."""
    source: tuple[str, str] | Callable[[], Any]
    slow: bool = False
    """Of `ModelSpec.slow_tokenizers`."""


MISTRAL_3 = {"config.json": to_text({"model_type": "mistral3"})}
"""Without it transformers 5 takes another class, which reads other ids."""

ENCODERS = {
    "sd15": Encoder("CLIPTokenizer", 77, ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer")),
    "sdxl 2": Encoder("CLIPTokenizer", 77, ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer_2")),
    "hidream 1": Encoder("CLIPTokenizer", 248, ("HiDream-ai/HiDream-I1-Full", "tokenizer")),
    "hidream 3": Encoder("T5Tokenizer", 128, ("HiDream-ai/HiDream-I1-Full", "tokenizer_3"), slow=True),
    "hidream 4": Encoder("PreTrainedTokenizerFast", 128, ("unsloth/Meta-Llama-3.1-8B-Instruct", "")),
    "flux 2": Encoder("T5TokenizerFast", 512, ("black-forest-labs/FLUX.1-dev", "tokenizer_2")),
    "wan": Encoder("AutoTokenizer", 512, ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "tokenizer")),
    "qwen_image": Encoder("Qwen2Tokenizer", 1024, ("Qwen/Qwen-Image", "tokenizer"), slow=True),
    "qwen_image_edit": Encoder("AutoTokenizer", 1024, ("Qwen/Qwen-Image-Edit-2509", "processor")),
    "omnigen2": Encoder("Qwen2TokenizerFast", 256, ("OmniGen2/OmniGen2", "processor")),
    "zimage": Encoder("AutoTokenizer", 512, ("Tongyi-MAI/Z-Image", "tokenizer")),
    "flux2_klein": Encoder("Qwen2Tokenizer", 512, ("Qwen/Qwen3-4B", ""), slow=True),
    "flux2": Encoder("AutoTokenizer", 512, ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "")),
    "lumina2": Encoder("AutoTokenizer", 256, ("Alpha-VLLM/Lumina-Image-2.0", "tokenizer")),
    "ltx2": Encoder("GemmaTokenizerFast", 1024, ("Lightricks/LTX-2", "tokenizer")),
    "all of CLIP": Encoder("CLIPTokenizer", 77, clip),
    "all of CLIP, padded with !": Encoder("CLIPTokenizer", 77, lambda: clip("!")),
    "all of T5": Encoder("T5TokenizerFast", 512, t5),
    "all of T5, converted": Encoder("T5TokenizerFast", 512, lambda: t5(converted=True)),
    "all of T5, slow": Encoder("T5Tokenizer", 128, lambda: t5(spiece=True), slow=True),
    "all of UMT5": Encoder("AutoTokenizer", 512, lambda: t5(300)),
    "all of UMT5, converted": Encoder("AutoTokenizer", 512, lambda: t5(300, converted=True)),
    "all of Qwen": Encoder("AutoTokenizer", 512, lambda: byte_level(tokenizers.qwen_vl()[0])),
    "all of Qwen, slow": Encoder("Qwen2Tokenizer", 512, lambda: byte_level(tokenizers.qwen_vl()[0]), slow=True),
    "all of Llama": Encoder("PreTrainedTokenizerFast", 128, lambda: byte_level(tokenizers.llama3()[0])),
    "all of Mistral": Encoder("AutoTokenizer", 512, lambda: byte_level(tokenizers.mistral3()[0]) | MISTRAL_3),
    "all of Gemma 2": Encoder("AutoTokenizer", 256, lambda: gemma(tokenizers.gemma()[0])),
    "all of Gemma 3": Encoder("GemmaTokenizerFast", 1024, lambda: gemma(tokenizers.gemma3()[0])),
}


def folder(encoder: Encoder, scratch: Path) -> Path:
    """Where the tokenizer's files lie; those made here are written into `scratch`."""
    if isinstance(encoder.source, tuple):
        repo, name = encoder.source
        return factory.snapshot(factory.build(), repo) / name
    for name, content in encoder.source().items():
        (scratch / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return scratch


def load(encoder: Encoder, path: Path) -> Any:
    """As any transformers loads it."""
    import transformers

    return getattr(transformers, encoder.cls).from_pretrained(path)


def ids(tokenizer: Any, encoder: Encoder, text: str) -> list[int]:
    found: list[int] = tokenizer(text, truncation=True, max_length=encoder.limit)["input_ids"]
    return found


def digest(found: list[int]) -> str:
    """Four hexadecimal digits."""
    return sha256(json.dumps(found).encode()).hexdigest()[:4]


def short(found: list[int]) -> list[int] | str:
    """Ids as they are kept: of very many, how many and which in a hash."""
    return found if len(found) <= 100 else f"{len(found)} {sha256(json.dumps(found).encode()).hexdigest()}"


def written(made: dict[str, Any]) -> str:
    """JSON with a line for each text."""
    return re.sub(r"\[[^]]*\]", lambda ids: " ".join(ids[0].split()), json.dumps(made, ensure_ascii=False, indent=1))


def main() -> None:
    import tempfile
    from importlib.metadata import version

    from lora_drift.harness.trainer.recorder import pins

    parser = argparse.ArgumentParser()
    parser.add_argument("--tag", required=True)
    parser.add_argument("--trainer", type=Path, required=True)
    parser.add_argument("--diffusers", type=Path)
    args = parser.parse_args()
    packages = ("transformers", "tokenizers", "ftfy", "sentencepiece", "regex")
    made: dict[str, Any] = {
        "trainer": pins.check(args.tag, args.trainer, args.diffusers),
        "versions": {"python": sys.version.split()[0], "unicode": unicodedata.unidata_version}
        | {name: version(name) for name in packages},
        "encoders": {},
    }
    for name, encoder in ENCODERS.items():
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = load(encoder, folder(encoder, Path(scratch)))
        made["encoders"][name] = {
            "class": type(tokenizer).__name__,
            "padding_side": tokenizer.padding_side,
            "awkward": {about: short(ids(tokenizer, encoder, text)) for about, text in AWKWARD.items()},
            "random": "".join(digest(ids(tokenizer, encoder, text)) for text in texts()),
        }
    print(written(made))


if __name__ == "__main__":
    main()
