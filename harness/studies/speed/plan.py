"""What is rendered: one case a model, the same for everybody."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_drift.harness.check.cases import Case
from lora_drift.harness.minihub import full
from lora_drift.pipelines.files import whole
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.settings import Settings, resolve

PROMPT = "a photograph of a red fox in deep snow, first light over the hills behind it, a narrow river"
SMALLER = {
    # 41 frames at the table's 1024x1024 would be two seconds a step; this is the size that the model was released for.
    "wan21_1b": {"width": 832, "height": 480, "num_frames": 41},
    "wan22_5b": {"num_frames": 41},
}
"""Where the defaults of the model's row would take too long."""
MINI = {"width": 128, "height": 128}
RANK, MINI_RANK = 32, 4


@dataclass(frozen=True)
class Plan:
    """Everything that a part is told."""

    model: str
    home: str
    """The Hugging Face cache, synthetic or mini."""
    folder: str
    """Where parts leave files for each other."""
    device: str
    steps: int
    repeats: int
    """Timed renders, after one to warm up."""
    until: float
    """`time.time()` after which nothing more is begun."""
    trainer: bool
    """Whether the trainer runs, too."""
    without: tuple[str, ...] = ()
    """Stages that are left out."""

    @property
    def is_full(self) -> bool:
        return (Path(self.home) / full.MARK).is_file()

    @property
    def case(self) -> Case:
        """The trainer's defaults for this model, few steps, and a LoRA of the UI's default rank, merged."""
        spec = spec_of(self.model)
        size: dict[str, Any] = {"width": spec.width, "height": spec.height, **SMALLER.get(self.model, {})}
        if not self.is_full:
            size |= MINI
        if spec.kind == "video":
            size |= {"fps": spec.fps, **({} if self.is_full else {"num_frames": 5})}
        rank = RANK if self.is_full else MINI_RANK
        sample = {
            "prompt": PROMPT,
            "seed": 42,
            "guidance_scale": spec.guidance_scale,
            "sample_steps": self.steps,
            **size,
        }
        lora = {"name": "speed", "network": {"linear": rank, "linear_alpha": rank}}
        return Case.model_validate(
            {"schema": 1, "id": f"full/{self.model}", "tier": "full", "about": "", "sample": sample, "lora": lora}
        )

    @property
    def settings(self) -> Settings:
        from lora_drift.harness.check.runner import Bench

        return resolve(spec_of(self.model), Bench.request(self.case))

    @property
    def out(self) -> Path:
        return Path(self.folder) / self.model

    def dump(self) -> str:
        return json.dumps(asdict(self))


class Notes:
    """What a part has found, on disk after every stage; a stage that fails is noted, and the next one begins."""

    def __init__(self, plan: Plan, part: str) -> None:
        self.plan, self.path = plan, plan.out / f"{part}.json"
        self.found: dict[str, Any] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **found: Any) -> None:
        self.found |= found
        with whole(self.path) as part:
            part.write_text(json.dumps(self.found))

    def stage(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` returns, noted under `name`; None if it failed, or if there was no time for it."""
        if name in self.plan.without:
            return None
        if time.time() > self.plan.until:
            self.add(skipped=[*self.found.get("skipped", []), name])
            return None
        try:
            result = measure()
        except Exception as error:  # noqa: BLE001  the table shows it; the other stages are worth having
            self.add(errors={**self.found.get("errors", {}), name: f"{type(error).__name__}: {str(error)[:500]}"})
            return None
        if result is not None:
            self.add(**{name: result})
        return result
