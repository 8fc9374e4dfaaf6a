"""The command line as its users meet it: pictures with receipts, and every wrong request explained in one paragraph."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from lora_drift.harness import tags
from lora_drift.harness.check.cases import ASSETS
from lora_drift.harness.check.results import Result as DriftResult
from lora_drift.harness.check.results import Verdict, read
from lora_drift.harness.cli.main import app
from lora_drift.harness.minihub import factory
from lora_drift.pipelines import MODELS, Pipeline, RequestError

LoraOf = Callable[[str], Path]


def lora_drift(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def sample(*args: object, model: str = "sd15", prompt: str = "a fox", side: object = 64, output: object) -> Result:
    size = ("--width", side, "--height", 64, "--steps", 2)
    return lora_drift("sample", "--mini", "-m", model, "-p", prompt, *size, "-o", output, *args)


# ------------------------------------------------------------------------------------------------------- information


def test_help_does_not_wait_for_heavy_libraries() -> None:
    code = (
        "import sys; sys.argv = ['lora-drift', '--help']\n"
        "from lora_drift.harness.cli.main import main\n"
        "try: main()\n"
        "finally: print('LOADED', *{'torch', 'diffusers', 'transformers', 'numpy', 'pandas'} & set(sys.modules))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1  # 0.25 s on an idle machine
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]
    assert all(command in done.stdout for command in ("sample", "check", "report", "models", "tolerances", "minihub"))


def test_models_as_json_is_the_whole_table() -> None:
    found = json.loads(lora_drift("models", "--json").stdout)
    assert list(found) == list(MODELS)
    assert all(set(row) == {field.name for field in fields(MODELS[model])} for model, row in found.items())
    assert found["flux"]["guidance_scale"] == MODELS["flux"].guidance_scale


def test_models_as_a_table_has_a_line_for_each() -> None:
    lines = lora_drift("models").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(MODELS)


def test_the_mini_hub_is_found_and_verified() -> None:
    assert lora_drift("minihub", "path").stdout.strip() == str(factory.default_home())
    verified = lora_drift("minihub", "verify")
    assert (verified.exit_code, verified.stdout) == (0, f"{factory.verify()} files are as the manifest says\n")


# ------------------------------------------------------------------------------------------------------------ sample


def test_a_sample_is_a_picture_and_its_receipt_twice_the_same(tmp_path: Path, lora_of: LoraOf) -> None:
    written = []
    for name in ("first", "second"):
        output = tmp_path / name / "out.png"
        output.parent.mkdir()
        done = sample("--lora", lora_of("sd15/lora"), "--multiplier", 0.8, "--seed", 7, output=output)
        assert done.exit_code == 0, done.stderr
        assert sorted(path.name for path in output.parent.iterdir()) == ["out.png", "out.png.json"]
        written.append((output.read_bytes(), output.with_name("out.png.json").read_bytes()))
    assert written[0] == written[1]
    with Image.open(tmp_path / "first" / "out.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
    receipt = json.loads(written[0][1])
    assert receipt["settings"]["seed"] == 7
    assert list(receipt["lora"]["files"]) == [lora_of("sd15/lora").name]
    assert receipt["lora"]["applied"] == receipt["lora"]["keys"] == 144
    assert receipt["verified_by"]["case"] == "sd15/lora"


def test_a_drawn_seed_is_in_the_receipt(tmp_path: Path) -> None:
    shown = json.loads(sample("--seed", -1, "--json", output=tmp_path / "drawn.png").stdout)
    seed = shown["settings"]["seed"]
    assert shown == json.loads((tmp_path / "drawn.png.json").read_text())
    sample("--seed", seed, output=tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "drawn.png").read_bytes()


def test_another_base_of_the_same_layout_is_not_vouched_for(tmp_path: Path) -> None:
    folder = factory.snapshot(factory.default_home(), MODELS["sd15"].base)
    for name, options in {"hub.png": (), "folder.png": ("--base", folder)}.items():
        assert sample(*options, output=tmp_path / name).exit_code == 0
    hub, base = (json.loads((tmp_path / f"{name}.png.json").read_text()) for name in ("hub", "folder"))
    assert hub["pixels_sha256"] == base["pixels_sha256"]
    assert (hub["verified_by"]["case"], base["verified_by"]["case"]) == ("sd15/base", None)
    assert "nothing vouches for another base model" in base["verified_by"]["why"]


def test_a_matroska_video_holds_the_frames_losslessly(tmp_path: Path, pipeline_of: Callable[[str], Pipeline]) -> None:
    output = tmp_path / "out.mkv"
    done = sample("--frames", 5, "--fps", 8, model="wan21_1b", output=output)
    assert done.exit_code == 0, done.stderr
    frames = pipeline_of("wan21_1b").sample("a fox", width=64, height=64, steps=2, num_frames=5).frames
    reader = imageio_ffmpeg.read_frames(str(output))
    assert next(reader)["fps"] == 8
    decoded = [np.frombuffer(frame, np.uint8).reshape(64, 64, 3) for frame in reader]
    assert np.array_equal(np.stack(decoded), np.stack([np.asarray(frame) for frame in frames]))


# ---------------------------------------------------------------------------------------------------- wrong requests


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, lora_of: LoraOf) -> Path:
    """A folder of files that are of no use."""
    folder = tmp_path_factory.mktemp("damaged")
    whole = lora_of("sd15/lora")
    (folder / "truncated.safetensors").write_bytes(whole.read_bytes()[:5000])
    tensors = load_file(whole)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, folder / "diverged.safetensors")
    Image.new("RGB", (40, 40)).save(folder / "small.png")
    return folder


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a LoRA of another model": ({"args": ("--lora", "FLUX")}, "Is it a LoRA for another model?"),
    "a truncated LoRA": ({"args": ("--lora", "TRUNCATED")}, "It may be truncated or a web page"),
    "no such LoRA": ({"args": ("--lora", "nowhere.safetensors")}, "nowhere.safetensors: no such LoRA file"),
    "two LoRAs": ({"args": ("--lora", "SD15", "--lora", "SD15")}, "--lora: give one FILE"),
    "a LoRA for an expert": ({"args": ("--lora", "high=SD15")}, "sd15 has no expert 'high'"),
    "an unknown model": ({"model": "sd16"}, "unknown model 'sd16'; did you mean sd15? the models are: sd15, sdxl"),
    "a refused size": ({"model": "wan21_1b", "side": 104, "output": "out.mkv"}, "use 96x64 or 112x64"),
    "no such control image": (
        {"model": "flux_kontext", "args": ("--control", "nowhere.png")},
        "nowhere.png: no such file",
    ),
    "a control image": ({"args": ("--control", "TRUNCATED")}, "sd15 takes none"),
    "a base not on the hub": ({"args": ("--base", "no/such")}, "base 'no/such': found no unet/config.json there"),
    "a base not on disk": ({"args": ("--base", "./no such folder")}, "found no unet/config.json there"),
    "a base of another kind": ({"args": ("--base", MODELS["flux"].base)}, "is a FluxPipeline, but sd15"),
    "a base of a near kind": ({"args": ("--base", MODELS["sdxl"].base)}, f"base '{MODELS['sdxl'].base}'"),
    "an unknown suffix": ({"output": "out.bmp"}, "use .jpeg, .jpg, .png, .webp"),
    "a picture as video": ({"output": "out.mkv"}, "cannot write one picture as .mkv"),
    "a video as picture": ({"model": "wan21_1b", "args": ("--frames", 5)}, "cannot write 5 frames as .png"),
    "no such folder": ({"output": "nowhere/out.png"}, "does not exist; create it first"),
    "a bad prompt flag": ({"prompt": "a fox --w wide"}, "prompt flag --w: 'wide' is not an int"),
    "too many steps": ({"model": "flux", "prompt": "a fox --steps 1001"}, "steps 1001: give 1 to 1000"),
    "more steps than timesteps": ({"prompt": "a fox --steps 1000"}, "steps 1000: give 1 to 999"),
    "too few steps": ({"model": "qwen_image", "prompt": "a fox --steps 1"}, "steps 1: give 2 to 1000"),
    "no number": ({"prompt": "a fox --m nan"}, "multiplier nan: give a number"),
    "a LoRA that diverged": ({"args": ("--lora", "DIVERGED")}, "holds NaN or infinity"),
    "a control image for another slot": (
        {"model": "flex2", "args": ("--control", "WIDE")},
        "does not fit it",
    ),
    "a reference picture that is too small": (
        {"model": "flux2_klein_4b", "args": ("--control", "SMALL")},
        "FLUX.2 takes pictures of at least 64 pixels",
    ),
    "a picture of too many tokens": (
        {"model": "hidream_e1", "prompt": "a fox --w 4096", "args": ("--control", "SMALL")},
        "choose at most",
    ),
    "frames of a picture": ({"args": ("--frames", 5)}, "frames 5: sd15 makes pictures"),
    "an unknown mode": ({"args": ("--lora-mode", "fused")}, "use merged or live"),
    "an unknown dtype": ({"args": ("--dtype", "float16")}, "use float32 or bfloat16"),
    "an unknown device": ({"args": ("--device", "gpu")}, "--device gpu: not usable here"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_ends_in_one_paragraph_and_leaves_nothing(
    wrong: str, tmp_path: Path, damaged: Path, lora_of: LoraOf
) -> None:
    request, cause = WRONG[wrong]
    files = {
        "FLUX": lora_of("flux/lora"),
        "SD15": lora_of("sd15/lora"),
        "TRUNCATED": damaged / "truncated.safetensors",
        "DIVERGED": damaged / "diverged.safetensors",
        "SMALL": damaged / "small.png",
        "WIDE": ASSETS / "wide.png",
    }
    fields = {"output": "out.png", **request}
    args = [re.sub("[A-Z0-9]{4,}$", lambda name: str(files[name[0]]), str(arg)) for arg in fields.pop("args", ())]
    done = sample(*args, **{**fields, "output": tmp_path / fields["output"]})
    assert (done.exit_code, done.stdout) == (2, ""), repr(done.exception)
    paragraph = done.stderr.strip()
    assert paragraph.startswith("error: ")
    assert "\n" not in paragraph
    assert cause in paragraph
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.webp"])
def test_a_full_disk_leaves_no_part_of_a_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_image: Image.Image, path: Path, *_args: Any, **_options: Any) -> None:
        Path(path).write_bytes(b"a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    done = sample(output=tmp_path / name)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: output {tmp_path / name}: could not be written (No space left on device)")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_cost_the_picture_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.png"
    sample(output=output)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with file_size_limit(1000):
        assert sample("--seed", 1, output=output).exit_code == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files that this process and its children write cannot grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["out.mkv", "out.mp4", "out.webp"])
def test_a_video_that_could_not_be_written_whole_is_not_kept(
    name: str, tmp_path: Path, pipeline_of: Callable[[str], Pipeline]
) -> None:
    output = pipeline_of("wan21_1b").sample("a fox", width=64, height=64, steps=2, num_frames=5)
    with file_size_limit(4000), pytest.raises(RequestError, match="could not be written"):
        output.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_receipt_that_could_not_be_written_takes_its_picture_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        done = sample(output=tmp_path / "out.png")
    assert done.exit_code == 2
    assert "nothing was left behind" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- check


def test_check_of_a_matching_case_shows_it_and_exits_with_0(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = lora_drift("check", "--case", "sd15/base", "--no-report", "--json", tmp_path / "results.jsonl")
    assert done.exit_code == 0, done.stderr + capfd.readouterr().out
    (row,) = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("sd15/base")]
    assert row[:2] == ["sd15/base", "match"]
    assert "4/4 caught" in " ".join(row)
    assert "1 match" in done.stdout.splitlines()
    assert [result.verdict for result in read(tmp_path / "results.jsonl")] == ["match"]


def finished(verdict: Verdict) -> DriftResult:
    return DriftResult(
        case="sd15/base", model="sd15", tag="v0", tier="mini", device="cpu", dtype="float32", verdict=verdict,
        message="" if verdict == "match" else f"why it is {verdict}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("results", "pytest_exit", "ours"),
    [
        ([finished("known")], 0, 0),
        ([finished("missing")], 1, 1),
        ([finished("drift")], 1, 1),
        ([finished("match")], 1, 1),
        ([], 0, 1),
        ([finished("match")], 3, 3),
        ([], 4, 4),
    ],
    ids=["known", "missing", "drift", "a failure without a result", "no result", "a crash", "a wrong option"],
)
def test_check_exits_with_0_only_when_every_case_ran_and_passed(
    results: list[DriftResult], pytest_exit: int, ours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended:
        """A pytest that has written these results and ended."""

        def __init__(self, command: list[str], **_options: Any) -> None:
            file = Path(command[command.index("--drift-json") + 1])
            file.write_text("".join(result.model_dump_json() + "\n" for result in results))

        def wait(self, **_options: Any) -> int:
            return pytest_exit

    monkeypatch.setattr(subprocess, "Popen", Ended)
    done = lora_drift("check", "--case", "sd15/base", "--no-report")
    assert done.exit_code == ours
    for result in results:
        assert f"1 {result.verdict}" in done.stdout.splitlines()
        assert result.message in done.stdout


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        (("--case", "sd15/nothing"), "no such case or model: sd15/nothing; there are sd15/apostrophe"),
        (("--model", "sd16"), "no such case or model: sd16"),
        (("--case", "full/flux"), "cases/full are for the real weights on a GPU; add --device cuda"),
        (("--case", "sd15/base", "--model", "flux"), "no case belongs to both"),
        (("--tag", "v0.0.0"), f"unknown tag 'v0.0.0'; tags.yaml knows {tags.rows()[0].tag}"),
    ],
)
def test_check_of_something_unknown_runs_nothing(args: tuple[str, ...], cause: str) -> None:
    done = lora_drift("check", *args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert cause in done.stderr


def test_a_report_needs_results(tmp_path: Path) -> None:
    assert lora_drift("report", tmp_path / "nowhere.jsonl").exit_code == 2
    (tmp_path / "empty.jsonl").touch()
    done = lora_drift("report", tmp_path / "empty.jsonl")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "holds no results" in done.stderr
