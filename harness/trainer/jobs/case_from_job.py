"""`lora-drift case from-job`: the case file that asks what a prompt of a job asks."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lora_drift.harness.check import cases
from lora_drift.harness.trainer.jobs import JobError, plan, reader
from lora_drift.harness.trainer.jobs.job_file import Sampling
from lora_drift.harness.trainer.jobs.plan import Plan
from lora_drift.harness.trainer.jobs.reader import Job
from lora_drift.pipelines.settings import Request

NETWORK = cases.Network.model_fields
"""Fields of a case's network, which have the trainer's names."""


def write(folder: Path, prompt: int, output: Path | None) -> Path:
    """Write the case and return its path. Control images go to cases/assets.

    Raises:
        JobError: no such prompt, or something that a case cannot say.
    """
    job = reader.read(folder)
    planned = plan.plan(job, None)
    sampling = job.process.sample or Sampling()
    asked = plan.requests(planned, job, sampling, folder if folder.is_dir() else folder.parent)
    if not 0 <= prompt < len(asked):
        raise JobError(f"--prompt {prompt}: the job has the prompts 0 to {len(asked) - 1}")
    if asked[prompt].seed == -1:
        raise JobError(f"{job.path}: the seed of prompt {prompt} is -1, which draws one; give the job a seed to make a "
                       "case of it")  # fmt: skip
    name = f"{_plain(job.name)}-{prompt}"
    path = output or cases.CASES / planned.model / f"{name}.yaml"
    if path.parent.name != planned.model:
        raise JobError(f"--output {path}: the folder of a case is named as its model, {planned.model}")
    if path.exists():
        raise JobError(f"{path} is there already; name another file with --output")
    images = {field: Path(given) for field, given in _controls(asked[prompt]).items()}
    content = _content(job, planned, asked[prompt], images)
    named = {name: Path(given) for name, given in (asked[prompt].located or {}).items()}
    for name, image in named.items():
        content["sample"]["prompt"] = content["sample"]["prompt"].replace(
            f"--ctrl_img {name}", f"--ctrl_img {image.name}"
        )
    for image in (*images.values(), *named.values()):
        _keep(image)
    try:
        cases.Case.model_validate({**content, "id": f"{planned.model}/{path.stem}"}, by_alias=True)
    except ValidationError as error:
        said = "; ".join(f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}" for e in error.errors())
        raise JobError(f"{job.path}: a case cannot say this: {said}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"schema": 1, "model": planned.model, **content}, sort_keys=False), encoding="utf-8")
    return path


def _content(job: Job, planned: Plan, asked: Request, images: dict[str, Path]) -> dict[str, Any]:
    process = job.process
    found: dict[str, Any] = {"schema": 1, "tier": "mini", "about": f"Prompt of the job {job.name} ({planned.model})."}
    quantization = planned.quantization
    if quantization.quantize or quantization.encoders:
        asked_for = {**asdict(quantization), "exclude": list(quantization.exclude)}
        found["quantization"] = {key: value for key, value in asked_for.items() if value not in (None, [])}
    if process.network is not None:
        extra = process.network.model_extra or {}
        network = {"type": process.network.type, **{key: extra[key] for key in NETWORK if extra.get(key) is not None}}
        linear = extra.get("rank") or extra.get("linear") or 4
        network |= {"linear": linear, "linear_alpha": extra.get("linear_alpha", extra.get("alpha", 1.0))}
        found["lora"] = {"name": _plain(job.name), "network": network,
                         "save_dtype": {"bfloat16": "bf16"}.get(process.save.dtype, process.save.dtype)}  # fmt: skip
    if asked.trigger_word is not None:
        found["trigger_word"] = asked.trigger_word
    found["sample"] = {
        "prompt": asked.prompt,
        "neg": asked.negative,
        "width": asked.width,
        "height": asked.height,
        "seed": asked.seed,
        "guidance_scale": asked.guidance_scale,
        "sample_steps": asked.steps,
        **({"network_multiplier": asked.multiplier} if process.network is not None else {}),
        "guidance_rescale": asked.guidance_rescale,
        "num_frames": asked.num_frames,
        "fps": asked.fps,
        "do_cfg_norm": asked.do_cfg_norm,
        "ctrl_idx": asked.ctrl_idx,
        **{field: image.name for field, image in images.items()},
    }
    return found


def _controls(asked: Request) -> dict[str, str]:
    return {name: path for name in plan.CONTROLS if (path := getattr(asked, name)) is not None}


def _keep(image: Path) -> None:
    target = cases.ASSETS / image.name
    if not image.is_file():
        raise JobError(f"control image {image}: no such file; copy the job's control images into its folder")
    if target.exists() and target.read_bytes() != image.read_bytes():
        raise JobError(f"control image {image}: cases/assets has another picture of that name; rename the job's")
    if not target.exists():
        shutil.copyfile(image, target)


def _plain(name: str) -> str:
    """As names in case files are: lower case, digits and hyphens."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")
    return plain or "job"
