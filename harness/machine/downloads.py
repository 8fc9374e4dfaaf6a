"""What a model needs of the hub: which files, how large they are, whether they may be had; and fetching them."""

import json
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from lora_drift.pipelines import RequestError, hub

TABLE = Path(__file__).with_name("downloads.json")
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.safetensors$)")
COMPANIONS = ("added_tokens.json", "chat_template.*", "merges.txt", "special_tokens_map.json", "tokenizer*", "vocab.*")
"""What tokenizers of other transformers releases, or of a repository that has more files, read; a few megabytes."""


@dataclass(frozen=True)
class File:
    """A file of a repository."""

    path: str
    size: int
    """Bytes."""
    cached: bool


@dataclass(frozen=True)
class Part:
    """What a model takes of one repository."""

    repo: str
    page: str
    licence: str
    gated: bool
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes, of all files."""
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        """Bytes that are not in the cache yet."""
        return sum(file.size for file in self.files if not file.cached)


@cache
def table() -> dict[str, dict[str, list[str]]]:
    """Model -> repository -> files, as tests/record_downloads.py saw them opened; shards without their number."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def whole(name: str) -> str:
    """A file of weights without the number of its shard, and instead of the index of its shards."""
    return SHARD.sub("", name.removesuffix(".index.json"))


def parts(model: str) -> list[Part]:
    """What the model takes of each repository, as the hub has it today.

    Raises:
        RequestError: a repository cannot be read, or lacks a file; the message begins with the cause.
    """
    return [_part(repo, wanted) for repo, wanted in table()[model].items()]


def _part(repo: str, wanted: Collection[str]) -> Part:
    from huggingface_hub import constants, try_to_load_from_cache

    info = hub.info(repo, files=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    chosen = sorted(_chosen(wanted, sizes))
    if lacking := sorted(set(wanted) - {whole(name) for name in chosen}):
        raise RequestError(f"{repo}: the hub's copy has no {', '.join(lacking)}, which the pipelines read")
    files = tuple(File(name, sizes[name], isinstance(try_to_load_from_cache(repo, name), str)) for name in chosen)
    licence = (info.card_data.get("license") if info.card_data else None) or "not said"
    return Part(repo, f"{constants.ENDPOINT}/{repo}", str(licence), bool(info.gated), files)


def _chosen(wanted: Collection[str], there: Collection[str]) -> Iterator[str]:
    """Of the files of a repository, those that are read: weights whole or in shards, tokenizers with companions."""
    tokenizers = {name.rpartition("/")[0] for name in wanted if name.endswith("tokenizer_config.json")}
    for name in there:
        folder, _, last = name.rpartition("/")
        in_shards = name != whole(name)
        a_shard = in_shards and whole(name) in wanted and whole(name) not in there
        companion = folder in tokenizers and any(fnmatch(last, kind) for kind in COMPANIONS)
        if name in wanted or a_shard or companion:
            yield name


def is_cached(model: str) -> bool:
    """Is all of it in the cache? Asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    def there(repo: str, name: str) -> bool:
        return isinstance(try_to_load_from_cache(repo, name), str)

    return all(
        there(repo, name) or (name.endswith(".safetensors") and there(repo, f"{name}.index.json"))
        for repo, names in table()[model].items()
        for name in names
    )


def check_space(found: Collection[Part]) -> None:
    """Refuse what the disk of the cache cannot hold.

    Raises:
        RequestError: not enough space is left.
    """
    missing = {(part.repo, f.path): f.size for part in found for f in part.files if not f.cached}
    needed, free = sum(missing.values()), free_space()
    if needed > free:
        raise RequestError(
            f"no space: {gigabytes(needed)} are to be fetched, and {cache_folder()} has {gigabytes(free)} left. Free "
            "some, or set HF_HOME to a larger disk."
        )


def fetch(part: Part) -> None:
    """Bring the part's files into the cache; what an interrupted call left is continued.

    Raises:
        RequestError: it broke off.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(part.repo, allow_patterns=[file.path for file in part.files])
    except hub.errors() as error:
        said = hub.first_line(error)
        raise RequestError(f"{part.repo}: broke off ({said}). Run this again: it goes on from there.") from error


def cache_folder() -> Path:
    """Of huggingface_hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def free_space() -> int:
    """Bytes left on the disk of the cache, which may not exist yet."""
    there = next(folder for folder in (cache_folder(), *cache_folder().parents) if folder.is_dir())
    return shutil.disk_usage(there).free


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def as_json(model: str, found: Collection[Part]) -> dict[str, Any]:
    return {
        "model": model,
        "bytes": sum(part.size for part in found),
        "missing_bytes": sum(part.missing for part in found),
        "repositories": [
            {
                "repo": part.repo, "page": part.page, "licence": part.licence, "gated": part.gated,
                "files": [{"path": f.path, "bytes": f.size, "cached": f.cached} for f in part.files],
            }
            for part in found
        ],
    }  # fmt: skip
