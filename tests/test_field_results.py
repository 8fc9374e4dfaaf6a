"""What a check and a receipt say of an exception, and of who vouches for a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_drift.harness.check import cases, runner, verified_by
from lora_drift.harness.check.results import Result
from lora_drift.harness.report import summary
from lora_drift.harness.report.root_cause import blame
from lora_drift.pipelines import Pipeline
from lora_drift.pipelines.settings import Request, resolve


def test_an_exception_is_kept_whole(tmp_path: Path) -> None:
    def broken(*_args: Any) -> None:
        raise RuntimeError("a mistake of ours")

    case = cases.load(cases.CASES / "sd15" / "base.yaml")
    result = runner.check(runner.Bench(), case, tmp_path, broken)
    assert result.verdict == "error" and "a mistake of ours" in result.message
    assert result.traceback.startswith("Traceback") and "in broken" in result.traceback
    assert Result.model_validate_json(result.model_dump_json()).traceback == result.traceback
    assert "in broken" in summary.as_junit(summary.table([result]), result.tag)


@pytest.mark.parametrize("case_id", ["flux/lora", "flex1/dora", "lumina2/lokr"])
def test_a_network_is_vouched_for_by_one_of_its_kind(
    case_id: str, pipeline_of: Callable[[str], Pipeline], lora_of: Callable[[str], Path]
) -> None:
    case = cases.load(cases.CASES / f"{case_id}.yaml")
    assert case.lora is not None
    pipeline = pipeline_of(case.model).with_lora(lora_of(case_id), mode=case.lora.mode)
    settings = resolve(pipeline.spec, Request("a fox", width=64, height=64, steps=2))
    found = verified_by.covering_case(pipeline, settings)
    other = cases.load(cases.CASES / f"{found['case']}.yaml")
    assert other.lora is not None and other.lora.network.type == case.lora.network.type
    output = pipeline.sample("a fox", width=64, height=64, steps=2)
    wanted = "live" if case.lora.network.type == "dora" else case.lora.mode
    assert output.receipt["lora"]["mode"] == wanted


@pytest.mark.parametrize(
    ("case_id", "asked", "why"),
    [
        ("lumina2/lokr", {"mode": "live"}, "nothing vouches for lumina2 with a lokr, live"),
        ("zimage_deturbo/lokr", {"width": 72},
         "nothing vouches for zimage_deturbo with a lokr, merged at a size that the model's rule changes"),
    ],
)  # fmt: skip
def test_what_nothing_vouches_for_is_said(
    case_id: str,
    asked: dict[str, Any],
    why: str,
    pipeline_of: Callable[[str], Pipeline],
    lora_of: Callable[[str], Path],
) -> None:
    pipeline = pipeline_of(case_id.partition("/")[0]).with_lora(lora_of(case_id), mode=asked.pop("mode", "merged"))
    settings = resolve(pipeline.spec, Request("a fox", **{"width": 64, "height": 64, **asked}))
    assert verified_by.covering_case(pipeline, settings) == {"case": None, "why": why}


@pytest.mark.parametrize("case_id", ["hidream/base", "hidream/snapped", "wan21_1b/snapped", "zimage/dora"])
def test_a_matching_case_differs_in_no_setting_so_none_is_blamed_when_it_drifts(case_id: str, tmp_path: Path) -> None:
    # The trainer is told 8 frames and renders 9; HiDream's pipeline doubles the size; a DoRA is applied live.
    case = cases.load(cases.CASES / f"{case_id}.yaml")
    result = runner.check(runner.Bench(controls=False), case, tmp_path)
    assert result.verdict == "match", result.message
    drifted = result.model_copy(update={"verdict": "drift", "message": "outside its tolerance"})
    assert blame(drifted).cause == "outside its tolerance"
    wrong = {"num_frames": result.frames + 4, "steps": 77}
    said = blame(drifted.model_copy(update={"settings": result.settings | wrong})).cause
    assert f"num_frames {result.frames} → {result.frames + 4}" in said and "→ 77" in said


def test_a_base_is_vouched_for_by_one_quantised_alike_and_an_edit_by_one_of_as_many_images() -> None:
    def vouches(model: str, mode: str | None, **asked: Any) -> str | None:
        found = verified_by.covering(model, mode, runner.newest_tag(), **asked)
        return None if found is None else found["case"]

    uint3 = {"network": "lora", "controls": 0}
    assert vouches("qwen_image", "live", quantized="uint3, encoders, recovery", **uint3) == "qwen_image/quantized-uint3"
    assert vouches("qwen_image", "live", quantized="uint3, encoders", **uint3) is None
    assert vouches("qwen_image", "live", quantized="qfloat8, encoders", **uint3) is None
    for count in (0, 1, 3, 2):
        base = vouches("flux2", None, quantized="", controls=count)
        name = base or vouches("flux2", "merged", quantized="", network="lora", controls=count)
        assert (name is None) == (count == 2), "two images are in no case of flux2"
        if name is not None:
            assert len(cases.load(cases.CASES / f"{name}.yaml").sample.control) == count
