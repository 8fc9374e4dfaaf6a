"""The recorder puts goldens away: equal and similar artefacts once, nothing lost when it dies."""

import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from lora_drift.harness.check import cases, golden_file, golden_store, goldens, runner
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.minihub import factory
from lora_drift.harness.trainer.recorder import bases, store

TAG = runner.newest_tag()


class Shelf:
    """A goldens folder, and one golden to store there as the recorder would."""

    def __init__(self, root: Path, golden: Golden, sources: Path) -> None:
        self.root, self.sources = root, sources
        self.content = golden.model_dump(exclude={"artefacts", "seal"}, exclude_unset=True)
        self.artefacts = {}
        sources.mkdir()
        for name in golden.artefacts:
            self.artefacts[name] = sources / f"{name}{store.SUFFIXES[name]}"
            self.artefacts[name].write_bytes(golden.path(name).read_bytes())

    def write(self, *, dry: bool = False, **changes: Any) -> str:
        return store.write({**self.content, **changes}, self.artefacts, self.root, dry=dry)

    def files(self) -> dict[str, bytes]:
        found = self.root.rglob("*")
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in found if path.is_file()}

    def load(self) -> Golden:
        case = cases.load(cases.CASES / "sd15" / "lora.yaml")
        return goldens.load(TAG, case, factory.manifest_sha256("sd15"), root=self.root)


@pytest.fixture
def shelf(tmp_path: Path, golden_of: Callable[[str], Golden]) -> Shelf:
    return Shelf(tmp_path / "goldens", golden_of("sd15/lora"), tmp_path / "staged")


def test_a_golden_is_stored_once_and_then_found_the_same(shelf: Shelf, golden_of: Callable[[str], Golden]) -> None:
    assert shelf.write() == "new"
    first = shelf.files()
    assert len(first) == 5  # the model's file; four artefacts
    assert shelf.write() == "same bytes"
    assert shelf.files() == first
    assert shelf.load() == golden_of("sd15/lora")


def test_a_models_goldens_stand_in_one_file_and_recording_one_leaves_the_others_alone(shelf: Shelf) -> None:
    shelf.write()
    path = goldens.golden_path(TAG, "sd15/lora", shelf.root)
    first = golden_file.read(path)["sd15/lora"]
    assert shelf.write(case="sd15/other", environment={**shelf.content["environment"], "torch": "2.99.0"}) == "new"
    both = golden_file.read(path)
    assert (list(both), both["sd15/lora"]) == (["sd15/lora", "sd15/other"], first)
    assert both["sd15/other"]["environment"]["torch"] == "2.99.0"
    assert shelf.write() == "same bytes"
    assert shelf.write(case="sd15/other") == "CHANGED: environment"
    assert golden_file.read(path)["sd15/lora"] == first


def test_what_changed_is_named(shelf: Shelf) -> None:
    shelf.write()
    before = set(shelf.files())
    data = bytearray(shelf.artefacts["latents"].read_bytes())
    data[-1] ^= 1
    shelf.artefacts["latents"].write_bytes(data)
    assert shelf.write(patches=["a patch"]) == "CHANGED: patches, latents file"
    assert shelf.load().patches == ["a patch"]
    assert len(set(shelf.files()) - before) == 1  # the latents
    assert store.prune(shelf.root) == 1


def test_a_dry_run_compares_and_writes_nothing(shelf: Shelf) -> None:
    assert shelf.write(dry=True) == "new"
    assert shelf.files() == {}
    shelf.write()
    first = shelf.files()
    assert shelf.write(dry=True) == "same bytes"
    assert shelf.write(dry=True, recorder="2") == "CHANGED: recorder"
    assert shelf.files() == first


def test_a_damaged_artefact_is_stored_again(shelf: Shelf) -> None:
    shelf.write()
    first = shelf.files()
    next(shelf.root.glob("objects/sd15/*.png")).write_bytes(b"damaged")
    shelf.write()
    assert shelf.files() == first


def test_an_artefact_that_is_gone_is_named(shelf: Shelf) -> None:
    shelf.write()
    del shelf.artefacts["lora"]
    assert shelf.write() == "CHANGED: lora file"


def test_two_tags_share_equal_artefacts_and_pruning_keeps_them(shelf: Shelf) -> None:
    shelf.write()
    shelf.write(tag="v9")
    assert sum(name.startswith("objects/") for name in shelf.files()) == 4
    goldens.golden_path("v9", "sd15/lora", shelf.root).unlink()
    stray = shelf.root / "objects" / "sd15" / "0000000000000000.png"
    stray.touch()
    assert store.prune(shelf.root) == 1
    assert not stray.exists()
    assert shelf.load().tag == TAG


def nudged(shelf: Shelf) -> None:
    """One step in one pixel, as another trainer version might have it."""
    with Image.open(shelf.artefacts["picture"]) as image:
        pixels = np.array(image)
    pixels[3, 4, 0] ^= 1
    Image.fromarray(pixels).save(shelf.artefacts["picture"])


