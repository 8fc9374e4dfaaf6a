"""The full tier: the trainer's own default jobs, on the user's own weights, for which a miniature stands in here."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lora_drift.harness.check import cases, goldens, runner, user_cache
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.results import Result
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.recorder import job_config, store
from lora_drift.pipelines.registry import spec_of

pytest_plugins = ["pytester"]

TAG = runner.newest_tag()
ON_CPU = ("-m", "full", "--drift-device=cpu")
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")


def repository(hub_folder: Path, model: str) -> Path:
    """The folder of a model's own repository in a hub."""
    return hub_folder / f"models--{spec_of(model).base.replace('/', '--')}"


def small(model: str, folder: Path) -> Case:
    """`cases/full/<model>.yaml` in `folder`: the settings of the model's mini case, so that a CPU renders it."""
    content = yaml.safe_load((cases.CASES / model / "lora.yaml").read_text()) | {"tier": "full"}
    path = folder / "cases" / "full" / f"{model}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content | {"controls": ["LoRA off"]}))
    return cases.load(path)


def forge(case: Case, golden: Golden, root: Path, weights: dict[str, str]) -> None:
    """What the recorder would have stored for `case` on those weights: the mini case's golden under its name."""
    content = golden.model_dump(exclude={"artefacts", "seal", "minihub_sha256"})
    content |= {"case": case.id, "case_sha256": case.sha256, "weights": weights}
    store.write(content, {name: golden.path(name) for name in golden.artefacts}, root)


def revisions(model: str) -> dict[str, str]:
    folder = repository(factory.default_home() / "hub", model)
    return {spec_of(model).base: (folder / "refs" / "main").read_text()}


# ------------------------------------------------------------------------------------------------------------- cases


def test_every_model_has_a_full_case_with_the_settings_of_its_row() -> None:
    found = {case.model: case for case in cases.load_all(tier="full")}
    assert set(found) == set(job_config.MODELS)
    for model, case in found.items():
        spec, sample = spec_of(model), case.sample
        assert (case.id, case.tier, case.sample.seed) == (f"full/{model}", "full", 42)
        assert (sample.width, sample.height, sample.sample_steps) == (spec.width, spec.height, spec.steps), model
        assert (sample.guidance_scale, sample.num_frames) == (spec.guidance_scale, spec.num_frames), model
        assert spec.num_frames == 1 or sample.fps == spec.fps, model
        assert spec.controls[0] <= len(sample.control) <= max(spec.controls[0], 1), (
            model
        )  # Krea 2 edits without one, too
        assert case.lora is not None
        assert (case.lora.network.linear, case.lora.network.linear_alpha, case.lora.mode) == (32, 32, "merged")


@pytest.mark.parametrize(
    ("file", "model", "tier", "complaint"),
    [
        ("full/flux.yaml", "sd15", "full", "`model: sd15` must equal the name of its file, `flux`"),
        ("full/flux.yaml", "flux", "mini", "`tier: full` belongs to the cases in cases/full, and they to it"),
        ("flux/base.yaml", "flux", "full", "`tier: full` belongs to the cases in cases/full, and they to it"),
    ],
)
def test_a_full_case_in_the_wrong_place_is_refused(
    file: str, model: str, tier: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({"schema": 1, "model": model, "tier": tier, "about": "", "sample": {"prompt": "a"}}))
    with pytest.raises(cases.CaseError, match=complaint):
        cases.load(path)


# -------------------------------------------------------------------------------------------------------- the plugin


class Lab:
    """A folder with one full case, a goldens folder, and a Hugging Face cache that holds the case's weights."""

    def __init__(self, pytester: pytest.Pytester, golden: Golden) -> None:
        self.pytester, self.golden = pytester, golden
        self.goldens, self.home = pytester.mkdir("goldens"), pytester.mkdir("own")
        self.case = small("sd15", pytester.path)
        (self.home / "hub").mkdir()
        mini = repository(factory.default_home() / "hub", "sd15")
        self.repository = repository(self.home / "hub", "sd15")
        shutil.copytree(mini, self.repository)

    def run(self, *args: str) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess("cases", *OPTIONS, "-rs", "--drift-json=results.jsonl", *args)

    def result(self) -> Result:
        (line,) = (self.pytester.path / "results.jsonl").read_text().splitlines()
        return Result.model_validate_json(line)


@pytest.fixture(scope="module")
def cache() -> Path:
    """Found before `pytester` moves the home folder away; and torch is imported, which an inner run would forget."""
    assert runner.Bench().environment["device"] == "cpu"
    return factory.default_home().parent.parent


