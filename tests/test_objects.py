"""What is stored comes back, bit by bit, whether it lies whole or as a difference; nothing else passes for it."""

import io
import json
import lzma
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from lora_drift.harness.check import golden_store
from lora_drift.harness.minihub.weights import lora as drawn_weights

FOLDER = "objects/sd15"


def named(data: bytes, suffix: str) -> str:
    return f"{FOLDER}/{sha256(data).hexdigest()[:16]}{suffix}"


def picture(pixels: np.ndarray) -> bytes:
    """As the recorder gets it: the content of a PNG."""
    height, width = pixels.shape[:2]
    return f"P6\n{width} {height}\n255\n".encode() + pixels.tobytes()


def noise(seed: int, height: int = 40, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def kept(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("goldens")


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(st.data())
def test_any_two_pictures_come_back_pixel_by_pixel(shelf: Path, data: st.DataObject) -> None:
    contents = []
    for size in (data.draw(SIZES), data.draw(SIZES)):
        raw = data.draw(st.binary(min_size=3 * size[0] * size[1], max_size=3 * size[0] * size[1]))
        contents.append(picture(np.frombuffer(raw, np.uint8).reshape(*size, 3)))
    files = [named(content, ".png") for content in contents]
    for content, file, bases in zip(contents, files, ([], files[:1]), strict=True):
        golden_store.save(shelf, file, content, bases)
    for content, file in zip(contents, files, strict=True):
        assert golden_store.read(golden_store.stored(shelf, file)) == content
        assert Image.open(io.BytesIO(golden_store.png(content))).tobytes() == content.split(b"\n", 3)[3]


@given(st.integers(0, 2**32), st.lists(st.integers(0, 255), min_size=1, max_size=20))
def test_a_nearly_equal_picture_is_kept_as_a_small_difference(
    tmp_path_factory: pytest.TempPathFactory, seed: int, steps: list[int]
) -> None:
    root = tmp_path_factory.mktemp("goldens")
    base = noise(seed)
    near = base.copy()
    near.reshape(-1)[: len(steps)] += np.array(steps, np.uint8)  # wraps round
    contents = [picture(base), picture(near)]
    files = [named(content, ".png") for content in contents]
    golden_store.save(root, files[0], contents[0], [])
    golden_store.save(root, files[1], contents[1], [files[0]])
    paths = [golden_store.stored(root, file) for file in files]
    assert [golden_store.read(path) for path in paths] == contents
    if contents[0] != contents[1]:
        assert golden_store.base_of(paths[1]) == paths[0]
        assert paths[1].stat().st_size * 10 < paths[0].stat().st_size


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_two_other_contents_come_back_byte_by_byte(shelf: Path, one: bytes, other: bytes) -> None:
    files = [named(content, ".safetensors") for content in (one, other)]
    golden_store.save(shelf, files[0], one, [])
    golden_store.save(shelf, files[1], other, files[:1])
    assert [golden_store.read(golden_store.stored(shelf, file)) for file in files] == [one, other]


def test_a_trace_with_more_in_it_is_kept_as_a_small_difference(tmp_path: Path) -> None:
    """Traces of newer recorders have the ids of prompts, too."""
    sketches = np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)
    tokens = {f"tokens/{name}": np.arange(77, dtype=np.int32) for name in "ab"}
    other = sketches.copy()
    other[3] = 0
    contents = [
        save({"128": sketches}),
        save({"128": other, **tokens}),
        save({"256": sketches[:, :64].copy(), **tokens}),
    ]
    files = [named(content, ".safetensors") for content in contents]
    for position, (file, content) in enumerate(zip(files, contents, strict=True)):
        golden_store.save(tmp_path, file, content, files[:position])
    paths = [golden_store.stored(tmp_path, file) for file in files]
    assert [golden_store.read(path) for path in paths] == contents
    assert golden_store.base_of(paths[1]) == paths[0]
    assert paths[1].stat().st_size * 10 < paths[0].stat().st_size
    paths[1].write_bytes(lzma.compress(contents[1]))  # not of its base
    with pytest.raises(golden_store.Damaged, match="other bytes"):
        golden_store.read(paths[1])


def chain(root: Path) -> list[tuple[str, bytes]]:
    """A picture, one near it, and one nearer to the second than to the first."""
    first = noise(1)
    second = first + noise(2) // 32
    third = second.copy()
    third[0, 0] += 1
    found = [(named(picture(p), ".png"), picture(p)) for p in (first, second, third)]
    for position, (file, content) in enumerate(found):
        golden_store.save(root, file, content, [file for file, _ in found[:position]])
    return found


def test_a_difference_from_a_difference_takes_the_nearest(tmp_path: Path) -> None:
    (first, a), (second, b), (third, c) = chain(tmp_path)
    paths = [golden_store.stored(tmp_path, file) for file in (first, second, third)]
    assert [golden_store.base_of(path) for path in paths] == [None, *paths[:2]]
    assert [golden_store.read(path) for path in paths] == [a, b, c]
    paths[0].unlink()
    with pytest.raises(golden_store.Damaged, match="was deleted") as error:
        golden_store.read(paths[2])
    assert error.value.path == paths[0]


def test_storing_again_changes_nothing(tmp_path: Path) -> None:
    found = chain(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    for file, content in reversed(found):
        golden_store.save(tmp_path, file, content, [file for file, _ in found])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_storing_again_mends_what_is_damaged_and_no_ring_comes_of_it(damaged: int, tmp_path: Path) -> None:
    found = chain(tmp_path)
    golden_store.stored(tmp_path, found[damaged][0]).write_bytes(b"damaged")
    for file, content in found:
        golden_store.save(tmp_path, file, content, [file for file, _ in found])
    assert [golden_store.read(golden_store.stored(tmp_path, file)) for file, _ in found] == [
        content for _, content in found
    ]
    assert len(kept(tmp_path)) == 3


def test_another_size_is_kept_whole(tmp_path: Path) -> None:
    wide, high = picture(noise(1, 30, 40)), picture(noise(1, 40, 30))
    golden_store.save(tmp_path, named(wide, ".png"), wide, [])
    golden_store.save(tmp_path, named(high, ".png"), high, [named(wide, ".png")])
    assert not any("-from-" in name for name in kept(tmp_path))


@given(st.data())
def test_any_change_of_a_difference_or_its_base_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("goldens")
    found = chain(root)
    path = golden_store.stored(root, found[data.draw(st.integers(0, 2), label="which")][0])
    recorded = path.read_bytes()
    place = data.draw(st.integers(0, len(recorded) - 1), label="where")
    bit = 1 << data.draw(st.integers(0, 7), label="bit")
    flipped = recorded[:place] + bytes([recorded[place] ^ bit]) + recorded[place + 1 :]
    path.write_bytes(data.draw(st.sampled_from([flipped, recorded[:place], recorded + b"\0"]), label="how"))
    with pytest.raises(golden_store.Damaged) as error:
        golden_store.read(golden_store.stored(root, found[2][0]))
    assert error.value.path == path


def test_a_picture_with_transparency_is_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4)).save(tmp_path / "0123456789abcdef.png")
    with pytest.raises(golden_store.Damaged, match="RGBA"):
        golden_store.read(tmp_path / "0123456789abcdef.png")


