"""The process that renders. It owns the device, so that whatever it dies of, the server lives.

It reads jobs from its pipe and answers with messages: `ready` or `unusable` once, then for each job any number of
`progress`, and `done`, `failed`, `canceled` or `unsaved` (the disk took no output, which is nobody's fault who asked);
`broken` when the device must be given up.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from hashlib import file_digest
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_drift.server import controls
from lora_drift.server.request_plan import Job

if TYPE_CHECKING:
    from lora_drift.pipelines import Output, Pipeline
    from lora_drift.pipelines.lora import Lora

Rules = tuple[str, str, str]
"""(`Job.base`, the row of the trainer version, whose noise): what a loaded base model renders by."""
LORA_MEMORY = 4 << 30
"""Bytes of LoRAs that are held in memory, read and matched to their models."""


@dataclass(frozen=True)
class WorkerSettings:
    device: str
    offload: bool
    memory_budget: float | None
    """Bytes."""
    hub_cache: str | None
    hf_token: str | None


class Unsaved(Exception):
    """An output could not be written where the operator wants it."""


class NotVerified(Exception):
    """No case vouches for what a request that insists on one asks."""


class Changed(Exception):
    """A LoRA file is no longer what it was when the request was accepted."""


def main(pipe: Connection, settings: WorkerSettings) -> None:
    """Entry point of the process."""
    for asked in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the server ends this process
        signal.signal(asked, signal.SIG_IGN)
    keep_to_oneself()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if settings.hub_cache is not None:
        os.environ["HF_HUB_CACHE"] = settings.hub_cache
    try:
        renderer = Renderer(settings)
    except Exception as error:  # noqa: BLE001  whatever is wrong with the device, /readyz says it
        pipe.send({"event": "unusable", "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
        return
    pipe.send({"event": "ready"})
    while True:
        try:
            command, payload = pipe.recv()
        except EOFError:
            return
        if command == "render":
            ended = _run(renderer, Job.model_validate(payload["job"]), payload["hf_token"], pipe)
            pipe.send({**ended, "loaded": renderer.loaded})
            if ended["event"] == "broken":
                return


def keep_to_oneself() -> None:
    """What this process writes from now on is for its user alone: pictures are private."""
    os.umask(0o077)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


REMEDIES = {
    "experts": 'Name the expert of each file: "transformer": "low" or "high".',
    "control": "Give them as ctrl_img_1, ctrl_img_2 and ctrl_img_3, in order.",
}
"""What mends a request's error in the words of this API (`pipelines.errors.REMEDIES` are Python's). It has no other: a
LoRA that fits in part is refused, and the base model is the operator's."""


def _run(renderer: Renderer, job: Job, token: str | None, pipe: Connection) -> dict[str, Any]:
    """Render a job; the message that says how it ended."""
    from lora_drift.pipelines import Cancelled, LoraError, RequestError
    from lora_drift.pipelines.errors import NotFinite

    before = os.environ.get("HF_TOKEN")
    if token is not None:
        os.environ["HF_TOKEN"] = token  # huggingface_hub looks here at each call, and writes it nowhere
    try:
        return {"event": "done", **renderer.render(job, pipe)}
    except Cancelled:
        return {"event": "canceled"}
    except Unsaved as error:
        return {"event": "unsaved", "error": str(error)}
    except NotVerified as error:
        return {"event": "failed", "code": "NOT_VERIFIED", "error": str(error)}
    except Changed as error:
        return {"event": "failed", "code": "LORA_CHANGED", "error": str(error)}
    except RequestError as error:
        code = "LORA_INVALID" if isinstance(error, LoraError) else "REQUEST_INVALID"
        code = "RENDER_FAILED" if isinstance(error, NotFinite) else code
        return {"event": "failed", "code": code, "error": _without_paths(error.told(REMEDIES), job)}
    except Exception as error:  # noqa: BLE001  one broken request must not take the others with it
        message = _without_paths(f"{type(error).__name__}: {error}", job)
        if not renderer.device_works():
            return {"event": "broken", "error": message}
        code = "OUT_OF_MEMORY" if renderer.is_out_of_memory(error) else "RENDER_FAILED"
        return {"event": "failed", "code": code, "error": message}
    finally:
        if token is not None:
            os.environ.pop("HF_TOKEN")
            if before is not None:
                os.environ["HF_TOKEN"] = before


