"""`lora-drift replay`: the same pixels again, or what is another."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from lora_drift.harness.cli.main import app
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines.output import RECEIPT_KEY


def lora_drift(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small render with a LoRA beside it."""
    lora, out = tmp_path / "flux.safetensors", tmp_path / "out.png"
    shutil.copyfile(ROOT / "jobs" / "flux" / "flux.safetensors", lora)
    size = ("--width", 64, "--height", 64, "--steps", 2)
    done = lora_drift("sample", "--mini", "-m", "flux", "--lora", lora, "-p", "a fox", *size, "-o", out)
    assert done.exit_code == 0, done.output
    return out


def receipt_of(picture: Path) -> Path:
    return picture.with_name(f"{picture.name}.json")


def edit(picture: Path, **values: Any) -> None:
    receipt = json.loads(receipt_of(picture).read_text())
    receipt_of(picture).write_text(json.dumps(receipt | values))


def test_a_png_carries_its_receipt_and_is_rendered_again_to_the_bit(picture: Path) -> None:
    with Image.open(picture) as image:
        assert json.loads(image.info[RECEIPT_KEY]) == json.loads(receipt_of(picture).read_text())
    receipt_of(picture).unlink()
    done = lora_drift("replay", picture, "--mini", "-o", picture.with_name("again.png"))
    assert done.exit_code == 0, done.output
    assert "the pixels are the same, bit for bit" in done.stdout
    with Image.open(picture) as before, Image.open(picture.with_name("again.png")) as after:
        assert before.tobytes() == after.tobytes()
    assert 'software: {"name": "ai-toolkit"' in done.stdout and 'training_info: {"step": 4' in done.stdout


def test_another_lora_of_the_same_name_is_named(picture: Path) -> None:
    lora = picture.with_name("flux.safetensors")
    save_file({key: value * 2 for key, value in load_file(lora).items()}, lora)
    done = lora_drift("replay", receipt_of(picture), "--mini")
    assert done.exit_code == 1
    assert "not the same: the pixels; " in done.stdout and "lora.files.flux.safetensors: " in done.stdout


def test_another_version_and_an_edited_setting_are_named(picture: Path) -> None:
    receipt = json.loads(receipt_of(picture).read_text())
    edit(picture, settings=receipt["settings"] | {"seed": 43}, versions=receipt["versions"] | {"torch": "2.7.0"})
    done = lora_drift("replay", receipt_of(picture), "--mini")
    assert done.exit_code == 1
    assert "versions.torch: 2.7.0 then" in done.stdout and "settings.seed: 42 there, 43 here" in done.stdout


def test_a_picture_that_was_painted_on_is_noticed(picture: Path) -> None:
    with Image.open(picture) as image:
        image.putpixel((0, 0), (1, 2, 3))
        image.save(picture)
    done = lora_drift("replay", receipt_of(picture), "--mini")
    assert done.exit_code == 0  # the receipt still gives the same pixels
    assert "its pixels were changed since" in done.stdout


def test_a_videos_sound_is_compared_too(tmp_path: Path) -> None:
    job, out = ROOT / "jobs" / "ltx2", tmp_path / "out.mkv"
    done = lora_drift("sample", "--mini", "--job", job, "-p", "[trigger] walks", "--steps", 2, "-o", out)
    assert done.exit_code == 0, done.output
    lora = ("--lora", job / "ltx2.safetensors")
    same = lora_drift("replay", out, "--mini", *lora)
    assert same.exit_code == 0 and "the pixels and the sound are the same, bit for bit" in same.stdout, same.output
    edit(out, audio_sha256="0" * 64)
    other = lora_drift("replay", out, "--mini", *lora)
    assert other.exit_code == 1 and "not the same: the sound" in other.stdout


def test_control_images_are_found_by_what_is_in_them(tmp_path: Path) -> None:
    control, out = tmp_path / "control.png", tmp_path / "out" / "out.png"
    out.parent.mkdir()
    shutil.copyfile(ROOT / "jobs" / "inputs" / "controls" / "0.png", control)
    done = lora_drift("sample", "--mini", "-m", "flux_kontext", "-p", "a fox", "--control", control, "--width", 64,
                      "--height", 64, "--steps", 2, "-o", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    receipt_of(out).unlink()
    with Image.open(out) as image:
        assert str(tmp_path) not in image.info[RECEIPT_KEY]
    moved = control.rename(tmp_path / "moved.png")
    gone = lora_drift("replay", out, "--mini")
    assert gone.exit_code == 2 and "--control FILE" in gone.stderr
    found = lora_drift("replay", out, "--mini", "--control", moved)
    assert found.exit_code == 0 and found.stdout.endswith("bit for bit\n"), found.output
    other = ROOT / "jobs" / "inputs" / "controls" / "1.png"
    rendered = lora_drift("replay", out, "--mini", "--control", other)
    assert rendered.exit_code == 1 and "  control_sha256: " in rendered.stdout


def test_what_cannot_be_replayed_is_refused_in_one_paragraph(picture: Path) -> None:
    picture.with_name("flux.safetensors").rename(picture.with_name("moved.safetensors"))
    gone = lora_drift("replay", picture, "--mini")
    assert gone.exit_code == 2 and "--lora FILE" in gone.stderr
    assert lora_drift("replay", picture, "--mini", "--lora", picture.with_name("moved.safetensors")).exit_code == 0
    Image.new("RGB", (8, 8)).save(picture.with_name("plain.png"))
    (picture.with_name("notes.json")).write_text('{"model": "flux"}')
    for name, words in {
        "plain.png": "carries none",
        "notes.json": "`base` is missing",
        "no.json": "no such file",
    }.items():
        refused = lora_drift("replay", picture.with_name(name), "--mini")
        assert refused.exit_code == 2 and words in refused.stderr, refused.output
