"""From a job to what our pipelines are asked: the model, and a request for each of its prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from lora_drift.harness import tags
from lora_drift.harness.check.lora_codec import TWINS
from lora_drift.harness.trainer.jobs import JobError, bases
from lora_drift.harness.trainer.jobs.fields import MODEL_KWARGS
from lora_drift.harness.trainer.jobs.folder import Folder
from lora_drift.harness.trainer.jobs.job_file import Model, Process, SampleItem, Sampling
from lora_drift.harness.trainer.jobs.reader import Job
from lora_drift.harness.trainer.recorder.job_config import DDPM, MODELS
from lora_drift.pipelines import RequestError
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.registry import ROWS, spec_of
from lora_drift.pipelines.settings import LoraMode, Request, Settings, resolve
from lora_drift.pipelines.spec import NEWEST, TOOLKITS, ModelSpec, age, nearest, reproduced

SAMPLER_MATTERS = {"sd15", "sdxl", "flux", "flex1", "lumina2"}
"""All other models bring a scheduler of their own, whatever `sample.sampler` says."""
OLDER_FLAGS = {
    "is_v2": "sd2",
    "is_v3": "sd3",
    "is_xl": "sdxl",
    "is_pixart": "pixart",
    "is_pixart_sigma": "pixart_sigma",
    "is_auraflow": "auraflow",
    "is_flux": "flux",
    "is_lumina2": "lumina2",
    "is_vega": "vega",
    "is_ssd": "ssd",
}
"""What stood for `arch` once, in the order in which the trainer looks."""
CONTROLS = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")
CACHED = "prompts are cached: the trainer encoded them without putting in the trigger word, and so do we"
LOW_VRAM_MATTERS = {
    "wan21_i2v_14b": "the trainer then keeps the latents in bfloat16",
    "wan21_i2v_14b480p": "the trainer then keeps the latents in bfloat16",
    "ltx2": "the trainer then decodes in tiles",
    "ltx2.3": "the trainer then decodes in tiles",
}
TILED_SINCE = {"qwen": "0.10.22", "wan": "0.10.22", "krea2": "0.10.17"}
"""How a model's id begins -> from which version on `low_vram` makes the trainer decode its pictures in tiles."""


@dataclass(frozen=True)
class Plan:
    """What to render, all of it checked before weights load."""

    model: str
    base: str | None
    """Another base model than the model's usual one."""
    version: str
    """The trainer version to render as."""
    dtype: str
    quantization: Quantization
    notes: tuple[str, ...]
    guessed: bool = False
    """No field says which model it is."""
    decided: str = ""
    """How the trainer version was decided."""

    @property
    def spec(self) -> ModelSpec:
        return spec_of(self.model, self.version)


def plan(
    job: Job, folder: Folder | None, tag: str | None = None, base: str | None = None, *, quantized: bool = True
) -> Plan:
    """Which model, at which trainer version, in which precision.

    Args:
        folder: whose LoRA files say which version of the trainer made them; None, and no `tag`: the newest.
        tag: a tag, or any trainer version between.
        base: what to load instead of what the job names.
        quantized: refuse a quantisation that is not rendered.

    Raises:
        JobError: a model, base or precision that we do not have.
    """
    process = job.process
    notes: list[str] = []
    model = _model(job, notes)
    said = folder.version if folder else ""
    version, decided = (tags.version_of(tag), "as asked") if tag else _version(said, job, model, notes)
    dtype = process.train.dtype
    if dtype == "float16":
        raise JobError(f"{job.path}: `train.dtype: fp16` is not rendered: our pipelines know float32 and bfloat16.",
                       "dtype")  # fmt: skip
    spec = spec_of(model, version)
    _check_references(job, spec)
    quantization = _quantization(process.model, spec)
    try:
        quantization.check(spec)
    except RequestError as error:
        if quantized:
            raise JobError(
                f"{job.path}: `model.{error.problem}`: this quantisation is not rendered.", "quantize"
            ) from None
    notes = [*job.notes, *notes, *_unread(job, version, decided), *_notes(model, version, process),
             *_other_parts(model, process.model, dtype)]  # fmt: skip
    base = base or bases.base(job.path, model, process.model.name_or_path)
    return Plan(model, base, version, dtype, quantization, tuple(notes), not _arch(process.model)[0], decided)