def _without_paths(message: str, job: Job) -> str:
    names = {lora.file: lora.label for lora in job.loras if lora.file}
    for prompt in job.prompts:
        names.update(prompt.controls)
    for path, name in names.items():
        message = message.replace(path, name)
    return message.replace(job.output_folder + "/", "")


class Renderer:
    """Base models, least recently used first, and LoRAs by the hash of their content, with the version of each."""

    def __init__(self, settings: WorkerSettings) -> None:
        import torch

        from lora_drift.harness.hf_logging import quiet

        quiet()
        torch.empty(0, device=settings.device)
        self.settings = settings
        if settings.hf_token is not None:
            os.environ["HF_TOKEN"] = settings.hf_token
        self._bases: OrderedDict[Rules, Pipeline] = OrderedDict()
        self._sizes: dict[Rules, int] = {}
        self._loras: OrderedDict[tuple[Any, ...], tuple[Lora, str]] = OrderedDict()
        self._budget = settings.memory_budget or _default_budget(settings.device)

    @property
    def loaded(self) -> list[str]:
        return list(dict.fromkeys(base for base, _, _ in self._bases))

    def device_works(self) -> bool:
        import torch

        try:
            if self.settings.device.startswith("cuda"):
                torch.cuda.synchronize(self.settings.device)
            return True
        except RuntimeError:  # after a fatal CUDA error, every call raises it again until the process ends
            return False

    @staticmethod
    def is_out_of_memory(error: BaseException) -> bool:
        import torch

        return isinstance(error, torch.OutOfMemoryError | MemoryError)

    def render(self, job: Job, pipe: Connection) -> dict[str, Any]:
        """Outputs and timings of a job.

        Raises:
            RequestError, Cancelled, Changed, and whatever else goes wrong.
        """
        toolkit = self._toolkit(job)
        rules = _rules(job, toolkit)
        while True:
            try:
                return self._render(job, toolkit, rules, pipe)
            except Exception as error:
                if not self.is_out_of_memory(error) or not self._make_room(rules):
                    raise

    def _render(self, job: Job, toolkit: str, rules: Rules, pipe: Connection) -> dict[str, Any]:
        started = time.perf_counter()
        base = self._bases.get(rules) or self._load(job, toolkit)
        pipeline = self._with_loras(base, job, toolkit)  # first: a LoRA for another model costs no load
        timings: dict[str, Any] = {"lora": time.perf_counter() - started, "base_was_loaded": rules in self._bases}
        self._hold(rules, base)
        timings["load"] = time.perf_counter() - started - timings["lora"]
        outputs, timings["prompts"] = [], []
        for i in range(len(job.prompts)):
            began = time.perf_counter()
            output = self._sample(pipeline, job, i, pipe)
            rendered = time.perf_counter()
            outputs.append(_saved(output, job, i))
            timings["prompts"].append({"render": rendered - began, "save": time.perf_counter() - rendered})
        timings["total"] = time.perf_counter() - started
        return {"outputs": outputs, "timings": timings}

    @staticmethod
    def _sample(pipeline: Pipeline, job: Job, index: int, pipe: Connection) -> Output:
        from lora_drift.harness.check import verified_by
        from lora_drift.pipelines.settings import Request, resolve

        def on_step(step: int, steps: int) -> bool:
            pipe.send({"event": "progress", "prompt": index, "prompts": len(job.prompts), "step": step, "steps": steps})
            return not _cancelled(job.id, pipe)

        if _cancelled(job.id, pipe):
            from lora_drift.pipelines import Cancelled

            raise Cancelled("cancelled between prompts")
        prompt = job.prompts[index]
        with controls.upright(iter(prompt.controls)) as shown:
            control, ctrl_img = prompt.fields.get("control", []), prompt.fields.get("ctrl_img")
            seen = {"control": [shown[path] for path in control], "ctrl_img": shown.get(ctrl_img or "")}
            asked = resolve(pipeline.spec, Request(**{**prompt.fields, **seen, "located": {}}))
            vouched = verified_by.covering_case(pipeline, asked)
            if job.require_verified and vouched.get("verdict") not in ("match", "known"):
                raise NotVerified(vouched.get("why") or f"its case, {vouched['case']}, does not match the trainer")
            output = pipeline.render(asked, on_step=on_step)
        names = {shown[path]: label for path, label in prompt.controls.items()}
        settings = output.receipt["settings"]
        for field in ("control", "shown"):
            settings[field] = [names[path] for path in settings[field]]
        output.receipt["verified_by"] = vouched
        return output

    # ----------------------------------------------------------------------------------------------------- memory

    def _load(self, job: Job, toolkit: str) -> Pipeline:
        from lora_drift import pipelines

        return pipelines.load(
            job.model,
            device=self.settings.device,
            toolkit=toolkit,
            offload=self.settings.offload,
            quantization=job.quantization,
        )

    def _hold(self, key: Rules, base: Pipeline) -> None:
        """Load a base model unless it is, and let go of those unused for longest, as the budget wants."""
        if key not in self._bases:
            # What a model needs is known once it was loaded; a first load may end in the second try of `render`.
            self._trim(self._budget - self._sizes.get(key, 0), keep=0)
            modules = [m for m in base.base.pipe.components.values() if hasattr(m, "parameters")]
            tensors = {t.data_ptr(): t.nbytes for m in modules for t in (*m.parameters(), *m.buffers())}
            self._bases[key], self._sizes[key] = base, sum(tensors.values())
        self._bases.move_to_end(key)
        self._trim(self._budget, keep=1)

    def _make_room(self, wanted: Rules) -> bool:
        """Send the original weights below LoRAs to main memory, and next time the base models but the wanted one away;
        False: nothing is left to send."""
        import torch

        others = [key for key in self._bases if key != wanted]
        if [key for key, pipeline in self._bases.items() if pipeline.base.adapter.make_room()]:
            torch.cuda.empty_cache()
            return True
        for key in others:
            self._drop(key)
        return bool(others)

    def _trim(self, budget: float, *, keep: int) -> None:
        while len(self._bases) > keep and sum(self._sizes[key] for key in self._bases) > budget:
            self._drop(next(iter(self._bases)))

    def _drop(self, key: Rules) -> None:
        import torch

        del self._bases[key]
        gc.collect()
        if self.settings.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _toolkit(self, job: Job) -> str:
        """The trainer version that made the job's LoRA, or the nearest that is reproduced; else the last of `TOOLKITS`.

        Raises:
            Changed: a file is not what it was when the request was accepted.
            LoraError: it is damaged.
        """
        from lora_drift.pipelines.lora import trainer_of
        from lora_drift.pipelines.spec import TOOLKITS, nearest

        held = self._loras.get(_content(job))
        if held is not None:
            return held[1]
        said = ""
        for lora in job.loras:
            _check_unchanged(lora.file, lora.sha256, lora.label)
            said = said or trainer_of(Path(lora.file or ""))
        return nearest(said) if said else TOOLKITS[-1]

    def _with_loras(self, base: Pipeline, job: Job, toolkit: str) -> Pipeline:
        """`toolkit`: of `_toolkit`, which has checked the files."""
        if not job.loras:
            return base
        key = _content(job)
        if key not in self._loras:
            files = {lora.expert or "path": lora.file for lora in job.loras}
            strengths = {lora.expert: lora.strength for lora in job.loras if lora.expert and lora.strength != 1}
            lora = base.with_lora(**files, strengths=strengths).lora  # type: ignore[arg-type]
            assert lora is not None
            self._loras[key] = lora, toolkit
            while len(self._loras) > 1 and sum(_size(lora) for lora, _ in self._loras.values()) > LORA_MEMORY:
                self._loras.popitem(last=False)
        self._loras.move_to_end(key)
        return replace(base, lora=self._loras[key][0], mode=job.lora_mode or base.usual_mode, toolkit=toolkit)


