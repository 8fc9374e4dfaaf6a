"""What several test modules share: miniature models, loaded once, and the goldens of the newest tag."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import pipelines
from harness import cases, goldens, runner
from harness.goldens import Golden
from harness.minihub import factory
from pipelines import Pipeline

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # a busy machine is no failure


@pytest.fixture(scope="session")
def pipeline_of() -> Callable[[str], Pipeline]:
    """Model id -> its pipeline, without a LoRA."""
    return cache(pipelines.load)


@pytest.fixture(scope="session")
def golden_of() -> Callable[[str], Golden]:
    """Case id -> its golden at the newest tag."""

    @cache
    def golden(case_id: str) -> Golden:
        case = cases.load(cases.CASES / f"{case_id}.yaml")
        return goldens.load(runner.newest_tag(), case, factory.manifest_sha256(case.model, case.extras))

    return golden


@pytest.fixture(scope="session")
def lora_of(golden_of: Callable[[str], Golden]) -> Callable[[str], Path]:
    """Case id -> the LoRA file that the trainer saved for it."""
    return lambda case_id: golden_of(case_id).path("lora")
