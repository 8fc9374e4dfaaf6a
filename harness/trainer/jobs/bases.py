"""The ways in which a job names its base model, and what of them we load: one translation for all models.

The trainer takes hub ids, local folders and files, files inside repositories (ltx2.py), links
(stable_diffusion_model.py) and version shorthands (chroma_model.py).
"""

import re
from pathlib import Path

from lora_drift.harness.trainer.jobs import JobError
from lora_drift.harness.trainer.recorder.job_config import MODELS
from lora_drift.pipelines.registry import ROWS
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
FILES = (".safetensors", ".ckpt", ".gguf", ".pt", ".pth", ".bin")
READ = ("sd", "chroma")
"""Families that load a single .safetensors file, as the trainer does."""
CHROMA = re.compile(r"lodestones/Chroma/v\d+")


def usual(model: str, named: str) -> bool:
    """Does `named` stand for the model's usual base?"""
    return named in (MODELS[model]["name_or_path"], ROWS[model].base) or SAME_WEIGHTS.get(named) == model


def base(path: Path, model: str, named: str) -> str | None:
    """What to load for `model.name_or_path: named`: None for the model's usual base.

    Raises:
        JobError: something that is not read, or not here. Remedy "base".
    """
    spec = ROWS[model]
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
        file = "Download it" if spec.family in READ else f"Download it, and convert it to {_layout(spec)}"
        return f"is a link, from which the trainer downloads a single file. {file}"
    if spec.family == "chroma" and CHROMA.fullmatch(named):
        return ""
    if named == "lodestones/Chroma":
        return ("stands for the newest of the development checkpoints when the job ran, and nothing says which that "
                "was. lodestones/Chroma/v50, for example, names one")  # fmt: skip
    if not named.lower().endswith(FILES):
        known = Path(named).is_dir() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", named)
        return "" if known else "is a folder that is not on this machine"
    reads = spec.family in READ and named.lower().endswith(".safetensors")
    if Path(named).is_file():
        return "" if reads else f"is a single file; we read {_layout(spec)}: convert it"
    if re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)+", named):
        return f"is a file inside the repository {'/'.join(named.split('/')[:2])}; we read {_layout(spec)}"
    return "is a single file of another machine" + ("" if reads else f"; we read {_layout(spec)}: convert it")


def _layout(spec: ModelSpec) -> str:
    file = ", and single .safetensors files" if spec.family in READ else ""
    return f"folders and repositories in the layout of {spec.base}{file}"
