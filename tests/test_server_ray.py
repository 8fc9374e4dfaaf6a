"""Workers on a Ray cluster: three nodes of it on this machine, with a queue in Postgres."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_drift.harness.paths import ROOT
from lora_drift.pipelines import Pipeline
from lora_drift.server.local import LocalServer
from lora_drift.server.local_postgres import LocalPostgres, binaries
from lora_drift.server.local_ray import LocalRay

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="no ray here: pip install 'lora-drift[ray]'")


def test_nothing_is_lost_doubled_or_corrupted_whatever_dies(tmp_path: Path) -> None:
    """A short run of `benchmarks/fleet.py chaos`."""
    if binaries() is None:
        pytest.skip("no postgres here (apt-get install postgresql): nothing was killed")
    found = spec_from_file_location("fleet", ROOT / "benchmarks" / "fleet.py")
    assert found is not None and found.loader is not None
    fleet = module_from_spec(found)
    found.loader.exec_module(fleet)
    figures, broken = fleet.chaos(tmp_path, requests=20, kills=4, nodes=2)
    print(figures)
    assert broken == [] and figures["requests"] >= 20
    assert figures["kills"] == {"server": 1, "replica": 1, "node": 1, "postgres": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalRay]:
    with LocalRay(nodes=1) as running:
        yield running


def serving(folder: Path, cluster: LocalRay, url: str, **more: object) -> LocalServer:
    return LocalServer(folder, DATABASE_URL=url, RAY_CLUSTER=cluster.address, **more)


def until(holds: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_replica_renders_as_a_worker_here_does(
    tmp_path: Path, cluster: LocalRay, postgres: LocalPostgres, lora_of: Callable[[str], Path],
    pipeline_of: Callable[[str], Pipeline],
) -> None:  # fmt: skip
    """Real renders: the same picture, progress and cancels over the hosts, metrics, and no replica once all is done."""
    prompt: dict[str, Any] = {"prompt": "a fox", "width": 64, "height": 64, "seed": 7}
    body = {"model": "sd15", "loras": [{"path": "sd15.safetensors"}], "output_format": "png"}
    with serving(tmp_path, cluster, postgres.create("rendered_on_ray"), REPLICA_IDLE=2, CANCEL_GRACE=60) as server:
        shutil.copy(lora_of("sd15/lora"), tmp_path / "loras" / "sd15.safetensors")
        assert cluster.processes() == [], "nothing is to be done"
        request_id = server.submit({**body, "prompts": [{**prompt, "sample_steps": 2}]})
        image = server.wait(request_id)["outputs"]["images"][0]
        ours = pipeline_of("sd15").with_lora(lora_of("sd15/lora")).sample("a fox", width=64, height=64, steps=2, seed=7)
        assert Image.open(image["file_path"]).tobytes() == ours.frames[0].tobytes()
        long = server.submit({**body, "prompts": [{**prompt, "sample_steps": 900, "width": 256, "height": 256}]})
        server.until_rendering(long)
        server.http.delete(f"/v1/requests/{long}").raise_for_status()
        assert server.wait(long)["status"] == "canceled"
        page = server.http.get("/metrics").text
        assert 'lora_drift_requests_total{model="sd15",state="succeeded"} 1.0' in page
        assert 'lora_drift_requests_total{model="sd15",state="canceled"} 1.0' in page
        until(lambda: cluster.processes() == [])
        assert server.http.get("/readyz").status_code == 200


@pytest.mark.parametrize("missing", ["DATABASE_URL", "cluster"])
def test_what_is_missing_is_said_in_a_sentence(tmp_path: Path, missing: str, postgres: LocalPostgres) -> None:
    environment = {"RAY_CLUSTER": "127.0.0.1:1", "RAY_gcs_rpc_server_connect_timeout_s": "1",
                   "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # fmt: skip
    if missing == "cluster":
        environment["DATABASE_URL"] = postgres.url
    done = subprocess.run(
        [sys.executable, "-m", "lora_drift", "serve", "--mini", "--port", "0", "--output", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert ("set DATABASE_URL" if missing == "DATABASE_URL" else "no Ray cluster at 127.0.0.1:1") in done.stderr


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from lora_drift.harness import extras
    from lora_drift.harness.cli.main import app

    monkeypatch.setattr(extras, "_installed", lambda wanted: wanted.name != "ray")
    result = CliRunner().invoke(app, ["serve", "--ray", "auto"])
    assert result.exit_code == 2 and "--ray needs ray" in result.output
    assert "pip install 'lora-drift[ray]'" in result.output