@pytest.fixture
def lab(
    cache: Path, golden_of: Callable[[str], Golden], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Lab:
    monkeypatch.setenv("LORA_DRIFT_CACHE", str(cache))
    lab = Lab(pytester, golden_of("sd15/lora"))
    monkeypatch.setenv(user_cache.OWN, json.dumps({"HF_HOME": str(lab.home)}))
    monkeypatch.setattr(goldens, "load", partial(goldens.load, root=lab.goldens))
    return lab


def test_a_plain_run_leaves_the_full_tier_out(lab: Lab) -> None:
    lab.run().assert_outcomes(deselected=1)
    lab.run("--drift-device=cpu", "-m", "not full").assert_outcomes(deselected=1)
    lab.run("-m", "gpu", "--collect-only").stdout.fnmatch_lines(["*full/sd15[[]cuda[]]*"])


def test_without_a_golden_a_case_is_not_recorded_and_the_command_is_named(lab: Lab) -> None:
    run = lab.run(*ON_CPU)
    run.assert_outcomes(skipped=1)
    run.stdout.fnmatch_lines(["SKIPPED*: not recorded: no golden *: python -m *.recorder *--case full/sd15"])
    assert (lab.result().verdict, lab.result().tier) == ("missing", "full")
    lab.run(*ON_CPU, "--drift-require-goldens").assert_outcomes(failed=1)


@pytest.mark.parametrize("lacks", ["everything", "a folder", "a file"])
def test_without_all_weights_a_case_says_what_to_download(lacks: str, lab: Lab) -> None:
    forge(lab.case, lab.golden, lab.goldens, revisions("sd15"))
    snapshot = lab.repository / "snapshots" / revisions("sd15")[spec_of("sd15").base]
    if lacks == "everything":
        shutil.rmtree(lab.repository)
    elif lacks == "a folder":
        shutil.rmtree(snapshot / "vae")
    else:
        (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    run = lab.run(*ON_CPU)
    run.assert_outcomes(skipped=1)
    run.stdout.fnmatch_lines([f"SKIPPED*: weights missing: {lab.home}/hub lacks *: hf download {spec_of('sd15').base}"])
    lab.run(*ON_CPU, "--drift-require-goldens").assert_outcomes(failed=1)


def test_a_shard_that_the_index_names_is_missed(lab: Lab) -> None:
    snapshot = lab.repository / "snapshots" / revisions("sd15")[spec_of("sd15").base]
    unet = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    index = {"weight_map": {"a": unet.name, "b": "second.safetensors"}}
    unet.with_name(f"{unet.name}.index.json").write_text(json.dumps(index))
    lab.run(*ON_CPU).assert_outcomes(skipped=1)
    assert "unet/second.safetensors" in lab.result().message
    (unet.with_name("second.safetensors")).touch()
    lab.run(*ON_CPU)
    assert "no golden" in lab.result().message


def test_a_golden_of_other_weights_is_refused(lab: Lab) -> None:
    forge(lab.case, lab.golden, lab.goldens, {spec_of("sd15").base: "0" * 40})
    run = lab.run(*ON_CPU)
    run.assert_outcomes(failed=1)
    (here,) = revisions("sd15").values()
    assert lab.result().verdict == "stale"
    assert f"was recorded on other weights: {spec_of('sd15').base} at {'0' * 40} (here {here})" in lab.result().message
    assert "--case full/sd15" in lab.result().message


def test_where_no_tolerance_was_measured_nothing_passes(lab: Lab) -> None:
    forge(lab.case, lab.golden, lab.goldens, revisions("sd15"))
    lab.run(*ON_CPU).assert_outcomes(failed=1)
    assert lab.result().verdict == "error"
    assert "no tolerances were measured for full/cpu/float32" in lab.result().message
    assert "lora-drift tolerances --tier full --device cpu --dtype float32 --write" in lab.result().message


# ----------------------------------------------------------------------------------------------------- both at once


@pytest.mark.slow
def test_one_run_checks_mini_cases_on_the_mini_hub_and_full_ones_on_the_users_own_weights(
    tmp_path: Path, golden_of: Callable[[str], Golden]
) -> None:
    """In a checkout of its own, whose tolerances hold for the full tier, too. The user's SDXL is not the golden's,
    which only shows where it is what is loaded."""
    checkout, home = tmp_path / "checkout", tmp_path / "own"
    shutil.copytree(ROOT / "harness", checkout / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(cases.ASSETS, checkout / "cases" / "assets")
    shutil.copyfile(ROOT / "conftest.py", checkout / "conftest.py")
    shutil.copytree(ROOT / "lora_drift", checkout / "lora_drift", symlinks=True)  # links to the folders beside it
    (checkout / "pipelines").symlink_to(ROOT / "pipelines")
    (checkout / "cases" / "sd15").mkdir()
    shutil.copyfile(cases.CASES / "sd15" / "lora.yaml", checkout / "cases" / "sd15" / "lora.yaml")
    store.write(
        golden_of("sd15/lora").model_dump(exclude={"artefacts", "seal"}),
        {name: golden_of("sd15/lora").path(name) for name in golden_of("sd15/lora").artefacts},
        checkout / "goldens",
    )
    tolerances = json.loads((ROOT / "harness" / "check" / "tolerances.json").read_text())
    for where in ("cpu/float32", "cpu/float32/another processor"):
        tolerances["gates"][f"full/{where}"] = tolerances["gates"][f"mini/{where}"]
    (checkout / "harness" / "check" / "tolerances.json").write_text(json.dumps(tolerances))
    for model in ("sd15", "sdxl"):
        forge(small(model, checkout), golden_of(f"{model}/lora"), checkout / "goldens", revisions(model))
        shutil.copytree(repository(factory.default_home() / "hub", model), repository(home / "hub", model))
    (decoder,) = repository(home / "hub", "sdxl").glob("snapshots/*/vae/*.safetensors")
    save_file({name: values * 1.01 for name, values in load_file(decoder).items()}, decoder)

    own = user_cache.own() | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "cases", *OPTIONS, "--drift-device=cpu", "-m", "full or not full",
         "--drift-json=results.jsonl", "--drift-no-controls", "--drift-floor"],
        cwd=checkout, capture_output=True, text=True,
        env={name: value for name, value in own.items() if not name.startswith("PYTEST_")},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    lines = (checkout / "results.jsonl").read_text().splitlines()
    found = {result.case: result for result in map(Result.model_validate_json, lines)}
    assert {name: result.verdict for name, result in found.items()} == {
        "full/sd15": "match",
        "full/sdxl": "drift",
        "sd15/lora": "match",
    }, done.stdout
    assert found["full/sdxl"].tier == "full"
    assert {len(result.controls) for result in found.values()} == {0}, "an option of the run reaches the process"
    assert "same code again" in found["full/sd15"].noise_floor
    assert found["full/sdxl"].message.count("argest pixel difference") == 1
    assert os.environ["HF_HOME"] != str(home)
