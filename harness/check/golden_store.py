"""How the artefacts of goldens lie on disk: whole, or as the difference from another tag's.

Trainer versions render much the same noise, which hardly packs; their difference does. So an artefact that goldens call
`objects/<model>/<id>.<suffix>` (the id begins the SHA-256 of its content) lies in `<id>.png` or `<id>.safetensors.xz`,
or in `<id>-from-<id of its base>` and the same ending: a picture minus its base (modulo 256), other bytes XOR theirs.
Where the heads of two safetensors files differ (the trace of one has more in it), that head stays, and tensors of the
same name and size are XORed. A LoRA file may lie in `<id>-from-drawn`: XOR what the recorder drew for it
(`lora_drift.harness.check.lora_codec`).

The content of a picture is its PPM file, because the bytes of a PNG depend on the zlib that packed them.
"""

import io
import lzma
import os
import re
import struct
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from PIL import Image, ImageChops

from lora_drift.harness.check import lora_codec
from lora_drift.harness.minihub import weights

FLOATS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2}]
"""Packing for numbers of four bytes (each byte is predicted by its place in it): 7 % smaller than the default."""

NOT_SAFETENSORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What reading the head of a file that is none raises."""

BROKEN = (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError, lzma.LZMAError, *NOT_SAFETENSORS)
"""What Pillow and lzma, too, raise for a file that is not what it should be."""

IEND = b"\0\0\0\0IEND\xae\x42\x60\x82"
FROM = "-from-"
DRAWN = f"{FROM}drawn"
DIFFERENCE = re.compile(rf"[0-9a-f]{{16}}{FROM}([0-9a-f]{{16}})(\.png|\.safetensors)(?:\.xz)?")


class Damaged(Exception):
    """A file cannot be used: which one and why. `missing`: it is not there."""

    def __init__(self, path: Path, why: str, *, missing: bool = False) -> None:
        super().__init__(why)
        self.path, self.missing = path, missing


def identity(path: Path) -> str:
    """The beginning of a content's hash, from the name of its file."""
    return path.name.partition(".")[0].partition(FROM)[0]


def stored(root: Path, file: str) -> Path:
    """Where the artefact that a golden calls `file` lies; if it lies nowhere, where it would lie whole."""
    whole = _whole(root, file)
    if whole.is_file():
        return whole
    here = min(whole.parent.glob(f"{identity(whole)}{FROM}*"), default=None)
    # Another model, of the same weights under other names, may have rendered it.
    return here or min(root.glob(f"objects/*/{identity(whole)}[.-]*"), default=whole)


def base_of(path: Path) -> Path | None:
    """Where the base of a difference lies; None: the file is whole."""
    named = DIFFERENCE.fullmatch(path.name)
    return stored(path.parent, "".join(named.groups())) if named else None


def read(path: Path, above: tuple[Path, ...] = ()) -> bytes:
    """The content of the artefact that lies at `path`; `above` are the differences that ask for it.

    Raises:
        Damaged: that file, or one below it, is not what its name says.
    """
    if not path.is_file():
        raise Damaged(path, "was deleted", missing=True)
    if path in above:
        raise Damaged(path, "is the difference from itself, by way of its bases")
    base = base_of(path)
    below = None if base is None else read(base, (*above, path))
    try:
        data = _opened(path)
        if DRAWN in path.name:
            data = lora_codec.without(data, path.parent.name)
        if below is not None:
            data = _added(data, below)
    except BROKEN as error:
        raise Damaged(path, f"cannot be unpacked ({error})") from error
    if not sha256(data).hexdigest().startswith(identity(path)):
        raise Damaged(path, "has other bytes than were recorded")
    return data


def content(path: Path) -> bytes:
    """Of a plain file: a picture's PPM, any other's bytes."""
    return _ppm(Image.open(path)) if path.suffix == ".png" else path.read_bytes()


