"""Control images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.spec import Filter

if TYPE_CHECKING:
    from PIL import Image


def check(path: str) -> str:
    """Refuse a control image that is missing or broken, before any weights load.

    Raises:
        RequestError: names the file and what is wrong with it.
    """
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise RequestError(f"control image {path}: no such file")
    try:
        with Image.open(path) as image:
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise RequestError(
            f"control image {path}: not a readable picture ({error}); convert it to PNG or JPEG"
        ) from error
    return path


def rgb(path: str) -> Image.Image:
    """The picture as the trainer opens it: RGB, alpha dropped, EXIF orientation not applied."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def resized(image: Image.Image, size: tuple[int, int], by: Filter) -> Image.Image:
    """The picture stretched to (width, height), aspect not kept."""
    from PIL import Image

    return image.resize(size, Image.Resampling[by.upper()])
