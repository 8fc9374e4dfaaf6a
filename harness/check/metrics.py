"""Distances between a golden and a run, as pure functions of NumPy arrays. Nothing here knows a tolerance.

Pictures are uint8 [frames, height, width, 3] (a still has one frame), latents are float of any shape. Every
function raises ValueError when the two shapes differ: such a pair has no distance.

Of a video, a metric's plain name is its worst frame and `<name>_mean` the mean over frames. NaN and infinity never
leave this module, because JSON turns both into null, which a reader would take for "not evaluated".
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from lora_drift.harness.check.results import IDENTICAL, Metric

if TYPE_CHECKING:
    import torch

Array: TypeAlias = np.ndarray[Any, Any]
Better: TypeAlias = Literal["lower", "higher"]

NOT_EVALUATED = "not evaluated"
"""How the note of a metric begins that could not be measured."""

SSIM_WINDOW = 7
"""Side of scikit-image's default window, in pixels; a smaller picture takes the largest odd window that fits."""
LPIPS_MIN_SIDE = 31
"""AlexNet's second pooling has nothing to pool below this side, in pixels."""


def relative_l2(golden: Array, ours: Array) -> float:
    """|ours - golden| / |golden|, computed in float64; 0 is equal.

    Raises:
        ValueError: the shapes differ, either side has NaN or infinity, or the golden is all zero.
    """
    _check_latents(golden, ours)
    reference = golden.astype(np.float64)
    norm = float(np.linalg.norm(reference))
    if norm == 0:
        raise ValueError("the golden latents are all zero, so no distance relative to them exists")
    return float(np.linalg.norm(ours.astype(np.float64) - reference)) / norm


def latents(golden: Array, ours: Array) -> list[Metric]:
    """`latents_rel_l2` and `latents_cosine` (which alone would not see a change of scale). Errors: `relative_l2`."""
    distance = relative_l2(golden, ours)
    a, b = golden.astype(np.float64).ravel(), ours.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = 1.0 if distance == 0 else float(np.clip(a @ b / norms, -1, 1)) if norms else 0.0
    return [
        Metric(name="latents_rel_l2", value=distance),
        Metric(name="latents_cosine", value=cosine, better="higher"),
    ]


def audio(golden: Array, ours: Array | None) -> Metric:
    """`audio_rel_l2` of float32 [channels, samples]. Errors: `relative_l2`."""
    if ours is None:
        raise ValueError("the trainer made sound, we made none")
    return Metric(name="audio_rel_l2", value=relative_l2(golden, ours))


def difference(golden: Array, ours: Array) -> Array:
    """|ours - golden| of two uint8 pictures in any layout, int16 in levels (0..255).

    Raises:
        ValueError: the shapes differ, or one is not uint8.
    """
    _check_shapes(golden, ours)
    for side, picture in (("golden", golden), ("this run", ours)):
        if picture.dtype != np.uint8:
            raise ValueError(f"pictures are uint8; {side} is {picture.dtype} {picture.shape}")
    return np.abs(ours.astype(np.int16) - golden)


def mean_difference(golden: Array, ours: Array) -> float:
    """Mean of `difference`, in levels."""
    return float(difference(golden, ours).mean())


def rms_difference(golden: Array, ours: Array) -> float:
    """Root of the mean square of `difference`, in levels: counts a few large differences for more than many small."""
    return float(np.sqrt(np.square(difference(golden, ours), dtype=np.float64).mean()))


def pixel_max(golden: Array, ours: Array) -> float:
    """Largest difference of any channel of any pixel, in levels (0..255)."""
    return float(_difference(golden, ours).max())


def pixel_levels(golden: Array, ours: Array) -> list[Metric]:
    """The cheap part of `pixels`: `pixel_max` and `pixel_mean`, in levels (0..255) over all frames."""
    difference = _difference(golden, ours)
    per_frame = difference.reshape(len(difference), -1).max(axis=1)
    worst = int(per_frame.argmax())
    note = _frame(worst, len(golden)) if per_frame[worst] else ""
    return [
        Metric(name="pixel_max", value=float(per_frame[worst]), unit="/255", note=note),
        Metric(name="pixel_mean", value=float(difference.mean(dtype=np.float64)), unit="/255"),
    ]


def pixels(golden: Array, ours: Array) -> list[Metric]:
    """Every metric on pictures: `pixel_levels`, `psnr` (dB), `ssim`, `flip`, `lpips` and, of a video, `temporal`.

    A frame takes about 20 ms at 128x128 and 1.4 s at 1024x1024, most of it FLIP's; one without a difference is free.
    """
    metrics = pixel_levels(golden, ours)
    metrics += _psnr(golden, ours)
    metrics += _per_frame("ssim", "higher", _ssim, golden, ours, _lacks("skimage") or _too_small("SSIM", 3, golden))
    metrics += _per_frame("flip", "lower", _flip, golden, ours, _lacks("flip_evaluator"))
    metrics += _per_frame("lpips", "lower", _lpips, golden, ours, _no_lpips(golden))
    return metrics + (_temporal(golden, ours) if len(golden) > 1 else [])


