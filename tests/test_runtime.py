"""What `load` is told reaches the base model, and what it is not told is the trainer's."""

import pytest

from lora_drift.pipelines import RequestError, load
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.runtime import Base
from lora_drift.pipelines.spec import RESIZE_ORDER, TOOLKITS, noise_stream_at


def told(base: Base) -> tuple[object, ...]:
    return (base.repo, base.device, base.dtype, base.noise_stream, base.resize_order, base.vae_noise, base.offload,
            base.profile, base.as_intended, base.quantization)  # fmt: skip


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("cuda", "bfloat16"), ("mps", "bfloat16")])
def test_what_is_not_told_is_the_trainers(device: str, dtype: str) -> None:
    pipeline = load("wan22_14b_i2v", device=device)
    stream = noise_stream_at(TOOLKITS[-1])
    assert told(pipeline.base) == (pipeline.spec.base, device, dtype, stream, RESIZE_ORDER, "device", False,
                                   "reference", False, Quantization())  # fmt: skip
    assert pipeline.spec.toolkit == TOOLKITS[-1] and pipeline.lora is None and pipeline.mode == "merged"
    assert pipeline.usual_mode == pipeline.spec.lora_mode and pipeline.applied_mode is None


def test_what_is_told_reaches_the_base() -> None:
    quantized = Quantization(quantize=True)
    other = {"torch-2.11": "torch-2.13", "torch-2.13": "torch-2.11"}[noise_stream_at("0.7.24")]
    pipeline = load(
        "qwen_image_edit", base="org/other", device="cuda:1", dtype="float32", toolkit="0.7.24", offload=True,
        noise_stream=other, resize_order="pillow-12", vae_noise="cpu", quantization=quantized, as_intended=True,
    )  # fmt: skip
    assert told(pipeline.base) == ("org/other", "cuda:1", "float32", other, "pillow-12", "cpu", True, "reference",
                                   True, quantized)  # fmt: skip
    assert pipeline.spec.toolkit == "0.7.24" and pipeline.usual_mode == "live"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise_stream": "torch-1"}, "noise_stream 'torch-1': use torch-2.11 or torch-2.13"),
        ({"resize_order": "pillow-1"}, "resize_order 'pillow-1': use pillow-12 or pillow-13"),
        ({"vae_noise": "gpu"}, "vae_noise 'gpu': use device or cpu"),
        ({"dtype": "float16"}, "dtype 'float16': use float32 or bfloat16"),
        ({"toolkit": "0.1"}, "unknown trainer version '0.1'"),
    ],
)
def test_what_there_is_not_is_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(RequestError) as error:
        load("sd15", **options)  # type: ignore[arg-type]
    assert words in str(error.value)


def test_a_pipeline_without_a_file_is_refused_a_lora() -> None:
    with pytest.raises(RequestError, match="needs a file: path, or high and low"):
        load("sd15").with_lora()
    with pytest.raises(RequestError, match="the fields are: prompt, negative, width"):
        load("sd15").sample("a fox", wdith=64)
