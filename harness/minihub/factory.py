"""Build, find and verify the mini hub on disk."""

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from functools import cache
from hashlib import sha1, sha256
from pathlib import Path

from lora_drift.harness.minihub import layout, weights
from lora_drift.harness.minihub.repo import Repo, Weights, to_json
from lora_drift.harness.minihub.repos import MODELS, REPOS

HERE = Path(__file__).parent
MANIFESTS = HERE / "manifests"
"""One JSON file per repository: path -> sha256."""


class MiniHubError(Exception):
    """The hub on disk is not what this version of the factory builds."""


@cache
def factory_key() -> str:
    """Hash of everything the bytes depend on; a changed factory builds into a new folder."""
    digest = sha256()
    for path in sorted([*HERE.rglob("*.py"), *HERE.glob("layouts/*.json")]):
        digest.update(path.relative_to(HERE).as_posix().encode() + b"\x00" + path.read_bytes())
    return digest.hexdigest()[:16]


def default_home() -> Path:
    """Where the hub is cached: `$LORA_DRIFT_CACHE` or `~/.cache/lora-drift`. Use it as `HF_HOME`."""
    root = Path(os.environ.get("LORA_DRIFT_CACHE") or Path.home() / ".cache" / "lora-drift")
    return root / "minihub" / factory_key()


def _shards(w: Weights, names: list[str]) -> dict[str, list[str]]:
    """File name -> tensor names, in the naming of sharded checkpoints."""
    if w.shards == 1:
        return {f"{w.stem}.safetensors": names}
    size = -(-len(names) // w.shards)
    parts = [names[i : i + size] for i in range(0, len(names), size)]
    return {f"{w.stem}-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}


def _write_component(repo: Repo, w: Weights, root: Path) -> None:
    folder = root / w.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(w.config_json())
    values = w.values() if w.values else {}
    shapes = {n: list(v.shape) for n, v in values.items()} or layout.load(w)
    files = _shards(w, sorted(shapes))
    for file, names in files.items():
        # The component, not the shard, keys the values: resharding does not change a model.
        tensors = {
            n: values[n] if n in values else weights.tensor(repo.id, w.folder, n, shapes[n], w.rules) for n in names
        }
        weights.write_safetensors(folder / file, tensors, w.dtype)
    if w.shards > 1:
        item = {"float32": 4, "bfloat16": 2, "float16": 2}[w.dtype]
        total = sum(item * _count(shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": {n: f for f, part in files.items() for n in part}}
        (folder / f"{w.stem}.safetensors.index.json").write_text(to_json(index))


def _count(shape: list[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _write_repo(repo: Repo, root: Path) -> None:
    binaries = {path: text.encode() for path, text in repo.files.items()} | dict(repo.binaries)
    for path, content in binaries.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    for w in repo.weights:
        _write_component(repo, w, root)
    for loose in repo.tensors:
        drawn = {
            name: weights.tensor(repo.id, loose.path, name, shape, loose.rules) for name, shape in loose.shapes.items()
        }
        tensors = dict(loose.values()) if loose.values else drawn
        weights.write_safetensors(root / loose.path, tensors, loose.dtype)


def _hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def repo_folder(home: Path, repo_id: str) -> Path:
    return home / "hub" / ("models--" + repo_id.replace("/", "--"))


def build(home: Path | None = None, *, check: bool = True) -> Path:
    """Build the hub unless it is there, and return its `HF_HOME` folder.

    The folder appears whole or not at all: several processes may call this at once, and a killed one leaves
    nothing that looks finished. The bytes are checked against the committed manifests (unless `check` is off, which is
    for developers who change the factory).

    Raises:
        MiniHubError: the bytes built here differ from the manifest.
    """
    home = home or default_home()
    if (home / "complete.json").is_file():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=home.name + ".", dir=home.parent))
    try:
        for repo in REPOS.values():
            staging = scratch / "staging"
            _write_repo(repo, staging)
            hashes = _hashes(staging)
            revision = sha1(to_json(hashes).encode()).hexdigest()
            folder = repo_folder(scratch, repo.id)
            (folder / "refs").mkdir(parents=True)
            (folder / "refs" / "main").write_text(revision)
            (folder / "snapshots").mkdir()
            staging.rename(folder / "snapshots" / revision)
        if check:
            _raise_on(list(_differences(scratch)))
        (scratch / "complete.json").write_text(to_json({"factory": factory_key(), "repositories": sorted(REPOS)}))
        try:
            scratch.rename(home)
        except OSError:  # another process finished first; its hub is this hub
            if not (home / "complete.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return home


def snapshot(home: Path, repo_id: str) -> Path:
    """The snapshot folder of a repository in the hub at `home`."""
    folder = repo_folder(home, repo_id)
    return folder / "snapshots" / (folder / "refs" / "main").read_text().strip()


def _manifest_path(repo_id: str) -> Path:
    return MANIFESTS / f"{repo_id.replace('/', '--')}.json"


def _manifest() -> dict[str, dict[str, str]]:
    return {path.stem.replace("--", "/"): json.loads(path.read_text()) for path in sorted(MANIFESTS.glob("*.json"))}


def _differences(home: Path) -> Iterator[str]:
    manifest = _manifest()
    for repo_id in sorted({*manifest, *REPOS}):
        if repo_id not in REPOS or repo_id not in manifest:
            yield f"{repo_id}: only in {'the manifest' if repo_id in manifest else 'the factory'}"
            continue
        if not (repo_folder(home, repo_id) / "refs" / "main").is_file():
            yield f"{repo_id}: missing"
            continue
        found = _hashes(snapshot(home, repo_id))
        for path in sorted({*found, *manifest[repo_id]}):
            if found.get(path) != manifest[repo_id].get(path):
                state = "missing" if path not in found else "not in the manifest" if path not in manifest[
                    repo_id] else "other bytes"  # fmt: skip
                yield f"{repo_id}/{path}: {state}"


def _raise_on(differences: list[str]) -> None:
    if differences:
        shown = "\n  ".join(differences[:10])
        more = f"\n  ... and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise MiniHubError(
            f"the mini hub does not match its manifest in {len(differences)} file(s):\n  {shown}{more}\n"
            "If the factory was changed on purpose, write a new manifest with `lora-drift minihub manifest` "
            "and record the goldens of every model it touches again."
        )


def verify(home: Path | None = None) -> int:
    """Check every file of the hub on disk against the manifest; returns the number of files.

    Raises:
        MiniHubError: a file is missing, unknown or has other bytes (all named).
    """
    home = home or default_home()
    if not (home / "complete.json").is_file():
        raise MiniHubError(f"no mini hub at {home}: build it with `lora-drift minihub build`")
    _raise_on(list(_differences(home)))
    return sum(len(files) for files in _manifest().values())


def write_manifests(home: Path) -> None:
    """Developer tool: make what is on disk at `home` the committed truth."""
    MANIFESTS.mkdir(exist_ok=True)
    for stale in set(MANIFESTS.glob("*.json")) - {_manifest_path(repo_id) for repo_id in REPOS}:
        stale.unlink()
    for repo_id in REPOS:
        _manifest_path(repo_id).write_text(to_json(_hashes(snapshot(home, repo_id))))


def manifest_sha256(model: str, extras: Collection[str] = ()) -> str:
    """Hash over the files of the repositories that `model` loads, and `extras`: what its goldens depend on."""
    repos = (*(repo.id for repo in MODELS[model]), *extras)
    manifest = {repo: json.loads(_manifest_path(repo).read_text()) for repo in repos}
    return sha256(to_json(manifest).encode()).hexdigest()