def _psnr(golden: Array, ours: Array) -> list[Metric]:
    """The worst frame, and for a video `psnr_mean`: of the squared error pooled over frames, because a mean of
    decibels is infinite as soon as one frame is identical."""
    per_frame = np.square(_difference(golden, ours), dtype=np.float64).reshape(len(golden), -1).mean(axis=1)
    worst = int(per_frame.argmax())
    metrics = [("psnr", per_frame[worst], _frame(worst, len(golden)))]
    if len(golden) > 1:
        metrics.append(("psnr_mean", per_frame.mean(), ""))
    return [
        Metric(
            name=name,
            value=float(10 * np.log10(255**2 / error)) if error else None,
            better="higher",
            unit="dB",
            note=note if error else IDENTICAL,
        )
        for name, error, note in metrics
    ]


def _per_frame(
    name: str,
    better: Better,
    measure: Callable[[Array, Array], float],
    golden: Array,
    ours: Array,
    why_not: str = "",
) -> list[Metric]:
    """Worst and, for a video, mean of `measure` over frames; a frame without a difference is not measured, since
    its value is known."""
    if why_not:
        return [Metric(name=name, value=None, better=better, note=f"{NOT_EVALUATED}: {why_not}")]
    perfect = 1.0 if better == "higher" else 0.0
    values = [perfect if np.array_equal(a, b) else measure(a, b) for a, b in zip(golden, ours, strict=True)]
    worst = int(np.argmin(values) if better == "higher" else np.argmax(values))
    note = _frame(worst, len(values)) if values[worst] != perfect else ""
    metrics = [Metric(name=name, value=values[worst], better=better, note=note)]
    if len(values) > 1:
        metrics.append(Metric(name=f"{name}_mean", value=float(np.mean(values)), better=better))
    return metrics


def _ssim(golden: Array, ours: Array) -> float:
    from skimage.metrics import structural_similarity

    window = min(SSIM_WINDOW, *golden.shape[:2])
    window -= 1 - window % 2
    return float(structural_similarity(golden, ours, win_size=window, channel_axis=-1, data_range=255))


def _flip(golden: Array, ours: Array) -> float:
    """Mean of NVIDIA's LDR-FLIP at its default distance (67 pixels a degree): 0 is equal, 1 the largest."""
    from flip_evaluator import evaluate

    scaled = [np.ascontiguousarray(picture, dtype=np.float32) / 255 for picture in (golden, ours)]
    _, mean, _ = evaluate(*scaled, "LDR", applyMagma=False)
    return float(mean)


def _lpips(golden: Array, ours: Array) -> float:
    import torch

    with torch.inference_mode():
        pair = [torch.from_numpy(picture.astype(np.float32) / 127.5 - 1) for picture in (golden, ours)]
        return float(_lpips_network()(*(picture.permute(2, 0, 1)[None] for picture in pair)))


@lru_cache(maxsize=1)
def _lpips_network() -> "torch.nn.Module":
    import warnings

    import lpips

    with warnings.catch_warnings():  # lpips 0.1.4 still uses torchvision's old `pretrained=`
        warnings.simplefilter("ignore", UserWarning)
        return lpips.LPIPS(net="alex", verbose=False)


def _no_lpips(golden: Array) -> str:
    """Why LPIPS cannot be measured here, "" if it can. Looks before it builds: building would download."""
    if lacks := _lacks("lpips"):
        return lacks
    import torch
    from torchvision.models import AlexNet_Weights

    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name
    return _too_small("LPIPS", LPIPS_MIN_SIDE, golden) if weights.is_file() else "pretrained weights not present"


def _lacks(module: str) -> str:
    """Why nothing is measured with a module of the extra `check`, "" if it is there. (Where a verdict could depend on
    it, the extra was asked for before: `lora-drift verify` only tells these numbers.)"""
    return "" if find_spec(module) else "not installed (pip install 'lora-drift[check]')"


def _too_small(name: str, side: int, golden: Array) -> str:
    height, width = golden.shape[1:3]
    return "" if min(height, width) >= side else f"{name} needs {side} pixels a side, this is {width}x{height}"


def _temporal(golden: Array, ours: Array) -> list[Metric]:
    """Largest difference between the two videos' changes from frame to frame, in levels (0..510): sees a flicker
    that each frame alone would hide."""
    changes = [np.diff(video.astype(np.int16), axis=0) for video in (golden, ours)]
    return [Metric(name="temporal", value=float(np.abs(changes[1] - changes[0]).max()), unit="/255")]


def _difference(golden: Array, ours: Array) -> Array:
    """`difference` of two uint8 [frames, height, width, 3].

    Raises:
        ValueError: that is not what they are.
    """
    _check_shapes(golden, ours)
    for side, picture in (("golden", golden), ("this run", ours)):
        if picture.dtype != np.uint8 or picture.ndim != 4 or picture.shape[-1] != 3 or not picture.size:
            raise ValueError(
                f"pictures are uint8 [frames, height, width, 3]; {side} is {picture.dtype} {picture.shape}"
            )
    return difference(golden, ours)


def _check_latents(golden: Array, ours: Array) -> None:
    _check_shapes(golden, ours)
    for side, values in (("golden", golden), ("this run", ours)):
        if bad := int(np.count_nonzero(~np.isfinite(values))):
            raise ValueError(f"the latents of {side} have {bad} of {values.size} values that are NaN or infinite")


def _check_shapes(golden: Array, ours: Array) -> None:
    if golden.shape != ours.shape:
        raise ValueError(f"the shapes differ: golden {golden.shape}, this run {ours.shape}")


def _frame(index: int, count: int) -> str:
    return f"frame {index + 1} of {count}" if count > 1 else ""