def test_only_names_of_two_hashes_are_differences() -> None:
    for name in ("i2v-from-photo.png", "0123456789abcdef-from-photo.png", "0123456789abcdef.png"):
        assert golden_store.base_of(Path(name)) is None


# ------------------------------------------------------------------------------------------------------------- LoRAs


def lora(values: dict[str, tuple[str, list[int], bytes]], name: str = "rank4") -> bytes:
    """A safetensors file, written by hand: NumPy has no bfloat16."""
    header: dict[str, object] = {"__metadata__": {"name": name}}
    body = b""
    for key, (dtype, shape, data) in values.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


KEYS = st.sampled_from(
    ["transformer.a.lora_A.weight", "diffusion_model.blocks.0.self_attn.o.lora_B.weight", "transformer.a.magnitude",
     "lora_unet_x.lora_down.weight", "lora_unet_x.alpha", "transformer.a.lokr_w1", "transformer.a.lokr_w2", "odd", ""]
)  # fmt: skip


@given(st.data())
def test_any_lora_file_comes_back_byte_by_byte(shelf: Path, data: st.DataObject) -> None:
    values = {}
    for key in data.draw(st.sets(KEYS)):
        dtype, size = data.draw(st.sampled_from([("F16", 2), ("BF16", 2), ("F32", 4), ("I8", 1)]))
        shape = data.draw(st.lists(st.integers(0, 3), max_size=4))
        count = int(np.prod(shape)) * size
        values[key] = (dtype, shape, data.draw(st.binary(min_size=count, max_size=count)))
    content = lora(values) + data.draw(st.binary(max_size=3))
    file = named(content, ".safetensors")
    golden_store.save(shelf, file, content, [])
    assert golden_store.read(golden_store.stored(shelf, file)) == content


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_what_the_recorder_drew_is_left_out_and_comes_back(tmp_path: Path, dtype: str) -> None:
    weights = torch.from_numpy(drawn_weights((64, 32), 32, "sd15", "rank4", "lora_unet_x", "lora_down"))
    kind = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[dtype]
    raw = weights.to(kind).view(torch.uint8).numpy().tobytes()
    content = lora({"lora_unet_x.lora_down.weight": (dtype, [64, 32], raw)})
    file = named(content, ".safetensors")
    golden_store.save(tmp_path, file, content, [])
    path = golden_store.stored(tmp_path, file)
    assert path.name.partition(".")[0].endswith("-from-drawn")
    assert path.stat().st_size < 400 < len(raw)
    assert golden_store.read(path) == content
    # Nothing but the name says what was drawn.
    path.write_bytes(lzma.compress(lzma.decompress(path.read_bytes()).replace(b"rank4", b"rank5")))
    with pytest.raises(golden_store.Damaged, match="other bytes"):
        golden_store.read(path)
    path.write_bytes(lzma.compress(b"no LoRA"))
    with pytest.raises(golden_store.Damaged, match="cannot be unpacked"):
        golden_store.read(path)


def test_what_another_model_rendered_too_is_stored_once(tmp_path: Path) -> None:
    content = picture(noise(1))
    first, second = (named(content, ".png").replace("sd15", model) for model in ("flux2", "flux2_diffusers"))
    golden_store.save(tmp_path, first, content, [])
    golden_store.save(tmp_path, second, content, [])
    assert kept(tmp_path) == [Path(first).name]
    assert golden_store.read(golden_store.stored(tmp_path, second)) == content