def png(data: bytes) -> bytes:
    """A picture's content as a PNG."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(data)).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def save(root: Path, file: str, data: bytes, bases: Iterable[str]) -> None:
    """Store content in the smallest way: whole, or as the difference from one of `bases` (artefacts of the same kind).

    What lies there already and is sound stays as it is, since others may be differences from it.
    """
    if sound(stored(root, file)) == data:
        return
    below = {base: sound(stored(root, base)) for base in bases}
    ways = dict(smallest(root, file, data, content, base) for base, content in [(None, None), *below.items()])
    with suppress(*NOT_SAFETENSORS):
        whole = _whole(root, file)
        ways[whole.with_name(whole.name.replace(".", f"{DRAWN}.", 1))] = _packed(
            file, lora_codec.without(data, whole.parent.name)
        )
    best = min(ways, key=lambda path: len(ways[path]))
    write_atomically(best, ways[best])
    for other in best.parent.glob(f"{identity(best)}*"):
        if other != best:
            other.unlink()


def smallest(
    root: Path, file: str, data: bytes, below: bytes | None = None, base: str | None = None
) -> tuple[Path, bytes]:
    """Where content is to lie and its packed bytes: whole, or if that is smaller, as the difference from the artefact
    `base` with the content `below`."""
    whole = _whole(root, file)
    ways = {whole: _packed(file, data)}
    difference = None if base is None or below is None else taken(data, below)
    if base is not None and difference is not None:
        name = whole.name.replace(".", f"{FROM}{identity(Path(base))}.", 1)
        ways[whole.with_name(name)] = _packed(file, difference)
    return min(ways.items(), key=lambda way: len(way[1]))


def _whole(root: Path, file: str) -> Path:
    return root / (file if file.endswith(".png") else f"{file}.xz")


def write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    scratch.write_bytes(data)
    scratch.replace(path)


def sound(path: Path) -> bytes | None:
    """Content to build on, if it is sound."""
    try:
        return read(path)
    except Damaged:
        return None


def _opened(path: Path) -> bytes:
    """What one file holds, the difference if it is one."""
    packed = path.read_bytes()
    if path.suffix == ".xz":
        unpacker = lzma.LZMADecompressor()
        data = unpacker.decompress(packed)
        if not unpacker.eof or unpacker.unused_data:  # `lzma.decompress` would overlook the latter
            raise ValueError("bytes are missing" if not unpacker.eof else "there are bytes behind its end")
        return data
    Image.open(io.BytesIO(packed), formats=["PNG"]).verify()  # the check sums, which loading leaves out
    if not packed.endswith(IEND):
        raise ValueError("it does not end as a PNG does")
    return _ppm(Image.open(io.BytesIO(packed), formats=["PNG"]))


def _packed(file: str, data: bytes) -> bytes:
    return png(data) if file.endswith(".png") else lzma.compress(data, filters=FLOATS)


def _ppm(image: Image.Image) -> bytes:
    if image.mode != "RGB":
        raise ValueError(f"its colours are {image.mode}, not RGB")
    return f"P6\n{image.width} {image.height}\n255\n".encode() + image.tobytes()


def _header(data: bytes) -> bytes:
    """A picture's size; nothing for other content."""
    return b"\n".join(data.split(b"\n", 3)[:3]) if data.startswith(b"P6\n") else b""


def taken(data: bytes, base: bytes) -> bytes | None:
    """The difference of two contents; None: they have nothing in common."""
    if _header(data) != _header(base):
        return None
    if _header(data):
        return _ppm(ImageChops.subtract_modulo(*(Image.open(io.BytesIO(d)) for d in (data, base))))
    try:
        if _head(data) != _head(base):
            return _by_tensor(data, base)
    except NOT_SAFETENSORS:
        pass
    return _xor(data, base) if len(data) == len(base) else None


def _added(difference: bytes, base: bytes) -> bytes:
    if _header(difference) != _header(base):
        raise ValueError("it is not of the size of its base")
    if _header(difference):
        return _ppm(ImageChops.add_modulo(*(Image.open(io.BytesIO(d)) for d in (difference, base))))
    try:
        return _by_tensor(difference, base)
    except NOT_SAFETENSORS:  # equal heads have gone to zeros
        if len(difference) != len(base):
            raise ValueError("it is not of the size of its base") from None
        return _xor(difference, base)


def _head(data: bytes) -> bytes:
    """Raises one of `NOT_SAFETENSORS`."""
    return data[: weights.parse_head(data)[1]]


def _by_tensor(data: bytes, base: bytes) -> bytes:
    """`data` with each tensor XOR that of the same name and size in `base`; done twice, it is `data` again.

    Raises one of `NOT_SAFETENSORS`.
    """
    (tensors, start), (others, its_start) = weights.parse_head(data), weights.parse_head(base)
    mixed = bytearray(data)
    for name in tensors.keys() & others.keys() - {"__metadata__"}:
        (first, last), (its_first, its_last) = tensors[name]["data_offsets"], others[name]["data_offsets"]
        if last - first == its_last - its_first:
            here = slice(start + first, start + last)
            mixed[here] = _xor(mixed[here], base[its_start + its_first : its_start + its_last])
    return bytes(mixed)


def _xor(data: bytes | bytearray, base: bytes) -> bytes:
    return (int.from_bytes(data, "big") ^ int.from_bytes(base, "big")).to_bytes(len(data), "big")
