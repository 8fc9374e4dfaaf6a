"""What the trainer rendered of a case, and lies in a folder as the recorder stages it: a golden that nobody keeps."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_drift.harness.check import golden_store, goldens, runner
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import Golden

SUFFIXES = {"picture": ".png", "latents": ".safetensors", "trace": ".safetensors", "audio": ".safetensors",
            **dict.fromkeys(runner.LORA_FILES, ".safetensors")}  # fmt: skip
RESULT = ("origin", "short_way", "patches", "settings", "output")
"""What `result.json` of the recorder says of a golden."""


class Staged(Golden):
    @cached_property
    def folder(self) -> Path:
        raise AttributeError("set by `staged`")

    def stored(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIXES[name]}"

    def path(self, name: str) -> Path:
        return self.stored(name)

    def data(self, name: str) -> bytes:
        return golden_store.content(self.stored(name))


def staged(
    case: Case, folder: Path, tag: str, environment: Mapping[str, Any], result: Mapping[str, Any] | None = None
) -> Staged:
    """The artefacts of `case` that lie in `folder`. `result`: what `RESULT` names; None if nobody will ask."""
    there = [name for name, suffix in SUFFIXES.items() if (folder / f"{name}{suffix}").is_file()]
    nothing: dict[str, Any] = {"origin": "", "short_way": None, "patches": [], "settings": {}, "output": {}}
    golden = Staged.model_validate({
        "format": goldens.FORMAT,
        "case": case.id,
        "case_sha256": case.sha256,
        "tag": tag,
        "recorder": "fuzz",
        "trainer": {},
        "environment": dict(environment),
        "artefacts": {name: {"file": name, "sha256": "", "bytes": 0} for name in there},
        "seal": "",
        **{key: (result or nothing)[key] for key in RESULT},
    })  # fmt: skip
    golden.__dict__["folder"] = folder
    return golden
