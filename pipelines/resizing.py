"""Which half of a resize goes first, for the control images of edit and image-to-video models.

Pillow resizes in two passes, one for each axis, and each rounds to 8 bits. Up to 12 the horizontal pass went first; 13
begins with the vertical one where the height shrinks by more than twice as much as the width. The same control image is
then another by up to 26 of 255. The trainer's requirements name no Pillow, so either may have made a sample. Both
orders are written out here, so that any Pillow gives either, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from lora_drift.pipelines.shared_patch import SharedPatch
from lora_drift.pipelines.spec import ResizeOrder

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]


def vertical_first(size: Size, wanted: Size) -> bool:
    """Does Pillow 13 begin with the vertical pass? (Found by comparing it with both orders, at 6500 pairs of sizes.)"""
    (width, height), (wanted_width, wanted_height) = size, wanted
    return height > wanted_height and height - wanted_height > 2 * (width - wanted_width)


_order: ContextVar[ResizeOrder | None] = ContextVar("resize_order", default=None)
"""Of the render that runs in this thread; None where none does."""


def _resize_in_order(whole: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    def resize(
        image: Image.Image, size: Any, resample: int | None = None, box: Any = None, reducing_gap: float | None = None
    ) -> Image.Image:
        from PIL import Image

        order = _order.get()
        if order is None:
            return whole(image, size, resample, box, reducing_gap)
        wanted = (size[0], size[1])
        one_pass = wanted[0] == image.width or wanted[1] == image.height or resample == Image.Resampling.NEAREST
        part = box is not None and tuple(box) != (0, 0, *image.size)
        # Pillow comes back here with RGBa for RGBA; it takes the nearest pixel of a palette.
        if one_pass or part or reducing_gap is not None or image.mode in ("RGBA", "LA", "P", "1"):
            return whole(image, size, resample, box, reducing_gap)
        vertical = order == "pillow-13" and vertical_first(image.size, wanted)
        between = (image.width, wanted[1]) if vertical else (wanted[0], image.height)
        return whole(whole(image, between, resample), wanted, resample)

    return resize


_PATCH = SharedPatch("resize", _resize_in_order)


@contextmanager
def in_order(order: ResizeOrder) -> Iterator[None]:
    """While the block runs, `PIL.Image.Image.resize`, whoever calls it in this thread, resizes whole images in the
    order of that Pillow; other threads resize as ever."""
    from PIL import Image

    before = _order.set(order)
    try:
        with _PATCH.on(Image.Image):
            yield
    finally:
        _order.reset(before)
