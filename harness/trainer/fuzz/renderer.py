"""The trainer's side of rendered fuzzing. Runs in its environment, with its checkout on the path:

    python -m lora_drift.harness.trainer.fuzz.renderer

reads a job (JSON) a line, `{"cases": [...], "assets": DIR, "out": DIR, "version": the trainer's}`, whose cases are
samples of one job: same model, LoRA, base and trigger word. It answers with a line, `{"<case>": why it was refused, or
""}`; what was rendered lies in DIR as the recorder stages it (`trainer_process.write_result`).

The trainer is imported once, and each job is a fork of that process. A job loads its model and makes its LoRA once;
its samples are then rendered by forks of it, first all in one sampling event, as a user's job has it, then each that
is left by itself: one that the trainer refuses keeps it from rendering those behind.
"""

import contextlib
import copy
import gc
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.lora_codec import TWINS
from lora_drift.harness.check.trace import Trace, Tracer
from lora_drift.harness.environment import facts
from lora_drift.harness.minihub.weights import STRENGTH
from lora_drift.harness.trainer.recorder import job_config, offline, trainer_process
from lora_drift.harness.trainer.recorder.job_config import Where
from lora_drift.harness.trainer.recorder.trainer_process import APPLY, Done, Observer

REFUSED = "refused.txt"
OTHER = 0.125
"""Multiplier of a sample that only keeps a LoRA live; none that is drawn has it."""


class _Components(Tracer):
    """Remembers what it is attached to, so that the next picture of the event can be watched alike."""

    def __init__(self, arguments: Any = None) -> None:
        super().__init__(arguments)
        self.components: dict[str, Any] = {}

    def attach(self, components: Any) -> None:
        super().attach(components)
        self.components.update(components)


class Event(Observer):
    """Watches a sampling event and stages each of its pictures as that of the next of `cases`."""

    def __init__(self, cases: Sequence[Case], out: Path, loras: dict[str, Path]) -> None:
        super().__init__(cases[0].model)
        self._cases, self._out, self._loras = list(cases), out, loras
        self._lora = Trace()
        self._watched = self._tracer()

    def add_deltas(self, deltas: Iterator[tuple[str, Any]]) -> None:
        """The LoRA's changes of weights, which the trace of each picture begins with."""
        for name, delta in deltas:
            self._lora.add(f"lora/{name}", delta)
        self._watched = self._tracer()

    def _tracer(self) -> "_Components":
        tracer = _Components(trainer_process.ARGUMENTS.get(self._cases[0].model))
        tracer.trace.sketches.update(self._lora.sketches)
        tracer.trace.shapes.update(self._lora.shapes)
        self.tracer = tracer
        return tracer

    def _keep(self, config: Any, image: Any, sd: Any) -> None:
        super()._keep(config, image, sd)
        case = self._cases.pop(0)
        extra = {"origin": "generate_images", "short_way": None}
        trainer_process.write_result(case, self, self._loras, self._out / case.id, extra)
        if not self._cases:
            raise Done
        self.frames, self.audio, self.settings = None, None, {}
        components, self._watched = self._watched.components, self._tracer()
        self._watched.attach(components)


def apart(work: Callable[[], None]) -> int:
    """Run `work` in a fork of this process; returns its exit code, 1 if it raised."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001  a fork must end here, whatever it met
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def section(cases: Sequence[Case]) -> dict[str, Any]:
    """The job's `sample:` with all the cases as its items, and one more where that is what keeps its LoRA live."""
    sampler = "ddpm" if cases[0].model in job_config.DDPM else "flowmatch"
    parts = [job_config.sample_section(case, sampler) for case in cases]
    items = [part["samples"][0] for part in parts]
    filler = parts[0]["samples"][1:]
    return {**parts[0], "samples": [*items, *({**item, "network_multiplier": OTHER} for item in filler)]}


