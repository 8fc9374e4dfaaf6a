"""Reads a job file as the trainer does (toolkit/config.py), and says what of it cannot be honoured."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lora_drift.harness.trainer.jobs import JobError
from lora_drift.harness.trainer.jobs.fields import HARMLESS, NEWER, NOTHING, UNHONOURED
from lora_drift.harness.trainer.jobs.job_file import JobFile, Process, Sampling

NAMES = ("config.yaml", "config.yml", ".job_config.json", "config.json")
"""What the trainer writes into its output folder (config.yaml), and what its UI does, in the order of preference."""
TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer", "concept_slider", "image_reference_slider_trainer",
            "ultimate_slider_trainer", "slider")  # fmt: skip
"""Process types that train and sample as BaseSDTrainProcess does."""


@dataclass(frozen=True)
class Unknown:
    """A field that not every trainer of ours reads."""

    place: str
    """As in the file: sample.samples[0].guidence"""
    value: object
    since: str
    """The trainer version that reads it; "" if we know of none."""
    effect: str
    """What it does to samples there; "": nothing."""


@dataclass(frozen=True)
class Job:
    """A job file and where it was found."""

    path: Path
    name: str
    process: Process
    notes: tuple[str, ...]
    """One line a field that is not honoured."""
    unknown: tuple[Unknown, ...] = ()


REMEDY = "Take the job file as the trainer read it: the config.yaml that it wrote into its output folder."


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as the trainer's loader does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read(folder: Path, given: Mapping[str, Any] | None = None, *, sampled: bool = True) -> Job:
    """The job of an output folder (or a job file itself).

    Args:
        given: "section.field" -> what takes the place of the job's own value, which is then not looked at.
        sampled: refuse a job that made no samples, too.

    Raises:
        JobError: no such folder, no job file in it, or one that the trainer would refuse too.
    """
    path = _find(folder)
    data = _load(path)
    for key, remedy in (("job", "`job: extension`"), ("config", "a `config:` section")):
        if key not in data:
            hint = " This looks like a config of kohya's scripts." if "pretrained_model_name_or_path" in data else ""
            raise JobError(f"{path}: `{key}` is missing; an ai-toolkit job file begins with {remedy}.{hint}")
    try:
        raw = JobFile.model_validate(data)
        # The trainer does this to the whole file as text, and stops at what is no JSON then: a quote in the name.
        named = json.loads(json.dumps(data).replace("[name]", raw.config.name))
        file = JobFile.model_validate(named)
    except ValidationError as error:
        raise JobError(f"{path}: {_explained(error, ())}. {REMEDY}") from None
    except (TypeError, RecursionError, ValueError) as error:  # a date, a set, a mapping inside itself
        raise JobError(f"{path}: holds what no job has ({error}). {REMEDY}") from None
    index, process = _process(path, file, given or {})
    if sampled and not any(s.items for s in (process.sample, process.first_sample) if s is not None):
        raise JobError(f"{path}: `sample` has neither `samples` nor `prompts`, so the job made no samples. {REMEDY}")
    notes = [*_unhonoured(process)]
    if len(file.config.process) > 1:
        others = ", ".join(str(p.get("type")) for i, p in enumerate(file.config.process) if i != index)
        notes.append(f"config.process: only process {index} is read, of type {process.type}; not {others}")
    return Job(path, file.config.name, process, tuple(notes), tuple(_unknown(process)))


def _process(path: Path, file: JobFile, given: Mapping[str, Any]) -> tuple[int, Process]:
    """The first process that samples while it trains, and its place; of none, the first."""
    kinds = [process.get("type") for process in file.config.process]
    index = next((i for i, kind in enumerate(kinds) if kind in TRAINERS), 0)
    if "type" in file.config.process[index] and kinds[index] not in TRAINERS:
        raise JobError(f"{path}: `config.process[{index}].type: {kinds[index]}` (of `job: {file.job}`) trains nothing "
                       f"that samples; jobs of type {', '.join(TRAINERS)} are read")  # fmt: skip
    try:
        return index, Process.model_validate(_replaced(file.config.process[index], given))
    except ValidationError as error:
        raise JobError(f"{path}: {_explained(error, ('config', 'process', index))}. {REMEDY}") from None


def _replaced(process: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The process with other values at "section.field" (or "field")."""
    for place, value in given.items():
        section, _, field = place.rpartition(".")
        inner = process.get(section) if section else process
        if section == "sample" and inner is None:
            continue  # a job that does not sample has no field to put it in
        if section and not isinstance(inner, dict):
            inner = {}
        changed = {**(inner or {}), field: value}
        process = {**process, section: changed} if section else changed
    return process


