"""From a request's body to a job: every mistake that can be seen without a GPU is answered with 400 here."""

import asyncio
import random
import shutil
import threading
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from lora_drift.harness.check import verified_by
from lora_drift.pipelines import MODELS, ModelSpec, RequestError
from lora_drift.pipelines.files import tensor_shapes
from lora_drift.pipelines.lora import trainer_of
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.registry import spec_of
from lora_drift.pipelines.settings import Request, resolve
from lora_drift.pipelines.settings import Settings as Resolved
from lora_drift.pipelines.spec import nearest
from lora_drift.server import controls, fetch, loras
from lora_drift.server.config import Settings
from lora_drift.server.errors import bad
from lora_drift.server.request_plan import Job, LoraFile, Prompt, Secrets
from lora_drift.server.schemas import InferenceRequest, LoraItem, PromptItem, Verified

LARGEST_SIDE = 4096
MOST_FRAMES = 1000
LONGEST_PROMPT = 20_000
"""Characters."""
PICTURES, VIDEOS = ("jpg", "png", "webp"), ("mp4", "mkv", "webp")


async def admit(asked: InferenceRequest, settings: Settings) -> tuple[Job, Secrets]:
    """Check a request and lay its control images by.

    Raises:
        ApiError: with a code that says what is wrong, and the remedy.
    """
    spec = _spec(asked.model)
    _check_not_here(asked)
    _check_experts(spec, asked.loras)
    quantization = Quantization(asked.quantize, asked.quantize_te, asked.qtype, asked.qtype_te)
    if asked.lora_mode == "merged" and asked.quantize:
        raise bad("LORA_MODE_INVALID", "lora_mode merged: a LoRA cannot be merged into a quantised base; leave it out")
    files, secrets = await _loras(asked, settings)
    spec = await asyncio.to_thread(_as_made, spec, files)
    mode = asked.lora_mode or ("live" if asked.quantize else spec.lora_mode)
    picture, video = _formats(asked.output_format, spec)
    prompts = [Prompt(fields=_fields(item, i, asked, files)) for i, item in enumerate(asked.prompts)]
    kinds = []
    for i, (item, prompt) in enumerate(zip(asked.prompts, prompts, strict=True)):
        _check_controls(spec, item, i)
        kinds.append((len(_slots(spec, item)), verified_by.snapped(_check_prompt(spec, prompt.fields, i))))
    network = await asyncio.to_thread(_network, spec, files)
    quantized = verified_by.in_words(quantization)
    tag = verified_by.vouching(spec, quantized=bool(quantized))
    verified = await asyncio.to_thread(vouching, spec.id, mode if asked.loras else None, tag, network, quantized,
                                       tuple(dict.fromkeys(kinds)))  # fmt: skip
    dumped = None if verified is None else verified.model_dump()
    if (asked.require_verified or settings.require_verified) and (
        verified is None or verified.verdict not in ("match", "known")
    ):
        raise bad("NOT_VERIFIED", f"no golden case of {spec.id} in this configuration matches the trainer",
                  verified=dumped)  # fmt: skip
    if asked.webhook_url is not None:
        _check_webhook(asked.webhook_url, settings)
    job = Job(
        id=str(uuid.uuid4()),
        model=spec.id,
        quantization=quantization,
        loras=files,
        prompts=prompts,
        lora_mode=asked.lora_mode,
        picture_format=picture,
        video_format=video,
        quality=asked.output_quality,
        output_folder=str(settings.output_base_path.resolve()),
        verified=dumped,
        require_verified=asked.require_verified or settings.require_verified,
    )
    try:
        await _keep_controls(job, spec, asked.prompts, settings)
    except BaseException:
        forget_controls(job.id, settings)
        raise
    return job, secrets


def warnings_of(asked: InferenceRequest, ignored: Sequence[str] = ()) -> list[str]:
    return [f"{name} is ignored: there is no such field" for name in ignored] + [
        f"prompts[{i}].sampler is ignored: the scheduler is the trainer's"
        for i, item in enumerate(asked.prompts)
        if item.model_fields_set & {"sampler"}
    ]


