"""What a WebP file says of the quality it was saved with: the quantisers in the header of its (first) VP8 frame.

The layout is that of RFC 6386 (section 9) and of Google's WebP container.
"""

from collections.abc import Iterator

SEGMENTS = 4


def lossless(data: bytes) -> bool:
    return not any(name == b"VP8 " for name, _ in _chunks(data))


def quantisers(data: bytes) -> tuple[int, ...]:
    """0 (fine) to 127 (coarse), for each of the four kinds of area that libwebp tells apart."""
    frame = next(payload for name, payload in _chunks(data) if name == b"VP8 ")
    bits = _Bits(frame[10:])  # behind frame tag, start code and size
    bits.number(2)  # colour space, clamping
    own: list[int] = []
    if bits.number(1):
        own = _segments(bits)
    bits.number(1 + 6 + 3)  # loop filter: kind, level, sharpness
    if bits.number(1) and bits.number(1):
        for _ in range(8):
            bits.signed(6)
    bits.number(2)  # partitions
    base = bits.number(7)
    return tuple(own) or (base,) * SEGMENTS


def _segments(bits: "_Bits") -> list[int]:
    own: list[int] = []
    has_map, has_values = bits.number(1), bits.number(1)
    if has_values:
        bits.number(1)  # values are absolute: libwebp writes no others
        own = [bits.signed(7) for _ in range(SEGMENTS)]
        for _ in range(SEGMENTS):
            bits.signed(6)
    if has_map:
        for _ in range(3):
            if bits.number(1):
                bits.number(8)
    return own


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, payload) of every chunk; those of an animation's frames too."""
    yield from _inside(data[12:])


def _inside(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        payload = data[place + 8 : place + 8 + size]
        yield name, payload
        if name == b"ANMF":
            yield from _inside(payload[16:])
        place += 8 + size + size % 2


class _Bits:
    """VP8's boolean decoder, for bits of even odds (all that a header's numbers have)."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 2
        self.value, self.range, self.shifted = int.from_bytes(data[:2], "big"), 255, 0

    def _bit(self) -> int:
        split = 1 + ((self.range - 1) * 128 >> 8)
        bit = int(self.value >= split << 8)
        if bit:
            self.value -= split << 8
            self.range -= split
        else:
            self.range = split
        while self.range < 128:
            self.value, self.range, self.shifted = self.value << 1, self.range << 1, self.shifted + 1
            if self.shifted == 8:
                self.value |= self.data[self.place] if self.place < len(self.data) else 0
                self.place, self.shifted = self.place + 1, 0
        return bit

    def number(self, bits: int) -> int:
        value = 0
        for _ in range(bits):
            value = value << 1 | self._bit()
        return value

    def signed(self, bits: int) -> int:
        """An optional number with a sign behind it; 0 if it is left out."""
        if not self.number(1):
            return 0
        value = self.number(bits)
        return -value if self.number(1) else value
