"""The file with the goldens of a model at a tag, laid out for whoever reads its diff.

`goldens/<tag>/<model>.json` holds at its top what the model's cases share (tag, trainer, environment, ...), under
`cases` what each has of its own, which counts where both have it. A golden's content, over which its seal is taken, is
what `read` makes of that.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SHARED = ("format", "recorder", "tag", "trainer", "environment", "minihub_sha256", "origin", "short_way", "patches")
"""Fields that stand at the top, with the value that most cases have."""
MERGED = ("trainer", "environment")
"""Of these, objects of which a case holds only what differs."""
ORDER = (*SHARED, "weights", "case_sha256", "settings", "output", "artefacts", "seal")
LINE = 120

Fields = dict[str, Any]


def read(path: Path) -> dict[str, Fields]:
    """Case id -> the content of its golden, unchecked. Of a file that is not there: nothing.

    Raises:
        ValueError: the file has another layout.
    """
    return parse(path.read_text(encoding="utf-8")) if path.is_file() else {}


def parse(text: str) -> dict[str, Fields]:
    """The same of the file's text."""
    shared = json.loads(text)
    goldens = shared.pop("cases", None) if isinstance(shared, dict) else None
    if not isinstance(goldens, dict) or not all(isinstance(own, dict) for own in goldens.values()):
        raise ValueError("it has no object `cases` of objects")
    _check_used(shared, list(goldens.values()))
    return {case: _whole(case, shared, own) for case, own in goldens.items()}


def write(contents: dict[str, Fields]) -> str:
    """The text of the file from which `read` gets `contents` (case id -> content)."""
    goldens = {case: _stripped(case, contents[case]) for case in sorted(contents)}
    shared = _shared(list(goldens.values()), SHARED, merged=MERGED)
    own = {case: _own(content, shared) for case, content in goldens.items()}
    return _text({**shared, "cases": own}) + "\n"


def artefact_file(case: str, name: str, sha256: str) -> str:
    """What a golden calls the artefact `name` of that content."""
    suffix = ".png" if name == "picture" else ".safetensors"
    return f"objects/{case.split('/')[0]}/{sha256[:16]}{suffix}"


def _shared(contents: list[Fields], fields: Iterable[str], merged: tuple[str, ...] = ()) -> Fields:
    """Of those `fields` that all have, the most common value."""
    found: Fields = {}
    for field in fields:
        values = [content[field] for content in contents if field in content]
        if len(values) < len(contents):
            continue
        if field not in merged:
            found[field] = json.loads(Counter(map(json.dumps, values)).most_common(1)[0][0])
        elif all(isinstance(value, dict) for value in values):
            found[field] = _shared(values, sorted(values[0]))
    return found


def _own(content: Fields, shared: Fields) -> Fields:
    """What `shared` does not say."""
    own: Fields = {}
    for field in sorted(content, key=lambda name: (*ORDER, name).index(name)):
        value = content[field]
        if field in MERGED and field in shared:
            if more := {key: v for key, v in value.items() if not _has(shared[field], key, v)}:
                own[field] = more
        elif not _has(shared, field, value):
            own[field] = value
    return own


def _has(fields: Fields, key: str, value: Any) -> bool:
    return key in fields and json.dumps(fields[key]) == json.dumps(value)


def _check_used(shared: Fields, goldens: list[Fields]) -> None:
    """Else an edit of what every case has itself would change no golden, and no seal would tell."""
    for field, value in shared.items():
        own = [golden[field] for golden in goldens if field in golden]
        keys = value if field in MERGED and isinstance(value, dict) else ()
        unused = [key for key in keys if all(isinstance(o, dict) and key in o for o in own)] or not keys
        if len(own) == len(goldens) and unused:
            raise ValueError(f"no case uses its {field!r}")


def _whole(case: str, shared: Fields, own: Fields) -> Fields:
    """The content of a golden: with the files of its artefacts, which their hashes name."""
    content: Fields = {"case": case, **shared, **own}
    for field in MERGED:
        if isinstance(shared.get(field), dict) and isinstance(own.get(field), dict):
            content[field] = {**shared[field], **own[field]}
    artefacts = content.get("artefacts")
    if not isinstance(artefacts, dict) or not all(isinstance(a, dict) for a in artefacts.values()):
        raise ValueError(f"{case} has no object `artefacts` of objects")
    content["artefacts"] = {
        name: {"file": artefact_file(case, name, str(artefact.get("sha256"))), **artefact}
        for name, artefact in artefacts.items()
    }
    return content


def _stripped(case: str, content: Fields) -> Fields:
    """What `_whole` adds left out."""
    kept: Fields = json.loads(json.dumps(content, sort_keys=True))
    for name, artefact in kept["artefacts"].items():
        if artefact["file"] == artefact_file(case, name, artefact["sha256"]):
            del artefact["file"]
    if kept["case"] == case:
        del kept["case"]
    return kept


def _text(value: Any, indent: str = "", before: int = 0) -> str:
    """JSON in which what fits on a line stands on one; `before`: characters on its line already."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict) or not value or (indent and before + len(line) < LINE):
        return line
    inner, lines = f"{indent} ", []
    for key, item in value.items():
        head = f"{inner}{json.dumps(key, ensure_ascii=False)}: "
        lines.append(head + _text(item, inner, len(head)))
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
