"""Runs inside the trainer's environment, one process per group of cases: renders cases with the trainer itself.

The trainer's process object does everything from reading the job to `generate_images`; this module only fills the
new LoRA with weights, stops the process after its first sample, and watches. Nothing of it is replaced but what
`PATCHES` lists for a model.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from harness import cases
from harness.cases import Case
from harness.environment import facts
from harness.minihub.weights import uniform
from harness.recorder import jobs
from harness.trace import Tracer

PATCHES: dict[str, list[str]] = {}
"""Model -> one line for each thing that the trainer hard-codes beyond hub ids and that had to be redirected."""


class Done(Exception):
    """Raised inside the trainer's process once we have what we came for."""


class Observer:
    """Watches one sampling event: keeps the first picture, its resolved settings, and the trace."""

    def __init__(self) -> None:
        self.tracer = Tracer()
        self.frames: list[np.ndarray] | None = None
        self.settings: dict[str, Any] = {}

    @contextmanager
    def watching(self, sd: Any) -> Iterator[None]:
        """Hook the trainer's model object `sd` and every pipeline it builds meanwhile."""
        import diffusers
        from toolkit.config_modules import GenerateImageConfig

        DiffusionPipeline: Any = diffusers.DiffusionPipeline
        register, save = DiffusionPipeline.register_modules, GenerateImageConfig.save_image

        def register_modules(pipe: Any, **modules: Any) -> None:
            register(pipe, **modules)
            self.tracer.attach({"scheduler": modules.get("scheduler")})

        def save_image(config: Any, image: Any, *args: Any, **kwargs: Any) -> None:
            if self.frames is None:
                self.tracer.detach()
                images = image if isinstance(image, list) else [image]
                self.frames = [np.asarray(frame.convert("RGB")) for frame in images]
                self.settings = self._settings(config, sd)
            save(config, image, *args, **kwargs)

        encoders = sd.text_encoder if isinstance(sd.text_encoder, list) else [sd.text_encoder]
        roles = {f"text_encoder_{i}" if i > 1 else "text_encoder": e for i, e in enumerate(encoders, 1)}
        self.tracer.attach({**roles, "transformer": sd.unet, "vae": sd.vae})
        DiffusionPipeline.register_modules, GenerateImageConfig.save_image = register_modules, save_image
        try:
            yield
        finally:
            DiffusionPipeline.register_modules, GenerateImageConfig.save_image = register, save
            self.tracer.detach()

    def _settings(self, config: Any, sd: Any) -> dict[str, Any]:
        names = (
            "prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "seed", "num_inference_steps",
            "guidance_scale", "guidance_rescale", "network_multiplier", "num_frames", "fps",
        )  # fmt: skip
        assert self.frames is not None
        network = sd.network
        mode = None if network is None else "merged" if network.is_merged_in else "live"
        height, width = self.frames[0].shape[:2]
        return {name: getattr(config, name) for name in names} | {"width": width, "height": height, "lora_mode": mode}


def fill(network: Any, model: str, lora_name: str) -> None:
    """Give a fresh network visible weights: a pure function of (model, LoRA, module, tensor).

    Values are multiples of 2^-9, so float16 holds them exactly. The change that results has about 0.6 of the size
    of the weights it is added to, whatever the layer's width and the rank.
    """
    import torch

    for module in network.get_all_modules():
        for part in ("lora_down", "lora_up"):
            weight = getattr(module, part).weight
            shape = tuple(weight.shape)
            spread = np.sqrt(3.0 / np.prod(shape[1:])) * (1.0 if part == "lora_down" else 0.6)
            values = uniform(shape, "lora", model, lora_name, module.lora_name, part) * spread
            weight.data.copy_(torch.from_numpy((np.round(values * 512) / 512).astype(np.float32)))


