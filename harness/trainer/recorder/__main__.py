"""The recorder's command line: proves the pins, renders cases in child processes, stores goldens."""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from hashlib import sha256
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from lora_drift.harness import tags
from lora_drift.harness.check import cases, goldens, user_cache
from lora_drift.harness.check.cases import Case, CaseError
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.recorder import again, bases, build_environment, job_config, pins, record_group, store

VERSION = "1"
"""Raise it when the recorder changes what a golden holds."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lora_drift.harness.trainer.recorder",
        description="Record goldens with the trainer itself. Run it with the Python of the trainer's environment; "
        "`%(prog)s env --help` says how to build one; `%(prog)s tidy` only lays out the stored goldens again, as is "
        "due after a merge.",
        epilog="Interrupted, it resumes where it stopped. Run again after finishing, it renders everything again and "
        "says for each golden whether the bytes are the same.",
    )
    parser.add_argument("--trainer", type=Path, required=True, metavar="DIR", help="clean ostris/ai-toolkit checkout")
    parser.add_argument("--diffusers", type=Path, metavar="DIR", help="clean checkout of the pinned Diffusers commit; "
                        "needed unless Diffusers was installed from git")  # fmt: skip
    parser.add_argument("--tag", default=tags.newest(), help="a row of harness/tags.yaml (%(default)s)")
    parser.add_argument("--model", action="append", metavar="M", help="only this model (repeatable)")
    parser.add_argument("--case", action="append", metavar="ID", help="only this case, e.g. flux/lora (repeatable); "
                        "full/flux renders the real weights in your Hugging Face cache")  # fmt: skip
    parser.add_argument("--job-like", action="store_true", help="only cases that are recorded through a real training")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="what the trainer computes on (%(default)s)"
    )
    parser.add_argument("--dtype", choices=sorted(job_config.DTYPES), help="the trainer's train.dtype (default: "
                        "float32 on the CPU, bfloat16, which is the trainer's own default, on a GPU)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="processes at once (%(default)s)")
    parser.add_argument("--check-only", action="store_true", help="compare with the stored goldens, write nothing")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of these cases, drawn by --draw")
    parser.add_argument("--draw", metavar="WORD", default=str(date.today()), help="another word, another N (today)")
    parser.add_argument("--changed-since", metavar="REV", help="only cases whose golden differs from that Git revision")
    parser.add_argument("--stage", type=Path, metavar="DIR", help="record whatever commit the checkout is at, in "
                        "whatever environment this is, and leave what comes of it in DIR: no pins are proven, no "
                        "golden is compared or written (`lora-drift trainer-watch` does that)")  # fmt: skip
    args = parser.parse_args()
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return args


def chosen(args: argparse.Namespace) -> list[Case]:
    asked = cases.choose(cases.of_both_tiers(), args.model or (), args.case or (), tag=args.tag)
    asked = [case for case in asked if case.training is not None or not args.job_like]
    where = goldens.variant({"device": args.device, "dtype": args.dtype}) if args.device == "cpu" else ""
    if args.changed_since:
        asked = again.changed(asked, args.tag, args.changed_since, variant=where)
    return again.drawn(asked, args.sample, args.draw) if args.sample else asked


def groups(todo: list[Case]) -> list[list[Case]]:
    """Cases that may share a process, those of the full tier last.

    A network with convolutions changes the trainer's class-level target lists for every later network in the
    process (toolkit/lora_special.py: `target_modules += target_conv_modules`), so those go apart; so does every
    real training.
    """
    found: dict[tuple[Any, ...], list[Case]] = defaultdict(list)
    for case in todo:
        conv = case.lora is not None and case.lora.network.conv is not None
        found[(case.tier != "mini", case.model, conv, case.id if case.training else "")].append(case)
    return sorted(found.values(), key=lambda group: group[0].tier != "mini")


class Child(NamedTuple):
    """A worker process and its log file."""

    process: BaseProcess
    log: Path


def workers(group: list[Case], args: argparse.Namespace) -> Any:
    """How the worker of a group is started. On the CPU, miniatures fork from one process that has imported the trainer
    already; CUDA and the environment of real weights need an interpreter of their own."""
    if args.device != "cpu" or group[0].tier != "mini":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lora_drift.harness.trainer.recorder.preload"])
    return context


@contextmanager
def process_of_trainer(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A process that is started meanwhile runs in `folder`, with this environment."""
    before, here = dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


