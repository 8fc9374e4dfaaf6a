"""What the metrics promise: nothing at equality, the expected numbers for known changes, never a silent pass."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lora_drift.harness.check import metrics
from lora_drift.harness.check.metrics import Array
from lora_drift.harness.check.results import IDENTICAL, Metric

pictures = arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(8, 20), st.integers(8, 20), st.just(3)))
latents = arrays(np.float32, array_shapes(max_side=6), elements=st.floats(-8, 8, width=32)).filter(np.any)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_name(found: list[Metric]) -> dict[str, Metric]:
    assert len({metric.name for metric in found}) == len(found)
    return {metric.name: metric for metric in found}


@settings(deadline=None)
@given(pictures)
def test_a_picture_is_at_no_distance_from_itself(picture: Array) -> None:
    found = by_name(metrics.pixels(picture, picture.copy()))
    for name in ("pixel_max", "pixel_mean", "flip", *(["temporal"] if len(picture) > 1 else [])):
        assert found[name].value == 0
    assert found["ssim"].value == 1
    assert (found["psnr"].value, found["psnr"].note) == (None, IDENTICAL)


@settings(deadline=None)
@given(latents)
def test_latents_are_at_no_distance_from_themselves(values: Array) -> None:
    found = by_name(metrics.latents(values, values.copy()))
    assert found["latents_rel_l2"].value == 0
    assert found["latents_cosine"].value == 1


@settings(deadline=None)
@given(st.data(), pictures)
def test_one_level_of_one_pixel_is_seen(data: st.DataObject, golden: Array) -> None:
    at = tuple(data.draw(st.integers(0, side - 1)) for side in golden.shape)
    ours = golden.copy()
    ours[at] = ours[at] + 1 if ours[at] < 255 else 254
    found = by_name(metrics.pixels(golden, ours))
    assert found["pixel_max"].value == metrics.pixel_max(golden, ours) == 1
    assert found["pixel_mean"].value == pytest.approx(1 / golden.size)
    assert found["psnr"].value == pytest.approx(10 * np.log10(255**2 * golden[0].size))
    if len(golden) > 1:
        assert found["pixel_max"].note == f"frame {at[0] + 1} of {len(golden)}"
        assert found["temporal"].value == 1


@settings(deadline=None)
@given(st.data(), pictures)
def test_pixel_metrics_do_not_depend_on_the_order(data: st.DataObject, a: Array) -> None:
    b = data.draw(arrays(np.uint8, a.shape))
    there, back = metrics.pixels(a, b), metrics.pixels(b, a)
    assert [(m.name, m.note) for m in there] == [(m.name, m.note) for m in back]
    for one, other in zip(there, back, strict=True):
        assert one.value == (None if other.value is None else pytest.approx(other.value, abs=1e-6))


@settings(deadline=None)
@given(latents, st.floats(0.25, 4))
def test_cosine_is_blind_to_scale_and_rel_l2_is_not(values: Array, factor: float) -> None:
    found = by_name(metrics.latents(values.astype(np.float64), values.astype(np.float64) * factor))
    assert found["latents_cosine"].value == pytest.approx(1)
    assert found["latents_rel_l2"].value == pytest.approx(abs(factor - 1))


def test_more_noise_is_worse_by_every_metric() -> None:
    golden = noise(1, 32, 32, 3) // 2
    small, large = (by_name(metrics.pixels(golden, golden + noise(1, 32, 32, 3, seed=1) % n)) for n in (4, 40))
    for name, metric in small.items():
        if metric.value is not None:
            further = large[name].value
            assert further is not None
            assert metric.value < further if metric.better == "lower" else metric.value > further, name


def test_a_video_reports_its_worst_frame_and_the_mean() -> None:
    golden = noise(4, 16, 16, 3)
    ours = golden.copy()
    ours[2] = noise(16, 16, 3, seed=1)
    found = by_name(metrics.pixels(golden, ours))
    for name in ("psnr", "ssim", "flip"):
        assert found[name].note == "frame 3 of 4"
    ssim, flip = found["ssim"].value, found["flip"].value
    assert ssim is not None and found["ssim_mean"].value == pytest.approx((3 + ssim) / 4)
    assert flip is not None and found["flip_mean"].value == pytest.approx(flip / 4)
    assert found["psnr"].value is not None
    assert found["psnr_mean"].value == pytest.approx(found["psnr"].value + 10 * np.log10(4))


def test_a_flicker_is_temporal_and_a_constant_shift_is_not() -> None:
    golden = np.full((4, 16, 16, 3), 100, np.uint8)
    flicker = golden + np.array([0, 2, 0, 2], np.uint8)[:, None, None, None]
    assert by_name(metrics.pixels(golden, flicker))["temporal"].value == 2
    assert by_name(metrics.pixels(golden, golden + np.uint8(2)))["temporal"].value == 0


def test_other_shapes_are_refused_with_both_shapes_named() -> None:
    for measure in (metrics.pixels, metrics.pixel_levels, metrics.pixel_max):
        with pytest.raises(ValueError, match=r"golden \(1, 8, 8, 3\), this run \(1, 8, 16, 3\)"):
            measure(noise(1, 8, 8, 3), noise(1, 8, 16, 3))
    with pytest.raises(ValueError, match=r"golden \(4,\), this run \(5,\)"):
        metrics.latents(np.ones(4, np.float32), np.ones(5, np.float32))


def test_what_is_not_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"this run is float32 \(1, 8, 8, 3\)"):
        metrics.pixels(noise(1, 8, 8, 3), noise(1, 8, 8, 3).astype(np.float32))
    with pytest.raises(ValueError, match=r"golden is uint8 \(8, 8, 3\)"):
        metrics.pixels(noise(8, 8, 3), noise(8, 8, 3))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_latents_that_are_not_finite_are_an_error(bad: float) -> None:
    """As JSON they would be null, and null would read as a metric that nobody judges."""
    ours = np.ones(4, np.float32)
    ours[1] = bad
    with pytest.raises(ValueError, match="this run have 1 of 4 values that are NaN or infinite"):
        metrics.latents(np.ones(4, np.float32), ours)


def test_latents_of_zeros_have_no_scale() -> None:
    with pytest.raises(ValueError, match="all zero"):
        metrics.latents(np.zeros(4, np.float32), np.ones(4, np.float32))
    found = by_name(metrics.latents(np.ones(4, np.float32), np.zeros(4, np.float32)))
    assert (found["latents_rel_l2"].value, found["latents_cosine"].value) == (1, 0)


def test_every_metric_survives_json() -> None:
    golden, ours = noise(2, 16, 16, 3), noise(2, 16, 16, 3, seed=1)
    found = metrics.pixels(golden, ours) + metrics.pixels(golden, golden) + metrics.latents(golden / 255, ours / 255)
    for metric in found:
        json.loads(metric.model_dump_json(), parse_constant=pytest.fail)
        assert Metric.model_validate_json(metric.model_dump_json()) == metric


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty weights folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metrics._lpips_network.cache_clear()
    yield tmp_path / "hub" / "checkpoints"
    metrics._lpips_network.cache_clear()


def test_lpips_without_weights_is_not_evaluated(hub: Path) -> None:
    lpips = by_name(metrics.pixels(noise(1, 64, 64, 3), noise(1, 64, 64, 3)))["lpips"]
    assert (lpips.value, lpips.note) == (None, "not evaluated: pretrained weights not present")
    assert not hub.exists(), "nothing was downloaded"


def test_lpips_with_weights_is_measured(hub: Path) -> None:
    import torch
    from torchvision.models import AlexNet_Weights, alexnet

    hub.mkdir(parents=True)
    weights = hub / Path(AlexNet_Weights.IMAGENET1K_V1.url).name
    with torch.random.fork_rng():
        torch.save(alexnet(weights=None).state_dict(), weights)
    golden = noise(1, 64, 64, 3)
    try:
        same, other, tiny = (
            by_name(metrics.pixels(a, b))["lpips"]
            for a, b in ((golden, golden), (golden, 255 - golden), (golden[:, :16], golden[:, :16]))
        )
    finally:
        weights.unlink()  # 240 MB that pytest would keep
    assert same.value == 0
    assert other.value is not None and other.value > 0
    assert tiny.note == "not evaluated: LPIPS needs 31 pixels a side, this is 64x16"


def test_a_picture_too_small_for_ssim_says_so() -> None:
    ssim = by_name(metrics.pixels(noise(1, 2, 8, 3), noise(1, 2, 8, 3, seed=1)))["ssim"]
    assert (ssim.value, ssim.note) == (None, "not evaluated: SSIM needs 3 pixels a side, this is 8x2")


def test_importing_the_module_imports_nothing_heavy() -> None:
    heavy = {"torch", "skimage", "flip_evaluator", "lpips", "scipy"}
    code = "import sys, lora_drift.harness.check.metrics; print(*sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert not heavy & set(done.stdout.split())


def test_the_plain_differences_take_pictures_in_any_layout_and_refuse_what_is_none() -> None:
    golden, ours = np.array([[0, 10, 250]], np.uint8), np.array([[4, 7, 250]], np.uint8)
    assert metrics.difference(golden, ours).tolist() == metrics.difference(ours, golden).tolist() == [[4, 3, 0]]
    assert metrics.mean_difference(golden, ours) == pytest.approx(7 / 3)
    assert metrics.rms_difference(golden, ours) == pytest.approx((25 / 3) ** 0.5)
    with pytest.raises(ValueError, match="the shapes differ"):
        metrics.difference(golden, ours[:, :2])
    with pytest.raises(ValueError, match="pictures are uint8; this run is float64"):
        metrics.difference(golden, ours / 2)