def _find(folder: Path) -> Path:
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise JobError(f"{folder}: no such folder; give the trainer's output folder of one job (OUTPUT/NAME)")
    named = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    others = sorted(p for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    if named is None and len(others) == 1:
        return others[0]
    if named is None:
        inside = sorted(p.parent.name for p in folder.glob("*/config.yaml"))
        hint = f" Did you mean one of its folders: {', '.join(inside[:5])}?" if inside else ""
        raise JobError(f"{folder}: found no config.yaml; the trainer writes it into the job's output folder. Copy the "
                       f"job file there.{hint}")  # fmt: skip
    return named


def _load(path: Path) -> dict[str, Any]:
    try:
        content = re.sub(r"\$\{([^}]+)\}", lambda match: _variable(path, match[1]), path.read_text(encoding="utf-8"))
        data = json.loads(content) if path.suffix == ".json" else yaml.load(content, Loader=_Loader)
        json.dumps(data, ensure_ascii=False, default=repr).encode()
    except UnicodeError as error:
        raise JobError(f"{path}: not a text file ({error}); it should be the job's YAML or JSON") from error
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); copy the job file where it can") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError) as error:  # PyYAML lets many through
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise JobError(f"{path}: not valid {kind} ({' '.join(str(error).split())}). {REMEDY}") from error
    if not isinstance(data, dict):
        raise JobError(f"{path}: a job file is a mapping with `job:` and `config:`")
    return data


def _variable(path: Path, name: str) -> str:
    if name not in os.environ:
        raise JobError(f"{path}: ${{{name}}} stands in it, but the environment variable {name} is not set; set it, as "
                       "for the trainer")  # fmt: skip
    return os.environ[name]


def _explained(error: ValidationError, above: tuple[int | str, ...]) -> str:
    return "; ".join(_explain((*above, *e["loc"]), e["msg"], e["input"]) for e in error.errors())


def _explain(loc: tuple[int | str, ...], message: str, value: object) -> str:
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    if message == "Field required":
        return f"`{field}` is missing"
    shown = repr(value)
    return f"`{field}: {shown if len(shown) <= 80 else shown[:80] + '...'}`: {message.removeprefix('Value error, ')}"


def _extra(process: Process) -> Iterator[tuple[str, str, str, Any]]:
    """(section, its place in the file, field, value) of each field that no rendering reads."""
    sections: list[tuple[str, str, BaseModel]] = [("process", "", process), ("train", "train.", process.train),
        ("model", "model.", process.model), ("save", "save.", process.save)]  # fmt: skip
    if process.network is not None:
        sections.append(("network", "network.", process.network))
    for name, sampling in (("sample", process.sample), ("first_sample", process.first_sample)):
        sections += _sampling_sections(name, sampling) if sampling is not None else []
    for section, prefix, found in sections:
        for field, value in (found.model_extra or {}).items():
            yield section, prefix, field, value


def _unhonoured(process: Process) -> Iterator[str]:
    for section, prefix, field, value in _extra(process):
        why = UNHONOURED.get(section, {}).get(field)
        if why and ((value != NOTHING[field]) if field in NOTHING else value):
            yield f"{prefix}{field}: {value!r} is not honoured: {why}"


def _unknown(process: Process) -> Iterator[Unknown]:
    for section, prefix, field, value in _extra(process):
        if field not in UNHONOURED.get(section, {}) and field not in HARMLESS[section].split():
            since, effect = NEWER.get(section, {}).get(field, ("", ""))
            yield Unknown(prefix + field, value, since, effect if value else "")


def _sampling_sections(name: str, sampling: Sampling) -> list[tuple[str, str, BaseModel]]:
    items = [("samples", f"{name}.samples[{i}].", item) for i, item in enumerate(sampling.items)]
    return [("sample", f"{name}.", sampling), *items]
