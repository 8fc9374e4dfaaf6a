"""The container recipe, as far as it can be checked without an engine. docs/server.md says how it was tried."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lora_drift.harness.paths import ROOT
from lora_drift.server.config import Settings
from lora_drift.server.local import LocalServer

if TYPE_CHECKING:
    from installed import Built

OTHERS = {"HOME", "HF_HOME", "LORA_DRIFT_CACHE"}
"""Variables that are no settings of the server: the home folder, Hugging Face's and ours."""


def instructions() -> list[tuple[str, str]]:
    """(name, what follows it) in order; lines that go on are joined."""
    lines = [line for line in (ROOT / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (name, " ".join(rest.split()))
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def all_of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def the(name: str) -> str:
    (found,) = all_of(name)
    return found


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for rest in all_of("ENV") for word in rest.split())


def test_it_begins_with_the_python_that_ci_has() -> None:
    assert re.fullmatch(r"docker\.io/library/python:3\.11-slim-[a-z]+", the("FROM"))


def test_what_is_copied_is_what_the_documented_command_builds(built: Built) -> None:
    source, target = the("COPY").split()
    assert PurePosixPath("dist", built.wheel.name).match(source) and target.startswith("/wheel")
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert kept == [source], "the rest, 45 MB of goldens first of all, is not sent to the builder"
    assert "pip wheel --no-deps -w dist ." in (ROOT / "docs" / "server.md").read_text()


def test_the_commands_of_the_build_are_ones_of_a_shell() -> None:
    for command in all_of("RUN"):
        script = re.sub(r"^(--mount=\S+ )+", "", command)
        done = subprocess.run(["sh", "-n", "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, f"{script}: {done.stderr}"


def test_it_is_not_root_who_serves() -> None:
    uid, gid = the("USER").split(":")
    assert int(uid) > 0 and int(gid) > 0
    order = [name for name, _ in instructions()]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name == "RUN"), "packages belong to root"
    assert f"--uid {uid} " in " ".join(all_of("RUN"))


def test_its_settings_are_the_servers_and_all_that_is_written_lies_in_the_volume() -> None:
    given = environment()
    settings = {name for name in given if name.lower() in Settings.model_fields}
    assert given.keys() - settings == OTHERS
    assert the("EXPOSE") == given["PORT"] == str(Settings.model_fields["port"].default)
    assert given["HOST"] == "0.0.0.0", "127.0.0.1 in a container can be reached from nowhere"
    volume = PurePosixPath(the("VOLUME"))
    for name in (*OTHERS, "OUTPUT_BASE_PATH"):
        assert PurePosixPath(given[name]).is_relative_to(volume), name


def test_it_starts_the_server() -> None:
    said = [*json.loads(the("ENTRYPOINT")), *json.loads(the("CMD"))]
    assert said == ["lora-drift", "serve"]
    done = subprocess.run([Path(sys.executable).with_name(said[0]), said[1], "--mini", "--help"], capture_output=True)
    assert done.returncode == 0, "what docs/server.md appends is an option of it"


def test_the_health_check_asks_a_server_that_is_there_and_fails_without_one(tmp_path: Path) -> None:
    name, *command = json.loads(the("HEALTHCHECK").partition(" CMD ")[2])
    assert name == "python"

    def healthy(port: int) -> subprocess.CompletedProcess[str]:
        asked = {**os.environ, "PORT": str(port)}
        return subprocess.run([sys.executable, *command], env=asked, capture_output=True, text=True)

    with LocalServer(tmp_path, API_KEY="secret") as server:
        assert healthy(server.port).returncode == 0, "it needs no key"
        port = server.port
    gone = healthy(port)
    assert gone.returncode != 0 and "refused" in gone.stderr