_vouching = threading.Lock()
Kind = tuple[int, bool]
"""(number of control images, does the model's rule change the size) of a prompt."""


def vouching(
    model: str, lora_mode: str | None, tag: str | None, network: str | None = None, quantized: str = "",
    kinds: tuple[Kind, ...] = (),
) -> Verified | None:  # fmt: skip
    """The golden case that vouches for a configuration, if one does for each kind of its prompts: the first's.

    `tag`: with the rules by which it is rendered; None: no tag has them. `network` is None where it is not known before
    a download ends (then the worker looks again) or does not matter.
    """
    with _vouching:  # the first requests may be many at once, and one look at the summaries is enough
        return None if tag is None else _looked_up(model, lora_mode, tag, network, quantized, kinds)


@cache
def _looked_up(
    model: str, lora_mode: str | None, tag: str, network: str | None, quantized: str, kinds: tuple[Kind, ...]
) -> Verified | None:
    asked: list[dict[str, Any]] = [{"controls": controls, "snapped": snapped} for controls, snapped in kinds] or [{}]
    found = [verified_by.covering(model, lora_mode, tag, quantized=quantized, network=network, **kind)
             for kind in asked]  # fmt: skip
    return None if found[0] is None or None in found else Verified(**found[0])


def _network(spec: ModelSpec, files: list[LoraFile]) -> str | None:
    """What the files hold, as cases are told apart; "" of none, None where one is yet to be downloaded."""
    if any(file.file is None for file in files):
        return None
    names = [name for file in files for name in tensor_shapes(Path(file.file or ""))]
    if not names:
        return ""
    kind = ("lokr" if any(".lokr_" in name for name in names)
            else "dora" if any(name.endswith(".magnitude") for name in names) else "lora")  # fmt: skip
    return verified_by.network_in_words(
        kind, encoder=any(name.startswith(tuple(spec.encoder_prefixes)) for name in names)
    )


def _spec(model: str) -> ModelSpec:
    if model not in MODELS:
        raise bad("MODEL_NOT_FOUND", f"model {model!r} is not supported", supported_models=list(MODELS))
    return MODELS[model]


def _as_made(spec: ModelSpec, files: list[LoraFile]) -> ModelSpec:
    """The row at the trainer version that made the LoRA; as it is where that is not known before a download ends, and
    for a file that cannot be read: what is wrong with that the worker says."""
    try:
        said = next(filter(None, (trainer_of(Path(file.file)) for file in files if file.file)), "")
        return spec_of(spec.id, nearest(said)) if said else spec
    except RequestError:
        return spec


def _check_not_here(asked: InferenceRequest) -> None:
    """What the public server's newest models read: to ignore it would be to render something else."""
    for name in ("kv_cache", "match_target_res"):
        if getattr(asked, name):
            raise bad("FIELD_NOT_SUPPORTED", f"{name}: {asked.model} does not read it; leave it out", param=name)
    for i, item in enumerate(asked.prompts):
        if item.resolution == "High":
            raise bad("RESOLUTION_NOT_SUPPORTED", f"prompts[{i}].resolution: the trainer has no second stage; give "
                      "Default, and the size as width and height", prompt_index=i)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- LoRA


def _check_experts(spec: ModelSpec, items: list[LoraItem]) -> None:
    given = [item.model_dump(exclude={"path"}, exclude_none=True) for item in items]
    experts = [item.transformer for item in items]
    if len(spec.denoisers) > 1:
        if None in experts:
            raise bad("MOE_FORMAT_REQUIRED", f"{spec.id} has two experts: give each LoRA `transformer: low` or `high`",
                      loras=given)  # fmt: skip
        if len(set(experts)) != len(experts):
            raise bad("SINGLE_MOE_CONFIG_ONLY", f"{spec.id} takes one LoRA for each of low and high", loras=given)
    elif any(experts):
        raise bad("MOE_FORMAT_NOT_SUPPORTED", f"{spec.id} has one transformer: leave `transformer` out", loras=given)
    elif len(items) > 1:
        raise bad("SINGLE_LORA_ONLY", f"{spec.id} takes one LoRA", loras=given)


