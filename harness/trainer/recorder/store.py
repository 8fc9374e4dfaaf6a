"""The only writer of goldens."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from lora_drift.harness.check import golden_file, golden_store
from lora_drift.harness.check.golden_store import stored
from lora_drift.harness.check.goldens import GOLDENS, golden_path, seal, variant
from lora_drift.harness.minihub import weights

SUFFIXES = {"picture": ".png", "latents": ".safetensors", "trace": ".safetensors", "audio": ".safetensors",
            **dict.fromkeys(("lora", "lora_high", "lora_low"), ".safetensors")}  # fmt: skip


def write(content: dict[str, Any], artefacts: dict[str, Path], root: Path = GOLDENS, *, dry: bool = False) -> str:
    """Store one golden, artefacts first; returns "new", "same bytes", or what changed. `dry` only compares."""
    case = content["case"]
    path = golden_path(content["tag"], case, root, variant=variant(content["environment"]))
    there = golden_file.read(path)
    before = there.get(case)
    content["artefacts"] = {}
    for name, source in artefacts.items():
        data = golden_store.content(source)
        if name.startswith("lora"):
            data = _same_lora(root, case, name, data)
        if name == "trace" and before is not None:
            data = _same_trace(root, before["artefacts"]["trace"]["file"], data)
        digest = sha256(data).hexdigest()
        file = golden_file.artefact_file(case, name, digest)
        if not dry:
            others = _named(root, case, name)
            # Not from what this golden held before, which nobody else may need.
            golden_store.save(root, file, data, [other for golden, other in others if golden != path])
        content["artefacts"][name] = {"file": file, "sha256": digest, "bytes": len(data)}
    content["seal"] = seal(content)
    if before == json.loads(json.dumps(content)):
        return "same bytes"
    if not dry:
        _replace(root, path.name, {path.parent.name: {**there, case: content}})
    return "new" if before is None else "CHANGED: " + ", ".join(_changed(before, content))


def tidy(root: Path = GOLDENS) -> int:
    """Lay out all goldens as `golden_file.write_all` does, as is due after two branches that both recorded were merged;
    returns how many files are another text now. Each golden is read back and compared before its file is replaced.

    Raises:
        ValueError: a golden's seal does not fit, or it would not be read as before; nothing was written of its model.
    """
    return sum(_replace(root, name, {}) for name in sorted({path.name for path in root.glob("v*/*.json")}))


def _replace(root: Path, name: str, changed: dict[str, dict[str, Any]]) -> int:
    """Write the files of a model (folder -> contents) with those `changed`; returns how many are another text."""
    before = {path.parent.name: golden_file.read(path) for path in root.glob(f"v*/{name}")}
    for folder, contents in {**before, **changed}.items():
        for case, golden in contents.items():
            if golden.get("seal") != seal(golden):
                raise ValueError(f"{folder}/{name}: {case} was edited after recording (its seal does not fit)")
    texts = golden_file.write_all({**before, **changed})
    other = [
        folder
        for folder in sorted(texts, key=golden_file.age)
        if folder not in before or (root / folder / name).read_text(encoding="utf-8") != texts[folder]
    ]
    # First whole, so that none rests on another while that changes: whoever stops here leaves every golden as it was.
    for folder in other:
        if folder in before:
            golden_store.write_atomically(root / folder / name, golden_file.write(before[folder]).encode())
    for folder in other:
        golden_store.write_atomically(root / folder / name, texts[folder].encode())
    return len(other)


def _same_lora(root: Path, case: str, name: str, data: bytes) -> bytes:
    """The bytes of this case's LoRA as stored before, at any tag, if that file says the same as `data`: the safetensors
    library, through which the trainer saves, writes metadata in a random order, and the trainer adds its version, and
    the trigger word of that case of those which share the LoRA that was recorded first."""
    for _, file in _named(root, case, name):
        before = golden_store.sound(stored(root, file))
        if before is not None and _parts(before) == _parts(data):
            return before
    return data


def _same_trace(root: Path, file: str, data: bytes) -> bytes:
    """The stored bytes, if all that they lack are the ids of prompts, which older recorders did not keep."""
    before = golden_store.sound(stored(root, file))
    if before is None:
        return data
    without_ids = {name: tensor for name, tensor in _tensors(data).items() if not name.startswith("tokens/")}
    return before if _tensors(before) == without_ids else data


def _tensors(data: bytes) -> dict[str, Any]:
    """Name -> type, shape and bytes of a tensor; and the metadata."""
    header, start = weights.parse_head(data)
    found: dict[str, Any] = {"__metadata__": header.pop("__metadata__", {})}
    for name, tensor in header.items():
        first, last = tensor["data_offsets"]
        found[name] = tensor["dtype"], tensor["shape"], data[start + first : start + last]
    return found


def _named(root: Path, case: str, name: str) -> Iterator[tuple[Path, str]]:
    """Goldens of `case`, of any tag, and what they name as that artefact."""
    for path in sorted(root.glob(f"v*/{case.split('/')[0]}.json")):
        artefact = golden_file.read(path).get(case, {}).get("artefacts", {}).get(name)
        if artefact:
            yield path, artefact["file"]


def _parts(data: bytes) -> tuple[Any, bytes]:
    header, start = weights.parse_head(data)
    for name in ("software", "ss_tag_frequency"):
        header.get("__metadata__", {}).pop(name, None)
    return header, data[start:]


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of the fields and artefacts that differ."""
    names = [k for k in after if k not in ("artefacts", "seal") and before.get(k) != after[k]]
    old, new = before.get("artefacts", {}), after["artefacts"]
    return names + [f"{k} file" for k in {**old, **new} if old.get(k) != new.get(k)]


def prune(root: Path = GOLDENS) -> int:
    """Delete artefacts that no golden of any tag names and no difference needs; returns how many."""
    used = set()
    for path in root.glob("v*/*.json"):
        for golden in golden_file.read(path).values():
            used |= {stored(root, artefact["file"]) for artefact in golden["artefacts"].values()}
    for path in list(used):
        base = golden_store.base_of(path)
        while base is not None and base not in used:
            used.add(base)
            base = golden_store.base_of(base)
    stale = [p for p in root.glob("objects/*/*") if p not in used]
    for path in stale:
        path.unlink()
    return len(stale)
