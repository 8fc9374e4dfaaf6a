"""A golden is what the trainer rendered or it is nothing: whatever was touched since is named, and nothing is written.

Everything here happens to a copy of one model's goldens.
"""

import json
import lzma
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_drift.harness.check import cases, golden_file, golden_store, goldens, runner
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import Corrupt, Golden, GoldenError, Missing, Stale
from lora_drift.harness.minihub import factory

TAG = runner.newest_tag()
MODEL = "sd15"
HUB = factory.manifest_sha256(MODEL)
ARTEFACTS = ("picture", "latents", "trace", "lora")


def copied(root: Path, tag: str = TAG, model: str = MODEL) -> Path:
    shutil.copytree(goldens.GOLDENS / "objects" / model, root / "objects" / model)
    for folder in (tag, *golden_file.folders_named(goldens.GOLDENS / tag / f"{model}.json")):
        (root / folder).mkdir()
        shutil.copy(goldens.GOLDENS / folder / f"{model}.json", root / folder)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A goldens folder of one model, to be tampered with."""
    return copied(tmp_path / "goldens")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, to be put right after each tampering."""
    return copied(tmp_path_factory.mktemp("goldens") / "goldens")


def case_of(name: str = "lora") -> Case:
    return cases.load(cases.CASES / MODEL / f"{name}.yaml")


def load(root: Path, name: str = "lora") -> Golden:
    return goldens.load(TAG, case_of(name), HUB, root=root)


def json_of(root: Path) -> Path:
    return goldens.golden_path(TAG, f"{MODEL}/lora", root)


def content_of(name: str = "lora", root: Path = goldens.GOLDENS) -> dict[str, Any]:
    content = goldens.content(TAG, f"{MODEL}/{name}", root)
    assert content is not None
    return content


def refused(root: Path, kind: type[GoldenError], name: str = "lora") -> str:
    with pytest.raises(GoldenError) as error:
        load(root, name)
    assert type(error.value) is kind, str(error.value)
    assert error.value.verdict == kind.__name__.lower()
    return str(error.value)


def reseal(root: Path, **changes: Any) -> None:
    content = content_of(root=root) | changes
    contents = golden_file.read(json_of(root)) | {f"{MODEL}/lora": {**content, "seal": goldens.seal(content)}}
    json_of(root).write_text(golden_file.write(contents))


def test_a_copy_of_a_golden_loads_whole(root: Path) -> None:
    golden = load(root)
    assert golden.frames().shape == (1, 128, 128, 3)
    assert golden.latents().shape == (1, 4, 16, 16)
    assert set(golden.artefacts) == set(ARTEFACTS)
    assert golden.path("picture").is_relative_to(root)


# -------------------------------------------------------------------------------------------------------- artefacts


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_a_deleted_artefact_is_named(artefact: str, root: Path) -> None:
    path = load(root).stored(artefact)
    path.unlink()
    message = refused(root, Corrupt)
    assert f", the {artefact} of sd15/lora, was deleted" in message
    assert f"git checkout -- 'goldens/objects/{MODEL}/{golden_store.identity(path)}*'" in message


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1],
    "extended": lambda data: data + b"\0",
    "emptied": lambda data: b"",
    "one bit flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_a_damaged_artefact_is_named(artefact: str, damage: str, root: Path) -> None:
    path = load(root).stored(artefact)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert f"{path.name}, the {artefact} of sd15/lora, cannot be unpacked (" in refused(root, Corrupt)


def test_other_bytes_packed_without_damage_are_noticed(root: Path) -> None:
    golden = load(root)
    golden.stored("latents").write_bytes(lzma.compress(golden.data("latents") + b"!"))
    assert "latents of sd15/lora, has other bytes than were recorded." in refused(root, Corrupt)


def test_another_pixel_in_a_sound_file_is_noticed(root: Path) -> None:
    path = load(root).stored("picture")
    with Image.open(path) as image:
        image.load()
    image.putpixel((5, 7), (1, 2, 3))
    image.save(path)
    assert "picture of sd15/lora, has other bytes than were recorded." in refused(root, Corrupt)


def test_a_picture_packed_by_another_zlib_is_the_same_picture(root: Path) -> None:
    golden = load(root)
    frames, path = golden.frames(), golden.stored("picture")
    with Image.open(path) as image:
        image.load()
    image.save(path, compress_level=1)
    assert (load(root).frames() == frames).all()


