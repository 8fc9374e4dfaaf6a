"""The user's own Hugging Face cache, beside the mini hub: where it is, and which weights of a model it holds."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.cases import Case
from harness.minihub.repo import Repo
from harness.minihub.repos import MODELS

OWN = "LORA_DRIFT_OWN_HUB"
"""Environment variable that holds, as JSON, what `NAMES` were before the mini hub took their place."""
NAMES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")


class NoWeights(Exception):
    """The cache lacks weights; the message says which, and how to get them."""


def set_aside(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Keep what the user set, for `own`, before the mini hub takes its place. Child processes inherit it."""
    environment.setdefault(OWN, json.dumps({name: environment.get(name) for name in NAMES}))


def own(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environment` with the user's own hub, whether or not the mini hub is in its place."""
    found = dict(environment)
    before: dict[str, str | None] = json.loads(found.pop(OWN, "{}"))
    for name, value in before.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value
    return found


def folder(environment: Mapping[str, str]) -> Path:
    """The cache that huggingface_hub takes in this environment."""
    caches = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{caches}/huggingface"
    return Path(environment.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def revisions(case: Case) -> dict[str, str]:
    """Repository -> commit, of everything that the trainer and we load for a case of the full tier.

    Raises:
        NoWeights: the user's cache does not hold all of it.
    """
    cache, lacking, found = folder(own()), [], {}
    for repo in MODELS[case.model]:
        main = cache / f"models--{repo.id.replace('/', '--')}" / "refs" / "main"
        commit = main.read_text().strip() if main.is_file() else ""
        missing = next(_missing(repo, main.parent.parent / "snapshots" / commit), None) if commit else "everything"
        if missing is None:
            found[repo.id] = commit
        else:
            lacking.append(f"{repo.id} ({missing})")
    if lacking:
        ids = [name.split(" ")[0] for name in lacking]
        raise NoWeights(f"weights missing: {cache} lacks {', '.join(lacking)}. Get them: "
                        + " && ".join(f"hf download {repo}" for repo in ids))  # fmt: skip
    return found


def _missing(repo: Repo, snapshot: Path) -> Iterator[str]:
    """What the miniature of a repository has and a snapshot of the real one lacks. Shards may be cut otherwise."""
    for w in repo.weights:
        component = snapshot / w.folder
        index = component / f"{w.stem}.safetensors.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            yield from (f"{w.folder}/{shard}" for shard in shards if not (component / shard).is_file())
        elif not any(path.is_file() for path in (*component.glob("*.safetensors"), *component.glob("*.bin"))):
            yield f"{w.folder}/{w.stem}.safetensors"
    yield from (loose.path for loose in repo.tensors if not (snapshot / loose.path).is_file())
    # Texts differ between the real repositories and their miniatures; that a folder of them is there has to do.
    folders = {Path(name).parent for name in repo.files}
    yield from (str(f) for f in sorted(folders) if not any(path.is_file() for path in (snapshot / f).glob("*")))
