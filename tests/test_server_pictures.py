"""Control images: what they cost, what is kept of them, and that what is rendered is the upright picture."""

import base64
import io
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image, ImageOps

from lora_drift.pipelines import images
from lora_drift.server import controls
from lora_drift.server.config import Settings
from lora_drift.server.errors import ApiError
from lora_drift.server.local import ROOT


def keep(content: bytes, folder: Path, given: str | None = None, **more: Any) -> Path:
    text = given or base64.b64encode(content).decode()
    return anyio.run(controls.keep, text, "prompts[0].ctrl_img", folder / "kept" / "0-ctrl_img.picture",
                     Settings(**more))  # fmt: skip


def encoded(image: Image.Image, format: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **more)
    return buffer.getvalue()


def wide() -> Image.Image:
    return Image.open(ROOT / "cases/assets/wide.png").convert("RGB").resize((96, 64))


@pytest.mark.parametrize("format", controls.FORMATS)
def test_a_picture_is_kept_as_it_was_sent(tmp_path: Path, format: str) -> None:
    content = encoded(wide(), format)
    kept = keep(content, tmp_path)
    assert kept.read_bytes() == content and kept.suffix == f".{format.lower()}"


def test_a_picture_that_is_small_as_it_was_sent_takes_no_more_on_the_disk(tmp_path: Path) -> None:
    noise = Image.effect_noise((2000, 2000), 80).convert("RGB")
    content = encoded(noise, "JPEG", quality=20, exif=_turned())
    keep(content, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) == len(content)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[controls.ORIENTATION] = 6  # "turn me clockwise"
    return exif


ODD: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "turned": (wide(), "JPEG", {"exif": _turned(), "quality": 95}),
    "turned PNG": (wide(), "PNG", {"exif": _turned()}),
    "a palette": (wide().quantize(16), "PNG", {}),
    "a palette with a hole": (wide().quantize(16), "PNG", {"transparency": 3}),
    "grey": (wide().convert("L"), "PNG", {}),
    "grey with alpha": (wide().convert("LA"), "PNG", {}),
    "CMYK": (wide().convert("CMYK"), "JPEG", {"quality": 95}),
    "a colour for nothing": (wide(), "PNG", {"transparency": (1, 2, 3)}),
    "animated": (wide(), "GIF", {"save_all": True, "append_images": [ImageOps.invert(wide())]}),
    "black and white": (wide().convert("1"), "BMP", {}),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_rendered_is_upright_and_in_colours(tmp_path: Path, what: str) -> None:
    image, format, options = ODD[what]
    kept = keep(encoded(image, format, **options), tmp_path)
    with Image.open(kept) as opened:
        turned = ImageOps.exif_transpose(opened)
        expected = turned.convert("RGBA" if turned.has_transparency_data else "RGB")
    with controls.upright(iter([str(kept)])) as shown:
        path = shown[str(kept)]
        assert path != str(kept)
        with Image.open(path) as seen:
            assert seen.mode == expected.mode and seen.tobytes() == expected.tobytes()
        assert images.rgb(path).tobytes() == expected.convert("RGB").tobytes()
    assert not Path(path).exists(), "a copy was left behind"


def test_an_upright_picture_is_rendered_from_what_was_sent(tmp_path: Path) -> None:
    for content in (encoded(wide(), "PNG"), encoded(wide(), "JPEG"), encoded(wide().convert("RGBA"), "PNG")):
        kept = str(keep(content, tmp_path))
        with controls.upright(iter([kept])) as shown:
            assert shown == {kept: kept}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_base64_may_have_line_breaks(tmp_path: Path, end: str) -> None:
    content = encoded(wide(), "PNG")
    text = base64.encodebytes(content).decode().replace("\n", end)
    assert keep(b"", tmp_path, text).read_bytes() == content
    assert keep(b"", tmp_path, f"data:image/png;base64,{text}").read_bytes() == content


LARGE = {format: encoded(Image.new("RGB", (1001, 1000)), format) for format in controls.FORMATS}


@pytest.mark.parametrize("format", LARGE)
def test_pixels_are_counted_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ApiError, match="more than 1 megapixels"):
        keep(LARGE[format], tmp_path, max_image_megapixels=1)


def test_sixteen_pictures_at_once_take_the_memory_of_one(tmp_path: Path) -> None:
    """A WebP of one colour is 16 kB, and 20 bytes a pixel while it is decoded."""
    script = textwrap.dedent(
        """
        import asyncio, base64, io, resource, sys
        from pathlib import Path
        from PIL import Image
        from lora_drift.server import controls
        from lora_drift.server.config import Settings

        buffer = io.BytesIO()
        Image.new("RGB", (3000, 3000)).save(buffer, "WEBP")
        text = base64.b64encode(buffer.getvalue()).decode()

        async def at_once(n):
            folder = Path(sys.argv[1], str(n))
            await asyncio.gather(*(
                controls.keep(text, "a", folder / f"{i}.picture", Settings()) for i in range(n)))
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

        one = asyncio.run(at_once(1))
        print(one, asyncio.run(at_once(16)), len(buffer.getvalue()))
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    one, sixteen, size = map(int, done.stdout.split())
    assert size < 20_000 and sixteen - one < 100, f"MB: {one}, {sixteen}"