def test_an_artefact_of_another_name_than_its_hash_is_noticed(root: Path) -> None:
    artefacts = content_of()["artefacts"]
    artefacts["picture"]["file"] = content_of("base")["artefacts"]["picture"]["file"]
    reseal(root, artefacts=artefacts)
    assert f"the picture of sd15/lora, is not what its golden at {TAG} names" in refused(root, Corrupt)


# ------------------------------------------------------------------------------------------------------ differences

OLD, KIN = goldens.tags()[0], "flux_kontext"
"""A tag and a model whose pictures and latents are stored as differences from a newer tag's."""


class Kin:
    """A copy of that model's goldens."""

    def __init__(self, root: Path) -> None:
        self.root = copied(root, OLD, KIN)

    def load(self, name: str = "lora") -> Golden:
        return goldens.load(OLD, cases.load(cases.CASES / KIN / f"{name}.yaml"), None, root=self.root)

    def pair(self, artefact: str, name: str = "lora") -> tuple[Path, Path]:
        """The difference and its base."""
        path = self.load(name).stored(artefact)
        base = golden_store.base_of(path)
        assert base is not None, f"{path} is whole: choose another model"
        return path, base

    def refused(self, name: str = "lora") -> str:
        with pytest.raises(Corrupt) as error:
            self.load(name)
        return str(error.value)


@pytest.fixture
def kin(tmp_path: Path) -> Kin:
    return Kin(tmp_path / "goldens")


def test_a_difference_is_handed_out_as_a_whole_picture(kin: Kin) -> None:
    golden = kin.load()
    difference, base = kin.pair("picture")
    assert difference.stat().st_size < base.stat().st_size / 20
    path = golden.path("picture")
    assert not path.is_relative_to(kin.root)
    with Image.open(path) as image, Image.open(base) as like:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", like.size)
        strip, other = np.asarray(image), np.asarray(like)
    assert (strip == golden.frames().reshape(strip.shape)).all()
    assert np.abs(strip.astype(int) - other).max() == 1


@pytest.mark.parametrize("artefact", ["picture", "latents"])
def test_a_deleted_difference_and_a_deleted_base_are_named(artefact: str, kin: Kin) -> None:
    difference, base = kin.pair(artefact)
    recorded = difference.read_bytes()
    difference.unlink()
    told = f"the {artefact} of {KIN}/lora"
    mine, its = golden_store.identity(difference), golden_store.identity(base)
    assert f"{told}, was deleted. Restore it: git checkout -- 'goldens/objects/{KIN}/{mine}*'" in kin.refused()
    difference.write_bytes(recorded)
    base.unlink()
    message = kin.refused()
    assert f"goldens/objects/{KIN}/{base.name}, from which {told} is stored as a difference, was deleted" in message
    assert f"git checkout -- 'goldens/objects/{KIN}/{its}*'" in message


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("artefact", ["picture", "latents"])
def test_a_damaged_difference_and_a_damaged_base_are_told_apart(artefact: str, damage: str, kin: Kin) -> None:
    told = f"the {artefact} of {KIN}/lora"
    for path, whose in zip(
        kin.pair(artefact), (told, f"from which {told} is stored as a difference"), strict=True
    ):  # fmt: skip
        recorded = path.read_bytes()
        path.write_bytes(DAMAGES[damage](recorded))
        message = kin.refused()
        assert f"goldens/objects/{KIN}/{path.name}, {whose}, cannot be unpacked (" in message
        assert f"Restore it: git checkout -- goldens/objects/{KIN}/{path.name}" in message
        path.write_bytes(recorded)
    kin.load()


@pytest.mark.parametrize("artefact", ["picture", "latents"])
def test_swapped_differences_and_swapped_bases_are_noticed(artefact: str, kin: Kin) -> None:
    for first, second in zip(kin.pair(artefact, "lora"), kin.pair(artefact, "base"), strict=True):
        one, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other)
        second.write_bytes(one)
        assert f"objects/{KIN}/{first.name}, " in kin.refused("lora")
        assert f"objects/{KIN}/{second.name}, " in kin.refused("base")
        first.write_bytes(one)
        second.write_bytes(other)
    kin.load()


