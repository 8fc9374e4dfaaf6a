"""Renders a receipt again: the same pixels, or what is another now (`lora-drift replay`)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.lora import metadata
from lora_drift.pipelines.output import LOSSLESS, RECEIPT_KEY, Output, pixels_sha256
from lora_drift.pipelines.quantize import Quantization
from lora_drift.pipelines.runtime import Pipeline, load
from lora_drift.pipelines.settings import Settings

QUANTIZATION = {field.name for field in fields(Quantization)}
HASHES = {"pixels": "pixels_sha256", "sound": "audio_sha256"}
UNCOMPARED = ("verified_by", *HASHES.values(), "settings.control", "settings.ctrl_img", "settings.shown")
"""Fields of a receipt that are not causes. (Of a control image, what is in it is one: control_sha256.)"""


@dataclass(frozen=True)
class Receipt:
    """A receipt and where it was found."""

    path: Path
    content: Mapping[str, Any]
    picture: Path | None
    """The file that it belongs to, if that is there."""

    @property
    def device(self) -> str:
        return str(self.content["device"])

    def settings(self, controls: Sequence[str]) -> Settings:
        """With control images that lie here.

        Raises:
            RequestError: not the settings of this version of lora-drift.
        """
        given, known = {**self.content["settings"]}, {field.name for field in fields(Settings)}
        twice = given.pop("ctrl_img", None)  # as up to 0.4.0: the first one, which the text encoder saw twice
        if strange := sorted(set(given) - known):
            raise RequestError(f"{self.path}: settings.{strange[0]} is not known here; it is of another version of "
                               "lora-drift: replay it with that one")  # fmt: skip
        try:
            count = len(given["control"])
            control, shown = tuple(controls[:count]), tuple(controls[count:])
            return Settings(**{**given, "control": control, "shown": (*control[:1], *control) if twice else shown})
        except TypeError as error:
            raise RequestError(f"{self.path}: its settings are not whole ({error})") from error


@dataclass(frozen=True)
class Replayed:
    """The new render, and what there is to say."""

    output: Output
    lines: tuple[str, ...]
    equal: bool


def read(path: Path) -> Receipt:
    """A receipt: the JSON beside an output, or the text chunk inside a PNG.

    Raises:
        RequestError: no such file, or no receipt.
    """
    if not path.is_file():
        raise RequestError(f"receipt {path}: no such file")
    beside = path.with_name(path.name + ".json")
    if path.suffix.lower() == ".png":
        text, picture = _inside(path) or "", path
        if not text:
            raise RequestError(f"receipt {path}: this PNG carries none; was it saved again by another program? Give "
                               f"the {path.name}.json that lay beside it")  # fmt: skip
    elif path.suffix.lower() != ".json" and beside.is_file():
        text, picture = beside.read_text(encoding="utf-8"), path
    else:
        text, picture = path.read_text(encoding="utf-8", errors="replace"), path.with_suffix("")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RequestError(
            f"receipt {path}: not JSON ({error}); give the OUTPUT.json that lies beside an output"
        ) from None
    needed = ("model", "base", "settings", "device", "dtype", "pixels_sha256", "control_sha256", "reproduces")
    lacking = [name for name in needed if not isinstance(content, dict) or name not in content]
    if lacking:
        raise RequestError(f"receipt {path}: `{lacking[0]}` is missing; it is no receipt of `lora-drift sample`, or "
                           "one from before it could be replayed")  # fmt: skip
    return Receipt(path, content, picture if picture.is_file() else None)


def _inside(path: Path) -> str | None:
    """The receipt that a PNG carries; None if it carries none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            text = image.info.get(RECEIPT_KEY)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise RequestError(f"receipt {path}: not a readable picture ({error})") from error
    return None if text is None else str(text)


def replay(receipt: Receipt, loras: Sequence[Path], controls: Sequence[Path], device: str) -> Replayed:
    """Render it again and compare. `loras`, `controls`: where its files lie, if not beside the receipt.

    Raises:
        RequestError: a file that it needs is not there, or it asks for what cannot be rendered here.
    """
    content, settings = receipt.content, receipt.settings(_controls(receipt, controls))
    files = _lora_files(receipt, loras)
    pipeline = _pipeline(content, files, device)
    output = pipeline.render(settings)
    other = [what for what, key in HASHES.items() if output.receipt.get(key) != content.get(key)]
    lines = [*_told(files), *_picture(receipt)]
    different = list(_different(content, output.receipt))
    if not other:
        same = "pixels and the sound" if "audio_sha256" in content else "pixels"
        lines.append(f"the {same} are the same, bit for bit" + (", though these differ:" if different else ""))
    elif "profile" in content and not different:
        lines.append(f"not the same: the {' and the '.join(other)}. The profile {content['profile']} promises "
                     "no byte: torch may choose other kernels in another process")  # fmt: skip
    else:
        lines.append(f"not the same: the {' and the '.join(other)}" + ("; what is another now:" if different else
                     ". Nothing that the receipt names is another: did the processor, or its number of threads, "
                     "change?"))  # fmt: skip
    return Replayed(output, (*lines, *(f"  {line}" for line in different)), equal=not other)


