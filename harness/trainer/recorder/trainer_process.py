"""Renders cases with the trainer itself, inside its environment.

The trainer's process object does everything from reading the job to `generate_images`; this module only fills the
new LoRA with weights, stops the process after its first sample, and watches. Nothing of it is replaced but what
`APPLY` lists for a model.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.lora_codec import TWINS
from lora_drift.harness.check.trace import Tracer
from lora_drift.harness.minihub.weights import STRENGTH, lora, uniform
from lora_drift.harness.trainer.recorder import (
    job_config,
    ltx2,
    patches_flux,
    patches_flux2,
    patches_ideogram4,
    patches_krea2,
    patches_omnigen2,
)
from lora_drift.harness.trainer.recorder.job_config import Where

APPLY: dict[str, Callable[[str], list[str]]] = {
    **patches_flux.APPLY,
    **patches_flux2.APPLY,
    **patches_ideogram4.APPLY,
    **patches_krea2.APPLY,
    **patches_omnigen2.APPLY,
}
"""Model -> what redirects, once in a process, what the trainer hard-codes beyond hub ids: device -> a line for each
thing."""
ARGUMENTS: dict[str, dict[str, str]] = {
    **patches_flux2.ARGUMENTS,
    **patches_ideogram4.ARGUMENTS,
    **patches_krea2.ARGUMENTS,
}
"""Model -> the names under which its trace keeps the inputs of the trainer's own network class."""


class Done(Exception):
    """Raised inside the trainer's process once we have what we came for."""


class Observer:
    """Watches one sampling event: keeps the first picture, its resolved settings, and the trace."""

    def __init__(self, model: str = "") -> None:
        self.tracer = Tracer(ARGUMENTS.get(model))
        self.frames: list[np.ndarray] | None = None
        self.audio: np.ndarray | None = None
        """float32 [channels, samples]"""
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
            self._keep(config, image, sd)
            save(config, image, *args, **kwargs)

        encoders = sd.text_encoder if isinstance(sd.text_encoder, list) else [sd.text_encoder]
        roles = {f"text_encoder_{i}" if i > 1 else "text_encoder": e for i, e in enumerate(encoders, 1)}
        self.tracer.attach({**roles, **denoisers(sd), **decoder(sd)})
        DiffusionPipeline.register_modules, GenerateImageConfig.save_image = register_modules, save_image
        try:
            with ltx2.saving_replaced(lambda config, image: self._keep(config, image, sd)):
                yield
        finally:
            DiffusionPipeline.register_modules, GenerateImageConfig.save_image = register, save
            self.tracer.detach()

    def _keep(self, config: Any, image: Any, sd: Any) -> None:
        """`image`: what the trainer is about to save; a picture, frames, or LTX-2's frames with their sound."""
        if self.frames is not None:
            return
        self.tracer.detach()
        if isinstance(image, dict):
            self.frames = list(image["video"].numpy())
            self.audio = image["audio"].numpy()
        else:
            images = image if isinstance(image, list) else [image]
            self.frames = [np.asarray(frame.convert("RGB")) for frame in images]
        self.settings = self._settings(config, sd)

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


def denoisers(sd: Any) -> dict[str, Any]:
    """Component name -> denoiser of the trainer's model object: one, or the two experts of Wan 2.2 14B. Anima's stands
    in one module with its text conditioner."""
    if hasattr(sd.unet, "transformer_1"):
        return {"transformer": sd.unet.transformer_1, "transformer_2": sd.unet.transformer_2}
    return {"transformer": sd.unet.transformer if hasattr(sd.unet, "text_conditioner") else sd.unet}


def decoder(sd: Any) -> dict[str, Any]:
    """The autoencoder, or its decoder where the trainer's own class unpacks latents inside `decode` (FLUX.2), or has no
    `decode` (Ideogram 4). LTX-2 wraps two autoencoders, and its pipelines call the one inside."""
    vae = getattr(sd.vae, "vae", sd.vae)
    if hasattr(vae, "inv_normalize") or not hasattr(vae, "decode"):
        return {"vae_decoder": vae.decoder}
    return {"vae": vae}