def test_a_difference_of_another_size_than_its_base_is_refused(kin: Kin) -> None:
    difference, _ = kin.pair("picture")
    Image.new("RGB", (8, 8)).save(difference)
    assert f"{difference.name}, the picture of {KIN}/lora, cannot be unpacked (it is not of the" in kin.refused()


def test_differences_from_each_other_are_refused(kin: Kin) -> None:
    difference, base = kin.pair("picture")
    base.rename(base.with_name(f"{golden_store.identity(base)}-from-{golden_store.identity(difference)}.png"))
    assert "is the difference from itself, by way of its bases" in kin.refused()


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_artefacts_swapped_between_two_goldens_are_noticed_in_both(artefact: str, root: Path) -> None:
    first, second = (load(root, name).stored(artefact) for name in ("lora", "lora-conv"))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert first.name in refused(root, Corrupt, "lora")
    assert second.name in refused(root, Corrupt, "lora-conv")


# ------------------------------------------------------------------------------------------------------------- JSON


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of everything in a JSON value, itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from leaves(item, (*path, key))


SAID: dict[str, dict[str, Any]] = {
    "as": json.loads(json_of(goldens.GOLDENS).read_text()),
    "whole": json.loads(golden_file.write(golden_file.read(json_of(goldens.GOLDENS)))),
}
"""Both layouts: that of the newest tag, and that of the oldest."""
PLACES = [
    (layout, way)
    for layout, said in SAID.items()
    for way in leaves({**said, "cases": {f"{MODEL}/lora": said["cases"][f"{MODEL}/lora"]}})
    if way != ("cases", f"{MODEL}/lora")  # beside it stand other cases
]
"""In the file: what the cases share, and what is sd15/lora's own."""
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.just([]), st.just({})
)


@given(st.data())
def test_any_change_of_the_json_is_noticed(untouched: Path, data: st.DataObject) -> None:
    layout, (*way, last) = data.draw(st.sampled_from(PLACES), label="where")
    said = json.loads(json.dumps(SAID[layout]))
    holder = said
    for key in way:
        holder = holder[key]
    change = data.draw(st.sampled_from(["replace", "delete", "add"]), label="how")
    if change == "replace":
        holder[last] = data.draw(VALUES.filter(lambda value: json.dumps(value) != json.dumps(holder[last])))
    elif change == "delete":
        del holder[last]
    elif isinstance(holder, dict):
        holder[data.draw(st.text().filter(lambda key: key not in holder), label="key")] = data.draw(VALUES)
    else:
        holder.append(data.draw(VALUES))
    path = json_of(untouched)
    recorded = path.read_bytes()
    path.write_text(json.dumps(said))
    try:
        assert f"goldens/{TAG}/{MODEL}.json" in refused(untouched, Corrupt)
    finally:
        path.write_bytes(recorded)
    assert load(untouched).case == "sd15/lora"


def test_an_edit_of_what_cases_share_is_noticed_in_each(root: Path) -> None:
    said = json.loads(json_of(root).read_text())
    said["environment"]["torch"] = "2.13.1"
    json_of(root).write_text(json.dumps(said))
    assert len(said["cases"]) > 3
    for case in said["cases"]:
        message = refused(root, Corrupt, case.split("/")[1])
        assert f"{case} was edited after recording" in message
        assert f"git checkout -- goldens/{TAG}/{MODEL}.json" in message


@pytest.mark.parametrize("field", ["seal", "settings", "weights"])
def test_a_field_that_no_case_uses_is_refused_where_cases_share_theirs(field: str, root: Path) -> None:
    """Or an edit could hide there: what a case has itself counts."""
    said = json.loads(json_of(root).read_text())
    said[field] = {}
    json_of(root).write_text(json.dumps(said))
    refused(root, Corrupt)


def test_another_layout_of_the_same_json_is_the_same_golden(root: Path) -> None:
    path = json_of(root)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=False))
    assert load(root).case == "sd15/lora"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"cases": 3}', '{"cases": {"sd15/lora": 3}}', '{"cases": {"sd15/lora": {}}}',
     '{"cases": {"sd15/lora": {"artefacts": {"picture": 3}}}}', "\x00", "<!doctype html>"],
)  # fmt: skip
def test_a_file_that_is_no_golden_is_corrupt(text: str, root: Path) -> None:
    json_of(root).write_text(text)
    message = refused(root, Corrupt)
    assert f"goldens/{TAG}/{MODEL}.json has no golden of sd15/lora" in message
    assert f"git checkout -- goldens/{TAG}/{MODEL}.json" in message