def start(group: list[Case], args: argparse.Namespace, work: Path, prints: dict[str, str]) -> Child:
    request = {
        "cases": [c.id for c in group],
        "folder": str(work / "jobs"),
        "out": str(work / "staged"),
        "fingerprints": {c.id: prints[c.id] for c in group},
        "device": args.device,
        "dtype": args.dtype,
        "version": pins.version_of(args.trainer),
        "keep_going": args.stage is not None,
    }
    mini = {"HF_HOME": str(factory.default_home()), "HF_HUB_OFFLINE": "1"}
    env = (
        user_cache.own()
        | ({"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {})
        | (mini if group[0].tier == "mini" else {})
        | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(args.trainer.resolve()), str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
        }
    )
    log = work / "logs" / f"{group[0].id.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    process = workers(group, args).Process(target=record_group.logged, args=(request, log))
    with process_of_trainer(args.trainer, env):
        process.start()
    return Child(process, log)


def run_groups(todo: list[list[Case]], args: argparse.Namespace, work: Path, prints: dict[str, str]) -> list[Path]:
    """Render all groups, a few at a time (real weights fill a device: one); returns the logs of those that failed."""
    waiting = list(todo)
    running: list[Child] = []
    failed: list[Path] = []
    try:
        while waiting or running:
            while waiting and len(running) < (args.jobs if waiting[0][0].tier == "mini" else 1):
                group = waiting.pop(0)
                print(f"  rendering {', '.join(c.id for c in group)}", flush=True)
                running.append(start(group, args, work, prints))
            time.sleep(0.2)
            for child in [c for c in running if not c.process.is_alive()]:
                running.remove(child)
                if child.process.exitcode:
                    failed.append(child.log)
    finally:
        for child in running:
            child.process.terminate()
    return failed


def weights_of(case: Case) -> dict[str, Any]:
    """The fields of a golden that say what it was rendered with.

    Raises:
        NoWeights: a case of the full tier, whose weights are not there.
    """
    if case.tier == "full":
        return {"weights": user_cache.revisions(case)}
    return {"minihub_sha256": factory.manifest_sha256(case.model, case.extras)}


def finish(case: Case, staged: Path, trainer: dict[str, str], args: argparse.Namespace) -> str:
    result = json.loads((staged / "result.json").read_text())
    content = {
        "format": goldens.FORMAT,
        "case": case.id,
        "case_sha256": case.sha256,
        "tag": args.tag,
        **weights_of(case),
        "recorder": VERSION,
        "trainer": trainer,
        **{key: result[key] for key in ("origin", "short_way", "environment", "patches", "settings", "output")},
    }
    artefacts = {name: staged / f"{name}{suffix}" for name, suffix in store.SUFFIXES.items()}
    there = {n: p for n, p in artefacts.items() if p.is_file()}
    verdict = store.write(content, there, dry=args.check_only)
    return again.judged(verdict, content, there) if args.check_only and verdict.startswith("CHANGED") else verdict


def is_staged(staged: Path, fingerprint: str) -> bool:
    return (staged / "complete").is_file() and _is_of(staged / "result.json", fingerprint)


def has_failed(staged: Path, fingerprint: str) -> bool:
    return (staged / "failed.json").is_file() and _is_of(staged / "failed.json", fingerprint)


def _is_of(file: Path, fingerprint: str) -> bool:
    return bool(json.loads(file.read_text())["fingerprint"] == fingerprint)


def stage(args: argparse.Namespace) -> int:
    """Record what the checkout renders, whatever it is; a case that fails says why in its `failed.json`, once."""
    try:
        todo = cases.choose(cases.of_both_tiers(), args.model or (), args.case or (), tag=tags.all_rows()[-1].tag)
        weights = {c.id: weights_of(c) for c in todo}
        commit = pins.head(args.trainer)
    except (pins.PinError, tags.TagError, CaseError, user_cache.NoWeights) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    factory.build()
    where = f"{commit} {sys.prefix} {args.device} {args.dtype}"
    prints = {c.id: sha256(f"{VERSION} {c.sha256} {weights[c.id]} {where}".encode()).hexdigest() for c in todo}
    folders = {c.id: args.stage / "staged" / c.id for c in todo}
    fresh = [c for c in todo if not any(is_(folders[c.id], prints[c.id]) for is_ in (is_staged, has_failed))]
    for case in fresh:
        shutil.rmtree(folders[case.id], ignore_errors=True)
    shutil.rmtree(args.stage / "jobs", ignore_errors=True)
    failed = run_groups(groups(fresh), args, args.stage, prints)
    shutil.rmtree(args.stage / "jobs", ignore_errors=True)
    for log in failed:
        print(f"FAILED, see {log}", file=sys.stderr)
    return 0 if all(is_staged(folders[c.id], prints[c.id]) for c in todo) else 1


def main() -> int:
    args = parse()
    if args.stage:
        return stage(args)
    try:
        todo = chosen(args)
        weights = {c.id: weights_of(c) for c in todo}
        trainer = pins.check(args.tag, args.trainer, args.diffusers)
    except (pins.PinError, tags.TagError, CaseError, user_cache.NoWeights, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    factory.build()
    factory.verify()
    work = factory.default_home().parent.parent / "record" / f"{args.tag}-{args.device}-{args.dtype}"
    prints = {c.id: sha256(f"{VERSION} {c.sha256} {weights[c.id]} {trainer}".encode()).hexdigest() for c in todo}
    fresh = [c for c in todo if not is_staged(work / "staged" / c.id, prints[c.id])]
    if len(fresh) < len(todo):
        print(f"resuming an interrupted run: {len(todo) - len(fresh)} of {len(todo)} cases are rendered already")
    shutil.rmtree(work / "jobs", ignore_errors=True)
    failed = run_groups(groups(fresh), args, work, prints)
    changed = 0
    for case in todo:
        staged = work / "staged" / case.id
        if weights_of(case) != weights[case.id]:
            print(f"{case.id}: the cached weights were replaced meanwhile; run the same command again", file=sys.stderr)
            return 1
        if is_staged(staged, prints[case.id]):
            verdict = finish(case, staged, trainer, args)
            changed += not verdict.startswith("same")
            print(f"  {case.id:28} {verdict}", flush=True)
    for log in failed:
        tail = "\n    ".join(log.read_text(errors="replace").splitlines()[-15:])
        print(f"FAILED, see {log}:\n    {tail}", file=sys.stderr)
    if failed:
        return 1
    shutil.rmtree(work, ignore_errors=True)
    if not args.check_only:
        print(f"{len(todo)} goldens at {args.tag}; {store.prune()} unused artefacts removed")
    return 1 if args.check_only and changed else 0


def tidy() -> int:
    print(f"{store.tidy()} files of goldens laid out again; every golden reads as before", flush=True)
    print(f"{bases.lay_out(goldens.GOLDENS)} of their artefacts lie otherwise, with the same content")
    return 0


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["tidy"]:
            sys.exit(tidy())
        sys.exit(build_environment.main(sys.argv[2:]) if sys.argv[1:2] == ["env"] else main())
    except KeyboardInterrupt:
        print("interrupted; the cases rendered so far are kept: run the same command to go on", file=sys.stderr)
        sys.exit(130)