def fill(network: Any, model: str, lora_name: str, strength: float) -> None:
    """Give a fresh network visible weights: a pure function of (model, LoRA, module, tensor, strength)."""
    import torch

    for module in network.get_all_modules():
        fan_in = int(np.prod(module.org_module[0].weight.shape[1:]))
        for name, parameter in module.named_parameters():
            key = (model, lora_name, module.lora_name, name.split(".")[0])
            if key[-1] == "magnitude":
                values = uniform(tuple(parameter.shape), "lora", *key)
                filled = parameter.detach().cpu().numpy() * (1 + 0.2 * values)
            else:
                filled = lora(tuple(parameter.shape), fan_in, *key, strength)
            parameter.data.copy_(torch.from_numpy(filled.astype(np.float32)))


def lora_deltas(sd: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(module path, weight change at multiplier 1), as toolkit/network_mixins.py merge_in computes it.

    Of a text encoder's modules, whose paths differ between releases of transformers, the name in the file.
    """
    import torch

    experts = denoisers(sd)
    names = {
        id(module): name if len(experts) == 1 else f"{component}.{name}"
        for component, denoiser in experts.items()
        for name, module in denoiser.named_modules()
    }
    for module in sd.network.get_all_modules():
        original = module.org_module[0]
        if hasattr(module, "get_weight"):  # LoKr
            delta = module.get_weight(original.weight)
        elif original.weight.dim() == 4:
            up, down = module.lora_up.weight.float(), module.lora_down.weight.float()
            delta = torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3) * module.scale
        else:
            delta = module.lora_up.weight.float() @ module.lora_down.weight.float() * module.scale
        yield names.get(id(original), module.lora_name), delta.detach().float().cpu().numpy()


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


def make_lora(case: Case, folder: Path, where: Where) -> dict[str, Path]:
    """Let the trainer build its network for `case` and save it; returns the saved file(s)."""
    assert case.lora is not None
    lora = case.lora

    def before_train_loop(process: Any, original: Callable[[], None]) -> None:
        original()
        fill(process.network, TWINS.get(case.model, case.model), lora.name, STRENGTH[case.tier])
        process.save()
        raise Done

    run_process(job_config.job(case, folder, None, where), hook_before_train_loop=before_train_loop)
    return lora_files(folder / lora.name, lora.name)


def lora_folder(case: Case, folder: Path) -> Path:
    return folder / "loras" / case.tier / case.model


def lora_files(folder: Path, name: str) -> dict[str, Path]:
    """Artefact name -> saved LoRA file; two-expert models save one file per expert."""
    files = {
        "lora": folder / f"{name}.safetensors",
        "lora_high": folder / f"{name}_high_noise.safetensors",
        "lora_low": folder / f"{name}_low_noise.safetensors",
    }
    return {artefact: path for artefact, path in files.items() if path.is_file()}


def render(case: Case, lora: Path | None, folder: Path, observer: Observer, where: Where) -> None:
    """Let the trainer render `case` as the first sample of a job, and stop it there."""

    def sample(process: Any, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if process.network is not None:
            for name, delta in lora_deltas(process.sd):
                observer.tracer.trace.add(f"lora/{name}", delta)
        with observer.watching(process.sd):
            original(*args, **kwargs)
        raise Done

    run_process(job_config.job(case, folder, lora, where), sample=sample)


def write_result(case: Case, observer: Observer, loras: dict[str, Path], out: Path, extra: dict[str, Any]) -> None:
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
    for artefact, path in loras.items():
        shutil.copyfile(path, out / f"{artefact}.safetensors")
    if observer.audio is not None:
        save_file({"audio": observer.audio}, out / "audio.safetensors")
    height, width = frames[0].shape[:2]
    output = {"frames": len(frames), "width": width, "height": height, "fps": observer.settings["fps"]}
    result = {"settings": observer.settings, "output": output, **extra}
    (out / "result.json").write_text(json.dumps(result))
