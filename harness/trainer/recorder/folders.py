"""Records job folders: the trainer's own `run.py` on the job files in jobs/inputs. Runs in the trainer's environment:

python -m lora_drift.harness.trainer.recorder.folders --trainer DIR --diffusers DIR [JOB...]

Nothing of the trainer is patched; transformers 5 is let load offline what it loads online (`offline.py`). What the
trainer leaves in a job's output folder that `lora-drift verify` reads (the config, LoRA files and samples) goes to
jobs/JOB, with a note of where it came from.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lora_drift.harness import tags
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.recorder import job_config, pins

JOBS = ROOT / "jobs"
RUN = (
    "import runpy, sys; from lora_drift.harness.trainer.recorder import offline; offline.as_online();"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
KEPT = ("config.yaml", "*.safetensors", "samples/*")
VERSIONS = ("torch", "transformers", "pillow", "av")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lora_drift.harness.trainer.recorder.folders",
        description="Let the trainer train and sample the jobs in jobs/inputs on the mini hub. Run it with the "
        "Python of the trainer's environment. A folder that is there already is replaced.",
    )
    parser.add_argument("job", nargs="*", help="names of files in jobs/inputs (default: all)")
    parser.add_argument("--trainer", type=Path, required=True, metavar="DIR", help="clean ostris/ai-toolkit checkout")
    parser.add_argument("--diffusers", type=Path, metavar="DIR", help="clean checkout of the pinned Diffusers commit; "
                        "needed unless Diffusers was installed from git")  # fmt: skip
    parser.add_argument("--tag", default=tags.newest(), help="a row of harness/tags.yaml (%(default)s)")
    return parser.parse_args()


def train(job: str, trainer: Path, work: Path) -> Path:
    """Run the job in the folder `work`, to which its paths are relative; returns the folder that the trainer wrote."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(JOBS / "inputs", work / "inputs")  # the trainer leaves caches in the data set's folder
    env = os.environ | {
        "HF_HOME": str(factory.default_home()),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([str(trainer.resolve()), str(ROOT)]),
    }
    command = [sys.executable, "-c", RUN, str(trainer.resolve() / "run.py"), f"inputs/{job}.yaml"]
    with (work / "log.txt").open("wb") as log:
        done = subprocess.run(command, cwd=work, env=env, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n    ".join((work / "log.txt").read_text(errors="replace").splitlines()[-15:])
        raise pins.PinError(f"{job}: the trainer failed, see {work / 'log.txt'}:\n    {tail}")
    return work / "output" / job


def keep(job: str, made: Path, trainer: dict[str, str]) -> None:
    """Replace jobs/JOB with what is kept of the folder `made`."""
    target = JOBS / job
    shutil.rmtree(target, ignore_errors=True)
    for path in (p for pattern in KEPT for p in made.glob(pattern) if p.is_file()):
        copy = target / path.relative_to(made)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (target / "recorded.json").write_text(json.dumps(note(job, trainer), indent=1) + "\n")


def note(job: str, trainer: dict[str, str]) -> dict[str, Any]:
    """Where a folder came from."""
    loaded = yaml.safe_load((JOBS / "inputs" / f"{job}.yaml").read_text())["config"]["process"][0]["model"]
    model = next(m for m, section in job_config.MODELS.items() if section["name_or_path"] == loaded["name_or_path"])
    versions = {name: version(name) for name in VERSIONS}
    return {"trainer": trainer, "versions": versions, "minihub_sha256": factory.manifest_sha256(model)}


def main() -> int:
    args = parse()
    there = sorted(path.stem for path in (JOBS / "inputs").glob("*.yaml"))
    unknown = [job for job in args.job if job not in there]
    if unknown:
        print(
            f"error: no such job in jobs/inputs: {', '.join(unknown)} (there are {', '.join(there)})", file=sys.stderr
        )
        return 2
    try:
        trainer = pins.check(args.tag, args.trainer, args.diffusers)
        factory.build()
        factory.verify()
        for job in args.job or there:
            print(f"training {job}", flush=True)
            keep(job, train(job, args.trainer, factory.default_home().parent.parent / "jobs" / job), trainer)
    except (pins.PinError, tags.TagError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
