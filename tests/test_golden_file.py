"""The file with a model's goldens at a tag: nothing is lost, what cases share stands once, a change is a short diff."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_drift.harness.check import golden_file

HASH = "0123456789abcdef" * 4
ANY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=200), st.lists(st.text())
)
KEYS = st.sampled_from(golden_file.ORDER[:-2]) | st.text(min_size=1)
FIELDS = st.dictionaries(KEYS, ANY | st.dictionaries(st.text(), ANY))
FILES = st.sampled_from([f"objects/m/{HASH[:16]}.png", f"objects/m/{HASH[:16]}.safetensors"])
ARTEFACTS = st.dictionaries(
    st.sampled_from(["picture", "latents", "lora"]),
    st.fixed_dictionaries({"sha256": st.just(HASH), "bytes": st.integers(), "file": FILES}),
)
CASES = st.sampled_from(["m/base", "m/lora", "m/lora-live", "m/x"])


@given(st.dictionaries(CASES, st.tuples(FIELDS, ARTEFACTS, st.sampled_from(["m/base", "m/other"])), min_size=1))
def test_any_contents_come_back(
    tmp_path_factory: pytest.TempPathFactory, told: dict[str, tuple[dict[str, Any], dict[str, Any], str]]
) -> None:
    contents = {
        case: {**fields, "case": named, "artefacts": artefacts, "seal": HASH}
        for case, (fields, artefacts, named) in told.items()
        if not {"cases", "as"} & set(fields)
    }
    if not contents:
        return
    file = tmp_path_factory.mktemp("goldens") / "m.json"
    file.write_text(golden_file.write(contents), encoding="utf-8")
    read = golden_file.read(file)
    assert json.dumps(read, sort_keys=True) == json.dumps(contents, sort_keys=True)
    # The order in which they were recorded does not show.
    backwards = {case: dict(reversed(contents[case].items())) for case in reversed(contents)}
    assert golden_file.write(backwards) == file.read_text(encoding="utf-8")


SETS = st.dictionaries(
    st.sampled_from(["v1.2", "v1.10", "v1.10@cpu-bfloat16"]),
    st.dictionaries(CASES, st.tuples(FIELDS, ARTEFACTS, st.sampled_from([1, 1.0, True]))),
    min_size=2,
)


@given(SETS)
def test_any_contents_of_several_sets_come_back(
    told: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any], Any]]],
) -> None:
    files = {
        folder: {
            case: {**fields, "case": case, "settings": {"seed": seed}, "artefacts": artefacts, "seal": folder}
            for case, (fields, artefacts, seed) in cases.items()
            if not {"cases", "as"} & set(fields)
        }
        for folder, cases in told.items()
    }
    files = {folder: contents for folder, contents in files.items() if contents}
    texts = golden_file.write_all(files)
    for folder, contents in files.items():
        read = golden_file.parse(texts[folder], texts.get)
        assert json.dumps(read, sort_keys=True) == json.dumps(contents, sort_keys=True)
    assert golden_file.write_all(dict(reversed(files.items()))) == texts


def told(texts: dict[str, str], folder: str) -> Any:
    return json.loads(texts[folder])


def test_a_case_is_whole_at_the_oldest_tag_and_elsewhere_what_differs() -> None:
    files = {
        "v1.10": {case: golden(case, "2.13.0", seed=1, steps=4) for case in ("m/base", "m/lora", "m/new")},
        "v1.9": {
            "m/base": golden("m/base", "2.13.0", seed=1, steps=4),
            "m/lora": golden("m/lora", "2.13.0", seed=2, steps=4),
        },
        "v1.9@cpu-bfloat16": {"m/base": golden("m/base", "2.13.0", seed=1)},
    }
    texts = golden_file.write_all(files)
    assert texts["v1.9"] == golden_file.write(files["v1.9"])
    assert told(texts, "v1.10") == {
        "as": "v1.9",
        "environment": {"device": "cpu", "torch": "2.13.0"},
        "cases": {
            "m/base": {"seal": "m/base"},
            "m/lora": {"settings": {"seed": 1}, "seal": "m/lora"},
            "m/new": {"as": None, **{key: told({"": golden_file.write(files["v1.10"])}, "")["cases"]["m/new"][key]
                                     for key in ("settings", "artefacts", "seal")}},
        },
    }  # fmt: skip
    # A golden that lacks what the other has is whole, since that cannot be said.
    assert texts["v1.9@cpu-bfloat16"] == golden_file.write(files["v1.9@cpu-bfloat16"])


def test_what_a_newer_tag_renders_as_its_neighbour_is_as_there(tmp_path: Path) -> None:
    files = {tag: {"m/base": golden("m/base", "2.13.0", seed=seed)} for tag, seed in
             (("v1.9", 1), ("v1.10", 2), ("v1.11", 2))}  # fmt: skip
    texts = golden_file.write_all(files)
    assert told(texts, "v1.10")["as"] == "v1.9"
    assert told(texts, "v1.11") == {**told(texts, "v1.11"), "as": "v1.10", "cases": {"m/base": {"seal": "m/base"}}}
    for folder, text in texts.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.json").write_text(text)
    newest = tmp_path / "v1.11" / "m.json"
    assert golden_file.read(newest) == files["v1.11"]
    assert golden_file.folders_named(newest) == ["v1.10", "v1.9"]
    (tmp_path / "v1.9" / "m.json").unlink()
    with pytest.raises(ValueError, match="which has no golden of it"):
        golden_file.read(newest)


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("v1.10", "as itself"),
        ("v2", "no golden of it"),
        ("../v1.9", "no tag"),
        (7, "no tag"),
    ],
)
def test_a_golden_that_is_as_none_is_refused(folder: Any, why: str) -> None:
    files = {tag: {"m/base": golden("m/base", "2.13.0", seed=1)} for tag in ("v1.9", "v1.10")}
    texts = golden_file.write_all(files)
    wrong = json.dumps(told(texts, "v1.10") | {"as": folder})
    with pytest.raises(ValueError, match=why):
        golden_file.parse(wrong, (texts | {"v1.10": wrong}).get)


def golden(case: str, torch: str, **fields: Any) -> dict[str, Any]:
    artefacts = {"picture": {"sha256": HASH, "bytes": 9, "file": f"objects/m/{HASH[:16]}.png"}}
    environment = {"torch": torch, "device": "cpu"}
    return {"case": case, "environment": environment, "settings": fields, "artefacts": artefacts, "seal": case}


def test_what_most_cases_share_stands_once_and_another_value_in_its_case() -> None:
    contents = {
        "m/base": golden("m/base", "2.13.0", seed=1),
        "m/lora": golden("m/lora", "2.14.0", seed=2),
        "m/x": golden("m/x", "2.13.0", seed=1),
    }
    assert json.loads(golden_file.write(contents)) == {
        "environment": {"device": "cpu", "torch": "2.13.0"},
        "cases": {
            case: {
                **({"environment": {"torch": "2.14.0"}} if case == "m/lora" else {}),
                "settings": contents[case]["settings"],
                "artefacts": {"picture": {"sha256": HASH, "bytes": 9}},
                "seal": case,
            }
            for case in contents
        },
    }


def test_a_changed_setting_is_one_line_of_a_diff() -> None:
    settings = {"prompt": "a photo of a fox in a forest, in the snow, at night, in the style of an old photograph" * 2}
    contents = {f"m/{name}": golden(f"m/{name}", "2.13.0", seed=1, **settings) for name in ("base", "lora")}
    before = golden_file.write(contents).splitlines()
    contents["m/lora"]["settings"]["seed"] = 2
    after = golden_file.write(contents).splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [('    "seed": 1', '    "seed": 2')]


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert golden_file.read(tmp_path / "m.json") == {}
