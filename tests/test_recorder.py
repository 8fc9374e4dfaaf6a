"""The recorder, as far as it runs without the trainer: what it proves and what it asks the trainer for."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension

from lora_drift.harness import tags
from lora_drift.harness.check import cases, golden_file, goldens, runner, user_cache
from lora_drift.harness.environment import PACKAGES
from lora_drift.harness.paths import ROOT
from lora_drift.harness.tags import TagError
from lora_drift.harness.trainer.recorder import build_environment, job_config, offline, pins
from lora_drift.harness.trainer.recorder.pins import PinError

TAG = runner.newest_tag()


def git(folder: Path, *args: str) -> str:
    identity = ("-c", "user.name=A Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *identity, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def checkout(folder: Path, files: dict[str, bytes]) -> str:
    """A git checkout of one commit, which is returned."""
    folder.mkdir()
    git(folder, "init", "--quiet")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")
    return git(folder, "rev-parse", "HEAD")


# -------------------------------------------------------------------------------------------------------------- pins

INSTALLED = Path(str(distribution("diffusers").locate_file("diffusers")))


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    checkout(tmp_path / "trainer", {"version.py": b'VERSION = "9.9.9"\n', "run.py": b""})
    return tmp_path / "trainer"


@pytest.fixture
def diffusers(tmp_path: Path) -> Path:
    """A checkout of which every file is installed as it is."""
    names = ("__init__.py", "utils/__init__.py")
    checkout(tmp_path / "diffusers", {f"src/diffusers/{name}": (INSTALLED / name).read_bytes() for name in names})
    return tmp_path / "diffusers"


@pytest.fixture
def row(trainer: Path, diffusers: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The pins of tag v9, which those checkouts and this environment fulfil."""
    row = {
        "tag": "v9",
        "version": "9.9.9",
        "commit": git(trainer, "rev-parse", "HEAD"),
        "diffusers": git(diffusers, "rev-parse", "HEAD"),
        "transformers": version("transformers"),
        "lock": "torch-2.13",
    }
    monkeypatch.setattr(tags, "all_rows", lambda: [tags.Tag.model_validate(row)])
    return row


def unproven(trainer: Path, diffusers: Path | None) -> str:
    with pytest.raises(PinError) as error:
        pins.check("v9", trainer, diffusers)
    return str(error.value)


def test_a_clean_checkout_at_its_pins_is_proven(row: dict[str, str], trainer: Path, diffusers: Path) -> None:
    (trainer / "toolkit" / "__pycache__").mkdir(parents=True)
    (trainer / "toolkit" / "__pycache__" / "a.pyc").touch()
    assert pins.check("v9", trainer, diffusers) == {
        "version": "9.9.9",
        "commit": row["commit"],
        "diffusers_commit": row["diffusers"],
        "diffusers_proof": "every installed file equals the checkout",
    }


def test_a_checkout_of_another_commit_is_refused_with_the_remedy(
    row: dict[str, str], trainer: Path, diffusers: Path
) -> None:
    git(trainer, "commit", "--quiet", "--allow-empty", "--message", "later")
    message = unproven(trainer, diffusers)
    assert f"trainer checkout is at {git(trainer, 'rev-parse', 'HEAD')}, the tag pins {row['commit']}" in message
    assert f"git -C {trainer} checkout {row['commit']}" in message


@pytest.mark.parametrize("name", ["run.py", "new.py"])
def test_a_checkout_that_is_not_clean_is_refused(
    name: str, row: dict[str, str], trainer: Path, diffusers: Path
) -> None:
    (trainer / name).write_text("changed")
    message = unproven(trainer, diffusers)
    assert "trainer checkout is not clean" in message
    assert name in message


