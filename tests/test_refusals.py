"""What is refused before anything loads says which field is wrong and what to do; and other small answers."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lora_drift.pipelines import (
    Cancelled,
    LoraError,
    Pipeline,
    RequestError,
    errors,
    hub,
    loading,
    lora,
    lora_formats,
    noise,
    output,
    profiles,
)
from lora_drift.pipelines.files import whole
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.registry import ROWS, spec_of
from lora_drift.pipelines.schedulers import OmniGen2FlowMatchEuler
from lora_drift.pipelines.settings import Request, resolve


def test_an_error_is_told_in_the_words_of_who_calls() -> None:
    error = RequestError("base x: it is gone.", "base")
    assert str(error) == f"base x: it is gone. {errors.REMEDIES['base']}"
    assert error.told({"base": "Say --base.", "": "x"}) == "base x: it is gone. Say --base."
    assert error.told({"control": "Say --control."}) == "base x: it is gone."


def test_a_file_is_written_beside_its_place_and_nothing_stays_of_one_that_failed(tmp_path: Path) -> None:
    with whole(tmp_path / "picture.png") as part:
        assert part.parent == tmp_path
        assert re.fullmatch(r"\.picture\.[0-9a-f]{8}\.part\.png", part.name)
        part.write_bytes(b"1")
    with pytest.raises(KeyError), whole(tmp_path / "picture.png") as part:
        part.write_bytes(b"2")
        raise KeyError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"picture.png": b"1"}


def test_a_size_that_the_trainer_refuses_comes_with_both_that_are_near() -> None:
    spec = spec_of("wan21_1b")
    with pytest.raises(RequestError, match=r"use 496x320 or 512x336$"):
        resolve(spec, Request("a cat", width=504, height=330))
    with pytest.raises(RequestError, match=r"use 512x320 or 512x336$"):
        resolve(spec, Request("a cat", width=512, height=330))


@pytest.mark.parametrize("model", ROWS)
def test_a_row_is_of_one_piece(model: str) -> None:
    spec = spec_of(model)
    assert spec.id == model
    assert spec.kind in ("image", "edit", "video")
    assert spec.width % spec.size_divisor == spec.height % spec.size_divisor == 0
    assert spec.guidance_scale > 0
    scheduler = loading.scheduler(spec.scheduler)
    assert type(scheduler).__name__ == spec.scheduler.name
    assert spec.scheduler.config.get("shift", 1.0) > 0


def test_a_base_is_read_from_a_folder_and_a_single_file_is_called_that(tmp_path: Path) -> None:
    spec = spec_of("flux")
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"patch_size": 7}')
    assert loading._config(spec, str(tmp_path), "transformer") == {"patch_size": 7}
    with pytest.raises(RequestError, match="no such file in that folder"):
        loading._config(spec, str(tmp_path), "vae")
    file = tmp_path / "flux.safetensors"
    file.write_bytes(b"")
    with pytest.raises(RequestError, match="it is a single file"):
        loading._config(spec, str(file), "vae")


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_errors_of_the_http_library_that_the_hub_has_are_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class HTTPError(Exception):
        pass

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(HTTPError=HTTPError))
    assert HTTPError in hub.errors()
    assert OSError in hub.errors()


def test_an_unknown_model_is_told_the_nearest_name_alone() -> None:
    with pytest.raises(RequestError) as told:
        spec_of("zimage_turb")
    assert str(told.value).count("did you mean") == 1
    assert "did you mean zimage_turbo?" in str(told.value)


@pytest.mark.parametrize(
    ("profile", "model", "quantization", "said"),
    [
        ("slow", "flux", Quantization(), "use reference, compiled or fast"),
        ("compiled", "hidream", Quantization(), "hidream cannot be compiled"),
        ("compiled", "flux", Quantization(quantize=True), "takes unquantised bases only"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(profile: str, model: str, quantization: Quantization, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        profiles.choose(profile, spec_of(model), quantization, "cpu")


def test_only_what_multiplies_in_8_bits_on_a_cpu_needs_another_torch() -> None:
    flux, sdxl = spec_of("flux"), spec_of("sdxl")
    assert profiles.choose("fast", flux, Quantization(), "cpu") == "fast"
    assert profiles.choose("reference", flux, Quantization(quantize=True), "cpu") == "reference"
    assert profiles.requirement("fast", flux, "cpu") == profiles.REQUIRES_ON_CPU != profiles.REQUIRES
    for profile, spec, device in (("fast", flux, "cuda"), ("compiled", flux, "cpu"), ("fast", sdxl, "cpu")):
        assert profiles.requirement(profile, spec, device) == profiles.REQUIRES  # type: ignore[arg-type]


def test_a_lora_of_an_expert_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"")
    with pytest.raises(LoraError, match=r"sd15 has no expert 'high'; give one file$"):
        lora.read({"high": path}, spec_of("sd15"), {}, lambda *_: [])
    with pytest.raises(LoraError, match=r"has no expert ''; give high=FILE and low=FILE$"):
        lora.read({"": path, "low": path}, spec_of("wan22_14b_t2v"), {}, lambda *_: [])


def test_the_second_factor_of_a_convolution_lies_flat_in_a_lokr_file() -> None:
    one = torch.eye(2)
    up, down = torch.randn(4, 3), torch.randn(3, 2 * 9)
    parts = {"w1": one, "w2_a": up, "w2_b": down, "alpha": torch.tensor(6.0)}
    read = lora._lokr(Path("a"), "conv", parts, lora.Target("conv"), (8, 4, 3, 3))
    assert read.scale == 2.0
    assert torch.equal(read.w2, (up @ down).reshape(4, 2, 3, 3))


def test_a_key_that_no_format_has_is_kept_whole() -> None:
    assert lora_formats.split("nobody.knows.this", {}) == lora_formats.Part("nobody.knows.this", "")


def test_what_names_no_generator_draws_from_one_of_the_devices_own_that_goes_on() -> None:
    generator = noise.seeded(5, "torch-2.11")
    own = generator.of(torch.device("cpu"))
    assert own.initial_seed() == 5
    assert own is generator.of(torch.device("cpu")) is not generator


@pytest.mark.parametrize(
    ("name", "frames", "said"),
    [("a.gif", 1, "one picture as .gif"), ("a.gif", 2, "2 frames"), ("a.png", 2, "2 frames")],
)
def test_a_suffix_that_cannot_hold_it_is_refused(tmp_path: Path, name: str, frames: int, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        output.check_path(tmp_path / name, frames)
    output.check_path(tmp_path / "a.png", 1)


def test_omnigen2_takes_as_many_steps_as_it_is_asked() -> None:
    scheduler = OmniGen2FlowMatchEuler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert scheduler.sigmas.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_steps_are_counted_from_one_and_a_receipt_says_only_what_was_asked(
    pipeline_of: Callable[[str], Pipeline], tmp_path: Path
) -> None:
    told = []

    def until_the_second(step: int, steps: int) -> bool:
        told.append((step, steps))
        return step < 2

    base = pipeline_of("sd15")
    with pytest.raises(Cancelled, match="after step 2 of 4"):
        base.sample("a cat", width=64, height=64, steps=4, on_step=until_the_second)
    assert told == [(1, 4), (2, 4)]
    made = base.sample("a cat", width=64, height=64, steps=2)
    assert "as_intended" not in made.receipt
    assert made.receipt["lora"] is None
    with Image.open(output.save(made, tmp_path / "cat.png")) as picture:
        assert json.loads(picture.info[output.RECEIPT_KEY])["model"] == "sd15"
