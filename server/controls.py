"""Control images as clients send them: checked, kept as they came, and turned upright when they are rendered."""

import asyncio
import base64
import binascii
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageOps, UnidentifiedImageError

from lora_drift.server import fetch
from lora_drift.server.config import MEGABYTE, Settings
from lora_drift.server.errors import ApiError, bad
from lora_drift.server.fetch import FetchError
from lora_drift.server.loras import is_url

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
FETCH_TIMEOUT = 30


_decoding = ThreadPoolExecutor(1, "control-images")
"""One at a time: a WebP picture of a few kB takes 20 bytes for each of its pixels while it is decoded."""
ORIENTATION = 0x0112


async def keep(given: str, field: str, path: Path, settings: Settings) -> Path:
    """Write the picture in `given`, as it came, to `path` with the suffix of its format; that path.

    Raises:
        ApiError: not a picture, not one of the formats, or too large; names the field.
    """
    try:
        content = await _content(given, field, settings)
        if len(content) > settings.max_image_mb * MEGABYTE:
            raise _refused(field, f"larger than {settings.max_image_mb:g} MB")
        return await asyncio.get_running_loop().run_in_executor(
            _decoding, _write, content, field, path, settings.max_image_megapixels
        )
    except FetchError as error:
        raise bad("CONTROL_IMAGE_UNREACHABLE", f"{field}: {error}", field=field) from error


def _refused(field: str, why: str) -> ApiError:
    return bad("CONTROL_IMAGE_INVALID", f"{field}: {why}", field=field)


async def _content(given: str, field: str, settings: Settings) -> bytes:
    limit = int(settings.max_image_mb * MEGABYTE)
    if is_url(given):
        call = fetch.request("GET", given, private=settings.allow_private_urls, timeout=FETCH_TIMEOUT)
        async with call as response:
            return b"".join([chunk async for chunk in fetch.chunks(response, limit)])
    text = given.partition(",")[2] if given.startswith("data:") else given
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # some encoders break lines
    except (binascii.Error, ValueError) as error:
        raise _refused(field, f"neither an https URL nor base64 ({error})") from error


def _write(content: bytes, field: str, path: Path, megapixels: float) -> Path:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > megapixels * 1e6:
                raise _refused(field, f"{image.width}x{image.height} is more than {megapixels:g} megapixels")
            kept = path.with_suffix(f".{(image.format or '').lower()}")
            image.load()
            _orientation(image)
    except UnidentifiedImageError as error:
        raise _refused(field, f"not a picture in one of the formats {', '.join(FORMATS)}") from error
    except ApiError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a hostile file makes them stumble over
        raise _refused(field, f"not a whole picture ({error})") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(content)
    return kept


def _orientation(image: Image.Image) -> int:
    exif = image.getexif()
    exif.tobytes()  # what is broken in it shows here, and not when the picture is turned
    return int(exif.get(ORIENTATION, 1))


@contextmanager
def upright(paths: Iterator[str]) -> Iterator[dict[str, str]]:
    """Path of a kept picture -> path of what is rendered: the same, or while this is open, a copy that is turned as its
    EXIF says, or whose colours are RGB or RGBA, where the picture's are not."""
    with TemporaryDirectory() as folder:
        found = {}
        for n, path in enumerate(paths):
            found[path] = path
            with Image.open(path, formats=FORMATS) as image:
                mode = "RGBA" if image.has_transparency_data else "RGB"
                if image.mode != mode or _orientation(image) not in (0, 1):
                    # The name goes on: Flex.2 knows an inpainting image by it.
                    found[path] = str(Path(folder, f"{n}-{Path(path).with_suffix('.png').name}"))
                    ImageOps.exif_transpose(image).convert(mode).save(found[path], "PNG", compress_level=1)
        yield found
