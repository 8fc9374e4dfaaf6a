"""Profiles: the reference's pictures but for rounding, LoRAs switched without the compiler, and no traces."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters
from typer.testing import CliRunner, Result

from lora_drift import pipelines
from lora_drift.harness.check.results import read
from lora_drift.harness.cli.main import app
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import MODELS, Output, Pipeline, RequestError, fp8_linear
from lora_drift.pipelines.profiles import FAST
from lora_drift.pipelines.quantize import Quantization

SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 3}
LONG = "a fox and a hound in a house that is made of stone and of wood, at night, under the moon, in the snow"


def sample(profile: str, model: str, output: Path) -> Result:
    size = ("--width", "64", "--height", "64", "--steps", "2")
    return lora_drift("sample", "--mini", "-m", model, "-p", "a fox", *size, "--profile", profile, "-o", str(output))


def lora_drift(*args: str) -> Result:
    return CliRunner().invoke(app, args)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything but generated code, which takes half a minute a model: what is compiled, and how often."""
    torch._dynamo.reset()
    counters.clear()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic, **_: compile(f, dynamic=dynamic, backend="aot_eager"))
    yield
    torch._dynamo.reset()


@pytest.fixture
def small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Miniatures have no others."""
    monkeypatch.setattr(fp8_linear, "LEAST", 16)


def levels(output: Output) -> np.ndarray:
    return np.stack([np.asarray(frame.convert("RGB")) for frame in output.frames]).astype(int)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("model", ["flux", "sd15", "flux2_klein_4b", "qwen_image", "wan21_1b"])
@pytest.mark.usefixtures("traced")
def test_another_prompt_or_lora_is_not_compiled_again(
    model: str, pipeline_of: Callable[[str], Pipeline], lora_of: Callable[[str], Path]
) -> None:
    reference, fast = pipeline_of(model), pipelines.load(model, profile="compiled")
    pairs = [(p, p.with_lora(lora_of(f"{model}/lora"), mode="merged")) for p in (reference, fast)]
    size = SMALL | ({"num_frames": 5} if MODELS[model].kind == "video" else {})
    compiled = []
    for prompt, lora, seed in [("a fox", 0, 1), ("a fox", 1, 1), (LONG, 0, 2), ("a fox", 1, 3), ("a fox", 0, 1)]:
        theirs, ours = (levels(pair[lora].sample(prompt, seed=seed, **size)) for pair in pairs)
        assert abs(theirs - ours).max() <= 1
        compiled.append(graphs())
    assert compiled[0] > 0
    assert len(set(compiled)) == 1
    assert not counters["graph_break"]


OTHERS = ("flex2", "chroma", "flux2_klein_4b", "qwen_image", "ltx2")
EIGHT = ["flux", "zimage_turbo", "wan21_1b", *(pytest.param(model, marks=pytest.mark.slow) for model in OTHERS)]


@pytest.mark.parametrize("model", EIGHT)
@pytest.mark.usefixtures("traced", "small_layers")
def test_in_8_bits_another_lora_shows_and_is_not_compiled_again(
    model: str, pipeline_of: Callable[[str], Pipeline], lora_of: Callable[[str], Path]
) -> None:
    reference, fast = pipeline_of(model), pipelines.load(model, profile="fast")
    pairs = [(p, p.with_lora(lora_of(f"{model}/lora"), mode="merged")) for p in (reference, fast)]
    size = SMALL | ({"num_frames": 9} if MODELS[model].kind == "video" else {})
    seen, compiled = [], []
    for lora in (0, 1, 0, 1):
        seen.append([levels(pair[lora].sample("a fox", seed=1, **size)) for pair in pairs])
        compiled.append(graphs())
    (theirs, ours), (their_lora, our_lora), (_, ours_again), (_, our_lora_again) = seen
    assert (ours != theirs).any(), "nothing was in 8 bits"
    moved = abs(their_lora - theirs).mean()
    assert max(abs(ours - theirs).mean(), abs(our_lora - their_lora).mean()) < moved / 3
    assert (ours_again == ours).all() and (our_lora_again == our_lora).all()
    assert compiled[0] > 0 and len(set(compiled)) == 1
    assert not counters["graph_break"]


@pytest.mark.usefixtures("traced")
def test_a_fast_render_leaves_no_trace_in_the_process(pipeline_of: Callable[[str], Pipeline]) -> None:
    def state() -> tuple[Any, ...]:
        cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
        return (torch._C._get_sdp_priority_order(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
                cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled(), cudnn.allow_tf32, cudnn.benchmark,
                torch._dynamo.config.recompile_limit, torch.get_float32_matmul_precision())  # fmt: skip

    reference = pipeline_of("sd15")
    before, then = levels(reference.sample("a fox", **SMALL)), state()
    pipelines.load("sd15", profile="fast").sample("a fox", **SMALL)
    assert state() == then
    assert (levels(reference.sample("a fox", **SMALL)) == before).all()


@pytest.mark.usefixtures("traced")
def test_a_receipt_is_replayed_in_its_profile(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    assert sample("fast", "sd15", path).exit_code == 0
    again = lora_drift("replay", str(path))
    assert again.exit_code == 0, again.output
    assert again.output.strip() == "the pixels are the same, bit for bit"  # and so is the profile
    receipt = json.loads(Path(f"{path}.json").read_text())
    Path(f"{path}.json").write_text(json.dumps(receipt | {"pixels_sha256": "of another process"}))
    other = lora_drift("replay", f"{path}.json")
    assert other.exit_code == 1, other.output
    assert "The profile fast promises no byte" in " ".join(other.output.split())


@pytest.mark.slow
def test_the_command_line_renders_with_generated_code(tmp_path: Path) -> None:
    pictures = {name: tmp_path / f"{name}.png" for name in ("reference", "compiled")}
    for name, path in pictures.items():
        done = sample(name, "flux", path)
        assert done.exit_code == 0, done.output
    receipts = {name: json.loads(Path(f"{path}.json").read_text()) for name, path in pictures.items()}
    assert "profile" not in receipts["reference"]
    assert receipts["reference"]["verified_by"]["case"] == "flux/base"
    assert receipts["compiled"]["profile"] == "compiled"
    said = {"case": None, "why": "nothing vouches for the profile compiled"}
    assert receipts["compiled"]["verified_by"] == said
    theirs, ours = (np.asarray(Image.open(path)).astype(int) for path in pictures.values())
    assert abs(theirs - ours).max() <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"profile": "quick"}, "use reference, compiled or fast"),
        ({"profile": "fast", "model": "hidream"}, "profile fast: hidream cannot be compiled"),
        ({"profile": "compiled", "model": "hidream"}, "profile compiled: hidream cannot be compiled"),
        ({"profile": "fast", "device": "mps"}, "the device mps does not"),
        ({"profile": "fast", "quantization": Quantization(quantize=True)}, "unquantised bases only"),
    ],
)
def test_what_has_no_fast_profile_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        pipelines.load(**{"model": "flux", **options})


def test_a_gpu_without_8_bit_products_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    capability = (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with pytest.raises(RequestError, match=r"NVIDIA A100 does not \(compute capability 8.0, and 8.9 is.*use compiled"):
        pipelines.load("flux", device="cuda", profile="fast")
    pipelines.load("flux", device="cuda", profile="compiled")
    pipelines.load("sdxl", device="cuda", profile="fast")  # which is compiled only
    capability = (9, 0)
    pipelines.load("flux", device="cuda", profile="fast")


@pytest.mark.usefixtures("traced", "small_layers")
def test_a_lora_that_breaks_off_leaves_nothing_in_the_8_bit_weights(
    monkeypatch: pytest.MonkeyPatch, lora_of: Callable[[str], Path]
) -> None:
    fast = pipelines.load("flux", profile="fast")
    before = levels(fast.sample("a fox", seed=1, **SMALL))
    with_lora = fast.with_lora(lora_of("flux/lora"), mode="merged")
    after = levels(with_lora.sample("a fox", seed=1, **SMALL))
    with monkeypatch.context() as patched:
        patched.setattr("lora_drift.pipelines.adapter.scaled", lambda *_: torch.zeros(7, 7))  # no such shape
        with pytest.raises(RuntimeError):
            with_lora.sample("a fox", seed=1, multiplier=0.5, **SMALL)
    assert (levels(fast.sample("a fox", seed=1, **SMALL)) == before).all()
    assert (levels(with_lora.sample("a fox", seed=1, **SMALL)) == after).all()


@pytest.mark.parametrize(("case", "words"), [("flux/lora-live", "merged into the weights"), ("flex1/dora", "DoRA")])
def test_a_lora_that_is_not_merged_is_refused_before_weights_load(
    case: str, words: str, lora_of: Callable[[str], Path]
) -> None:
    model, _, name = case.partition("/")
    fast = pipelines.load(model, profile="fast")
    with pytest.raises(RequestError, match=words):
        fast.with_lora(lora_of(case), mode="live" if name == "lora-live" else None)
    assert "pipe" not in vars(fast.base)


def test_the_command_line_refuses_in_one_paragraph(tmp_path: Path) -> None:
    done = sample("fast", "hidream", tmp_path / "out.png")
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert "profile fast: hidream" in done.output


def test_every_family_is_compiled_or_named_as_one_that_is_not() -> None:
    assert {spec.family for spec in MODELS.values()} - set(FAST) == {"hidream"}


def test_cases_are_checked_in_the_profile_that_pytest_is_told(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "pytest", "cases/hidream/base.yaml", "--drift-profile=fast", "-q",
               f"--drift-json={results}", f"--drift-out={tmp_path}", "-p", "no:cacheprovider"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "hidream/base[fast]" in done.stdout
    (result,) = read(results)
    assert (result.verdict, result.environment["profile"]) == ("error", "fast")
    assert "profile fast: hidream cannot be compiled" in result.message