async def _loras(asked: InferenceRequest, settings: Settings) -> tuple[list[LoraFile], Secrets]:
    files = []
    secrets = Secrets(hf_token=None if asked.hf_token is None else asked.hf_token.get_secret_value())
    for i, item in enumerate(asked.loras):
        strength = 1.0 if item.network_multiplier is None else item.network_multiplier
        file = LoraFile(expert=item.transformer or "", label=item.path, strength=strength, sha256=item.sha256)
        if loras.is_url(item.path):
            try:
                fetch.check_url(item.path, private=settings.allow_private_urls)
            except fetch.FetchError as error:
                raise bad("LORA_URL_FORBIDDEN", str(error)) from error
            file.label, secrets.urls[i] = fetch.shown(item.path), item.path
        else:
            path, file.sha256 = await asyncio.to_thread(loras.local, settings.workflows_base_path, item.path)
            file.file = str(path)
            if item.sha256 not in (None, file.sha256):
                raise bad("LORA_CHANGED", f"LoRA file {item.path!r} has the sha256 {file.sha256}, not the one given",
                          path=item.path, sha256=file.sha256)  # fmt: skip
        files.append(file)
    if len({f.strength for f in files}) == 1:  # then it is the request's multiplier, as it is the trainer's
        files = [f.model_copy(update={"strength": 1.0}) for f in files]
    return files, secrets


# ----------------------------------------------------------------------------------------------------------- prompts


def _fields(item: PromptItem, index: int, asked: InferenceRequest, files: list[LoraFile]) -> dict[str, Any]:
    """Arguments of `Pipeline.sample`, but for control images."""
    shared = asked.loras[0].network_multiplier if asked.loras and all(f.strength == 1 for f in files) else None
    multiplier = next((m for m in (item.network_multiplier, shared) if m is not None), 1.0)
    return {
        "prompt": item.prompt,
        "negative": item.neg or "",
        "width": item.width,
        "height": item.height,
        "steps": item.sample_steps,
        "guidance_scale": item.guidance_scale,
        "guidance_rescale": item.guidance_rescale,
        "seed": random.SystemRandom().randrange(2**32) if item.seed == -1 else 42 + index if item.seed is None
        else item.seed,
        "multiplier": multiplier,
        "num_frames": item.num_frames,
        "fps": item.fps,
        "trigger_word": item.trigger_word if item.trigger_word is not None else asked.trigger_word,
        "ctrl_idx": item.ctrl_idx,
        "do_cfg_norm": item.do_cfg_norm,
    }  # fmt: skip


def _check_prompt(spec: ModelSpec, fields: dict[str, Any], index: int) -> Resolved:
    """The pipelines' own checks, and limits that flags and trigger words in the prompt would slip past the schema."""
    length = _length(fields["prompt"], fields["trigger_word"])
    if length > LONGEST_PROMPT:
        raise bad("PROMPT_INVALID", f"prompts[{index}]: {length} characters once the trigger word is put in; at most "
                  f"{LONGEST_PROMPT}", prompt_index=index)  # fmt: skip
    if spec.kind != "video" and fields["num_frames"] not in (None, 1):
        raise bad("PROMPT_INVALID", f"prompts[{index}]: num_frames {fields['num_frames']}: {spec.id} makes pictures; "
                  "leave it out", prompt_index=index)  # fmt: skip
    try:
        # A prompt may name no file of this machine.
        settings = resolve(replace(spec, controls=(0, spec.controls[1])), Request(**fields, located={}))
    except RequestError as error:
        raise bad("PROMPT_INVALID", f"prompts[{index}]: {error.problem}", prompt_index=index) from error
    if max(settings.width, settings.height) > LARGEST_SIDE or settings.num_frames > MOST_FRAMES:
        raise bad("PROMPT_INVALID", f"prompts[{index}]: at most {LARGEST_SIDE} pixels a side and {MOST_FRAMES} frames",
                  prompt_index=index)  # fmt: skip
    return settings