def lora_deltas(sd: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(module path, weight change at multiplier 1) as toolkit/network_mixins.py merge_in computes it."""
    import torch

    names = {id(module): name for name, module in sd.unet.named_modules()}
    for module in sd.network.get_all_modules():
        up, down = module.lora_up.weight.float(), module.lora_down.weight.float()
        if down.dim() == 4:
            delta = torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
        else:
            delta = up @ down
        yield names[id(module.org_module[0])], (delta * module.scale).detach().numpy()


def run_process(config: dict[str, Any], **hooks: Callable[..., Any]) -> Any:
    """Run the job's process with some of its methods replaced on the instance; returns the process."""
    from toolkit.job import get_job

    process = get_job(config).process[0]
    for name, hook in hooks.items():
        original = getattr(process, name)
        setattr(process, name, lambda *args, _h=hook, _o=original, **kwargs: _h(process, _o, *args, **kwargs))
    with suppress(Done):
        process.run()
    return process


def make_lora(case: Case, folder: Path) -> Path:
    """Let the trainer build its network for `case` and save it; returns the saved file."""
    assert case.lora is not None
    lora = case.lora

    def before_train_loop(process: Any, original: Callable[[], None]) -> None:
        original()
        fill(process.network, case.model, lora.name)
        process.save()
        raise Done

    run_process(jobs.job(case, folder, None), hook_before_train_loop=before_train_loop)
    return folder / lora.name / f"{lora.name}.safetensors"


def render(case: Case, lora: Path | None, folder: Path, observer: Observer) -> None:
    """Let the trainer render `case` as the first sample of a job, and stop it there."""

    def sample(process: Any, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if process.network is not None:
            for name, delta in lora_deltas(process.sd):
                observer.tracer.trace.add(f"lora/{name}", delta)
        with observer.watching(process.sd):
            original(*args, **kwargs)
        raise Done

    run_process(jobs.job(case, folder, lora), sample=sample)


def write_result(case: Case, observer: Observer, lora: Path | None, out: Path, extra: dict[str, Any]) -> None:
    """Lay the artefacts of one case into `out`; result.json is written last and marks it complete."""
    from PIL import Image
    from safetensors.numpy import save_file

    frames, latents = observer.frames, observer.tracer.trace.final_latents
    if frames is None or latents is None:
        raise RuntimeError(f"{case.id}: the trainer finished without saving a sample")
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(frames)).save(out / "picture.png", optimize=True)
    save_file({"latents": latents}, out / "latents.safetensors")
    observer.tracer.trace.save(out / "trace.safetensors")
    if lora is not None:
        shutil.copyfile(lora, out / "lora.safetensors")
    height, width = frames[0].shape[:2]
    output = {"frames": len(frames), "width": width, "height": height, "fps": observer.settings["fps"]}
    result = {"settings": observer.settings, "output": output, "patches": PATCHES.get(case.model, []), **extra}
    (out / "result.json").write_text(json.dumps(result))


def record(case: Case, folder: Path, out: Path) -> None:
    """Record one case from a fresh load (merging a LoRA in and out again does not restore weights exactly)."""
    if case.training is not None:
        from harness.recorder import training

        training.record(case, folder, out)
        return
    lora = None
    if case.lora is not None:
        made = folder / "loras" / case.model
        lora = made / case.lora.name / f"{case.lora.name}.safetensors"
        if not lora.is_file():
            lora = make_lora(case, made)
    observer = Observer()
    render(case, lora, folder / "jobs" / case.id, observer)
    write_result(case, observer, lora, out, {"origin": "generate_images", "short_way": None})


def main(request: dict[str, Any]) -> None:
    """`request`: cases (ids), folder, out (staging root). Prints one line `RECORDED <id>` per finished case."""
    env = facts("cpu", "float32")
    for case_id in request["cases"]:
        case = cases.load(cases.CASES / f"{case_id}.yaml")
        out = Path(request["out"]) / case_id
        record(case, Path(request["folder"]), out)
        result = json.loads((out / "result.json").read_text())
        result |= {"environment": env, "fingerprint": request["fingerprints"][case_id]}
        (out / "result.json").write_text(json.dumps(result))
        (out / "complete").write_text(sha256((out / "result.json").read_bytes()).hexdigest())
        print(f"RECORDED {case_id}", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
