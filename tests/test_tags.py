"""One install reproduces every recorded trainer version."""

import numpy as np
import pytest

from lora_drift import pipelines
from lora_drift.harness import tags
from lora_drift.harness.check import cases, goldens, runner
from lora_drift.harness.minihub import factory
from lora_drift.pipelines import MODELS, RequestError
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.spec import TOOLKITS, Earlier

UNSEEN = {"zimage", "zimage_deturbo"}
"""Models whose default settings do not show what changed (guidance above 1)."""
CHANGES = [(model, change) for model, spec in MODELS.items() for change in spec.earlier if model not in UNSEEN]


def test_the_pipelines_know_the_versions_of_the_tags() -> None:
    assert tuple(row.version for row in tags.rows()) == TOOLKITS
    for row in tags.rows():
        lacks = {model for model, spec in MODELS.items() if TOOLKITS.index(spec.since) > TOOLKITS.index(row.version)}
        assert set(row.lacks) == lacks


def test_a_version_without_the_model_is_refused_with_the_first_that_has_it() -> None:
    with pytest.raises(RequestError, match=r"trainer 0.7.19 does not know flux2_klein_4b yet; the first .* is 0.7.20"):
        pipelines.load("flux2_klein_4b", toolkit="0.7.19")
    with pytest.raises(RequestError, match=r"unknown trainer version '0.6'; the versions are: 0.7.19"):
        spec_of("flux", "0.6")


@pytest.mark.parametrize(("model", "change"), CHANGES, ids=[f"{m} before {c.before}" for m, c in CHANGES])
def test_what_a_trainer_version_changed_is_reproduced_on_both_sides(model: str, change: Earlier) -> None:
    """Each version's golden is met by its own row of the table, and missed by the other's."""
    order = tags.names()
    newer = next(row.tag for row in tags.rows() if row.version == change.before)
    older = order[order.index(newer) - 1]
    case = cases.load(cases.CASES / model / "base.yaml")
    theirs = {tag: goldens.load(tag, case, factory.manifest_sha256(model)) for tag in (older, newer)}
    for tag, other in ((older, newer), (newer, older)):
        bench = runner.Bench(tag=tag)
        ours = bench.render(bench.pipeline(case, theirs[tag]), bench.settings(case)).frames
        assert levels(ours, theirs[tag].frames()) <= 1
        assert levels(ours, theirs[other].frames()) > 8


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference of two pictures, of 255."""
    return int(abs(a.astype(int) - b).max())
