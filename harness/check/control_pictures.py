"""Control pictures in many modes, formats and shapes that the trainer opens: those of the cases, and others of them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from lora_drift.harness.check.cases import ASSETS

ORIENTATION = 0x0112
"""EXIF tag."""
EXTREME = ("dot.png", "sliver.png", "band.png", "opaque.inpaint.png")
"""Those that some models refuse."""


def _with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def _sixteen_bits(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("I").point(lambda level: level * 257).convert("I;16")


MADE: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "palette.png": ("wide.png", lambda image: image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)),
    "grey.png": ("tall.png", lambda image: image.convert("L")),
    "grey-alpha.png": ("other.png", lambda image: image.convert("LA")),
    "one-bit.png": ("wide.png", lambda image: image.convert("1")),
    "sixteen-bits.png": ("other.png", _sixteen_bits),
    "cmyk.tif": ("other.png", lambda image: image.convert("CMYK")),
    "alpha.png": ("masked.inpaint.png", lambda image: image),
    "lossless.webp": ("tall.png", lambda image: image),
    "plain.bmp": ("wide.png", lambda image: image),
    "dot.png": ("other.png", lambda image: image.resize((1, 1))),
    "sliver.png": ("other.png", lambda image: image.resize((9, 230))),
    "band.png": ("tall.png", lambda image: image.resize((700, 40), Image.Resampling.BICUBIC)),
    "large.png": ("wide.png", lambda image: image.resize((1500, 1130), Image.Resampling.BICUBIC)),
    "opaque.inpaint.png": ("other.png", lambda image: image.convert("RGB")),
    "grey-alpha.inpaint.png": ("masked.inpaint.png", lambda image: image.convert("LA")),
    "wide.inpaint.png": ("masked.inpaint.png", lambda image: image.resize((230, 66), Image.Resampling.BICUBIC)),
}
"""File -> (the picture of the cases that it is made of, how)."""


def write(folder: Path) -> list[str]:
    """Fill `folder` with all of them, and copies that EXIF says are turned; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    originals = sorted(path for path in ASSETS.iterdir() if path.suffix == ".png")
    for path in originals:
        shutil.copyfile(path, folder / path.name)
    for name, (source, made) in MADE.items():
        image = made(Image.open(ASSETS / source))
        image.save(folder / name, lossless=True)  # which WebP alone reads
    turned = dict(_turned(folder))
    return [*(path.name for path in originals), *MADE, *turned]


def _turned(folder: Path) -> Iterator[tuple[str, Path]]:
    for name, orientation in (("turned.png", 6), ("turned.jpg", 6), ("mirrored.jpg", 2), ("upside-down.webp", 3)):
        image = Image.open(ASSETS / "wide.png").convert("RGB")
        image.save(folder / name, exif=_with_exif(orientation), lossless=True)
        yield name, folder / name
