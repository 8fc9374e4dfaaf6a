"""Records a group of cases of one model, in a process of its own inside the trainer's environment."""

import json
import os
import subprocess
import sys
import traceback
from hashlib import sha256
from pathlib import Path
from typing import Any

from lora_drift.harness.check import cases
from lora_drift.harness.check.cases import Case
from lora_drift.harness.environment import facts, version_of
from lora_drift.harness.trainer.recorder import offline, trainer_process, training
from lora_drift.harness.trainer.recorder.job_config import Where
from lora_drift.harness.trainer.recorder.trainer_process import APPLY


def record(case: Case, folder: Path, out: Path, where: Where) -> None:
    """Record one case from a fresh load (merging a LoRA in and out again does not restore weights exactly)."""
    if case.training is not None:
        training.record(case, folder, out, where)
        return
    loras: dict[str, Path] = {}
    if case.lora is not None:
        made = trainer_process.lora_folder(case, folder)
        loras = trainer_process.lora_files(made / case.lora.name, case.lora.name) or trainer_process.make_lora(
            case, made, where
        )
    observer = trainer_process.Observer(case.model)
    # Of two experts' files the trainer is given either, and finds the other by its name.
    trainer_process.render(case, next(iter(loras.values()), None), folder / "jobs" / case.id, observer, where)
    trainer_process.write_result(case, observer, loras, out, {"origin": "generate_images", "short_way": None})


def make_lora_apart(request: dict[str, Any]) -> None:
    """Make the LoRA of a case of the full tier in another process: the trainer keeps the model that it loads for that,
    and a device may have no room for a second one."""
    command = [
        sys.executable,
        "-m",
        "lora_drift.harness.trainer.recorder.record_group",
        json.dumps(request | {"only": "lora"}),
    ]
    subprocess.run(command, check=True)


def main(request: dict[str, Any]) -> None:
    """`request`: cases (ids of one model and tier), folder, out (staging root), device, dtype, version (the trainer's).
    Prints one line `RECORDED <id>` per finished case. With `only: lora`, just makes their LoRAs. With `keep_going`, a
    case that fails leaves `failed.json` in place of its results, and the next one is recorded."""
    where = Where(request["device"], request["dtype"], request["version"])
    todo = [cases.load(cases.CASES / f"{case_id}.yaml") for case_id in request["cases"]]
    small = {case.model for case in todo if case.tier == "mini"} & APPLY.keys()
    patches = {model: APPLY[model](where.device) for model in small}
    folder = Path(request["folder"])
    if todo[0].tier == "mini":
        offline.as_online()
    if request.get("only") == "lora":
        for case in (c for c in todo if c.lora):
            trainer_process.make_lora(case, trainer_process.lora_folder(case, folder), where)
        return
    if todo[0].tier == "full":
        make_lora_apart(request)
    env = facts(where.device, where.dtype)
    for case in todo:
        out = Path(request["out"]) / case.id
        try:
            record(case, folder, out, where)
        except Exception as error:
            if not request.get("keep_going"):
                raise
            traceback.print_exc()
            out.mkdir(parents=True, exist_ok=True)
            why = {"fingerprint": request["fingerprints"][case.id], "why": f"{type(error).__name__}: {error}"}
            (out / "failed.json").write_text(json.dumps(why))
            continue
        result = json.loads((out / "result.json").read_text())
        libraries = {name: version_of(name) for name in ("optimum-quanto", "torchao") if case.quantization}
        result |= {"environment": env | libraries, "patches": patches.get(case.model, [])}
        result |= {"fingerprint": request["fingerprints"][case.id]}
        (out / "result.json").write_text(json.dumps(result))
        (out / "complete").write_text(sha256((out / "result.json").read_bytes()).hexdigest())
        print(f"RECORDED {case.id}", flush=True)


def logged(request: dict[str, Any], log: Path) -> None:
    """`main`, as a process whose output goes to the file `log`."""
    with log.open("wb") as stream:
        for output in (sys.stdout, sys.stderr):
            os.dup2(stream.fileno(), output.fileno())
    sys.path.insert(0, str(Path.cwd()))  # the trainer
    main(request)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