def _content(job: Job) -> tuple[Any, ...]:
    return job.model, tuple((lora.expert, lora.sha256, lora.strength) for lora in job.loras)


def _rules(job: Job, toolkit: str) -> Rules:
    from lora_drift.pipelines.registry import spec_of
    from lora_drift.pipelines.spec import noise_stream_at

    return job.base, repr(replace(spec_of(job.model, toolkit), toolkit="")), noise_stream_at(toolkit)


def _size(lora: Lora) -> int:
    tensors = (value for delta in lora.deltas for value in vars(delta.change).values() if hasattr(value, "nbytes"))
    return sum(tensor.nbytes for tensor in tensors)


def _check_unchanged(file: str | None, digest: str | None, label: str) -> None:
    assert file is not None
    try:
        with Path(file).open("rb") as content:
            found = file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise Changed(f"LoRA file {label!r} could no longer be read ({error.strerror})") from error
    if found != digest:
        raise Changed(f"LoRA file {label!r} was changed after the request was accepted; submit the request again")


def _cancelled(request_id: str, pipe: Connection) -> bool:
    """Did the server ask to stop? Commands for requests that are over are dropped on the way."""
    wanted = False
    while pipe.poll():
        command, payload = pipe.recv()
        wanted = wanted or (command == "cancel" and payload == request_id)
    return wanted


