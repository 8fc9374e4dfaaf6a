"""The trainer, ours and stock Diffusers on one device: the same picture? how long, and what memory?

    python -m lora_drift.harness.minihub.full --model flux --home DIR     # in the trainer's environment
    python benchmarks/gpu.py --home DIR --model flux --trainer ai-toolkit --json results.jsonl
    python benchmarks/gpu.py --markdown results.jsonl       # the tables of docs/performance.md

Run it with the Python of the trainer's environment if the trainer is to take part. One JSON line a model; whatever
fails or finds no time any more is named in it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lora_drift.harness.minihub import full  # noqa: E402
from lora_drift.harness.studies.speed import table  # noqa: E402
from lora_drift.harness.studies.speed.accelerators import RECIPES  # noqa: E402
from lora_drift.harness.studies.speed.plan import Plan  # noqa: E402
from lora_drift.pipelines.files import lines_of  # noqa: E402
from lora_drift.pipelines.profiles import PROFILES  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="Hugging Face cache: full-size synthetic models, or the mini hub")
    parser.add_argument("--model", action="append", default=[], help=f"repeatable; one of {', '.join(full.FULL)}")
    parser.add_argument("--trainer", type=Path, help="a checkout of ostris/ai-toolkit (default: leave the trainer out)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of a picture (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed pictures of each (%(default)s)")
    parser.add_argument("--profile", action="append", default=[], choices=PROFILES[1:], help="measure it, too; "
                        "repeatable")  # fmt: skip
    parser.add_argument("--beside", action="append", default=[], choices=RECIPES, metavar="RECIPE", help="measure "
                        f"stock Diffusers with a recipe of others, too: {', '.join(RECIPES)} (repeatable)")  # fmt: skip
    parser.add_argument("--without", action="append", default=[], metavar="STAGE", help="leave out: timing, floor, "
                        "deterministic, lora, offload_model, offload_group or plain_alone (repeatable)")  # fmt: skip
    parser.add_argument("--limit-s", type=float, default=3600, help="begin nothing after so many seconds; 30 later, "
                        "end what still runs (%(default)s)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="add a line for each model to this file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave what each part noted and its log there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print the tables of such a file, and stop")
    args = parser.parse_args()
    if args.markdown is None and not (args.home and args.model and args.json):
        parser.error("--home, --model and --json are needed (or --markdown)")
    unknown = [model for model in args.model if model not in full.FULL]
    if unknown:
        parser.error(f"--model {unknown[0]}: there are {', '.join(full.FULL)}")
    if args.home is not None and not (args.home / "hub").is_dir():
        parser.error(
            f"--home {args.home}: no Hugging Face cache (build it with `python -m lora_drift.harness.minihub.full`)"
        )
    return args


def command(model: str, args: argparse.Namespace) -> str:
    """What measures this model again, without anybody's paths."""
    given = f"--home DIR --model {model} --steps {args.steps} --repeats {args.repeats} --json FILE"
    trainer = " --trainer ai-toolkit" if args.trainer else ""
    profile = "".join(f" --profile {name}" for name in args.profile)
    profile += "".join(f" --beside {name}" for name in args.beside)
    without = "".join(f" --without {stage}" for stage in args.without)
    device = "" if args.device == "cuda" else f" --device {args.device}"
    return f"python benchmarks/gpu.py {given}{trainer}{profile}{without}{device}"


def without_paths(line: dict[str, Any], args: argparse.Namespace, folder: Path) -> str:
    text = json.dumps(line)
    for path, name in ((args.home, "DIR"), (folder, "WORK"), (args.trainer, "ai-toolkit"), (ROOT, "."),
                       (Path(sys.prefix), "PYTHON")):  # fmt: skip
        text = text.replace(str(path.resolve()), name) if path is not None else text
    return text


def run(part: str, plan: Plan, args: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a process of its own; what it noted, and how it ended if not well."""
    module = (
        "lora_drift.harness.studies.speed.trainer" if part == "trainer" else "lora_drift.harness.studies.speed.ours"
    )
    command = [sys.executable, "-m", module, *([] if part == "trainer" else [part]), plan.dump()]
    folders = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if part == "trainer":
        folders.insert(0, str(args.trainer.resolve()))
    env = os.environ | {
        "HF_HOME": str(args.home.resolve()),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "PYTHONDONTWRITEBYTECODE": "1",
        **({"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {}),
    }
    plan.out.mkdir(parents=True, exist_ok=True)
    log = plan.out / f"{part}.log"
    note = plan.out / f"{part}.json"
    note.unlink(missing_ok=True)
    started = time.time()
    with log.open("wb") as stream:
        cwd = args.trainer if part == "trainer" else ROOT
        child = subprocess.Popen(command, cwd=cwd, env=env, stdout=stream, stderr=subprocess.STDOUT)
        try:
            code: int | str = child.wait(timeout=max(1.0, plan.until + 30 - time.time()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            code = "out of time"
    found: dict[str, Any] = json.loads(note.read_text()) if note.is_file() else {}
    found["process_seconds"] = round(time.time() - started, 1)
    if code:
        tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        found["ended"] = f"{code}: {tail[-500:]}"
    print(f"{plan.model} {part}: {found['process_seconds']} s{' FAILED ' + found['ended'] if code else ''}", flush=True)
    return found


def measure(model: str, args: argparse.Namespace, folder: Path, until: float) -> dict[str, Any]:
    plan = Plan(model, str(args.home.resolve()), str(folder), args.device, args.steps, args.repeats, until,
                args.trainer is not None, tuple(args.without))  # fmt: skip
    settings = plan.settings
    line: dict[str, Any] = {
        "model": model,
        "synthetic": plan.is_full,
        "command": command(model, args),
        "settings": settings.as_dict(),
        "rank": plan.case.lora.network.linear if plan.case.lora else 0,
    }
    for part in (*(["trainer"] if args.trainer is not None else []), "ours", *args.profile, *args.beside):
        if time.time() < until:
            line[part] = run(part, plan, args)
        else:
            line[part] = {"skipped": ["all of it: no time left"]}
    return line


def main() -> None:
    args = parse()
    if args.markdown is not None:
        print(table.render([json.loads(line) for line in lines_of(args.markdown)]))
        return
    until = time.time() + args.limit_s
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lora-drift-speed-") as folder:
        for model in args.model:
            line = measure(model, args, Path(folder), until)
            if args.keep is not None:
                ignored = shutil.ignore_patterns("*.npz", "*.safetensors", "job")
                shutil.copytree(Path(folder) / model, args.keep / model, ignore=ignored, dirs_exist_ok=True)
            with args.json.open("a", encoding="utf-8") as stream:
                stream.write(without_paths(line, args, Path(folder)) + "\n")


if __name__ == "__main__":
    main()
