"""Reads a job file as the trainer does (toolkit/config.py), and says what of it cannot be honoured."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lora_drift.harness.trainer.jobs import JobError
from lora_drift.harness.trainer.jobs.fields import HARMLESS, NOTHING, UNHONOURED
from lora_drift.harness.trainer.jobs.job_file import JobFile, Process, Sampling

NAMES = ("config.yaml", "config.yml", ".job_config.json", "config.json")
"""What the trainer writes into its output folder (config.yaml), and what its UI does, in the order of preference."""
TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer")
"""Process types that train and sample as BaseSDTrainProcess does."""


@dataclass(frozen=True)
class Job:
    """A job file and where it was found."""

    path: Path
    name: str
    process: Process
    notes: tuple[str, ...]
    """One line a field that is not honoured, or that the trainer does not know."""


REMEDY = "Take the job file as the trainer read it: the config.yaml that it wrote into its output folder."


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as the trainer's loader does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read(folder: Path) -> Job:
    """The job of an output folder (or a job file itself).

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
        # The trainer does this to the whole file, quotes and all.
        named = json.loads(json.dumps(data).replace("[name]", json.dumps(raw.config.name)[1:-1]))
        file = JobFile.model_validate(named)
    except ValidationError as error:
        said = "; ".join(_explain(e["loc"], e["msg"], e["input"]) for e in error.errors())
        raise JobError(f"{path}: {said}. {REMEDY}") from None
    process = file.config.process[0]
    if process.type not in TRAINERS:
        raise JobError(f"{path}: `config.process[0].type: {process.type}` does not sample while it trains; jobs of "
                       f"type {', '.join(TRAINERS)} can be verified")  # fmt: skip
    if not process.sample.items and not process.first_sample:
        raise JobError(f"{path}: `sample` has neither `samples` nor `prompts`, so the job made no samples. {REMEDY}")
    notes = [*_notes(process)]
    if len(file.config.process) > 1:
        notes.append(f"config.process: only the first of {len(file.config.process)} processes is read")
    return Job(path, file.config.name, process, tuple(notes))


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
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not a text file ({error.reason}); it should be the job's YAML or JSON") from error
    except (yaml.YAMLError, json.JSONDecodeError) as error:
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


def _explain(loc: tuple[int | str, ...], message: str, value: object) -> str:
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    if message == "Field required":
        return f"`{field}` is missing"
    return f"`{field}: {value!r}`: {message.removeprefix('Value error, ')}"


def _notes(process: Process) -> Iterator[str]:
    sections: list[tuple[str, str, BaseModel]] = [("process", "", process), ("train", "train.", process.train),
        ("model", "model.", process.model), ("save", "save.", process.save)]  # fmt: skip
    if process.network is not None:
        sections.append(("network", "network.", process.network))
    for name, sampling in (("sample", process.sample), ("first_sample", process.first_sample)):
        sections += _sampling_sections(name, sampling) if sampling is not None else []
    for section, prefix, found in sections:
        for field, value in (found.model_extra or {}).items():
            if field in UNHONOURED.get(section, {}):
                if (value != NOTHING[field]) if field in NOTHING else value:
                    yield f"{prefix}{field}: {value!r} is not honoured: {UNHONOURED[section][field]}"
            elif field not in HARMLESS[section].split():
                yield f"{prefix}{field}: unknown to the trainer, which ignores it (misspelt, or of a newer version?)"


def _sampling_sections(name: str, sampling: Sampling) -> list[tuple[str, str, BaseModel]]:
    items = [("samples", f"{name}.samples[{i}].", item) for i, item in enumerate(sampling.items)]
    return [("sample", f"{name}.", sampling), *items]