def render(cases: Sequence[Case], out: Path, where: Where) -> None:
    """Render the samples of one job. What cannot be rendered leaves its reason in `REFUSED`."""
    first = cases[0]
    folder = out / "job"
    patched = APPLY[first.model]("cpu") if first.model in APPLY else []

    def before_train_loop(process: Any, original: Callable[[], None]) -> None:
        original()
        if first.lora is not None:
            name = TWINS.get(first.model, first.model)
            trainer_process.fill(process.network, name, first.lora.name, STRENGTH[first.tier])
            _round(process.network, first.lora.save_dtype)
            process.save()

    def sample(process: Any, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        from toolkit.config_modules import SampleConfig

        gc.freeze()  # the trainer collects garbage many times a picture, through all that was loaded
        loras = trainer_process.lora_files(folder / first.job_name, first.job_name) if first.lora else {}
        for name, path in loras.items():
            (out / "loras").mkdir(exist_ok=True)
            shutil.copyfile(path, out / "loras" / f"{name}.safetensors")

        def event(some: Sequence[Case]) -> None:
            try:
                process.sample_config = process.first_sample_config = SampleConfig(**_read(config, some))
                watch = Event(some, out, loras)
                if process.network is not None:
                    watch.add_deltas(trainer_process.lora_deltas(process.sd))
                with contextlib.suppress(Done), watch.watching(process.sd):
                    original(*args, **kwargs)
            except Exception as error:
                refused(some[:1] if len(some) == 1 else (), out, error)
                raise

        apart(lambda: event(cases))
        for case in cases if len(cases) > 1 else ():
            if not (out / case.id / "result.json").is_file():
                apart(lambda case=case: event([case]))  # type: ignore[misc]
        raise Done

    config = job_config.job(first, folder, None, where)
    config["config"]["process"][0]["sample"] = section(cases)
    try:
        trainer_process.run_process(config, hook_before_train_loop=before_train_loop, sample=sample)
    except Exception as error:
        refused(cases, out, error)
        raise
    for case in cases:
        result = out / case.id / "result.json"
        if result.is_file():
            result.write_text(json.dumps(json.loads(result.read_text()) | {"patches": patched}))


def _read(config: dict[str, Any], cases: Sequence[Case]) -> dict[str, Any]:
    """`section` as the trainer reads it from the job's file."""
    from toolkit.config import get_config

    job = copy.deepcopy(config)
    job["config"]["process"][0]["sample"] = section(cases)
    sample: dict[str, Any] = get_config(job)["config"]["process"][0]["sample"]
    return sample


def _round(network: Any, dtype: str) -> None:
    """Give the network the numbers that its file has: as if it had been started from that."""
    from toolkit.train_tools import get_torch_dtype

    for module in network.get_all_modules():
        for parameter in module.parameters():
            parameter.data.copy_(parameter.data.to(get_torch_dtype(dtype)).to(parameter.dtype))


def refused(cases: Sequence[Case], out: Path, error: Exception) -> None:
    for case in cases:
        (out / case.id).mkdir(parents=True, exist_ok=True)
        (out / case.id / REFUSED).write_text(f"{type(error).__name__}: {error}")


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Render one job in a fork; returns for each case why there is no picture of it, or ""."""
    out, context = Path(request["out"]), {"assets": Path(request["assets"])}
    shutil.rmtree(out, ignore_errors=True)
    cases = [Case.model_validate(case, context=context) for case in request["cases"]]
    code = apart(lambda: render(cases, out, Where(version=request["version"])))
    told = {}
    for case in cases:
        reason = out / case.id / REFUSED
        rendered = (out / case.id / "result.json").is_file()
        told[case.id] = "" if rendered else reason.read_text() if reason.is_file() else f"ended with {code}"
    shutil.rmtree(out / "job", ignore_errors=True)
    return told


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the trainer prints
    sys.path.insert(0, str(Path.cwd()))
    from lora_drift.harness.trainer.recorder import preload  # noqa: F401  imports the trainer

    offline.as_online()
    print(json.dumps(facts("cpu", "float32")), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