def _check_references(job: Job, spec: ModelSpec) -> None:
    """Reference pictures are read as the job of the trainer's UI has it, with which a LoRA is trained, too.

    Raises:
        JobError: this job has it otherwise.
    """
    if "references_apart" not in spec.own:
        return
    usual = {"kv_cache": spec.own["references_apart"], "match_target_res": spec.own["reference_area"] is None}
    for name, value in usual.items():
        said = job.process.model.model_kwargs.get(name, False)
        if bool(said) != value:
            raise JobError(f"{job.path}: `model.model_kwargs.{name}: {str(said).lower()}` is not rendered: {spec.id} "
                           f"is with {str(value).lower()}, as the UI of trainer {spec.toolkit} writes it")  # fmt: skip


def _quantization(model: Model, spec: ModelSpec) -> Quantization:
    """Offloaded layers take float8 for qfloat8 (ModelConfig). A type that nobody reads is not looked at."""

    def settled(qtype: str, *, read: bool) -> str:
        return "float8" if model.offloads and qtype == "qfloat8" else qtype if read else "qfloat8"

    encoders = model.quantize if model.quantize_te is None else model.quantize_te
    own = spec.quantizes is not None and spec.quantizes.encoder_qtype == "qtype_te"
    of_denoiser = spec.quantizes is not None and (model.quantize or (encoders and not own))
    qtype = model.qtype if model.quantize else model.qtype.partition("|")[0]  # the adapter is the denoiser's
    exclude = model.quantize_kwargs.get("exclude")
    return Quantization(model.quantize, model.quantize_te, settled(qtype, read=of_denoiser),
                        settled(model.qtype_te, read=own and encoders),
                        model.accuracy_recovery_adapter if model.quantize else None,
                        tuple(map(str, exclude)) if isinstance(exclude, list) else ())  # fmt: skip


def _model(job: Job, notes: list[str]) -> str:
    """Our id of the model: by its arch, and of several of one arch by what is loaded (the trainer drops `:TAG`)."""
    (field, arch), path = _arch(job.process.model), job.process.model.name_or_path
    if not field and not bases.usual("sd15", path):
        notes.append("model.arch is missing, so this is read as sd15, as the trainer reads it")
    known = {model: row for model, row in MODELS.items() if model not in TWINS}
    edits = bool(job.process.model.model_kwargs.get("edit"))  # by which the trainer knows a Krea 2 that edits pictures
    same = [
        m
        for m, row in known.items()
        if _plain(row["arch"]) == _plain(arch) and (_plain(arch) != "krea2" or edits == ("model_kwargs" in row))
    ]
    if not same:
        there = ", ".join(sorted({row["arch"] for row in known.values()}))
        raise JobError(f"{job.path}: `model.{field}` says {arch}, which is not a model that we render (`model.arch` of "
                       f"those: {there})")  # fmt: skip
    by_path = [m for m in same if known[m]["name_or_path"] == path]
    by_arch = [m for m in same if known[m]["arch"] == arch]
    return (by_path or by_arch or same)[0]


def _plain(arch: str) -> str:
    """As the trainer's ModelConfig has it, which knows Flex.1 as FLUX.1."""
    arch = arch.split(":")[0]
    return "flux" if arch == "flex1" else arch


def _arch(model: Model) -> tuple[str, str]:
    """(the field that says it, the arch) as the trainer's ModelConfig settles it, in the spelling of its UI.

    No field: nothing says it, and it is Stable Diffusion 1.5.
    """
    if model.arch is None:
        given = model.model_extra or {}
        return next(((flag, arch) for flag, arch in OLDER_FLAGS.items() if given.get(flag)), ("", "sd15"))
    return "arch", {"sd1": "sd15"}.get(model.arch, model.arch)