def test_an_edit_of_a_seal_is_told_apart_from_damage(root: Path) -> None:
    said = json.loads(json_of(root).read_text())
    said["cases"]["sd15/lora"]["seal"] = "0" * 64
    json_of(root).write_text(json.dumps(said))
    message = refused(root, Corrupt)
    assert "sd15/lora was edited after recording" in message
    assert f"git checkout -- goldens/{TAG}/{MODEL}.json" in message
    assert load(root, "base").case == "sd15/base"


def test_a_golden_of_another_format_is_refused(root: Path) -> None:
    reseal(root, format=goldens.FORMAT + 1)
    assert f"format {goldens.FORMAT}" in refused(root, Corrupt)


def written_out(model: str = MODEL) -> str:
    """A file in which no case is as at another tag."""
    return golden_file.write(golden_file.read(goldens.GOLDENS / TAG / f"{model}.json"))


@pytest.mark.parametrize("layout", [json_of(goldens.GOLDENS).read_text(), written_out()], ids=["as", "whole"])
def test_two_swapped_goldens_are_noticed_in_both(layout: str, root: Path) -> None:
    said = json.loads(layout)
    own = said["cases"]
    own["sd15/lora"], own["sd15/lora-conv"] = own["sd15/lora-conv"], own["sd15/lora"]
    json_of(root).write_text(json.dumps(said))
    for name in ("lora", "lora-conv"):
        assert f"goldens/{TAG}/{MODEL}.json: {MODEL}/{name} was edited" in refused(root, Corrupt, name)
    # And with their ids:
    for name, found in (("lora", "lora-conv"), ("lora-conv", "lora")):
        own[f"{MODEL}/{name}"]["case"] = f"{MODEL}/{found}"
    json_of(root).write_text(json.dumps(said))
    for name, found in (("lora", "lora-conv"), ("lora-conv", "lora")):
        message = refused(root, Corrupt, name)
        if "as" in said:  # then all that was swapped are the seals
            assert f"{MODEL}/{name} was edited" in message
        else:
            assert f"goldens/{TAG}/{MODEL}.json has as {MODEL}/{name} the golden of {MODEL}/{found}" in message
            assert "swapped" in message


def test_another_models_file_is_noticed(root: Path) -> None:
    shutil.copy(goldens.GOLDENS / TAG / "sdxl.json", json_of(root))
    assert "sdxl/base is said to be as at" in refused(root, Corrupt)
    json_of(root).write_text(written_out("sdxl"))
    message = refused(root, Corrupt)
    assert f"goldens/{TAG}/{MODEL}.json holds the golden of sdxl/base: two files were swapped" in message
    assert f"git checkout -- goldens/{TAG}/{MODEL}.json" in message


@pytest.mark.parametrize("other", [f"{TAG}@cpu-bfloat16", OLD])
def test_the_models_file_of_another_set_is_noticed(other: str, root: Path) -> None:
    shutil.copy(goldens.GOLDENS / other / f"{MODEL}.json", json_of(root))
    assert f"goldens/{TAG}/{MODEL}.json has as sd15/lora the golden of sd15/lora at v0" in refused(root, Corrupt)


def test_an_edit_of_the_golden_that_it_is_as_is_noticed_and_both_files_are_named(root: Path) -> None:
    base = root / OLD / f"{MODEL}.json"
    contents = golden_file.read(base)
    contents["sd15/lora"]["settings"]["seed"] += 1
    contents["sd15/lora"]["seal"] = goldens.seal(contents["sd15/lora"])
    base.write_text(golden_file.write(contents))
    both = f"git checkout -- goldens/{TAG}/{MODEL}.json goldens/{OLD}/{MODEL}.json"
    message = refused(root, Corrupt)
    assert "sd15/lora was edited after recording" in message and both in message
    assert load(root, "base").case == "sd15/base"
    base.unlink()
    message = refused(root, Corrupt)
    assert f"said to be as at '{OLD}', which has no golden of it" in message and both in message


def test_a_golden_under_another_tag_is_refused(root: Path) -> None:
    (root / TAG).rename(root / "v0.0.1")
    with pytest.raises(Corrupt, match=f"the golden of sd15/lora at {TAG}"):
        goldens.load("v0.0.1", case_of(), HUB, root=root)


