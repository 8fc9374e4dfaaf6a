"""The user's own Hugging Face cache, beside the mini hub: where it is, and which weights of a model it holds."""

import json
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from lora_drift.harness.check.cases import Case
from lora_drift.harness.minihub.repo import Repo
from lora_drift.harness.minihub.repos import MODELS

OWN = "LORA_DRIFT_OWN_HUB"
"""Environment variable that holds, as JSON, what `NAMES` were before the mini hub took their place."""
NAMES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")

UNREAD = (
    ("chroma", "ostris/*", ("text_encoder", "transformer")),
    ("flux2", "black-forest-labs/*", ("text_encoder", "transformer", "vae")),
    ("flux2_diffusers", "black-forest-labs/*", ("text_encoder",)),
    ("flux2_klein_*", "black-forest-labs/*", ("text_encoder", "transformer", "vae")),
    ("krea2*", "Qwen/Qwen-Image", ("text_encoder", "transformer")),
    ("ltx2.3", "diffusers/*", ("text_encoder",)),
    ("sd15", "*", ("safety_checker",)),
    ("wan2*", "*-Diffusers*", ("text_encoder",)),
    ("wan22_14b_*", "*-Diffusers*", ("text_encoder", "vae")),
    ("zimage_deturbo", "Tongyi-MAI/*", ("transformer",)),
    ("zimage_turbo", "ostris/*", ("",)),
)
"""Model, repository (as patterns), folders whose weights neither the trainer nor we load; "" is its top folder. The
trainer's training adapter is Z-Image-Turbo's only where a job names it."""


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
    """Repository -> commit, of what the trainer and we load weights from for a case of the full tier.

    Raises:
        NoWeights: the user's cache does not hold all of it.
    """
    cache = folder(own())
    found, lacking = dict[str, str](), dict[str, str]()
    for repo in MODELS[case.model]:
        root = cache / f"models--{repo.id.replace('/', '--')}"
        main = root / "refs" / "main"
        commit = main.read_text().strip() if main.is_file() else "none"
        for path in _weights(case.model, repo):
            found[repo.id] = commit
            missing = next(_missing(root / "snapshots" / commit, path), None)
            if missing is not None:
                lacking.setdefault(repo.id, missing)
    if lacking:
        named = ", ".join(f"{repo} ({path})" for repo, path in lacking.items())
        get = " && ".join(f"hf download {repo}" for repo in lacking)
        raise NoWeights(f"weights missing: {cache} lacks {named}. Get them: {get}")
    return found


def _weights(model: str, repo: Repo) -> Iterator[str]:
    """The weight files of a repository that this model takes, under the names that the miniature gives them."""
    unread = {f for m, r, folders in UNREAD if fnmatch(model, m) and fnmatch(repo.id, r) for f in folders}
    yield from (f"{w.folder}/{w.stem}.safetensors".lstrip("/") for w in repo.weights if w.folder not in unread)
    yield from (loose.path for loose in repo.tensors if "" not in unread)


def _missing(snapshot: Path, name: str) -> Iterator[str]:
    """What a snapshot lacks of one of these files, which may be in shards there."""
    index = snapshot / f"{name}.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        yield from (str(Path(name).with_name(shard)) for shard in shards if not index.with_name(shard).is_file())
    elif not (snapshot / name).is_file():
        yield name