def _version(said: str, job: Job, model: str, notes: list[str]) -> tuple[str, str]:
    """The trainer version to render as, and how it was decided: by the LoRA files, the job's fields, or neither."""
    if reproduced(said):
        return said, "the LoRA files say so"
    if said:
        found = nearest(said)
        notes.append(f"the LoRA files are of trainer {said}, which is not one that we reproduce ({TOOLKITS[0]} to "
                     f"{NEWEST}); rendered as by {found}")  # fmt: skip
        return found, f"the nearest that we reproduce, not {said}"
    newer = max((field for field in job.unknown if field.since), key=lambda field: age(field.since), default=None)
    if newer is not None and age(newer.since) > age(TOOLKITS[-1]):
        notes.append(f"{newer.place} is read by trainers from {newer.since} on, so the job is of such a one; rendered "
                     f"as by {NEWEST}")  # fmt: skip
        return NEWEST, f"the newest that we reproduce: {newer.place} is read from {newer.since} on"
    return spec_of(model).toolkit, "the newest: no LoRA file says which"


def _unread(job: Job, version: str, decided: str) -> Iterator[str]:
    """Fields of no trainer of ours, or of newer ones: what is known of each, and no more."""
    for field in job.unknown:
        if field.since and age(version) < age(field.since):
            yield f"{field.place}: trainers read it from {field.since} on; rendered as by {version}, which does not"
        elif field.since:
            if field.effect:
                yield f"{field.place}: {field.value!r} is not honoured: {field.effect}"
        elif decided == "the LoRA files say so":
            yield f"{field.place}: unknown to trainer {version}, which ignores it (misspelt?)"
        else:
            yield (f"{field.place}: unknown to trainer {version}, as which this is rendered ({decided}), so it is "
                   "left out (misspelt, or of another version?)")  # fmt: skip


def _notes(model: str, version: str, process: Process) -> Iterator[str]:
    sampler = "ddpm" if model in DDPM else "flowmatch"
    for name, sampling in (("sample", process.sample), ("first_sample", process.first_sample)):
        if sampling is not None and model in SAMPLER_MATTERS and sampling.sampler != sampler:
            yield (f"{name}.sampler: {sampling.sampler} is not honoured: {model} is rendered with {sampler}, the "
                   "scheduler that the trainer's UI writes")  # fmt: skip
    effects = [LOW_VRAM_MATTERS[model]] if model in LOW_VRAM_MATTERS else []
    if any(model.startswith(start) and age(version) >= age(since) for start, since in TILED_SINCE.items()):
        effects.append("the trainer then decodes in tiles, whose seams may show")
    if process.model.low_vram and effects:
        yield f"model.low_vram: true is not honoured: {'; '.join(effects)}"
    if process.train.train_text_encoder and not ROWS[model].encoder_prefixes:
        yield f"train.train_text_encoder: true is not honoured: LoRAs on the text encoders of {model} are not applied"
    if process.caches_prompts and process.trigger_word is not None:
        yield CACHED
    if model == "ideogram4" and (usual := ROWS[model].at(version).own["unconditional_lora"]):
        named = (process.model.model_extra or {}).get("unconditional_lora_path")
        if named != MODELS[model]["unconditional_lora_path"]:
            yield f"model.unconditional_lora_path: {named} is not honoured: the pass without text has the UI's, {usual}"
    if model == "anima" and process.model.quantize:
        yield "model.quantize: true is not honoured in Anima's text conditioner, which the trainer quantises too"


def _other_parts(model: str, section: Model, dtype: str) -> Iterator[str]:
    """Fields that put other parts beside the denoiser, or other code into the model."""
    row = MODELS[model]
    for field in ("te_name_or_path", "extras_name_or_path"):
        if (value := getattr(section, field)) not in (None, section.name_or_path, row.get(field)):
            yield f"model.{field}: {value} is not honoured: all parts are taken from the base model"
    for field in ("te_dtype", "vae_dtype"):
        if (value := getattr(section, field)) not in (None, dtype):
            yield f"model.{field}: {value} is not honoured: all parts are in {dtype}"
    for key, value in section.model_kwargs.items():
        if value and key not in (*MODEL_KWARGS.split(), *row.get("model_kwargs", ())):
            yield f"model.model_kwargs.{key}: {value!r} is not honoured: rendered as without it"


