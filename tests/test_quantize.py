"""Quantised bases: the trainer's arithmetic, its choice of layers, its order, and what a user is told."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from lora_drift import pipelines
from lora_drift.harness.check import cases
from lora_drift.harness.check.cases import CaseError
from lora_drift.harness.cli.main import app
from lora_drift.pipelines import Pipeline, RequestError, quantize, quantized_layers
from lora_drift.pipelines.lora import Delta, LowRank
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.quantized_layers import Packed
from lora_drift.pipelines.registry import spec_of

HERE = Path(__file__).parent
record = SimpleNamespace(**runpy.run_path(str(HERE / "record_quantized.py")))
REAL: dict[str, dict[str, str]] = json.loads((HERE / "quantized.json").read_text(encoding="utf-8"))
RECOVERY = "ostris/accuracy_recovery_adapters/qwen_image_torchao_uint3.safetensors"


@pytest.mark.parametrize("of", REAL)
def test_a_weight_becomes_what_the_trainers_library_made_of_it_to_the_bit(of: str) -> None:
    qtype, dtype = of.split()
    for size, expected in REAL[of].items():
        model = record.layer(record.matrix(tuple(map(int, size.split("x"))), dtype))
        quantized_layers.quantize(model, qtype)
        layer = model["layer"]
        assert (record.digest(layer.weight.data) if isinstance(layer, Packed) else "not quantised") == expected, size


@pytest.mark.parametrize("qtype", ["qfloat8", "float8", "uint4"])
def test_a_quantised_layer_keeps_a_byte_a_number_and_computes_with_the_numbers_that_they_stand_for(qtype: str) -> None:
    model = record.layer(record.matrix((64, 1024), "bfloat16"))
    quantized_layers.quantize(model, qtype)
    layer = model["layer"]
    assert sum(t.nbytes for t in model.state_dict().values()) < 64 * 1024 * 1.1
    x = torch.randn(2, 3, 1024, dtype=torch.bfloat16)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.allclose(layer(x).float(), plain.float(), rtol=0.02, atol=0.02)
    before = layer.packed_data.clone()
    model.to(torch.float32)  # the bytes are no numbers of some dtype
    assert (layer.packed_data.dtype, layer.weight.dtype) == (torch.uint8, torch.float32)
    assert torch.equal(layer.packed_data, before)


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(96, 64), nn.Linear(64, 128), nn.Embedding(4, 64))


def test_uint_types_leave_alone_what_their_groups_do_not_fit_and_go_on_behind_it() -> None:
    model = _model()
    quantized_layers.quantize(model, "uint4")
    assert [isinstance(layer, Packed) for layer in model] == [True, False, True, False]


@pytest.mark.parametrize(
    ("qtype", "version", "packed"),
    [
        ("qfloat8", "0.7.29", [False, True, False, False]),
        ("float8", "0.7.29", [True, True, True, False]),  # as part of the model that holds them
        ("float8", "0.10.23", [True, True, True, False]),
        ("float8", "0.10.24", [False, True, False, False]),
    ],
)
def test_what_is_excluded_by_name_stays_as_it_is_where_the_trainer_sees_each_layer_by_itself(
    qtype: str, version: str, packed: list[bool]
) -> None:
    row = spec_of("flux", version).quantizes
    assert row is not None
    model = _model()
    quantized_layers.quantize(model, qtype, exclude=["0", "2*"], layer_by_layer=row.layer_by_layer)
    assert [isinstance(layer, Packed) for layer in model] == packed


def test_newer_trainers_spare_what_their_model_classes_name() -> None:
    asked = Quantization(quantize=True, qtype="float8", exclude=("mine*",))
    spared = {version: asked.exclude_of(spec_of("wan22_5b", version)) for version in ("0.10.21", "0.10.22")}
    assert spared == {"0.10.21": (), "0.10.22": ("condition_embedder*", "proj_out*")}
    assert "t_embedder*" in asked.exclude_of(spec_of("zimage", "0.10.24"))
    assert asked.exclude_of(spec_of("zimage", "0.10.23")) == ()
    assert asked.exclude_of(spec_of("flux", "0.10.24")) == ("mine*",)


def test_restoring_a_quantised_base_after_a_live_lora_gives_its_bytes_again(lora_of: Callable[[str], Path]) -> None:
    base = pipelines.load("flux", quantization=Quantization(quantize=True))
    adapted = base.with_lora(lora_of("flux/lora"))
    assert adapted.mode == "live"

    def pixels(pipeline: Pipeline) -> bytes:
        return np.asarray(pipeline.sample("a fox", width=64, height=64, steps=2).frames[0]).tobytes()

    first, second, third = pixels(base), pixels(adapted), pixels(base)
    assert first == third
    assert first != second


def test_a_recovery_adapter_computes_in_the_models_dtype() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(64, 64).bfloat16()
    down, up = torch.randn(4, 64), torch.randn(64, 4)
    adapter = SimpleNamespace(deltas=[Delta("transformer", "layer", LowRank(down, up, 0.5))])
    quantize._with_adapter({"transformer": nn.ModuleDict({"layer": layer})}, "uint3", adapter)  # type: ignore[arg-type]
    assert isinstance(layer, Packed)
    x = torch.randn(3, 64).bfloat16()
    change = nn.functional.linear(nn.functional.linear(x, down.bfloat16()), up.bfloat16())
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias) + change * 0.5)


def test_a_receipt_counts_quantised_layers_and_names_the_adapter() -> None:
    spec = spec_of("flux")
    assert spec.quantizes is not None
    parts = {name: nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.ReLU())
             for name in (*spec.denoisers.values(), *spec.quantizes.encoders)}  # fmt: skip
    quantized_layers.quantize(parts["transformer"][0], "qfloat8")
    adapter = SimpleNamespace(paths=(Path("folder/a.safetensors"), Path("b.safetensors")), sha256=("c0", "ff"))
    asked = Quantization(quantize=True, qtype="uint3")
    said = quantize.report(SimpleNamespace(**parts), spec, asked, adapter)  # type: ignore[arg-type]
    assert said["quantized"] == {"transformer": "1 of 2 linear layers"}
    assert said["adapter"] == {"a.safetensors": "c0", "b.safetensors": "ff"} and said["qtype"] == "uint3"
    assert quantize.report(SimpleNamespace(**parts), spec, asked, None)["adapter"] == {}


@pytest.mark.parametrize(
    ("model", "quantization", "message"),
    [
        ("flux", Quantization(quantize=True, qtype="nf4"), "qtype 'nf4': use qfloat8, float8, uint2"),
        (
            "flux",
            Quantization(quantize=True, qtype="convrot8"),
            "qtype 'convrot8' is not rendered: the trainer",
        ),
        ("zimage", Quantization(quantize=True, qtype_te="int8"), "qtype_te 'int8' is not rendered: its 8-bit integers"),
        ("qwen_image", Quantization(qtype=f"uint3|{RECOVERY}"), "read with quantize only"),
        ("qwen_image", Quantization(quantize=True, qtype=f"qfloat8|{RECOVERY}"), "the trainer breaks on it"),
    ],
)
def test_what_cannot_be_quantised_is_refused_before_weights_load(
    model: str, quantization: Quantization, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        pipelines.load(model, quantization=quantization)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("nothing.safetensors", "no such file; give one, or ORG/NAME/FILE of the hub"),
        ("ostris/accuracy_recovery_adapters/none.safetensors", "neither here nor on the hub"),
        (
            "ostris/accuracy_recovery_adapters/wan22_14b_t2i_torchao_uint4.safetensors",
            r"accuracy_recovery_adapter .*: 0 of 80 keys belong to qwen_image",
        ),
    ],
)
def test_a_recovery_adapter_that_is_not_there_or_anothers_is_named_before_weights_load(
    adapter: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipelines.load(
        "qwen_image", quantization=Quantization(True, qtype="uint3", accuracy_recovery_adapter=adapter)
    )
    monkeypatch.setattr(pipeline.base.family, "load", lambda *_args: pytest.fail("weights were loaded"))
    with pytest.raises(RequestError, match=message):
        pipeline.sample("a fox")


def test_a_lora_is_not_merged_into_a_quantised_base(lora_of: Callable[[str], Path]) -> None:
    base = pipelines.load("flux", quantization=Quantization(quantize=True))
    with pytest.raises(RequestError, match="mode merged: a LoRA cannot be merged into a quantised base"):
        base.with_lora(lora_of("flux/lora"), mode="merged")


def test_where_only_the_encoder_is_quantised_the_lora_is_merged_as_ever(lora_of: Callable[[str], Path]) -> None:
    base = pipelines.load("flux", quantization=Quantization(quantize_te=True))
    assert base.with_lora(lora_of("flux/lora")).mode == "merged"


def test_a_case_with_a_merged_lora_on_a_quantised_base_is_refused(tmp_path: Path) -> None:
    text = (cases.CASES / "flux" / "quantized.yaml").read_text(encoding="utf-8")
    path = tmp_path / "flux" / "quantized.yaml"
    path.parent.mkdir()
    path.write_text(text.replace("mode: live", "mode: merged"), encoding="utf-8")
    with pytest.raises(CaseError, match=r"lora\.mode: live, where quantization\.quantize is set"):
        cases.load(path)


def test_the_command_line_quantises_and_its_receipt_says_what(tmp_path: Path, lora_of: Callable[[str], Path]) -> None:
    output = tmp_path / "out.png"
    command = ["sample", "-m", "qwen_image", "--mini", "-p", "a fox", "-o", str(output), "--width", "64", "--height",
               "64", "--steps", "2", "--lora", str(lora_of("qwen_image/lora")), "--quantize",
               "--qtype", f"uint3|{RECOVERY}"]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    receipt = json.loads(Path(f"{output}.json").read_text(encoding="utf-8"))
    said = receipt["quantization"]
    assert said["quantized"] == {"transformer": "4 of 34 linear layers", "text_encoder": "34 of 34 linear layers"}
    assert list(said["adapter"]) == ["qwen_image_torchao_uint3.safetensors"]
    assert receipt["lora"]["mode"] == "live"
    assert receipt["verified_by"]["case"] == "qwen_image/quantized-uint3"

    wrong = CliRunner().invoke(app, [*command[:-1], "int3"])
    assert wrong.exit_code == 2
    assert "qtype 'int3': use qfloat8" in wrong.output