def test_another_tags_similar_picture_is_stored_as_a_difference_that_pruning_keeps(shelf: Shelf) -> None:
    shelf.write()
    whole = shelf.load()
    nudged(shelf)
    assert shelf.write(tag="v9") == "new"
    assert shelf.write(tag="v9") == "same bytes"
    case = cases.load(cases.CASES / "sd15" / "lora.yaml")
    assert golden_store.base_of(goldens.load("v9", case, None, shelf.root).stored("picture")) == whole.stored("picture")
    frames = whole.frames()
    # The base's own golden becomes another; the base is still needed.
    Image.new("RGB", (128, 128), "green").save(shelf.artefacts["picture"])
    assert shelf.write() == "CHANGED: picture file"
    assert store.prune(shelf.root) == 0
    other = goldens.load("v9", case, None, shelf.root)
    assert np.abs(other.frames().astype(int) - frames).sum() == 1
    # And once the difference goes, nobody needs the base.
    goldens.golden_path("v9", "sd15/lora", shelf.root).unlink()
    assert store.prune(shelf.root) == 2
    assert shelf.load().frames().std() > 0


def test_what_another_tag_renders_alike_is_said_in_a_line_and_outlives_that_recording(shelf: Shelf) -> None:
    """Both ways round: recorded after the golden that it is as, and while that one becomes another."""
    shelf.write()
    shelf.write(tag="v9")
    path = goldens.golden_path("v9", "sd15/lora", shelf.root)
    first, line = golden_file.read(path), json.loads(path.read_text())
    assert line["as"] == TAG and list(line["cases"]["sd15/lora"]) == ["seal"]
    assert shelf.write(patches=["a patch"], settings={**shelf.content["settings"], "seed": 8}) == (
        "CHANGED: patches, settings"
    )
    assert golden_file.read(path) == first
    own = json.loads(path.read_text())["cases"]["sd15/lora"]
    assert own == {"settings": {"seed": first["sd15/lora"]["settings"]["seed"]}, "seal": first["sd15/lora"]["seal"]}
    # An older tag than both: now that one is whole.
    assert shelf.write(tag="v0.0.1") == "new"
    assert [json.loads(file.read_text()).get("as") for file in sorted(shelf.root.glob("v*/*.json"))] == [
        None, "v0.0.1", "v0.0.1"
    ]  # fmt: skip
    assert golden_file.read(path) == first