def requests(plan: Plan, job: Job, sampling: Sampling, folder: Path) -> list[Request]:
    """One for each prompt of a sampling event, by the trainer's rules (BaseSDTrainProcess.sample)."""
    seed, found = sampling.seed, []
    for i, item in enumerate(sampling.items):
        if sampling.walk_seed:
            seed = sampling.seed + i
        if item.seed is not None:
            seed = item.seed  # stays for the prompts after it, without walk_seed
        found.append(_request(job, sampling, item, seed, folder))
    return found


def _request(job: Job, sampling: Sampling, item: SampleItem, seed: int, folder: Path) -> Request:
    def chosen(name: str) -> object:
        own = getattr(item, name)
        return getattr(sampling, name) if own is None else own

    neg = chosen("neg")
    values: dict[str, object] = {
        "width": chosen("width"),
        "height": chosen("height"),
        "steps": chosen("sample_steps"),
        "guidance_scale": chosen("guidance_scale"),
        "multiplier": chosen("network_multiplier"),
        "num_frames": chosen("num_frames"),
        "fps": chosen("fps"),
    }
    # A job that leaves a field empty has no picture there.
    values |= {name: _located(path, folder) for name in CONTROLS if (path := getattr(item, name))}
    return Request(
        prompt=item.prompt or "",
        negative=neg if isinstance(neg, str) else "",
        guidance_rescale=sampling.guidance_rescale,
        seed=seed,
        trigger_word=None if job.process.caches_prompts else job.process.trigger_word,
        located={path: _located(path, folder) for path in _named_in(item.prompt or "")},
        ctrl_idx=item.ctrl_idx,
        do_cfg_norm=sampling.do_cfg_norm,
        **values,  # type: ignore[arg-type]
    )


def sets_seed(prompt: str) -> bool:
    """Has the prompt a seed of its own?"""
    return any(text.split(" ")[0].strip() in ("seed", "d") for text in prompt.strip().split("--")[1:])


def _named_in(prompt: str) -> Iterator[str]:
    """Control images that the prompt names."""
    for text in prompt.strip().split("--")[1:]:
        flag, _, content = text.partition(" ")
        if flag.strip() == "ctrl_img":
            yield content.strip()


def _located(path: str, folder: Path) -> str:
    """Where a control image lies on this machine: as the job says, or beside the job's folder or above it.

    A job of Windows has its paths with other strokes, and drives.
    """
    name = PureWindowsPath(path).name if "\\" in path else Path(path).name
    relative = path.replace("\\", "/")
    absolute = Path(path).is_absolute() or PureWindowsPath(path).drive != ""
    above = () if absolute else (folder, *folder.resolve().parents[:3])
    places = [*([Path(path)] if absolute else []), *(place / relative for place in above)]
    return str(next((place for place in [*places, folder / name] if place.is_file()), path))


def settled(plan: Plan, request: Request) -> Settings:
    """The request's final numbers.

    Raises:
        RequestError: the trainer would have refused it, too, or a control image is not there.
    """
    try:
        return resolve(plan.spec, request)
    except RequestError as error:
        pictures = [*(getattr(request, name) for name in CONTROLS), *(request.located or {}).values()]
        if any(path and not Path(path).is_file() for path in pictures):
            raise RequestError(f"{error.problem}.", "control_file") from None
        raise


def lora_mode(plan: Plan, job: Job, multipliers: set[float]) -> LoraMode:
    """Merged only if all samples share one multiplier and the base can take it in (`generate_images`)."""
    if len(multipliers) > 1 or job.process.model.quantize or job.process.model.offloads:
        return "live"
    return plan.spec.lora_mode
