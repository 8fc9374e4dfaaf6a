"""One job, rendered by the trainer and by us, and compared as a case is compared with its golden.

What the trainer rendered is read where it was staged; nothing becomes a golden. Verdicts, tolerances and traces are
those of `harness/check/runner.py`.
"""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_drift.harness.check import runner, sketched
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.goldens import Golden
from lora_drift.harness.check.metrics import relative_l2
from lora_drift.harness.check.staged import Staged, staged
from lora_drift.harness.minihub import factory
from lora_drift.harness.trainer.fuzz.child import Child
from lora_drift.pipelines import RequestError
from lora_drift.pipelines.quantize import Quantization

ABOUT = 4
"""Distances that differ by less than this factor are about as large."""
Ask = Callable[[Sequence[Case], Path], Mapping[str, str]]
"""The trainer: renders the samples of a job into a folder; returns for each case why there is no picture, or ""."""


class Renderer:
    """The trainer, imported once; what it prints goes to the file `log`."""

    def __init__(self, python: Path, checkout: Path, assets: Path, log: Path, version: str) -> None:
        """`version`: that of the checkout, by which a few fields of a job go."""
        self._assets, self._version = assets, version
        factory.build()
        with log.open("ab") as errors:
            self._child = Child("renderer", python, checkout, errors)
        self.environment: dict[str, Any] = json.loads(self._child.greeting)

    def __call__(self, cases: Sequence[Case], out: Path) -> Mapping[str, str]:
        dumped = [case.model_dump(mode="json", by_alias=True, exclude_unset=True) for case in cases]
        request = {"cases": dumped, "assets": str(self._assets), "out": str(out), "version": self._version}
        told: Mapping[str, str] = self._child.ask(request)
        return told

    def close(self) -> None:
        self._child.close()


class Outcome(NamedTuple):
    """What came of a case on both sides."""

    case: Case
    verdict: str
    """"same", "refused by both", "differs"; "rounding decides": it differs no more than ours does from ours in another
    order of sums (a LoRA so strong that the miniature is chaotic); "not made": the trainer made or saved no LoRA; "both
    fail": neither renders, and we do not say why (HiDream at sizes that its miniature's patches, larger than the real
    ones, do not divide)."""
    kind: str = ""
    """Of what differs: who refuses, or the stage at which it begins."""
    told: str = ""
    pixel_max: float | None = None
    latents_rel_l2: float | None = None
    size: list[int] | None = None
    """Of what is the same: [frames, height, width], ..."""
    sketches: list[list[float]] | None = None
    """... and what `check/sketched.py` keeps of what the trainer rendered."""


