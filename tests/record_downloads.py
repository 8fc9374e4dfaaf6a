"""Which files of the hub each model really opens: writes harness/machine/downloads.json, from renders on the mini hub.

    python tests/record_downloads.py [MODEL ...]

The kernel counts the opens (inotify), because tokenizers and safetensors read past Python. tests/test_downloads.py
compares the file with new renders.
"""

import argparse
import ctypes
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lora_drift.harness import tags
from lora_drift.harness.check import cases, runner
from lora_drift.harness.machine import downloads
from lora_drift.harness.minihub import factory
from lora_drift.harness.minihub.repos import MODELS

IN_OPEN, IN_ISDIR = 0x20, 0x40000000
HEADER = struct.Struct("iIII")


@contextmanager
def opened(root: Path) -> Iterator[set[Path]]:
    """The files below `root` that anything opens meanwhile; the set is filled on leaving."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    watched = {}
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        number = libc.inotify_add_watch(queue, os.fsencode(folder), IN_OPEN)
        if number < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))
        watched[number] = folder
    found: set[Path] = set()
    try:
        yield found
        while True:
            try:
                events = os.read(queue, 1 << 20)
            except BlockingIOError:
                break
            place = 0
            while place < len(events):
                number, mask, _, length = HEADER.unpack_from(events, place)
                name = events[place + HEADER.size : place + HEADER.size + length].rstrip(b"\0")
                place += HEADER.size + length
                if number < 0:
                    raise OSError("more files were opened than the kernel could count")
                if name and not mask & IN_ISDIR:
                    found.add(watched[number] / os.fsdecode(name))
    finally:
        os.close(queue)


def files_of(model: str, home: Path) -> dict[str, list[str]]:
    """Repository -> files that loading the model and rendering its plainest case open, as downloads.json says."""
    case = cases.load(cases.CASES / model / "base.yaml")
    bench = runner.Bench("cpu", tag=tags.newest_of([model]))
    settings = replace(bench.settings(case), steps=2)
    with opened(home / "hub") as paths:
        bench.pipeline(case, bench.golden(case)).render(settings)
    found: dict[str, set[str]] = {}
    for path in paths:
        repo, kind, *rest = path.relative_to(home / "hub").parts
        if kind == "snapshots":
            name = "/".join(rest[1:])
            found.setdefault(repo.removeprefix("models--").replace("--", "/", 1), set()).add(downloads.whole(name))
    return {repo: sorted(files) for repo, files in sorted(found.items())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--out", type=Path, default=downloads.TABLE)
    options = parser.parse_args()
    known = json.loads(options.out.read_text()) if options.out.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch, "home")
        shutil.copytree(factory.build(), home)  # one that no other program opens
        runner.use_minihub(home)
        for model in options.models:
            known[model] = files_of(model, home)
            options.out.write_text(json.dumps({m: known[m] for m in MODELS if m in known}, indent=1) + "\n")
            print(model, sum(map(len, known[model].values())), flush=True)


if __name__ == "__main__":
    main()
