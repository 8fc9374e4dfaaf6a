"""The only writer of goldens."""

import json
import lzma
from hashlib import sha256
from pathlib import Path
from typing import Any

from harness.goldens import GOLDENS, golden_path, seal, stored, unpacked, variant, write_atomically

SUFFIXES = {"picture": ".png", "latents": ".safetensors", "trace": ".safetensors", "audio": ".safetensors",
            **dict.fromkeys(("lora", "lora_high", "lora_low"), ".safetensors")}  # fmt: skip

FLOATS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2}]
"""Packing for numbers of four bytes (each byte is predicted by its place in it): 7 % smaller than the default."""


def write(content: dict[str, Any], artefacts: dict[str, Path], root: Path = GOLDENS, *, dry: bool = False) -> str:
    """Store one golden, artefacts first; returns "new", "same bytes", or what changed. `dry` only compares."""
    model = content["case"].split("/")[0]
    sealed = golden_path(content["tag"], content["case"], root, variant=variant(content["environment"]))
    before = sealed.read_text(encoding="utf-8") if sealed.is_file() else None
    content["artefacts"] = {}
    for name, source in artefacts.items():
        data = source.read_bytes()
        if name.startswith("lora"):
            data = _same_lora(root, content["case"], name, data)
        digest = sha256(data).hexdigest()
        file = f"objects/{model}/{digest[:16]}{SUFFIXES[name]}"
        packed = data if SUFFIXES[name] == ".png" else lzma.compress(data, filters=FLOATS)
        path = stored(root, file)
        if not dry and (not path.is_file() or path.read_bytes() != packed):
            write_atomically(path, packed)
        content["artefacts"][name] = {"file": file, "sha256": digest, "bytes": len(data)}
    content["seal"] = seal(content)
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if before == text:
        return "same bytes"
    if not dry:
        write_atomically(sealed, text.encode())
    return "new" if before is None else "CHANGED: " + ", ".join(_changed(json.loads(before), content))


def _same_lora(root: Path, case: str, name: str, data: bytes) -> bytes:
    """The bytes of this case's LoRA as stored before, at any tag, if that file says the same as `data`: the safetensors
    library, through which the trainer saves, writes metadata in a random order, and the trainer adds its version."""
    for golden in sorted(root.glob(f"v*/{case}.json")):
        artefact = json.loads(golden.read_text(encoding="utf-8"))["artefacts"].get(name)
        path = artefact and stored(root, artefact["file"])
        before = unpacked(path) if path and path.is_file() else b""
        if before and _parts(before) == _parts(data):
            return before
    return data


def _parts(data: bytes) -> tuple[Any, bytes]:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.get("__metadata__", {}).pop("software", None)
    return header, data[8 + size :]


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of the fields and artefacts that differ."""
    names = [k for k in after if k not in ("artefacts", "seal") and before.get(k) != after[k]]
    old, new = before.get("artefacts", {}), after["artefacts"]
    return names + [f"{k} file" for k in {**old, **new} if old.get(k) != new.get(k)]


def prune(root: Path = GOLDENS) -> int:
    """Delete artefacts that no golden of any tag names; returns how many."""
    used = set()
    for path in root.glob("v*/*/*.json"):
        used |= {stored(root, a["file"]) for a in json.loads(path.read_text(encoding="utf-8"))["artefacts"].values()}
    stale = [p for p in root.glob("objects/*/*") if p not in used]
    for path in stale:
        path.unlink()
    return len(stale)
