"""The ways in which a job names its base model, and what of them we load: one translation for all models.

The trainer takes hub ids, local folders and files, files inside repositories (ltx2.py), links
(stable_diffusion_model.py) and version shorthands (chroma_model.py).
"""

import re
from pathlib import Path

from lora_drift.harness.trainer.jobs import JobError
from lora_drift.harness.trainer.recorder.job_config import MODELS
from lora_drift.pipelines.registry import MODELS as SPECS
from lora_drift.pipelines.spec import ModelSpec

SAME_WEIGHTS = {
    "Lightricks/LTX-2.3/ltx-2.3-22b-dev.safetensors": "ltx2.3",
    "Lightricks/LTX-2/ltx-2-19b-dev.safetensors": "ltx2",
    "runwayml/stable-diffusion-v1-5": "sd15",
    "sd-legacy/stable-diffusion-v1-5": "sd15",
}
"""What jobs call the base of a model of ours -> that model. Another layout or place, the same weights: the trainer's UI
names Lightricks' file for LTX-2.3, of which diffusers/LTX-2.3-Diffusers is the conversion; the first home of Stable
Diffusion 1.5 is gone."""
CHROMA = re.compile(r"lodestones/Chroma(/v\d+)?")
FILES = (".safetensors", ".ckpt", ".gguf", ".pt", ".pth", ".bin")
CONVERT = {
    "sd": "convert it (`{pipeline}.from_single_file(FILE).save_pretrained(FOLDER)` in Diffusers)",
}
"""Family -> how to make a folder of a file."""


def usual(model: str, named: str) -> bool:
    """Does `named` stand for the model's usual base?"""
    return named in (MODELS[model]["name_or_path"], SPECS[model].base) or SAME_WEIGHTS.get(named) == model


def base(path: Path, model: str, named: str) -> str | None:
    """What to load for `model.name_or_path: named`: None for the model's usual base.

    Raises:
        JobError: something that is not read, or not here. Remedy "base".
    """
    spec = SPECS[model]
    if usual(model, named):
        return None
    problem = _problem(spec, named)
    if problem:
        raise JobError(f"{path}: `model.name_or_path: {named}` {problem}.", "base")
    return named.rstrip("/")


def _problem(spec: ModelSpec, named: str) -> str:
    """Why it cannot be loaded; "" if it may be."""
    if not named.strip():
        return "names no model, which the trainer refuses"
    if named.startswith(("http://", "https://")) or "civitai.com" in named:
        return f"is a link, from which the trainer downloads a single file; we read {_layout(spec)}: {_make(spec)}"
    if CHROMA.fullmatch(named):
        return ("is a development checkpoint in a file of the trainer's layout, which we do not read; "
                f"our Chroma is {spec.base}")  # fmt: skip
    single = named.lower().endswith(FILES)
    if single and Path(named).is_file():
        return f"is a single file; we read {_layout(spec)}: {_make(spec)}"
    if single and re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)+", named):
        return f"is a file inside the repository {'/'.join(named.split('/')[:2])}; we read {_layout(spec)}"
    if single:
        return f"is a single file of another machine; we read {_layout(spec)}: {_make(spec)}"
    if Path(named).is_dir() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", named):
        return ""
    return "is a folder that is not on this machine"


def _layout(spec: ModelSpec) -> str:
    return f"folders and repositories in the layout of {spec.base}"


def _make(spec: ModelSpec) -> str:
    convert = CONVERT.get(spec.family, "convert it to that layout")
    return convert.format(pipeline=spec.pipeline)