class Bench(runner.Bench):
    """Ours: renders against what is staged. A miniature whose base is not quantised is loaded once."""

    def __init__(self, tag: str, environment: Mapping[str, Any], scratch: Path) -> None:
        import torch

        super().__init__(tag=tag, controls=False, known=scratch / "nothing-is-known.yaml")
        torch.set_num_threads(1)  # as the trainer's
        self._trainers, self._scratch = environment, scratch
        self._renders: dict[str, Staged] = {}
        self._kept: dict[str, tuple[Any, Any]] = {}

    def pipeline(self, case: Case, golden: Golden) -> Any:
        self._loaded, self._loaded_as = self._kept.get(case.model, (None, None))
        made = super().pipeline(case, golden)
        if case.quantization is None and case.base is None:
            self._kept[case.model] = self._loaded, self._loaded_as
        return made

    def golden(self, case: Case, environment: Mapping[str, Any] | None = None) -> Golden:
        return self._renders[case.id]

    def outcome(self, case: Case, folder: Path, refused: str) -> Outcome:
        """`folder`: where the trainer staged the case; `refused`: why it did not render it, or ""."""
        if refused:
            return self._refused(case, folder, refused)
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        golden = staged(case, folder, self.tag, self._trainers, result)
        if case.lora is not None and not golden.artefacts.keys() & runner.LORA_FILES.keys():
            return Outcome(case, "not made", told="the trainer saved no file of its network")
        self._renders = {case.id: golden}
        checked = runner.check(self, case, self._scratch / "ours")
        far = {metric.name: metric.value for metric in checked.metrics}
        pixels, latents = far.get("pixel_max"), far.get("latents_rel_l2")
        if checked.verdict == "match":
            frames, audio = golden.frames(), golden.audio() if "audio" in golden.artefacts else None
            sketches = sketched.sketches(golden.latents(), frames, audio).tolist()
            return Outcome(case, "same", "", "", pixels, latents, list(frames.shape[:3]), sketches)
        if checked.verdict == "error":
            kind = "refused by us only" if _refusal(checked.message) else "we fail"
            return Outcome(case, "differs", kind, checked.message + checked.traceback[-1500:] * (kind == "we fail"))
        if checked.metrics and not checked.disagreements and self._differs_from_itself(case, golden, latents or 0.0):
            return Outcome(case, "rounding decides", told=checked.message, pixel_max=pixels, latents_rel_l2=latents)
        where = checked.first_divergence.boundary if checked.first_divergence else ""
        kind = where or (
            checked.disagreements[0].split(" is ")[0]
            if checked.disagreements
            else "tolerance"
            if checked.metrics
            else "size"
        )
        return Outcome(case, "differs", kind, checked.message, pixels, latents)

    def _differs_from_itself(self, case: Case, golden: Golden, distance: float) -> bool:
        """Is ours about as far from ours in another order of sums as it is from the trainer's? Orders are those from
        which tolerances are derived (`noise_floor.py`), and another number of threads."""
        import torch

        once = runner.legal_repeat(self, case, golden)
        orders: list[tuple[int, str | None]] = [(2, None)]
        if case.lora is not None and case.lora.network.type != "dora" and case.quantization is None:
            orders.append((1, "live" if case.lora.mode == "merged" else "merged"))
        for threads, mode in orders:
            torch.set_num_threads(threads)
            try:
                again = runner.legal_repeat(self, case, golden, mode)
            finally:
                torch.set_num_threads(1)
            if relative_l2(once.latents, again.latents) > distance / ABOUT:
                return True
        return False

    def _refused(self, case: Case, folder: Path, refused: str) -> Outcome:
        """What the trainer did not render: do we?"""
        files = {runner.LORA_FILES[name]: path for name in runner.LORA_FILES
                 if (path := folder.parents[1] / "loras" / f"{name}.safetensors").is_file()}  # fmt: skip
        if case.lora is not None and not files:
            return Outcome(case, "not made", told=refused)
        try:
            settings = self.settings(case)
            if case.quantization is not None:
                Quantization(**case.quantization.model_dump()).check(self.spec(case))
            pipeline = self.loaded(case)
            if case.lora is not None:
                pipeline = pipeline.with_lora(**files, mode=case.lora.mode)
            pipeline.render(settings)
        except RequestError as error:
            return Outcome(case, "refused by both", told=f"{refused} | {error}")
        except Exception:  # noqa: BLE001  counted apart, and told
            return Outcome(case, "both fail", told=f"{refused} | {traceback.format_exc()[-500:]}")
        return Outcome(case, "differs", "refused by the trainer only", refused)

    def spec(self, case: Case) -> Any:
        from lora_drift.pipelines.registry import spec_of

        return spec_of(case.model, self.toolkit)

    def loaded(self, case: Case) -> Any:
        """The base model, as for a case with a golden of the trainer's environment."""
        bare = case.model_copy(update={"lora": None})
        return self.pipeline(bare, staged(bare, self._scratch / "nothing", self.tag, self._trainers))


def _refusal(message: str) -> bool:
    """Is what `runner.check` says of an exception a refusal that a user can read?"""
    return message.startswith(tuple(f"{cls.__name__}: " for cls in _errors(RequestError)))


def _errors(cls: type[Exception]) -> list[type[Exception]]:
    return [cls, *(other for child in cls.__subclasses__() for other in _errors(child))]