def test_a_folder_that_is_no_checkout_is_refused(row: dict[str, str], tmp_path: Path, diffusers: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert f"{folder} is not a git checkout" in unproven(folder, diffusers)


def test_a_trainer_that_calls_itself_otherwise_is_refused(row: dict[str, str], trainer: Path, diffusers: Path) -> None:
    row["version"] = "9.9.10"
    assert unproven(trainer, diffusers) == "trainer version.py says 9.9.9, tags.yaml says 9.9.10"


def test_another_installed_diffusers_is_refused_by_the_file_that_differs(
    row: dict[str, str], trainer: Path, diffusers: Path
) -> None:
    (diffusers / "src" / "diffusers" / "utils" / "__init__.py").write_text("another")
    git(diffusers, "commit", "--quiet", "--all", "--message", "another")
    row["diffusers"] = git(diffusers, "rev-parse", "HEAD")
    assert f"differs from {row['diffusers']} in utils/__init__.py: pip install" in unproven(trainer, diffusers)


def test_a_diffusers_of_unknown_origin_is_refused(row: dict[str, str], trainer: Path) -> None:
    message = unproven(trainer, None)
    assert f"cannot prove that the installed Diffusers is {row['diffusers']}" in message
    assert "--diffusers DIR" in message


def test_another_transformers_is_refused(row: dict[str, str], trainer: Path, diffusers: Path) -> None:
    row["transformers"] = "0.0.1"
    assert "transformers" in unproven(trainer, diffusers)
    assert "0.0.1" in unproven(trainer, diffusers)


def test_a_tag_that_is_being_recorded_is_known_to_who_names_it() -> None:
    begun = [row.tag for row in tags.all_rows() if row.begun]
    assert begun and not set(begun) & set(tags.names()) and tags.newest() not in begun
    assert [tags.row(tag).tag for tag in begun] == begun


def test_an_unknown_tag_lists_the_known_ones(trainer: Path) -> None:
    with pytest.raises(TagError, match=rf"unknown tag 'v0'; tags.yaml knows .*{TAG}"):
        pins.check("v0", trainer, None)


# ------------------------------------------------------------------------------------------------------- environment

REQUIREMENTS = f"""\
git+https://github.com/huggingface/diffusers@{tags.row(TAG).diffusers}
transformers==4.57.3
flatten_json
peft
bitsandbytes
opencv-python
setuptools==69.5.1""".splitlines()
"""Lines of the kinds that the trainer's requirements have."""


@pytest.mark.parametrize("tag", tags.names())
def test_the_lock_of_a_tag_is_what_its_goldens_were_recorded_in(tag: str) -> None:
    versions = build_environment.locked(build_environment.lock_file(tag))
    assert versions["transformers"] == tags.row(tag).transformers
    libraries = {*PACKAGES, "optimum-quanto", "torchao"} - {"diffusers"}
    compared = 0
    for file in (goldens.GOLDENS / tag).glob("*.json"):
        for golden in golden_file.read(file).values():
            its = {name: version for name, version in golden["environment"].items() if name in libraries}
            assert its == {name: versions[name] for name in its}
            assert golden["environment"]["python"].startswith(f"{build_environment.PYTHON}.")
            compared += len(its)
    assert compared > 1000


@pytest.mark.parametrize("file", sorted(build_environment.LOCKS.iterdir()), ids=lambda file: file.stem)
def test_a_lock_names_exact_versions_and_no_host(file: Path) -> None:
    assert file.stem in {row.lock for row in tags.all_rows()}
    text = file.read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    assert len(build_environment.locked(file)) == len(lines)
    assert not {"triton", "diffusers", "opencv-python", "bitsandbytes"} & set(build_environment.locked(file))


def test_a_lock_that_holds_what_the_trainer_asks_for_passes() -> None:
    build_environment.check_lock(TAG, REQUIREMENTS)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("transformers==4.58.0", "say transformers==4.58.0, torch-2.13.txt has 4.57.3: name another `lock` for"),
        ("peft<0.18", "say peft<0.18, torch-2.13.txt has 0.18.1"),
        ("New_Library", "say New_Library, torch-2.13.txt has none"),
        ("git+https://github.com/huggingface/diffusers@abc", "tags.yaml says Diffusers"),
    ],
)
def test_a_lock_that_does_not_is_refused_with_the_remedy(line: str, told: str) -> None:
    with pytest.raises(PinError, match=re.escape(told)):
        build_environment.check_lock(TAG, [*REQUIREMENTS, line])


def test_the_environment_is_what_the_lock_says_and_diffusers_a_checkout_of_the_pinned_commit(
    row: dict[str, str], trainer: Path, diffusers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a program in uv's place that writes down what it was asked."""
    git(diffusers, "commit", "--quiet", "--allow-empty", "--message", "later")  # not what is pinned
    (trainer / "requirements.txt").write_text("-r requirements_base.txt\nscipy==1.12.0\n")
    (trainer / "requirements_base.txt").write_text(
        f"git+{build_environment.DIFFUSERS}.git@{row['diffusers']}\n#pip install another\ntorch\n"
    )
    git(trainer, "add", "--all")
    git(trainer, "commit", "--quiet", "--message", "requirements")
    row["commit"] = git(trainer, "rev-parse", "HEAD")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n')
    (tmp_path / "bin" / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    home = tmp_path / "home"
    argv = ["--tag", "v9", "--trainer", str(trainer), "--diffusers", str(diffusers), "--home", str(home)]
    for _ in range(2):  # again: mends what is there
        assert build_environment.main(argv) == 0
        assert git(home / "diffusers", "rev-parse", "HEAD") == row["diffusers"]
        (home / "diffusers" / "stray").touch()
    asked = (tmp_path / "asked").read_text().splitlines()
    into = f"--compile-bytecode --python {home}/venv/bin/python"
    assert asked[:3] == [
        f"venv --python 3.11 {home}/venv",
        f"pip sync {into} {build_environment.LOCKS}/torch-2.13.txt",
        f"pip install {into} --no-deps --refresh-package diffusers {home}/diffusers",
    ]
    assert asked[:3] == asked[3:]


def test_an_environment_is_not_built_for_another_trainer(
    row: dict[str, str], trainer: Path, diffusers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git(trainer, "commit", "--quiet", "--allow-empty", "--message", "later")
    assert build_environment.main(["--tag", "v9", "--trainer", str(trainer), "--home", str(tmp_path / "home")]) == 2
    assert f"git -C {trainer} checkout {row['commit']}" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_without_uv_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PinError, match="pip install uv"):
        build_environment.build(build_environment.lock_file(TAG), "0" * 40, "nowhere", tmp_path / "home")


# ------------------------------------------------------------------------------------------------------ command line


def recorder(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lora_drift.harness.trainer.recorder", *args], cwd=ROOT, capture_output=True, text=True
    )


def test_help_says_how_to_call_it() -> None:
    done = recorder("--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--trainer", "--diffusers", "--tag", "--case", "--check-only"))


def test_the_help_leads_to_the_environment() -> None:
    assert "recorder env --help" in " ".join(recorder("--help").stdout.split())
    done = recorder("env", "--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--tag", "--trainer", "--diffusers", "--home"))


