"""Control images are resized as either Pillow did, on any Pillow."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_drift import pipelines
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import resizing
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.spec import RESIZE_ORDERS, ResizeOrder, resize_order_of

HERE = Path(__file__).parent
record = SimpleNamespace(**runpy.run_path(str(HERE / "record_resizes.py")))
MADE: dict[ResizeOrder, dict[str, str]] = json.loads((HERE / "resizes.json").read_text(encoding="utf-8"))
sides = st.integers(1, 80)
sizes = st.tuples(sides, sides)


@pytest.mark.parametrize("order", RESIZE_ORDERS)
def test_either_order_gives_what_the_pillow_of_its_name_made(order: ResizeOrder) -> None:
    before = Image.Image.resize
    with resizing.in_order(order):
        assert record.resizes() == MADE[order]
    assert Image.Image.resize is before
    assert MADE["pillow-12"] != MADE["pillow-13"]


@given(sizes, sizes, st.sampled_from(record.FILTERS), st.sampled_from((*record.MODES, "P")))
def test_the_order_of_the_pillow_at_hand_changes_nothing(
    size: tuple[int, int], wanted: tuple[int, int], name: str, mode: str
) -> None:
    image, resample = record.picture(mode, size), Image.Resampling[name]
    plain = [image.resize(wanted, resample), image.resize(wanted, resample, box=(0, 0, *size))]
    with resizing.in_order(resize_order_of(PIL.__version__)):
        ours = [image.resize(wanted, resample), image.resize(wanted, resample, box=(0, 0, *size))]
    assert [picture.tobytes() for picture in ours] == [picture.tobytes() for picture in plain]


def test_the_order_decides_the_picture_is_in_the_receipt_and_leaves_nothing_behind() -> None:
    newer, older = (pipelines.load("flux_kontext", resize_order=order) for order in ("pillow-13", "pillow-12"))
    control = [str(ROOT / "cases/assets/tall.png")]

    def render(pipeline: pipelines.Pipeline) -> tuple[str, str]:
        receipt = pipeline.sample("a fox", width=128, height=128, steps=2, seed=3, control=control).receipt
        return receipt["pixels_sha256"], receipt["resize_order"]

    first, second, third = render(newer), render(older), render(newer)
    assert first == third
    assert first[0] != second[0]
    assert (first[1], second[1]) == ("pillow-13", "pillow-12")


def test_an_unknown_order_is_refused_and_without_control_images_none_is_named() -> None:
    with pytest.raises(RequestError, match="resize_order 'pillow-9': use pillow-12 or pillow-13"):
        pipelines.load("flux_kontext", resize_order="pillow-9")
    assert "resize_order" not in pipelines.load("sd15").sample("a fox", width=64, height=64, steps=1).receipt


def test_an_order_holds_inside_its_block_and_the_one_around_it_comes_back() -> None:
    assert resizing._order.get() is None
    with resizing.in_order("pillow-12"):
        with resizing.in_order("pillow-13"):
            assert resizing._order.get() == "pillow-13"
        assert resizing._order.get() == "pillow-12"
    assert resizing._order.get() is None
    picture = record.picture("RGB", (9, 7))
    assert picture.resize((4, 3)).size == (4, 3)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "1"])
def test_what_pillow_takes_apart_itself_is_resized_as_by_the_pillow_at_hand(mode: str) -> None:
    picture = record.picture("RGBA", (40, 37)).convert(mode)
    plain = picture.resize((11, 5), Image.Resampling.BICUBIC)
    with resizing.in_order(resize_order_of(PIL.__version__)):
        assert picture.resize((11, 5), Image.Resampling.BICUBIC).tobytes() == plain.tobytes()
