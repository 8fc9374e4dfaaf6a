"""From what the user asks to the numbers that are rendered, by the trainer's rules.

Follows `preprocess_config` (toolkit/config.py), `inject_trigger_into_prompt` (toolkit/prompt_utils.py) and
`GenerateImageConfig` (toolkit/config_modules.py).
"""

import math
import random
from collections.abc import Mapping, Sequence
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
            --frames 41 --fps 16 --ctrl_img FILE --ctrl_idx 1`), which win over the fields, and `[trigger]` or `[name]`.
        negative: negative prompt.
        width, height: pixels; floored to a multiple of 8, then by the model's own rule.
        steps: denoising steps, at least 1.
        guidance_scale: in the model's own convention (see `ModelSpec.guidance`).
        guidance_rescale: 0 to 1, SDXL only.
        seed: -2^63 to 2^64 - 1; -1 draws one (`--seed -1` does not: that is a seed like any other).
        multiplier: LoRA strength.
        num_frames, fps: video models; others pass over them.
        trigger_word: replaces `[trigger]` (and a `[name]` that is left) in the prompt; without one they stay.
        job_name: replaces `[name]` first, in the negative prompt and the trigger word, too. The trainer does this to
            the whole job file, so that in a job `[name]` is always the job's name, which is also the LoRA's file name,
            and never the trigger word.
        control: paths of control images, in order: ctrl_img_1 to ctrl_img_3, or the ctrl_img of a model that takes a
            single one.
        ctrl_img, ctrl_img_1, ctrl_img_2, ctrl_img_3: the same as the trainer's job names them, and with what becomes of
            them there: a model that takes one reads ctrl_img only, one that takes none passes over all, and of one
            that takes several the text encoder sees ctrl_img as well as ctrl_img_1, which is a copy of it if not given.
        located: where a picture lies that the prompt names (`--ctrl_img NAME`): NAME -> path. None: NAME is its path.
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
    ctrl_img_1: str | None = None
    ctrl_img_2: str | None = None
    ctrl_img_3: str | None = None
    located: Mapping[str, str] | None = None
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
    shown: tuple[str, ...] = ()
    """Control images that a text encoder sees which looks at several, if not the same: `ctrl_img` and `ctrl_img_1`, of
    which the denoiser gets the former only, are the same picture unless both were given."""
    ctrl_idx: int = 0
    do_cfg_norm: bool = False
    asked_width: int = 0
    asked_height: int = 0
    """Floored to 8 only, before the model's own rule: the size to which some trainer models resize a control image."""
    asked_frames: int = 0
    """Before the model's own rule: of what was asked as a video and became one frame, LTX-2 keeps the sound."""

    @property
    def moving(self) -> bool:
        """Was a video asked for?"""
        return max(self.num_frames, self.asked_frames) > 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def resolve(spec: ModelSpec, request: Request) -> Settings:
    """Apply trigger word, prompt flags, defaults, and the size, frame and seed rules, in the trainer's order.

    Raises:
        RequestError: a value that the trainer would refuse too, or that means nothing for this model.
    """
    name = "[name]" if request.job_name is None else request.job_name
    prompt, negative = (text.replace("[name]", name) for text in (request.prompt, request.negative))
    if request.trigger_word is not None:
        trigger = request.trigger_word.replace("[name]", name)
        prompt = prompt.replace("[name]", trigger).replace("[trigger]", trigger)
    settings = Settings(
        prompt=prompt,
        negative_prompt=negative,
        negative_prompt_2=negative,
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
        ctrl_idx=request.ctrl_idx,
        do_cfg_norm=request.do_cfg_norm,
    )
    flags = _flags(prompt)
    named = flags.pop("ctrl_img", None)
    settings = _checked(spec, _with_controls(spec, request, named, replace(settings, **flags)))
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
        asked_frames=settings.num_frames,
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
    "ctrl_img": ("ctrl_img", str),
    "ctrl_idx": ("ctrl_idx", int),
}
"""Prompt flag -> (setting, type). The trainer drops the text of any other flag, and so do we."""
_UNUSED = ("a", "ref", "ev", "extra_values")
"""Prompt flags that take a number, or (the last two) numbers with commas, and change nothing in any of our models."""


def _flags(prompt: str) -> dict[str, Any]:
    """The prompt without its flags, and what they set."""
    head, *flags = prompt.strip().split("--")
    values: dict[str, Any] = {"prompt": head.strip()}
    for text in flags:
        flag = text.split(" ")[0].strip()
        content = text[len(flag) :].strip()
        name, convert = _FLAGS.get(flag, ("", float))
        try:
            if name:
                values[name] = convert(content)
            elif flag in _UNUSED:
                for number in content.split(",") if flag in ("ev", "extra_values") else [content]:
                    convert(number)
        except ValueError:
            raise RequestError(f"prompt flag --{flag}: {content!r} is not a{'n' * (convert is int)} "
                               f"{convert.__name__}") from None  # fmt: skip
    return values


def _with_controls(spec: ModelSpec, request: Request, named: str | None, settings: Settings) -> Settings:
    """The pictures that reach the model, of which the prompt names one (`GenerateImageConfig.__init__` and
    `generate_images`; which of them a model reads, its own `generate_single_image` says)."""
    fewest, most = spec.controls
    listed = tuple(map(str, request.control))
    if listed and not most:
        raise RequestError(f"control image {listed[0]}: {spec.id} takes none; leave it out")
    if len(listed) > most:
        raise _wrong_count(spec, len(listed))
    single, numbered = request.ctrl_img, [request.ctrl_img_1, request.ctrl_img_2, request.ctrl_img_3]
    if most == 1 and listed:
        single = listed[0]
    elif listed:
        numbered = [*listed, None, None][:3]
    first = single if numbered[0] is None else numbered[0]  # copied before the prompt's flags are read
    if named is not None and (most or spec.refuses_control):
        single = _located(request, named)
    if spec.refuses_control and single is not None:
        raise RequestError(f"ctrl_img {single}: {spec.id} takes no control image, and the trainer stops at one")
    several = most > 1
    read = (first if single is None else single, *numbered[1:]) if several else (single,) if most else ()
    control = tuple(path for path in read if path is not None)
    if len(control) < fewest:
        ignored = not several and any(path is not None for path in numbered)
        raise _wrong_count(spec, len(control), "; of the job's pictures it reads ctrl_img only" if ignored else "")
    seen = tuple(path for path in (single, first, *numbered[1:]) if path is not None) if several else ()
    for path in dict.fromkeys((*control, *seen)):
        images.check(path)
    return replace(settings, control=control, shown=seen if seen != control else ())


def _wrong_count(spec: ModelSpec, given: int, why: str = "") -> RequestError:
    fewest, most = spec.controls
    wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return RequestError(f"control images: {spec.id} takes {wanted}, {given} given{why}.", "control")


def _located(request: Request, name: str) -> str:
    """Where the picture lies that the prompt names."""
    if request.located is None:
        return name
    if name not in request.located:
        raise RequestError(f"prompt flag --ctrl_img: {name!r} is not here; leave it out of the prompt.", "control")
    return request.located[name]


def _checked(spec: ModelSpec, settings: Settings) -> Settings:
    def refuse(field: str, value: object, remedy: str) -> None:
        raise RequestError(f"{field} {value}: {remedy}")

    if settings.width > 16384 or settings.height > 16384:
        refuse("size", f"{settings.width}x{settings.height}", "at most 16384 pixels a side")
    if not spec.fewest_steps <= settings.steps <= spec.most_steps:
        refuse("steps", settings.steps, f"give {spec.fewest_steps} to {spec.most_steps} (its schedule has no more)")
    if not -(2**63) <= settings.seed < 2**64:
        refuse("seed", settings.seed, "give a number from -2^63 to 2^64 - 1; -1 draws one")
    for name in ("guidance_scale", "guidance_rescale", "multiplier"):
        if not math.isfinite(getattr(settings, name)):
            refuse(name, getattr(settings, name), "give a number")
    if spec.kind != "video":
        return replace(settings, num_frames=1)  # nothing reads it
    if settings.num_frames < 1 or settings.fps < 1:
        refuse("frames/fps", f"{settings.num_frames}/{settings.fps}", "give at least 1")
    return settings