def test_a_recorder_that_dies_while_it_lays_out_leaves_every_golden_as_it_was(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tag in (TAG, "v9", "v10"):
        shelf.write(tag=tag)
    files = sorted(shelf.root.glob("v*/*.json"))
    before = {file: golden_file.read(file) for file in files}
    write, texts = golden_store.write_atomically, {file: file.read_bytes() for file in files}

    class Died(Exception):
        pass

    ends = 0
    while True:
        for file, text in texts.items():
            file.write_bytes(text)
        left = iter(range(ends))

        def dying(path: Path, data: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Died
            write(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(golden_store, "write_atomically", dying)
            try:
                assert shelf.write(patches=["a patch"], settings={**shelf.content["settings"], "seed": 8})
            except Died:
                own = goldens.golden_path(TAG, "sd15/lora", shelf.root)
                for file in files:
                    assert golden_file.read(file) == before[file] or file == own
                ends += 1
                continue
        break
    assert ends == 4  # each of two files, first whole and then as it stays; the third is as the second
    assert store.tidy(shelf.root) == 0


def test_laying_out_again_mends_a_merge_and_refuses_an_edited_golden(shelf: Shelf) -> None:
    shelf.write()
    shelf.write(tag="v9")
    path = goldens.golden_path("v9", "sd15/lora", shelf.root)
    laid_out, contents = path.read_text(), golden_file.read(path)
    path.write_text(golden_file.write(contents))
    assert (store.tidy(shelf.root), store.tidy(shelf.root)) == (1, 0)
    assert path.read_text() == laid_out
    contents["sd15/lora"]["settings"]["seed"] += 1
    path.write_text(golden_file.write(contents))
    with pytest.raises(ValueError, match=r"v9/sd15\.json: sd15/lora was edited after recording"):
        store.tidy(shelf.root)
    assert golden_file.read(path) == contents


def test_recording_a_differences_base_anew_leaves_the_difference_alone(shelf: Shelf) -> None:
    shelf.write()
    before = shelf.artefacts["picture"].read_bytes()
    nudged(shelf)
    shelf.write(tag="v9")
    Image.new("RGB", (128, 128), "green").save(shelf.artefacts["picture"])
    assert shelf.write() == "CHANGED: picture file"
    assert store.prune(shelf.root) == 0
    case = cases.load(cases.CASES / "sd15" / "lora.yaml")
    with Image.open(io.BytesIO(before)) as image:
        steps = np.abs(goldens.load("v9", case, None, shelf.root).frames()[0].astype(int) - np.asarray(image))
    assert steps.sum() == 1


def test_a_picture_packed_by_another_zlib_is_the_same_bytes(shelf: Shelf) -> None:
    shelf.write()
    first = shelf.files()
    with Image.open(shelf.artefacts["picture"]) as image:
        image.load()
    image.save(shelf.artefacts["picture"], compress_level=1)
    assert shelf.write() == "same bytes"
    assert shelf.files() == first


def reordered(data: bytes) -> bytes:
    """The same safetensors file with its header's keys in another order."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(reversed(header.get("__metadata__", {}).items()))
    text = json.dumps(dict(reversed(header.items())), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def test_another_order_of_a_loras_metadata_is_the_same_file(shelf: Shelf) -> None:
    shelf.write()
    first = shelf.files()
    data = shelf.artefacts["lora"].read_bytes()
    shelf.artefacts["lora"].write_bytes(reordered(data))
    assert shelf.artefacts["lora"].read_bytes() != data
    assert shelf.write() == "same bytes"
    assert shelf.files() == first


def test_the_trigger_word_that_a_shared_lora_names_is_that_of_whoever_came_first(shelf: Shelf) -> None:
    shelf.write()
    first = shelf.files()
    with safe_open(shelf.artefacts["lora"], framework="np") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, shelf.artefacts["lora"], metadata | {"ss_tag_frequency": '{"1_sks": {"sks": 1}}'})
    assert shelf.write() == "same bytes"
    assert shelf.files() == first


def test_another_weight_in_a_lora_is_not(shelf: Shelf) -> None:
    shelf.write()
    data = bytearray(reordered(shelf.artefacts["lora"].read_bytes()))
    data[-1] ^= 1
    shelf.artefacts["lora"].write_bytes(data)
    assert shelf.write() == "CHANGED: lora file"


def test_a_golden_from_before_the_ids_of_prompts_were_kept_stays(shelf: Shelf) -> None:
    """Another number in its trace does not."""
    trace = shelf.artefacts["trace"]
    with safe_open(trace, framework="np") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("tokens/")}
    ids = {"tokens/text_encoder#0": np.arange(77, dtype=np.int32)}
    save_file(without, trace, metadata)
    assert shelf.write() == "new"
    first = shelf.files()
    save_file({**without, **ids}, trace, metadata)
    assert shelf.write() == "same bytes"
    assert shelf.files() == first
    (name, sketches), *_ = without.items()
    save_file({**without, **ids, name: sketches + 1}, trace, metadata)
    assert shelf.write(dry=True) == "CHANGED: trace file"
    assert shelf.write() == "CHANGED: trace file"
    save_file(
        {**without, "tokens/text_encoder#0": ids["tokens/text_encoder#0"] + 1, name: sketches + 1}, trace, metadata
    )
    assert shelf.write() == "CHANGED: trace file", "its ids are recorded now"


def test_artefacts_that_are_alike_are_laid_out_as_differences_of_one_another(shelf: Shelf) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 250, (32, 32, 3), np.uint8)
    pictures = [noise, noise + rng.integers(0, 3, noise.shape, np.uint8), rng.integers(0, 255, noise.shape, np.uint8)]
    latents = rng.standard_normal(4096).astype(np.float32)
    for number, picture in enumerate(pictures):
        save_file({"latents": latents * np.float32(1 + number * 1e-6)}, shelf.sources / "latents.safetensors")
        shelf.artefacts["latents"] = shelf.sources / "latents.safetensors"
        Image.fromarray(picture).save(shelf.artefacts["picture"])
        shelf.write(case=f"sd15/{number}")
    before = {path: golden_store.read(golden_store.stored(shelf.root, path)) for path in artefacts_of(shelf)}
    size = sum(map(len, shelf.files().values()))

    for stop in range(1, 4):  # wherever it is stopped
        writes = iter([golden_store.write_atomically] * stop)

        def fails(path: Path, data: bytes, writes: Iterator[Callable[[Path, bytes], None]] = writes) -> None:
            for write in writes:
                return write(path, data)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(golden_store, "write_atomically", fails)
            bases.lay_out(shelf.root)
        assert {path: golden_store.read(golden_store.stored(shelf.root, path)) for path in before} == before
    assert bases.lay_out(shelf.root) >= 1
    assert {path: golden_store.read(golden_store.stored(shelf.root, path)) for path in before} == before
    assert sum(map(len, shelf.files().values())) < size - 1000
    assert bases.lay_out(shelf.root) == 0


def artefacts_of(shelf: Shelf) -> set[str]:
    files = (golden_file.read(path) for path in shelf.root.glob("v*/*.json"))
    return {artefact["file"] for file in files for golden in file.values() for artefact in golden["artefacts"].values()}