def _pipeline(content: Mapping[str, Any], files: Mapping[str, Path], device: str) -> Pipeline:
    pipeline = load(
        content["model"],
        base=next(iter(content["base"])),
        device=device,
        dtype=content["dtype"],
        toolkit=content["reproduces"].rpartition(" ")[2],
        noise_stream=content.get("noise_stream"),
        resize_order=content.get("resize_order"),
        vae_noise=content.get("vae_noise", "device"),
        quantization=_quantization(content),
        profile=content.get("profile", "reference"),
        as_intended=content.get("as_intended", False),
    )
    if not files:
        return pipeline
    lora = content["lora"]
    named = _named(files, pipeline)
    strengths = {name: lora["strengths"][part] for name, part in pipeline.spec.denoisers.items()
                 if part in lora.get("strengths", {})}  # fmt: skip
    return pipeline.with_lora(**named, mode=lora["mode"], allow_partial=True, strengths=strengths)


def _quantization(content: Mapping[str, Any]) -> Quantization:
    asked = {key: value for key, value in content.get("quantization", {}).items() if key in QUANTIZATION}
    return Quantization(**{**asked, "exclude": tuple(asked.get("exclude", ()))})


def _named(files: Mapping[str, Path], pipeline: Pipeline) -> dict[str, Path]:
    """Arguments of `with_lora`; the receipt says of each file which expert it was given for."""
    experts = [name for name in pipeline.spec.denoisers if name]
    return {expert if expert in experts else "path": path for expert, path in files.items()}


def _lora_files(receipt: Receipt, given: Sequence[Path]) -> dict[str, Path]:
    """Expert (or "path") -> file of today."""
    lora = receipt.content.get("lora")
    if lora is None:
        return {}
    found = {}
    for name, expert in lora["experts"].items():
        places = [*(path for path in given if path.name == name), receipt.path.parent / name, Path(name)]
        places += given if len(given) == len(lora["files"]) == 1 else []
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise RequestError(f"receipt {receipt.path}: its LoRA {name} is not beside it; say where with --lora FILE "
                               f"(sha256 {lora['files'][name]})")  # fmt: skip
        found[expert or "path"] = path
    return found


def _controls(receipt: Receipt, given: Sequence[Path]) -> list[str]:
    """Control images of today: where the receipt says, or by what is in them (a PNG says no more), or in order."""
    near = [*given, *(path for path in receipt.path.parent.iterdir() if path.is_file())]
    content = receipt.content
    said = [*content["settings"]["control"], *content["settings"].get("shown", ())]
    digests, found = [*content["control_sha256"], *content.get("shown_sha256", ())], []
    in_order = given if len(given) == len(said) else [None] * len(said)
    for place, digest, other in zip(said, digests, in_order, strict=True):
        same = (path for path in near if _digest(path) == digest)
        path = Path(place) if Path(place).is_file() else next(same, other)
        if path is None:
            raise RequestError(f"receipt {receipt.path}: a control image (sha256 {digest}) is not there; say where "
                               "with --control FILE")  # fmt: skip
        found.append(str(path))
    return found


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _told(files: Mapping[str, Path]) -> Iterator[str]:
    """What the trainer wrote into the LoRA files."""
    for path in files.values():
        for key, value in sorted(metadata(path).items()):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{path.name}: {key}: {text}"


def _picture(receipt: Receipt) -> Iterator[str]:
    """Does the file still show what was rendered?"""
    from PIL import Image

    picture = receipt.picture
    if picture is None or picture.suffix.lower() not in LOSSLESS:
        return
    inside = _inside(picture)
    if inside is not None and (edited := list(_different(json.loads(inside), receipt.content))):
        yield f"{receipt.path.name} is not what {picture.name} carries inside, which says:"
        yield from (f"  {line.replace(' then, ', ' there, ').replace(' now', ' here')}" for line in edited)
    with Image.open(picture) as image:
        shown = pixels_sha256([image])
    if shown != receipt.content["pixels_sha256"]:
        yield f"{picture.name} is not the picture of this receipt: its pixels were changed since"


def _different(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """One line for each thing that the two receipts say otherwise."""
    before, after = dict(_flat(then)), dict(_flat(now))
    for name in sorted(before.keys() | after.keys()):
        if name.startswith(UNCOMPARED):
            continue
        if before.get(name) != after.get(name):
            yield f"{name}: {_said(before, name)} then, {_said(after, name)} now"


def _said(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "nothing"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}".lstrip("."))
    else:
        yield name, list(value) if isinstance(value, tuple) else value
