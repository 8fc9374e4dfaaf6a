"""The file with the goldens of a model at a tag, laid out for whoever reads its diff.

`goldens/<tag>/<model>.json` holds at its top what the model's cases share (tag, trainer, environment, ...), under
`cases` what each has of its own, which counts where both have it. Trainer versions render much the same, so a case may
be said to be `as` at another tag: then its own fields are those of that golden, but for what it says beside. A golden's
content, over which its seal is taken, is what `read` makes of that.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

AS = "as"
"""The folder, of an older tag or of this one in float32, as whose golden of the case this is; no field of a golden, and
null where nothing is."""
SHARED = ("format", "recorder", "tag", AS, "trainer", "environment", "minihub_sha256", "origin", "short_way", "patches")
"""Fields that stand at the top, with the value that most cases have."""
MERGED = ("trainer", "environment")
"""Of these, objects of which a case holds only what differs."""
ENTRIES = ("settings", "output", "artefacts")
"""Objects of which a case that is as at another tag holds only what differs."""
ORDER = (*SHARED, "weights", "case_sha256", "settings", "output", "artefacts", "seal")
LINE = 120
TAG = re.compile(r"v\d+(\.\d+)*")

Fields = dict[str, Any]


def read(path: Path) -> dict[str, Fields]:
    """Case id -> the content of its golden, unchecked. Of a file that is not there: nothing.

    Raises:
        ValueError: the file has another layout, or a golden that it refers to is not there.
    """
    return parse(_text_of(path), lambda folder: _text_of(path.parents[1] / folder / path.name))


def parse(text: str | None, other: Callable[[str], str | None]) -> dict[str, Fields]:
    """The same of the file's text (None: there is none); `other` gives that of the model's file in another folder."""
    there: dict[str, dict[str, Fields]] = {}

    def content(case: str, said: Fields, above: tuple[str, ...] = ()) -> Fields:
        own = dict(said)
        folder = own.pop(AS, None)
        if folder is None:
            return own
        if not isinstance(folder, str) or not TAG.fullmatch(folder):
            raise ValueError(f"{case} is said to be as at {folder!r}, which is no tag")
        if folder in above:
            raise ValueError(f"{case} is said to be as at {folder!r}, and so as itself")
        if folder not in there:
            there[folder] = _said(other(folder))
        if case not in there[folder]:
            raise ValueError(f"{case} is said to be as at {folder!r}, which has no golden of it")
        return _beside(content(case, there[folder][case], (*above, folder)), own)

    return {case: _with_files(case, content(case, said)) for case, said in _said(text).items()}


def folders_named(path: Path) -> list[str]:
    """The folders on whose files this one rests, as far as they can be read."""
    found, left = set[str](), [path]
    while left:
        file = left.pop()
        try:
            named = {folder for said in _said(_text_of(file)).values() if isinstance(folder := said.get(AS), str)}
        except ValueError:
            continue
        left += [path.parents[1] / folder / path.name for folder in named - found]
        found |= named
    return sorted(found)


def age(folder: str) -> list[int]:
    """For sorting folders by their tag, oldest first.

    Raises:
        ValueError: it is not named `v1.2...`, with or without `@` and a variant.
    """
    return [int(part) for part in folder.partition("@")[0].lstrip("v").split(".")]


def write(contents: dict[str, Fields], bases: Mapping[str, tuple[str, Fields]] | None = None) -> str:
    """The text of the file from which `read` gets `contents` (case id -> content).

    `bases`: case -> a folder that has it, and its content there; where that can be, it is said to be as there.
    """
    goldens, said = {}, {}
    for case in sorted(contents):
        content = said[case] = goldens[case] = _stripped(case, contents[case])
        folder, base = (bases or {}).get(case, (None, {}))
        beside = None if folder is None else _differing(_stripped(case, base), content)
        if beside is not None:
            said[case], goldens[case] = beside | {AS: folder}, content | {AS: folder}
    if any(AS in content for content in goldens.values()):
        goldens = {case: {AS: None} | content for case, content in goldens.items()}
        said = {case: {AS: None} | content for case, content in said.items()}
    shared = _shared(list(goldens.values()), SHARED, merged=MERGED)
    own = {case: _own(content, shared) for case, content in said.items()}
    return _text({**shared, "cases": own}) + "\n"


def write_all(files: Mapping[str, dict[str, Fields]]) -> dict[str, str]:
    """The texts of all files of a model: folder -> contents becomes folder -> text. A case is whole at the oldest tag
    that has it, in float32. Elsewhere it is as there or, if that makes a file shorter, as at the nearest older tag; so
    recording a new tag leaves the files of the others alone.

    Raises:
        ValueError: read back, a golden would not be what it was.
    """
    plain = sorted((name for name in files if "@" not in name), key=age)
    texts = {}
    for folder, contents in files.items():
        older = [name for name in plain if name != folder and age(name) <= age(folder)]
        having = {case: [name for name in older if case in files[name]] for case in contents}
        ways = ({c: (names[end], files[names[end]][c]) for c, names in having.items() if names} for end in (0, -1))
        texts[folder] = min((write(contents, bases) for bases in ways), key=len)
    for folder, contents in files.items():
        if _canonical(parse(texts[folder], texts.get)) != _canonical(contents):
            raise ValueError(f"the goldens of {folder} would not be read as they were")
    return texts


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


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
    if strange := set(shared) - set(SHARED):
        raise ValueError(f"cases do not share {min(strange)!r}")
    for field, value in shared.items():
        own = [golden[field] for golden in goldens if field in golden]
        keys = value if field in MERGED and isinstance(value, dict) else ()
        unused = [key for key in keys if all(isinstance(o, dict) and key in o for o in own)] or not keys
        if len(own) == len(goldens) and unused:
            raise ValueError(f"no case uses its {field!r}")


def _said(text: str | None) -> dict[str, Fields]:
    """Case -> what the file itself says of it, `as` among it."""
    if text is None:
        return {}
    shared = json.loads(text)
    goldens = shared.pop("cases", None) if isinstance(shared, dict) else None
    if not isinstance(goldens, dict) or not all(isinstance(own, dict) for own in goldens.values()):
        raise ValueError("it has no object `cases` of objects")
    _check_used(shared, list(goldens.values()))
    return {case: _whole(case, shared, own) for case, own in goldens.items()}


def _whole(case: str, shared: Fields, own: Fields) -> Fields:
    content: Fields = {"case": case, **shared, **own}
    for field in MERGED:
        if isinstance(shared.get(field), dict) and isinstance(own.get(field), dict):
            content[field] = {**shared[field], **own[field]}
    return content


def _beside(base: Fields, said: Fields) -> Fields:
    """The content of a golden that is as `base`, but for what is said of it."""
    content = {field: value for field, value in base.items() if field not in (*SHARED, "seal")} | said
    for field in ENTRIES:
        if isinstance(base.get(field), dict) and isinstance(said.get(field), dict):
            content[field] = {**base[field], **said[field]}
    return content


def _differing(base: Fields, content: Fields) -> Fields | None:
    """What has to be said beside `base`; None: that cannot be said, since `base` has more."""
    said: Fields = {}
    for field, value in content.items():
        there = base.get(field)
        if field in (*SHARED, "seal") or not _has(base, field, value):
            said[field] = value
            if field in ENTRIES and isinstance(value, dict) and isinstance(there, dict):
                said[field] = {key: item for key, item in value.items() if not _has(there, key, item)}
    again = _beside(base, said)
    return said if _canonical(again) == _canonical(content) else None


def _with_files(case: str, content: Fields) -> Fields:
    """With the files of its artefacts, which their hashes name."""
    artefacts = content.get("artefacts")
    if not isinstance(artefacts, dict) or not all(isinstance(a, dict) for a in artefacts.values()):
        raise ValueError(f"{case} has no object `artefacts` of objects")
    content["artefacts"] = {
        name: {"file": artefact_file(case, name, str(artefact.get("sha256"))), **artefact}
        for name, artefact in artefacts.items()
    }
    return content


def _stripped(case: str, content: Fields) -> Fields:
    """What `_said` and `_with_files` add left out."""
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
