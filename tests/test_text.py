"""Texts become the token ids that the trainer's environment gave (tokens-*.json.xz), on every transformers; those of
trainers with transformers 5 on transformers 5 only."""

import json
import lzma
import runpy
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from packaging.version import Version

from lora_drift.pipelines import MODELS, runtime, spec_of, text
from lora_drift.pipelines import load as load_model
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.spec import NEWEST, ModelSpec

HERE = Path(__file__).parent
record = SimpleNamespace(**runpy.run_path(str(HERE / "record_tokens.py")))
OLD, NEW = MODELS["flux"].at("0.9.0"), spec_of("flux", NEWEST)
OF_OLD, OF_NEW = (
    json.loads(lzma.decompress((HERE / f"tokens-{version}.json.xz").read_bytes()))["encoders"]
    for version in ("4.57", "5.5")
)
TRANSFORMERS_4 = transformers.__version__.startswith("4.")
OF_T5 = {"flux 2", "hidream 3", "wan", *(name for name in record.ENCODERS if "T5" in name)}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def tokenizer(name: str, row: ModelSpec = OLD) -> Any:
        encoder = record.ENCODERS[name]
        path = record.folder(encoder, tmp_path)
        return text.as_the_trainer(record.load(encoder, path), row, str(path), slow=encoder.slow)

    return tokenizer


@pytest.mark.parametrize("name", record.ENCODERS)
@pytest.mark.parametrize(
    ("row", "made"),
    [
        pytest.param(OLD, OF_OLD, id="transformers-4.57"),
        pytest.param(NEW, OF_NEW, id="transformers-5.5", marks=pytest.mark.skipif(TRANSFORMERS_4, reason="is refused")),
    ],
)
def test_every_text_is_read_as_in_the_trainer(
    row: ModelSpec, made: dict[str, Any], name: str, load: Callable[..., Any]
) -> None:
    if row is NEW and name in OF_T5 and Version(transformers.__version__) < Version("5.5"):
        with pytest.raises(RequestError, match=r"reads prompts as transformers 5\.5 does"):
            load(name, row)
        return
    tokenizer, encoder = load(name, row), record.ENCODERS[name]
    ours = {about: record.short(record.ids(tokenizer, encoder, text)) for about, text in record.AWKWARD.items()}
    assert ours == made[name]["awkward"]
    hashes = made[name]["random"]
    wrong = [
        ascii(text)
        for number, text in enumerate(record.texts())
        if record.digest(record.ids(tokenizer, encoder, text)) != hashes[4 * number : 4 * number + 4]
    ]
    assert not wrong, f"{len(wrong)} of {record.COUNT}: {', '.join(sorted(wrong, key=len)[:5])}"


@pytest.mark.parametrize("name", ["all of CLIP", "all of T5", "all of T5, converted", "all of T5, slow", "all of UMT5"])
@pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4 reads them so by itself")
def test_transformers_5_alone_reads_something_else(name: str, tmp_path: Path) -> None:
    encoder = record.ENCODERS[name]
    tokenizer = record.load(encoder, record.folder(encoder, tmp_path))
    ours = {about: record.short(record.ids(tokenizer, encoder, text)) for about, text in record.AWKWARD.items()}
    different = {about for about in ours if ours[about] != OF_OLD[name]["awkward"][about]}
    shown = "an apostrophe from a phone" if "CLIP" in name else "an underline of SentencePiece"
    assert shown in different


@pytest.mark.parametrize("name", ["all of CLIP", "all of T5, slow"])
def test_batches_are_cut_and_padded_as_their_caller_asks(name: str, load: Callable[..., Any]) -> None:
    tokenizer = load(name)
    alone = [tokenizer(words)["input_ids"] for words in ("a fox", "a red fox in the forest")]
    assert tokenizer(["a fox", "a red fox in the forest"])["input_ids"] == alone
    padded = tokenizer(["a fox"], padding="max_length", max_length=12, truncation=True)
    short, pads = alone[0], 12 - len(alone[0])
    assert padded["input_ids"] == [short + [tokenizer.pad_token_id] * pads]
    assert padded["attention_mask"] == [[1] * len(short) + [0] * pads]
    cut = tokenizer("a red fox in the forest", max_length=4, truncation=True)["input_ids"]
    assert len(cut) == 4 and cut[:3] == alone[1][:3] and cut[-1] == alone[1][-1]
    bare = tokenizer("a fox", add_special_tokens=False)["input_ids"]
    assert bare == short[1 if tokenizer.bos_token_id == short[0] else 0 : -1]
    longest = tokenizer(["a fox", "a red fox in the forest"], padding="longest")["input_ids"]
    assert [len(row) for row in longest] == [len(alone[1])] * 2
    assert tokenizer.tokenize("a fox") == tokenizer.convert_ids_to_tokens(bare)


def test_without_ftfy_nothing_is_read_otherwise_but_refused(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(RequestError, match=r"package ftfy is missing.*pip install ftfy"):
        load("all of CLIP")
    load("all of T5")


@pytest.mark.parametrize("model", ["sd15", "flux", "hidream_e1", "wan22_14b_i2v"])
def test_a_missing_ftfy_is_told_before_anything_is_read(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version_without_ftfy(name: str) -> str:
        if name == "ftfy":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(runtime, "version", version_without_ftfy)
    with pytest.raises(RequestError, match=f"^{model} needs ftfy, it is not installed: pip install 'ftfy'$"):
        load_model(model, base="/nowhere", device="cpu")


@pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4 says it by itself")
@pytest.mark.parametrize(
    ("name", "file"),
    [("all of CLIP", "merges.txt"), ("all of T5, slow", "spiece.model"), ("all of T5, converted", "spiece.model")],
)
def test_a_missing_file_is_named(name: str, file: str, tmp_path: Path) -> None:
    encoder = record.ENCODERS[name]
    tokenizer = record.load(encoder, record.folder(encoder, tmp_path))
    (tmp_path / file).unlink()
    with pytest.raises(RequestError, match=f"{file} is missing, from which the trainer reads it"):
        text.as_the_trainer(tokenizer, OLD, str(tmp_path), slow=encoder.slow)


def test_what_newer_trainers_read_is_what_transformers_5_reads_by_itself(tmp_path: Path) -> None:
    encoder = record.ENCODERS["all of CLIP"]
    tokenizer = record.load(encoder, record.folder(encoder, tmp_path))
    before = tokenizer("it’s")["input_ids"]
    if TRANSFORMERS_4:
        with pytest.raises(RequestError, match="reads prompts as transformers 5"):
            text.as_the_trainer(tokenizer, NEW, str(tmp_path))
    else:
        assert text.as_the_trainer(tokenizer, NEW, str(tmp_path))("it’s")["input_ids"] == before
