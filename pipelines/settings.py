"""From what the user asks to the numbers that are rendered, by the trainer's rules.

Follows `preprocess_config` (toolkit/config.py), `inject_trigger_into_prompt` (toolkit/prompt_utils.py) and
`GenerateImageConfig` (toolkit/config_modules.py).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lora_drift.pipelines import images
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.spec import ModelSpec

LoraMode = Literal["merged", "live"]


@dataclass(frozen=True)
class Request:
    """What the user asks. `None` takes the model's default.

    Attributes:
        prompt: may hold the trainer's flags (`--w 512 --h 768 --n blurry --cfg 4 --steps 20 --seed 7 --m 0.8
            --frames 41 --fps 16`), which win over the fields, and `[trigger]` or `[name]`.
        negative: negative prompt.
        width, height: pixels; floored to a multiple of 8, then by the model's own rule.
        steps: denoising steps, at least 1.
        guidance_scale: in the model's own convention (see `ModelSpec.guidance`).
        guidance_rescale: 0 to 1, SDXL only.
        seed: 0 to 2^64 - 1; -1 draws one.
        multiplier: LoRA strength.
        num_frames, fps: video models.
        trigger_word: replaces `[trigger]` (and a `[name]` that is left) in the prompt; without one they stay.
        job_name: replaces `[name]` first. The trainer does this to the whole job file, so that in a job `[name]` is
            always the job's name, which is also the LoRA's file name, and never the trigger word.
        control: paths of control images, in order (the trainer's ctrl_img_1 to ctrl_img_3; the one `ctrl_img` of models
            that take a single one).
        ctrl_img: the trainer's older single field, for models that take several: their text encoder then sees the
            picture twice, because the trainer also copies it to ctrl_img_1.
        ctrl_idx: which control slot of Flex.2 the picture goes to: 0 inpainting (needs an alpha channel), 1 control.
        do_cfg_norm: rescale the guided prediction (Qwen-Image-Edit-Plus; the trainer leaves it off).
    """

    prompt: str
    negative: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    seed: int = 42
    multiplier: float = 1.0
    num_frames: int | None = None
    fps: int | None = None
    trigger_word: str | None = None
    job_name: str | None = None
    control: Sequence[str] = ()
    ctrl_img: str | None = None
    ctrl_idx: int = 0
    do_cfg_norm: bool = False


@dataclass(frozen=True)
class Settings:
    """What is rendered: every number is final."""

    prompt: str
    negative_prompt: str
    negative_prompt_2: str
    """For a second text encoder (SDXL): `--n` in the prompt does not reach it in the trainer."""
    width: int
    height: int
    steps: int
    guidance_scale: float
    guidance_rescale: float
    seed: int
    multiplier: float
    num_frames: int
    fps: int
    control: tuple[str, ...] = ()
    ctrl_img: str | None = None
    """Set only when it was given for a model that takes several; `control` then begins with it too."""
    ctrl_idx: int = 0
    do_cfg_norm: bool = False
    asked_width: int = 0
    asked_height: int = 0
    """Floored to 8 only, before the model's own rule: the size to which some trainer models resize a control image."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def resolve(spec: ModelSpec, request: Request) -> Settings:
    """Apply trigger word, prompt flags, defaults, and the size, frame and seed rules, in the trainer's order.

    Raises:
        RequestError: a value that the trainer would refuse too, or that means nothing for this model.
    """
    prompt = request.prompt
    if request.job_name is not None:
        prompt = prompt.replace("[name]", request.job_name)
    if request.trigger_word is not None:
        prompt = prompt.replace("[name]", request.trigger_word).replace("[trigger]", request.trigger_word)
    settings = Settings(
        prompt=prompt,
        negative_prompt=request.negative,
        negative_prompt_2=request.negative,
        width=spec.width if request.width is None else request.width,
        height=spec.height if request.height is None else request.height,
        steps=spec.steps if request.steps is None else request.steps,
        guidance_scale=spec.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        # -1 draws before the flags are read, in the trainer too: `--seed -1` is not "random" there.
        seed=random.SystemRandom().randrange(2**32) if request.seed == -1 else request.seed,
        multiplier=request.multiplier,
        num_frames=spec.num_frames if request.num_frames is None else request.num_frames,
        fps=spec.fps if request.fps is None else request.fps,
        control=tuple(map(str, request.control)) or ((request.ctrl_img,) if request.ctrl_img else ()),
        ctrl_img=request.ctrl_img if spec.controls[1] > 1 else None,
        ctrl_idx=request.ctrl_idx,
        do_cfg_norm=request.do_cfg_norm,
    )
    _check_controls(spec, settings)
    settings = _checked(spec, _with_flags(settings))
    width, height = (max(spec.smallest_side, n - n % spec.asked_divisor) for n in (settings.width, settings.height))
    divisor = spec.size_divisor
    if spec.size_rule == "refuse" and (width % divisor or height % divisor):
        near = " or ".join(
            f"{w}x{h}" for w, h in dict.fromkeys(((width - width % divisor, height - height % divisor),
                                                  (-(-width // divisor) * divisor, -(-height // divisor) * divisor)))
        )  # fmt: skip
        raise RequestError(f"size {settings.width}x{settings.height}: {spec.id} renders multiples of {divisor} only, "
                           f"and so does the trainer; use {near}")  # fmt: skip
    return replace(
        settings,
        width=width - width % divisor,
        height=height - height % divisor,
        asked_width=width,
        asked_height=height,
        num_frames=_rounded_frames(settings.num_frames, spec),
    )


def _rounded_frames(frames: int, spec: ModelSpec) -> int:
    """The video pipelines' rule: `step * n + 1` stays, anything else becomes `frames // step * step + 1` (8 -> 9)."""
    step = spec.frame_step
    if spec.frames_floored:
        return (frames - 1) // step * step + 1
    return frames if frames % step == 1 or step == 1 else frames // step * step + 1