# -------------------------------------------------------------------------------------------------- stale and missing


def test_a_missing_golden_says_how_to_record_it(root: Path) -> None:
    said = json.loads(json_of(root).read_text())
    del said["cases"]["sd15/lora"]
    json_of(root).write_text(json.dumps(said))
    assert load(root, "base").case == "sd15/base"
    told = [refused(root, Missing)]
    json_of(root).unlink()
    told.append(refused(root, Missing))
    for message in told:
        assert f"no golden of sd15/lora in goldens/{TAG}/{MODEL}.json" in message
        assert (
            "python -m lora_drift.harness.trainer.recorder --trainer DIR --diffusers DIR "
            f"--tag {TAG} --case {MODEL}/lora"
        ) in message
    with pytest.raises(Missing, match=r"v0\.0\.1"):
        goldens.load("v0.0.1", case_of("base"), HUB, root=root)


def test_a_changed_case_makes_its_golden_stale(root: Path) -> None:
    case = case_of()
    changed = case.model_copy(update={"sample": case.sample.model_copy(update={"seed": 8})})
    with pytest.raises(Stale, match=r"another version of the case file.*--case sd15/lora"):
        goldens.load(TAG, changed, HUB, root=root)


def test_another_description_of_a_case_does_not(root: Path) -> None:
    described = case_of().model_copy(update={"about": "Something else."})
    assert goldens.load(TAG, described, HUB, root=root).case == "sd15/lora"


def test_a_changed_mini_hub_makes_goldens_stale(root: Path) -> None:
    with pytest.raises(Stale, match=r"another mini hub.*--case sd15/lora"):
        goldens.load(TAG, case_of(), "0" * 64, root=root)
    assert goldens.load(TAG, case_of(), None, root=root).case == "sd15/lora"


def test_damage_counts_before_staleness(root: Path) -> None:
    load(root).stored("picture").unlink()
    with pytest.raises(Corrupt):
        goldens.load(TAG, case_of(), "0" * 64, root=root)


# ------------------------------------------------------------------------------------------------------ the real ones


def test_every_case_has_a_golden_that_loads() -> None:
    for case in cases.known(TAG):
        assert goldens.load(TAG, case, factory.manifest_sha256(case.model, case.extras)).case == case.id


FILES = sorted(goldens.GOLDENS.glob("v*/*.json"))


def test_every_golden_of_every_set_is_whole_and_where_it_belongs() -> None:
    known = {case.id for case in cases.of_both_tiers()}
    for file in FILES:
        for case, content in golden_file.read(file).items():
            golden = Golden.model_validate(content)
            assert golden.seal == goldens.seal(content)
            assert golden.case == case and case in known
            assert goldens.golden_path(golden.tag, case, variant=goldens.variant(golden.environment)) == file


@pytest.mark.parametrize("name", sorted({file.name for file in FILES}))
def test_every_file_is_as_the_recorder_writes_it(name: str) -> None:
    """Else, after a merge: python -m lora_drift.harness.trainer.recorder tidy"""
    files = {file.parent.name: file for file in FILES if file.name == name}
    texts = golden_file.write_all({folder: golden_file.read(file) for folder, file in files.items()})
    assert texts == {folder: file.read_text(encoding="utf-8") for folder, file in files.items()}


def test_no_artefact_is_unused_and_each_is_stored_under_its_own_hash() -> None:
    used = {
        golden_store.stored(goldens.GOLDENS, artefact["file"]): artefact["sha256"]
        for file in FILES
        for content in golden_file.read(file).values()
        for artefact in content["artefacts"].values()
    }
    bases = {path: golden_store.base_of(path) for path in used}
    files = {path for path in goldens.GOLDENS.rglob("*") if path.is_file()}
    assert files == {*FILES, *used, *(base for base in bases.values() if base is not None)}
    for path, recorded in used.items():
        assert sha256(golden_store.read(path)).hexdigest() == recorded
        assert path.name.startswith(recorded[:16])


def test_tags_are_ordered_by_number(tmp_path: Path) -> None:
    for tag in ("v0.10.0", "v0.9.12", "v0.9.2", "objects"):
        (tmp_path / tag).mkdir()
    assert goldens.tags(tmp_path) == ["v0.9.2", "v0.9.12", "v0.10.0"]
