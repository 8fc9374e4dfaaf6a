"""What the trainer's own jobs say of their model, at each version: writes trainer_defaults.json.

    python tests/record_defaults.py AI_TOOLKIT [--also 0.12.26=COMMIT]

`AI_TOOLKIT` is a clone of ostris/ai-toolkit. Of each job file in config/examples, and of each model that the trainer's
UI offers, the facts that decide what is rendered are kept, once for all versions that say the same. What becomes of
each, as `outcome` in the file says, is ours: it is looked at by hand, and held by test_trainer_defaults.py.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lora_drift.harness import tags

HERE = Path(__file__).parent
FACTS = HERE / "trainer_defaults.json"
OPTIONS = ("ui/src/app/jobs/new/options.ts", "ui/src/app/jobs/new/options.tsx")
DEFAULT = re.compile(r"'config\.process\[0\]\.(model|sample)\.(\w+)':\s*\[\s*('[^']*'|true|false|[\d.]+)\s*,")
EDITS = re.compile(r"'config\.process\[0\]\.model\.model_kwargs':\s*\[\s*(\{\s*edit: true,[^}]*\})")
"""By which a model that edits pictures is told from the one of the same arch that does not."""
UNSAID = {"assistant_lora_path", "layer_offloading", "compile"}
"""Of the model's fields: what changes no picture of ours."""


def git(clone: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(clone), *args], check=True, capture_output=True, text=True).stdout


def examples(clone: Path, commit: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, facts) of each example that is a job."""
    files = git(clone, "ls-tree", "-r", "--name-only", commit, "config/examples").splitlines()
    for file in files:
        try:
            job = yaml.safe_load(git(clone, "show", f"{commit}:{file}"))
        except yaml.YAMLError:  # a quote is not closed in one of them; the trainer cannot read it, either
            yield file, {"broken": True}
            continue
        process = job["config"]["process"][0]
        sampling = process.get("sample") or {}
        facts = {
            "job": job["job"],
            "type": process["type"],
            "model": {k: v for k, v in (process.get("model") or {}).items() if k not in UNSAID},
            **{section: (process.get(section) or {}).get("type") for section in ("adapter", "embedding", "decorator")},
            "network": (process.get("network") or {}).get("type"),
            "sampler": sampling.get("sampler"),
            "samples": bool(sampling.get("samples") or sampling.get("prompts")),
            "dtype": (process.get("train") or {}).get("dtype"),
        }
        yield file, {key: value for key, value in facts.items() if value not in (None, {})}


def offered(clone: Path, commit: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name in the UI, facts) of each model that the UI offers, as it fills a new job."""
    tree = git(clone, "ls-tree", "-r", "--name-only", commit, "ui/src/app/jobs/new").splitlines()
    text = git(clone, "show", f"{commit}:{next(file for file in OPTIONS if file in tree)}")
    for part in re.split(r"\n  \{\n(?=    name: ')", text[text.index("modelArchs") :])[1:]:
        name = re.match(r"    name: '([^']+)'", part)
        assert name is not None
        said = {(section, field): yaml.safe_load(value) for section, field, value in DEFAULT.findall(part)}
        model = {field: value for (section, field), value in said.items() if section == "model" and field not in UNSAID}
        edits = {"model_kwargs": yaml.safe_load(found[1])} if (found := EDITS.search(part)) else {}
        facts = {
            "job": "extension",
            "type": "diffusion_trainer",
            "model": {**model, "arch": name[1], **edits},
            "network": "lora",
            "sampler": said.get(("sample", "sampler")),
            "samples": True,
            "dtype": "bf16",
        }
        yield f"UI: {name[1]}", {key: value for key, value in facts.items() if value is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--also", action="append", default=[], metavar="VERSION=COMMIT")
    given = parser.parse_args()
    commits = {row.version: row.commit for row in tags.rows()} | dict(pair.split("=") for pair in given.also)
    before = {key(row): row["outcome"] for row in json.loads(FACTS.read_text())} if FACTS.is_file() else {}
    found: dict[str, dict[str, Any]] = {}
    for version in sorted(commits, key=lambda v: [int(n) for n in v.split(".")]):
        for read in (examples, offered):
            for file, facts in read(given.clone, commits[version]):
                row = {"file": file, **facts}
                found.setdefault(key(row), {**row, "versions": []})["versions"].append(version)
    rows = [{**row, "outcome": before.get(name, "")} for name, row in found.items()]
    FACTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    print(f"{len(rows)} jobs; to be looked at: {[r['file'] for r in rows if not r['outcome']]}", file=sys.stderr)


def key(row: dict[str, Any]) -> str:
    """What makes it another job."""
    return json.dumps({name: value for name, value in row.items() if name not in ("versions", "outcome")})


if __name__ == "__main__":
    main()
