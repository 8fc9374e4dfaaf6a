"""Jobs that are kept, with what the trainer made of them: tests replay them without a trainer.

One packed file a tag, `tests/corpus/settings-<tag>.jsonl.xz`: first a line that says which commit answered, then a job
a line. A job is kept for a pair of features that no other has (which flag, which field, refused or not).
"""

import json
import lzma
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.fuzz.grammar import FLAGS

FOLDER = ROOT / "tests" / "corpus"


def file_of(tag: str) -> Path:
    return FOLDER / f"settings-{tag}.jsonl.xz"


def read(path: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(job, the trainer's answer) of each entry."""
    if not path.is_file():
        return []
    entries = [json.loads(line) for line in lzma.decompress(path.read_bytes()).splitlines()[1:]]
    return [(entry["job"], entry["theirs"]) for entry in entries]


class Corpus:
    """What is there, and what this run adds."""

    def __init__(self, path: Path, trainer: dict[str, str]) -> None:
        self.path, self.trainer = path, trainer
        self.entries = read(path)
        self.pairs = {pair for job, answer in self.entries for pair in pairs(job, answer)}

    def offer(self, job: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keep it if it shows a pair of features that none does."""
        new = set(pairs(job, answer)) - self.pairs
        if new:
            self.pairs |= new
            self.entries.append((job, answer))

    def add(self, job: dict[str, Any], answer: dict[str, Any]) -> None:
        if (job, answer) not in self.entries:
            self.entries.append((job, answer))

    def save(self) -> None:
        lines = [self.trainer, *({"job": job, "theirs": answer} for job, answer in self.entries)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(lzma.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))


def pairs(job: dict[str, Any], answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from combinations(sorted(set(features(job, answer))), 2)


def features(job: dict[str, Any], answer: dict[str, Any]) -> Iterator[str]:
    """What of the grammar a job uses."""
    process = job["config"]["process"][0]
    sample = process["sample"]
    yield "refused" if "refused" in answer else "rendered"
    if process.get("trigger_word") is not None:
        yield "trigger"
    yield from (f"sample.{name}" for name in sample if name not in ("samples", "prompts"))
    for item in sample.get("samples", ()):
        yield from (f"item.{name}" for name in item if name != "prompt")
    for prompt in [item["prompt"] for item in sample.get("samples", ())] or sample.get("prompts", ()):
        flags = [flag.split(" ")[0].strip() for flag in prompt.split("--")[1:]]
        yield from (f"--{flag}" for flag in flags if flag in FLAGS)
