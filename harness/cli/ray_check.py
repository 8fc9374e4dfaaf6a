"""`lora-drift check --ray`: the pytest runs of the models, each where the cluster has room for it."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_drift.harness.check import results, trusted
from lora_drift.harness.check.plugin import INTERRUPTED
from lora_drift.harness.check.results import Result
from lora_drift.harness.paths import ROOT
from lora_drift.server import ray_cluster

TRIES = 3
"""Times that a model is checked again after its host has died."""


class Checked(NamedTuple):
    """What a run of pytest over the cases of a model gives back."""

    code: int
    lines: bytes
    """Of its results file."""
    outputs: dict[str, bytes]
    """Path below the checkout -> content."""


def run(
    address: str,
    paths: Sequence[Path],
    options: Sequence[str],
    file: Path,
    *,
    tag: str,
    device: str,
    dtype: str | None,
) -> int:
    """Check the case files on the cluster, with these options of pytest, which say tag, device and dtype, too; results
    are in `file` as they come. Returns the exit code of pytest.

    Cases of which `file` has a result by this code are not checked again: a run that was ended goes on.

    Raises:
        NoCluster: there is none at the address.
    """
    import ray

    before = [
        result for result in (results.read(file) if file.is_file() else []) if _counts(result, tag, device, dtype)
    ]
    done = {result.case for result in before}
    results.write(file, before)
    models: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        if f"{path.parent.name}/{path.stem}" not in done:
            models[path.parent.name].append(str(path))
    ray_cluster.connect(address)
    try:
        remote: Any = ray.remote
        # A process for each: what pytest and torch leave behind in one is nobody else's.
        on_cluster = remote(num_cpus=1, num_gpus=int(device != "cpu"), max_calls=1, max_retries=TRIES)(check_model)
        waiting = {on_cluster.remote(files, list(options)): model for model, files in models.items()}
        codes = [_code(result) for result in before]
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            codes.append(_keep(ready, waiting.pop(ready), file))
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        ray.shutdown()  # which ends what it still checks
    return max(codes, default=0)


def _counts(result: Result, tag: str, device: str, dtype: str | None) -> bool:
    same = (result.tag, result.device) == (tag, device) and dtype in (None, result.dtype)
    return same and result.made is not None and result.made.code == trusted.code()


def _code(result: Result) -> int:
    return int(result.verdict not in results.PASSING)


def _keep(ready: Any, model: str, file: Path) -> int:
    import ray
    from ray.exceptions import RayError

    try:
        checked: Checked = ray.get(ready)
    except RayError as error:
        print(f"{model}: could not be checked on the cluster: {str(error).splitlines()[0]}")
        return 1
    for name, content in checked.outputs.items():
        path = ROOT / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    with file.open("ab") as kept:
        kept.write(checked.lines)
    print(f"{model}: checked")
    return checked.code


def check_model(files: list[str], options: list[str]) -> Checked:
    """Runs on a host of the cluster, in a checkout of the same state."""
    import tempfile

    import pytest

    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "results.jsonl"
        code = pytest.main([*files, *options, "--drift-json", str(file)])
        outputs = {}
        for result in results.read(file) if file.is_file() else []:
            for name in filter(None, (result.output_picture, result.output_sound)):
                if (path := result.output_file(name, ROOT)).is_file():
                    outputs[name] = path.read_bytes()
        return Checked(int(code), file.read_bytes() if file.is_file() else b"", outputs)
