"""Where LTX-2 samples can be caught: the trainer saves them past its usual function."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MODULE = "extensions_built_in.diffusion_models.ltx2.ltx2"


@contextmanager
def saving_replaced(keep: Callable[[Any, Any], None]) -> Iterator[None]:
    """Call `keep(config, sample)` instead of the function that writes LTX-2's mp4 (lossy, and nobody reads it here).

    `sample` holds "video", uint8 [frames, height, width, 3], and "audio", float32 [channels, samples]. Single pictures
    go the usual way. Does nothing for other models.
    """
    module: Any = sys.modules.get(MODULE)
    if module is None:
        yield
        return
    original = module.new_save_image_function
    module.new_save_image_function = lambda config, image, *args, **kwargs: keep(config, image)
    try:
        yield
    finally:
        module.new_save_image_function = original
