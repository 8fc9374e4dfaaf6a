"""What the installed Pillow makes of a resize: `python tests/record_resizes.py` prints a row of resizes.json.

Needs only Pillow, so that it runs beside any release of it.
"""

import json
import random
from hashlib import sha256

import PIL
from PIL import Image

SIZES = [
    ((83, 131), (128, 128)), ((150, 101), (96, 160)), ((120, 90), (64, 64)), ((40, 90), (64, 30)), ((90, 40), (30, 64)),
    ((60, 60), (50, 40)), ((60, 60), (50, 39)), ((60, 60), (60, 30)), ((31, 17), (62, 34)),
]  # fmt: skip
FILTERS = ("BILINEAR", "BICUBIC", "LANCZOS", "BOX")
MODES = ("RGB", "L", "RGBA")


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    channels = len(mode)
    content = random.Random(f"{mode} {size}").randbytes(size[0] * size[1] * channels)
    return Image.frombytes(mode, size, content)


def resizes() -> dict[str, str]:
    """What is resized, and how -> hash of what comes out."""
    found = {}
    for size, wanted in SIZES:
        for mode in MODES:
            for name in FILTERS:
                resized = picture(mode, size).resize(wanted, Image.Resampling[name])
                found[f"{mode} {size} {wanted} {name}"] = sha256(resized.tobytes()).hexdigest()[:16]
    return found


if __name__ == "__main__":
    print(json.dumps({f"pillow-{PIL.__version__.partition('.')[0]}": resizes()}, indent=0))