_FLAGS: dict[str, tuple[str, type]] = {
    "n": ("negative_prompt", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "seed": ("seed", int),
    "l": ("guidance_scale", float),
    "cfg": ("guidance_scale", float),
    "s": ("steps", int),
    "steps": ("steps", int),
    "m": ("multiplier", float),
    "network_multiplier": ("multiplier", float),
    "gr": ("guidance_rescale", float),
    "frames": ("num_frames", int),
    "num_frames": ("num_frames", int),
    "fps": ("fps", int),
}
"""Prompt flag -> (setting, type). The trainer drops the text of any other flag, and so do we."""


def _with_flags(settings: Settings) -> Settings:
    head, *flags = settings.prompt.strip().split("--")
    values: dict[str, Any] = {"prompt": head.strip()}
    for text in flags:
        flag = text.split(" ")[0].strip()
        content = text[len(flag) :].strip()
        if flag in _FLAGS:
            name, convert = _FLAGS[flag]
            try:
                values[name] = convert(content)
            except ValueError:
                raise RequestError(f"prompt flag --{flag}: {content!r} is not a{'n' * (convert is int)} "
                                   f"{convert.__name__}") from None  # fmt: skip
    return replace(settings, **values)


def _check_controls(spec: ModelSpec, settings: Settings) -> None:
    fewest, most = spec.controls
    given = len(settings.control)
    if most == 0 and given:
        raise RequestError(f"control image {settings.control[0]}: {spec.id} takes none; leave it out")
    if not fewest <= given <= most:
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise RequestError(f"control images: {spec.id} takes {wanted}, {given} given.", "control")
    for path in settings.control:
        images.check(path)


def _checked(spec: ModelSpec, settings: Settings) -> Settings:
    def refuse(field: str, value: object, remedy: str) -> None:
        raise RequestError(f"{field} {value}: {remedy}")

    if settings.width < 1 or settings.height < 1:
        refuse("size", f"{settings.width}x{settings.height}", "give positive numbers of pixels")
    if settings.width > 16384 or settings.height > 16384:
        refuse("size", f"{settings.width}x{settings.height}", "at most 16384 pixels a side")
    if not spec.fewest_steps <= settings.steps <= spec.most_steps:
        refuse("steps", settings.steps, f"give {spec.fewest_steps} to {spec.most_steps} (its schedule has no more)")
    if not 0 <= settings.seed < 2**64:
        refuse("seed", settings.seed, "give a number from 0 to 2^64 - 1, or -1 for a random one")
    for name in ("guidance_scale", "guidance_rescale", "multiplier"):
        if not math.isfinite(getattr(settings, name)):
            refuse(name, getattr(settings, name), "give a number")
    if spec.kind != "video" and settings.num_frames != 1:
        refuse("frames", settings.num_frames, f"{spec.id} makes pictures; leave it out")
    if settings.num_frames < 1 or settings.fps < 1:
        refuse("frames/fps", f"{settings.num_frames}/{settings.fps}", "give at least 1")
    return settings
