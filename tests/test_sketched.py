"""What the trainer rendered of jobs drawn at random, rendered again: a part a day, so that a week sees all of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from turns import chosen, today

from lora_drift.harness import tags
from lora_drift.harness.check import control_pictures, runner, sketched
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.check.sketched import Kept, Sample
from lora_drift.harness.trainer.fuzz import shrink

TAG = tags.newest()
A_DAY = 2


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kept]:
    runner.use_minihub()
    assets = tmp_path_factory.mktemp("assets")
    control_pictures.write(assets)
    torch.set_num_threads(1)
    return lambda model: sketched.read(sketched.file_of(TAG, model), assets)


@pytest.mark.parametrize("model", sketched.models(TAG))
def test_a_sample_is_as_the_trainer_had_it(model: str, read: Callable[[str], Kept], tmp_path: Path) -> None:
    kept = read(model)
    of_today = chosen(kept.samples, today(), A_DAY)
    assert of_today
    assert sketched.problems(Bench(tag=TAG, controls=False), kept, of_today, tmp_path) == []


def wrong(sample: Sample) -> dict[str, Sample]:
    """What a test of this sample must notice -> a recording that ours is not."""
    told = sample.case.sample
    ways = {
        "latents_rel_l2": {"seed": told.seed + 1},
        "pixel_mean": {"seed": told.seed + 1},
        "[frames, height, width] are": {"width": told.width + 64},
    }
    return {
        what: sample._replace(case=sample.case.model_copy(update={"sample": told.model_copy(update=change)}))
        for what, change in ways.items()
    } | {
        "the trainer refuses it: no": sample._replace(refused="no"),
        "latents_rel_l2 2": sample._replace(sketches=-sample.sketches),
    }


def test_what_is_otherwise_is_noticed(read: Callable[[str], Kept], tmp_path: Path) -> None:
    kept = read("sd15")
    sample = next(
        one for one in kept.samples if not one.refused and one.case.lora and "--" not in one.case.sample.prompt
    )
    bench = Bench(tag=TAG, controls=False)
    for what, other in wrong(sample).items():
        (problem,) = sketched.problems(bench, kept, [other], tmp_path)
        assert what in problem
    (problem,) = sketched.problems(bench, kept._replace(loras={}), [sample], tmp_path / "nothing")
    assert "with_lora() needs a file" in problem


def test_a_sample_that_the_trainer_refused_is_refused(read: Callable[[str], Kept], tmp_path: Path) -> None:
    for model in sketched.models(TAG):
        kept = read(model)
        refused = next((sample for sample in kept.samples if sample.refused), None)
        if refused is not None:
            break
    assert refused is not None
    bench = Bench(tag=TAG, controls=False)
    assert sketched.problems(bench, kept, [refused], tmp_path) == []
    (problem,) = sketched.problems(bench, kept, [refused._replace(refused="")], tmp_path)
    assert "refused, and the trainer renders it" in problem


def test_a_control_picture_that_is_another_here_is_told(read: Callable[[str], Kept], tmp_path: Path) -> None:
    kept = read("flux_kontext")
    sample = next(sample for sample in kept.samples if not sample.refused and sketched.shown(sample.case))
    other = kept._replace(pictures=dict.fromkeys(kept.pictures, "0" * 16))
    (problem,) = sketched.problems(Bench(tag=TAG, controls=False), other, [sample], tmp_path)
    assert "is another picture here" in problem


@pytest.mark.parametrize("model", sketched.models(TAG)[:3])
def test_what_is_read_and_written_again_is_the_same(model: str, read: Callable[[str], Kept], tmp_path: Path) -> None:
    kept, again = read(model), tmp_path / f"{model}.tar.xz"
    sketched.write(again, kept, [shrink.content(sample.case) for sample in kept.samples])
    assert again.read_bytes() == sketched.file_of(TAG, model).read_bytes()


def test_a_sketch_tells_how_far_renders_are_apart() -> None:
    rng, picture = np.random.default_rng(1), np.zeros((1, 8, 8, 3), np.uint8)
    latents = rng.normal(size=(1, 16, 8, 8)).astype(np.float32)
    for size in (1e-5, 1e-2):
        other = (latents + size * rng.normal(size=latents.shape)).astype(np.float32)
        one, two = (sketched.sketches(value, picture, None)[0] for value in (latents, other))
        told = np.linalg.norm(one - two) / np.linalg.norm(one)
        assert told == pytest.approx(size, rel=0.5)
