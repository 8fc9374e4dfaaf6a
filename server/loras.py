"""LoRA files: local ones confined to one folder, downloaded ones kept by the hash of their content."""

import asyncio
import os
import tempfile
import threading
import time
from collections import OrderedDict
from hashlib import file_digest, sha256
from pathlib import Path
from urllib.parse import urlsplit

from httpx2 import Response

from lora_drift.server import fetch
from lora_drift.server.config import MEGABYTE, Settings
from lora_drift.server.errors import ApiError, bad
from lora_drift.server.store import Store

HUGGING_FACE = "huggingface.co"


class LoraFileError(Exception):
    """A downloaded file cannot be used."""


def is_url(path: str) -> bool:
    return path.lower().startswith(("http://", "https://"))


def local(root: Path, path: str) -> tuple[Path, str]:
    """The file `path` below `root`, and its hash.

    Raises:
        ApiError: it leads out of the folder (absolute, `..`, a symlink), or is no sound safetensors file there.
    """

    def refuse(code: str, message: str) -> ApiError:
        return bad(code, f"LoRA file {path!r}: {message}", path=path)

    given = Path(path)
    if given.is_absolute() or ".." in given.parts or "\\" in path or not path.isprintable():
        raise refuse("LORA_PATH_FORBIDDEN", "give a path below WORKFLOWS_BASE_PATH, without `..`")
    if given.suffix != ".safetensors":
        raise refuse("LORA_FORMAT", "only .safetensors files are read; give the full file name")
    try:
        found = (root / given).resolve(strict=True)
    except (OSError, RuntimeError):  # a loop of symlinks raises the latter
        raise refuse("LORA_NOT_FOUND", "not found below WORKFLOWS_BASE_PATH") from None
    if not found.is_relative_to(root.resolve()):
        raise refuse("LORA_PATH_FORBIDDEN", "is a link that leads out of WORKFLOWS_BASE_PATH")
    if not found.is_file():
        raise refuse("LORA_NOT_FOUND", "is not a file")
    try:
        return found, _known(found)
    except LoraFileError as error:
        raise refuse("LORA_INVALID", str(error).replace(str(found), path)) from error


Identity = tuple[int, ...]
_hashes: OrderedDict[Path, tuple[Identity, str]] = OrderedDict()
_hashes_lock = threading.Lock()
MOST_HASHES = 1000
SETTLED = 2.0
"""Seconds since its last change after which a file's times tell whether it is still the same: clocks of files tick."""


def _known(file: Path) -> str:
    """`inspect`, which reads all of it, unless the file is one that was inspected and has not been touched since."""
    before = _identity(file)
    with _hashes_lock:
        known = _hashes.get(file)
        if known is not None and known[0] == before:
            _hashes.move_to_end(file)
            return known[1]
    digest = inspect(file)
    changed = max(before[-2:]) / 1e9
    if _identity(file) == before and changed < time.time() - SETTLED:
        with _hashes_lock:
            _hashes[file] = before, digest
            while len(_hashes) > MOST_HASHES:
                _hashes.popitem(last=False)
    return digest


def _identity(file: Path) -> Identity:
    """What changes with a file's content: also its ctime, which nobody can set back."""
    stat = file.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def inspect(file: Path) -> str:
    """Hash of a safetensors file whose header is sound.

    Raises:
        LoraFileError: it is not one, or not whole.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:  # reads and checks the header, and the file's length
            if not list(opened.keys()):
                raise LoraFileError("holds no tensors")
        with file.open("rb") as content:
            return file_digest(content, "sha256").hexdigest()
    except (SafetensorError, OSError) as error:
        raise LoraFileError(f"not a whole safetensors file ({error}); it may be truncated or a web page") from error


class Downloads:
    """The folder of downloaded LoRAs, `<sha256>.safetensors`."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.folder = settings.lora_download_cache_dir or settings.state / "loras"
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.glob("*.part"):  # of a server that was killed
            part.unlink()

    def path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"

    async def get(self, url: str, wanted: str | None, token: str | None) -> str:
        """Hash of what `url` holds, which is then in the folder; downloaded unless it is known not to have changed.

        Raises:
            FetchError, LoraFileError: it could not be fetched, or is not usable.
        """
        if wanted is not None and self._touch(wanted):
            return wanted
        key = sha256(url.encode()).hexdigest()
        known = await asyncio.to_thread(self.store.download, key)
        fresh = known is not None and self._touch(known.sha256)
        headers = {"If-None-Match": known.etag} if known is not None and fresh else {}
        parts = urlsplit(url)
        if parts.hostname == HUGGING_FACE:
            url = url.replace("/blob/", "/resolve/", 1)
        else:
            token = None  # a Hugging Face token is nobody else's business
        async with fetch.request(
            "GET", url, private=self.settings.allow_private_urls, timeout=self.settings.download_timeout,
            headers=headers, token=token,
        ) as response:  # fmt: skip
            if response.status_code == 304 and known is not None:
                digest = known.sha256
            else:
                digest = await self._keep(response)
                if etag := response.headers.get("etag"):
                    await asyncio.to_thread(self.store.note_download, key, etag, digest)
        if wanted not in (None, digest):
            raise LoraFileError(f"its sha256 is {digest}, not the one that was asked for")
        await asyncio.to_thread(self._trim, digest)
        return digest

    async def _keep(self, response: Response) -> str:
        handle, name = tempfile.mkstemp(suffix=".part", dir=self.folder)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                waiting: list[bytes] = []
                limit, slowest = int(self.settings.max_lora_mb * MEGABYTE), self.settings.min_download_kbps * 1000
                async for chunk in fetch.chunks(response, limit, slowest):
                    waiting.append(chunk)
                    if sum(map(len, waiting)) >= MEGABYTE:  # a disk may be slow, and the server answers others
                        await asyncio.to_thread(file.writelines, waiting)
                        waiting = []
                file.writelines(waiting)
            digest = await asyncio.to_thread(inspect, part)
            part.replace(self.path(digest))
            return digest
        finally:
            part.unlink(missing_ok=True)

    def _touch(self, digest: str) -> bool:
        try:
            os.utime(self.path(digest))
        except FileNotFoundError:
            return False
        return True

    def _trim(self, newest: str) -> None:
        """Remove the least recently used files above the budget, but for those that a waiting request needs."""
        keep = {newest, *self.store.loras_in_use()}
        files = sorted(((f.stat(), f) for f in self.folder.glob("*.safetensors")), key=lambda item: item[0].st_mtime)
        over = sum(stat.st_size for stat, _ in files) - self.settings.lora_cache_gb * 1024 * MEGABYTE
        for stat, file in files:
            if over > 0 and file.stem not in keep:
                file.unlink(missing_ok=True)
                over -= stat.st_size