def _length(prompt: str, trigger: str | None) -> int:
    """Characters of the prompt once its trigger word is put in, without putting it in (see `settings.resolve`)."""
    if trigger is None:
        return len(prompt)
    names, marks = (
        prompt.count("[name]"),
        prompt.count("[trigger]") + prompt.count("[name]") * trigger.count("[trigger]"),
    )
    return len(prompt) + names * (len(trigger) - len("[name]")) + marks * (len(trigger) - len("[trigger]"))


def _formats(wanted: str | None, spec: ModelSpec) -> tuple[str, str]:
    """(for pictures, for videos). A video model renders a picture when it is asked for one frame."""
    known = {*PICTURES, *VIDEOS} if spec.kind == "video" else PICTURES
    if wanted is not None and wanted not in known:
        raise bad("OUTPUT_FORMAT", f"{spec.id} writes {', '.join(sorted(known))}, not {wanted}")
    return wanted if wanted in PICTURES else "jpg", wanted if wanted in VIDEOS else "mp4"


def _check_webhook(url: str, settings: Settings) -> None:
    try:
        fetch.check_url(url, private=settings.allow_private_urls)
    except fetch.FetchError as error:
        raise bad("WEBHOOK_FORBIDDEN", f"webhook_url: {error}") from error


# ---------------------------------------------------------------------------------------------------- control images


def _slots(spec: ModelSpec, item: PromptItem) -> dict[str, str]:
    """Field -> picture, in the model's order. Where a model takes several, the trainer copies `ctrl_img` to the first
    slot when that is empty."""
    numbered = {f"ctrl_img_{n}": getattr(item, f"ctrl_img_{n}") for n in (1, 2, 3)}
    if item.ctrl_img and (spec.controls[1] < 2 or not item.ctrl_img_1):
        numbered = {"ctrl_img": item.ctrl_img, **numbered}
    return {field: picture for field, picture in numbered.items() if picture}


def _check_controls(spec: ModelSpec, item: PromptItem, index: int) -> None:
    fewest, most = spec.controls
    given = len(_slots(spec, item))
    where = {"model": spec.id, "prompt_index": index}
    if given < fewest:
        raise bad("CONTROL_IMAGE_REQUIRED", f"prompts[{index}]: {spec.id} needs {fewest} control image(s): "
                  f"{'ctrl_img' if most == 1 else 'ctrl_img_1 to ctrl_img_3'}", **where)  # fmt: skip
    if given > most:
        raise bad("CONTROL_IMAGE_NOT_SUPPORTED", f"prompts[{index}]: {spec.id} takes {most or 'no'} control image(s), "
                  f"{given} given", **where)  # fmt: skip


async def _keep_controls(job: Job, spec: ModelSpec, items: list[PromptItem], settings: Settings) -> None:
    folder = controls_folder(job.id, settings)
    for i, (prompt, item) in enumerate(zip(job.prompts, items, strict=True)):
        slots = _slots(spec, item)
        if item.ctrl_img:
            slots.setdefault("ctrl_img", item.ctrl_img)
        paths = {}
        for field, picture in slots.items():
            label = f"prompts[{i}].{field}"
            # Flex.2 knows an inpainting image, whose alpha channel counts, by its name.
            kind = ".inpaint" if spec.id == "flex2" and item.ctrl_idx == 0 else ""
            path = await controls.keep(picture, label, folder / f"{i}-{field}{kind}.picture", settings)
            prompt.controls[str(path)] = label
            paths[field] = str(path)
        prompt.fields["control"] = [paths[field] for field in _slots(spec, item)]
        if spec.controls[1] > 1:
            prompt.fields["ctrl_img"] = paths.get("ctrl_img")


def controls_folder(request_id: str, settings: Settings) -> Path:
    return settings.state / "controls" / request_id


def forget_controls(request_id: str, settings: Settings) -> None:
    shutil.rmtree(controls_folder(request_id, settings), ignore_errors=True)
