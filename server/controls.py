"""Control images as clients send them: checked, turned upright, and kept as PNG until the request is removed."""

import asyncio
import base64
import binascii
import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from lora_drift.server import fetch
from lora_drift.server.config import MEGABYTE, Settings
from lora_drift.server.errors import ApiError, bad
from lora_drift.server.fetch import FetchError
from lora_drift.server.loras import is_url

FORMATS = ("PNG", "JPEG", "WEBP")
FETCH_TIMEOUT = 30


async def keep(given: str, field: str, path: Path, settings: Settings) -> Path:
    """Write the picture in `given` to `path`.

    Raises:
        ApiError: not a picture, not one of the formats, or too large; names the field.
    """
    try:
        content = await _content(given, field, settings)
        if len(content) > settings.max_image_mb * MEGABYTE:
            raise _refused(field, f"larger than {settings.max_image_mb:g} MB")
        await asyncio.to_thread(_write, content, field, path, settings.max_image_megapixels)
    except FetchError as error:
        raise bad("CONTROL_IMAGE_UNREACHABLE", f"{field}: {error}", field=field) from error
    return path


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
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(field, f"neither an https URL nor base64 ({error})") from error


def _write(content: bytes, field: str, path: Path, megapixels: float) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > megapixels * 1e6:
                raise _refused(field, f"{image.width}x{image.height} is more than {megapixels:g} megapixels")
            upright = ImageOps.exif_transpose(image)
            picture = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except UnidentifiedImageError as error:
        raise _refused(field, f"not a picture in one of the formats {', '.join(FORMATS)}") from error
    except ApiError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a hostile file makes them stumble over
        raise _refused(field, f"not a whole picture ({error})") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "PNG", compress_level=1)