def _default_budget(device: str) -> float:
    import torch

    if device.startswith("cuda"):
        return 0.8 * torch.cuda.get_device_properties(device).total_memory
    return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.ENOTDIR,
            errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN}  # fmt: skip
"""What a disk says that is full, read-only, broken or not there."""


def _saved(output: Output, job: Job, index: int) -> dict[str, Any]:
    """`_save`, with an error that tells a client's request from an operator's disk.

    Raises:
        Unsaved: the disk takes nothing.
    """
    from lora_drift.pipelines import RequestError

    try:
        return _save(output, job, index)
    except (OSError, RequestError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        number = getattr(cause, "errno", None)
        told = f"{os.strerror(number)}" if number else str(error)
        # ffmpeg says it in words only, and not always.
        if number in _STORAGE or not Path(job.output_folder).is_dir() or "No space left" in told or "Read-only" in told:
            raise Unsaved(f"outputs cannot be written to OUTPUT_BASE_PATH: {told}") from error
        raise RuntimeError(f"the output could not be written: {error}") from error


def _save(output: Output, job: Job, index: int) -> dict[str, Any]:
    """Write an output and its receipt; what the result says of it."""
    is_video = len(output.frames) > 1
    suffix = job.video_format if is_video else job.picture_format
    path = Path(job.output_folder) / f"{job.id}_output_{index}.{suffix}"
    output.save(path, quality=job.quality)
    width, height = output.frames[0].size
    with path.open("rb") as content:
        digest = file_digest(content, "sha256").hexdigest()
    video = {"num_frames": len(output.frames), "fps": output.settings.fps} if is_video else {}
    return {
        "format": "jpeg" if suffix == "jpg" else suffix,
        "width": width,
        "height": height,
        "file_path": str(path),
        "sha256": digest,
        "seed": output.settings.seed,
        "receipt": output.receipt,
        **video,
    }