def test_an_unknown_case_is_refused_before_anything_else(tmp_path: Path) -> None:
    done = recorder("--trainer", str(tmp_path), "--case", "flux/nothing", "--model", "sd16")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: no such case or model: flux/nothing, sd16 (did you mean sd15?); there are flux/base, "
    )
    assert "Traceback" not in done.stderr


def test_real_weights_that_are_not_there_are_refused_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(user_cache.OWN, json.dumps({"HF_HOME": str(tmp_path)}))
    done = recorder("--trainer", str(tmp_path), "--device", "cuda", "--case", "full/chroma", "--case", "flux/lora")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: weights missing: {tmp_path}/hub lacks lodestones/Chroma1-Base (Chroma1-Base.safetensors), "
        "ostris/Flex.1-alpha (text_encoder_2/model.safetensors). Get them: "
        "hf download lodestones/Chroma1-Base && hf download ostris/Flex.1-alpha\n"
    )


def test_a_folder_that_is_not_the_trainer_is_refused(tmp_path: Path) -> None:
    done = recorder("--trainer", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path} is not a git checkout")


def test_offline_only_a_missing_config_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import hub

    def offline_hub(path_or_repo_id: str, filenames: list[str], **_: object) -> list[str]:
        if filenames == ["tokenizer.json"]:
            return [f"{path_or_repo_id}/tokenizer.json"]
        raise OSError("offline")

    monkeypatch.setattr(hub, "cached_files", offline_hub)
    offline.as_online()
    assert hub.cached_files(path_or_repo_id="a/b", filenames=["config.json"], subfolder="tokenizer") is None
    assert hub.cached_files("a/b", ["tokenizer.json"]) == ["a/b/tokenizer.json"]
    with pytest.raises(OSError, match="offline"):
        hub.cached_files("a/b", ["model.safetensors"])


# -------------------------------------------------------------------------------------------------------------- jobs


def test_the_jobs_that_the_trainer_gets(snapshot: SnapshotAssertion) -> None:
    """Some committed cases as the trainer's own jobs: a change here means goldens to record again."""
    ids = ("flux/lora-live", "flux/trained", "sd15/lora-conv", "wan21_1b/lora", "zimage_turbo/lora-assistant")
    chosen = [cases.load(cases.CASES / f"{case_id}.yaml") for case_id in ids]
    found = {case.id: job_config.job(case, Path("FOLDER"), Path("LORA") if case.lora else None) for case in chosen}
    assert found == snapshot(extension_class=JSONSnapshotExtension)


def test_ltx2_names_a_text_encoder_only_to_the_trainers_that_take_it() -> None:
    """Since 0.7.31 the field is the root of a repository of Gemma's own kind, which LTX-2's is not."""
    case = cases.load(cases.CASES / "ltx2" / "base.yaml")

    def section(version: str) -> dict[str, Any]:
        found = job_config.job(case, Path("FOLDER"), None, job_config.Where(version=version))
        return dict(found["config"]["process"][0]["model"])

    assert section("0.7.29")["te_name_or_path"] == "Lightricks/LTX-2"
    assert "te_name_or_path" not in section("0.7.31") and "te_name_or_path" not in section("0.12.26")


def test_a_live_lora_is_a_job_with_two_multipliers() -> None:
    case = cases.load(cases.CASES / "flux" / "lora-live.yaml")
    samples = job_config.job(case, Path("FOLDER"), Path("LORA"))["config"]["process"][0]["sample"]["samples"]
    assert [sample["network_multiplier"] for sample in samples] == [1.2, 0.0]
