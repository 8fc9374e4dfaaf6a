"""What keeps the repository in order: forms, dependabot, changelog fragments, the release check."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from lora_drift.harness.paths import ROOT

GITHUB = ROOT / ".github"
FORMS = [path for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
KINDS = ("added", "changed", "fixed", "removed")


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.dependabot", [GITHUB / "dependabot.yml"]),
        ("vendor.github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
        ("vendor.github-issue-forms", FORMS),
    ],
)
def test_what_github_reads_is_valid(schema: str, files: list[Path]) -> None:
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", schema, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert files and done.returncode == 0, done.stdout + done.stderr


def test_every_action_is_pinned_by_hash() -> None:
    uses = [
        line.split("uses:")[1].strip()
        for path in (GITHUB / "workflows").glob("*.yml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "uses:" in line
    ]
    assert uses and [line for line in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}  # v[\d.]+", line)] == []


DEBIAN = "3.11.2"
"""Python of Debian 12: README's "Python 3.11"."""


def test_what_the_constraints_pin_can_be_installed_on_debians_python() -> None:
    """Of a pin that cannot, pip does not say so: it tries every release of all that wants the package, for hours."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    wanted = {}
    for name, version in pins:
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if installed.version == version:
            wanted[name] = installed.metadata["Requires-Python"] or ""
    assert len(wanted) > 100, "make installs what is pinned"
    assert {name: python for name, python in wanted.items() if DEBIAN not in SpecifierSet(python)} == {}


def test_changelog_fragments_are_named_as_towncrier_reads_them() -> None:
    """It leaves out what it does not recognise, so a misspelt kind would be missing from the changelog."""
    fragments = {path.name for path in (ROOT / "changes").iterdir()} - {"README.md", "template.md.j2"}
    assert [name for name in fragments if not re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(KINDS)})\.md", name)] == []
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.towncrier]")[1]
    assert tuple(re.findall(r'^directory = "(\w+)"', settings, re.M)) == ("changes", *KINDS)


def test_the_devcontainer_calls_a_target_of_the_makefile() -> None:
    command = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())["postCreateCommand"]
    assert f"{command.split()[1]}:" in (ROOT / "Makefile").read_text()


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A copy of the release check, in a repository that is ready to release 0.2.0."""
    for folder in (".github", "changes", "dist"):
        (tmp_path / folder).mkdir()
    (tmp_path / ".github" / "package-version").write_bytes((GITHUB / "package-version").read_bytes())
    (tmp_path / "changes" / "README.md").touch()
    (tmp_path / "dist" / "lora_drift-0.2.0-py3-none-any.whl").touch()
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.2.0 (2030-01-01)\n")
    return tmp_path


def check_release(folder: Path, *tag: str) -> subprocess.CompletedProcess[str]:
    script = folder / ".github" / "package-version"
    return subprocess.run([sys.executable, script, folder / "dist", *tag], capture_output=True, text=True)


def test_a_version_with_its_changelog_is_released(release: Path) -> None:
    for tag in ((), ("v0.2.0",)):
        done = check_release(release, *tag)
        assert (done.returncode, done.stdout) == (0, "0.2.0\n"), done.stderr


def test_a_release_that_is_not_ready_is_refused(release: Path) -> None:
    done = check_release(release, "v0.3.0")
    assert done.returncode == 1 and "the tag is v0.3.0, but the version in pyproject.toml is 0.2.0" in done.stderr
    (release / "changes" / "thing.fixed.md").touch()
    done = check_release(release, "v0.2.0")
    assert done.returncode == 1 and "changes/ still holds thing.fixed.md" in done.stderr
    (release / "changes" / "thing.fixed.md").unlink()
    (release / "CHANGELOG.md").write_text("# Changelog\n")
    done = check_release(release, "v0.2.0")
    assert done.returncode == 1 and "CHANGELOG.md has no section for 0.2.0" in done.stderr
