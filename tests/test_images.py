"""Control images are opened as the trainer opens them, and what is no picture is refused before weights load."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_drift.pipelines import images
from lora_drift.pipelines.errors import RequestError

COLOURS = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "CMYK", "1"])
def test_a_picture_of_any_kind_is_read_in_colours(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(COLOURS).convert(mode)
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    picture.save(path)
    read = images.rgb(images.check(str(path)))
    assert read.mode == "RGB" and read.size == (7, 5)
    assert read.tobytes() == picture.convert("RGB").tobytes()


def test_what_is_transparent_keeps_its_colour_and_what_a_camera_turned_stays_as_it_lies(tmp_path: Path) -> None:
    clear = Image.fromarray(np.dstack([COLOURS, np.zeros((5, 7), np.uint8)]), "RGBA")
    clear.save(tmp_path / "clear.png")
    assert np.array_equal(np.asarray(images.rgb(str(tmp_path / "clear.png"))), COLOURS)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(COLOURS).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(images.rgb(str(tmp_path / "turned.png"))), COLOURS)


def test_a_picture_is_stretched_by_the_filter_that_is_named() -> None:
    picture = Image.fromarray(COLOURS)
    found = {by: images.resized(picture, (3, 4), by) for by in ("bilinear", "bicubic", "lanczos")}
    assert {one.size for one in found.values()} == {(3, 4)}
    for by, one in found.items():
        assert one.tobytes() == picture.resize((3, 4), Image.Resampling[by.upper()]).tobytes()
    assert len({one.tobytes() for one in found.values()}) == 3


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nowhere\.png: no such file"):
        images.check(str(tmp_path / "nowhere.png"))
    with pytest.raises(RequestError, match="no such file"):
        images.check(str(tmp_path))
    (tmp_path / "text.png").write_text("no picture")
    whole = tmp_path / "whole.png"
    Image.fromarray(COLOURS).save(whole)
    data = bytearray(whole.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1  # its checksum is another then
    (tmp_path / "damaged.png").write_bytes(data)
    for name in ("text.png", "damaged.png"):
        with pytest.raises(RequestError, match=f"{name}: not a readable picture .*convert it to PNG or JPEG"):
            images.check(str(tmp_path / name))
    assert images.check(str(whole)) == str(whole)
