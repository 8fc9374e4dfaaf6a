"""Goldens: what the trainer rendered, sealed so that no later edit goes unseen.

A golden stands with the model's others in `goldens/<tag>/<model>.json` (`golden_file.py`) and names its artefacts by
content (`goldens/objects/<model>/<sha256[:16]>.<suffix>`): equal artefacts of several tags are stored once, similar
ones as their difference. `golden_store.py` says how.
Everything here only reads; the recorder is the only writer.
"""

import io
import json
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_drift.harness.check import golden_file, golden_store
from lora_drift.harness.check.cases import Case
from lora_drift.harness.environment import architecture
from lora_drift.harness.minihub import factory
from lora_drift.harness.paths import ROOT
from lora_drift.pipelines.spec import NoiseStream, ResizeOrder, noise_stream_of, resize_order_of

if TYPE_CHECKING:
    import numpy as np

GOLDENS = ROOT / "goldens"
FORMAT = 2
CPU = {"device": "cpu", "dtype": "float32"}


class GoldenError(Exception):
    """A golden cannot be used; `verdict` is what its case gets."""

    verdict = "error"


class Missing(GoldenError):
    verdict = "missing"


class Stale(GoldenError):
    verdict = "stale"


class Corrupt(GoldenError):
    verdict = "corrupt"


class Artefact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: str
    bytes: int


class Golden(BaseModel):
    """One golden. See docs/goldens.md for the meaning of each field."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    case: str
    case_sha256: str
    tag: str
    minihub_sha256: str | None = None
    """Of a mini case."""
    weights: dict[str, str] | None = None
    """Of a case of the full tier: repository -> commit, of what was in the recording machine's cache."""
    origin: str
    """"generate_images" (the trainer's process up to its first sample) or "training run" (run.py, whole)."""
    short_way: dict[str, float] | None = None
    """For a training run: the distance between its sample and the short way's from the LoRA that it saved."""
    recorder: str
    trainer: dict[str, str]
    environment: dict[str, Any]
    patches: list[str]
    settings: dict[str, Any]
    output: dict[str, Any]
    artefacts: dict[str, Artefact]
    seal: str

    @cached_property
    def root(self) -> Path:
        return GOLDENS

    @property
    def noise_stream(self) -> NoiseStream:
        """The stream of half-precision noise of the torch that recorded it (`spec.NOISE_STREAMS`)."""
        return noise_stream_of(self.environment["torch"])

    @property
    def resize_order(self) -> ResizeOrder:
        """How the Pillow that recorded it resizes control images."""
        return resize_order_of(self.environment["pillow"])

    def stored(self, name: str) -> Path:
        """The file under goldens/ that holds an artefact."""
        return golden_store.stored(self.root, self.artefacts[name].file)

    def data(self, name: str) -> bytes:
        """One artefact: "picture" (PPM; the frames of a video one below the other), "latents", "trace", "lora" (or
        "lora_high" and "lora_low"), "audio"."""
        return golden_store.read(self.stored(name))

    def path(self, name: str) -> Path:
        """A file with the artefact (a picture's is a PNG): unpacked into the cache, where it is not kept as it is."""
        stored = self.stored(name)
        if stored.suffix == ".png" and golden_store.base_of(stored) is None:
            return stored
        data = golden_store.png(self.data(name)) if stored.suffix == ".png" else self.data(name)
        path = factory.default_home().parent.parent / "unpacked" / Path(self.artefacts[name].file).name
        if not path.is_file() or path.read_bytes() != data:
            golden_store.write_atomically(path, data)
        return path

    def frames(self) -> "np.ndarray":
        """uint8 [frames, height, width, 3]."""
        import numpy as np
        from PIL import Image

        count = int(self.output["frames"])
        strip = np.asarray(Image.open(io.BytesIO(self.data("picture"))))
        return strip.reshape(count, strip.shape[0] // count, *strip.shape[1:])

    def latents(self) -> "np.ndarray":
        """float32: what the trainer gave to its VAE decoder."""
        from safetensors.numpy import load

        return load(self.data("latents"))["latents"]

    def audio(self) -> "np.ndarray":
        """float32 [channels, samples]"""
        from safetensors.numpy import load

        return load(self.data("audio"))["audio"]


def seal(content: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of a golden without its seal."""
    fields = {key: value for key, value in content.items() if key != "seal"}
    return sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content(tag: str, case_id: str, root: Path = GOLDENS, *, variant: str = "") -> dict[str, Any] | None:
    """What the golden of a case says, unchecked; None: there is none.

    Raises:
        ValueError: its file is no file of goldens.
    """
    return golden_file.read(golden_path(tag, case_id, root, variant=variant)).get(case_id)


def variant(environment: Mapping[str, Any]) -> str:
    """Which set of a tag's goldens belongs to an environment: "" for float32, whatever the device, since there devices
    differ by rounding only; else the architecture and the dtype, "sm90-bfloat16"."""
    if environment["dtype"] == "float32":
        return ""
    return f"{architecture(environment)}-{environment['dtype']}"


def nearest(tag: str, wanted: str, root: Path = GOLDENS) -> str:
    """The set of a tag's goldens that serves where `wanted` was not recorded: of the GPUs that of the nearest compute
    capability. A CPU has none but the CPU's."""
    there = _variants(tag, root)
    gpus = {name: int(name.partition("-")[0].removeprefix("sm")) for name in there if name.startswith("sm")}
    if wanted in there or not wanted.startswith("sm") or not gpus:
        return wanted
    here = int(wanted.partition("-")[0].removeprefix("sm"))
    return min(gpus, key=lambda name: abs(gpus[name] - here))


def _variants(tag: str, root: Path) -> list[str]:
    """The sets of a tag beside that in float32."""
    return sorted(path.name.partition("@")[2] for path in root.glob(f"{tag}@*"))


def environments(tag: str, dtype: str, root: Path = GOLDENS) -> list[dict[str, str]]:
    """Device and dtype of each set of a tag's goldens in this dtype, for `load`."""
    names = [name.partition("-")[0] for name in _variants(tag, root) if name.endswith(f"-{dtype}")]
    gpu = {"device": "cuda", "dtype": dtype, "gpu": ""}
    return [
        CPU | {"dtype": dtype} if name == "cpu" else gpu | {"compute_capability": name.removeprefix("sm")}
        for name in names
    ]


def golden_path(tag: str, case_id: str, root: Path = GOLDENS, *, variant: str = "") -> Path:
    """The file that holds the golden of a case, with those of the model's other cases."""
    return root / (f"{tag}@{variant}" if variant else tag) / f"{case_id.split('/')[0]}.json"


def tags(root: Path = GOLDENS) -> list[str]:
    """Recorded tags, oldest first."""
    return sorted((p.name for p in root.glob("v*") if p.is_dir() and "@" not in p.name), key=golden_file.age)


def load(
    tag: str,
    case: Case,
    minihub_sha256: str | None,
    root: Path = GOLDENS,
    *,
    weights: Mapping[str, str] | None = None,
    environment: Mapping[str, Any] = CPU,
) -> Golden:
    """Read the golden of `case` and check everything that it vouches for.

    `environment` names the device and the dtype (`lora_drift.harness.environment.facts`).
    `minihub_sha256` is the hash of the mini hub in use for the case's model; None for the `full` tier, whose `weights`
    are the revisions in the user's cache.

    Raises:
        Missing: nothing was recorded.
        Corrupt: the JSON or an artefact is not what the recorder wrote (says which and how).
        Stale: the case, the mini hub or the weights changed after recording.
    """
    wanted = nearest(tag, variant(environment), root)
    path = golden_path(tag, case.id, root, variant=wanted)
    there = f" --device {environment['device']} --dtype {environment['dtype']}" if wanted else ""
    again = (
        "python -m lora_drift.harness.trainer.recorder --trainer DIR --diffusers DIR "
        f"--tag {tag}{there} --case {case.id}"
    )
    file = _shown(path, root)
    from_where = [path, *(root / folder / path.name for folder in golden_file.folders_named(path))]
    restore = f"Restore it: git checkout -- {' '.join(_shown(each, root) for each in from_where)}"
    try:
        said = golden_file.read(path)
        others = [other for other in said if other.split("/")[0] != path.stem]
        if others:
            raise Corrupt(f"{file} holds the golden of {others[0]}: two files were swapped. {restore}")
        if case.id not in said:
            raise Missing(f"no golden of {case.id} in {file}: the trainer never rendered this case. Record it: {again}")
        golden = Golden.model_validate(said[case.id])
    except (ValidationError, ValueError) as error:
        raise Corrupt(f"{file} has no golden of {case.id} of format {FORMAT}: {error}. {restore}") from error
    if golden.format != FORMAT:
        raise Corrupt(f"{file} has format {golden.format}; this version reads format {FORMAT} only. {restore}")
    golden.__dict__["root"] = root
    if golden.seal != seal(said[case.id]):
        raise Corrupt(f"{file}: {case.id} was edited after recording (its seal does not fit). {restore}")
    if (golden.case, golden.tag, variant(golden.environment)) != (case.id, tag, wanted):
        raise Corrupt(
            f"{file} has as {case.id} the golden of {golden.case} at {golden.tag} ({golden.environment['device']}, "
            f"{golden.environment['dtype']}): two goldens were swapped. {restore}"
        )
    for name, artefact in golden.artefacts.items():
        _check_artefact(golden, name, artefact)
    if golden.case_sha256 != case.sha256:
        raise Stale(f"{case.id} in {file} was recorded for another version of the case file. Record it again: {again}")
    if minihub_sha256 is not None and golden.minihub_sha256 != minihub_sha256:
        raise Stale(f"{case.id} in {file} was recorded on another mini hub. Record it again: {again}")
    if weights is not None and golden.weights != weights:
        then = golden.weights or {}
        others = [
            f"{r} at {then.get(r)} (here {weights.get(r)})"
            for r in {**then, **weights}
            if then.get(r) != weights.get(r)
        ]
        raise Stale(
            f"{case.id} in {file} was recorded on other weights: {', '.join(others)}. Record it on these: {again}"
        )
    return golden


def _check_artefact(golden: Golden, name: str, artefact: Artefact) -> None:
    path = golden.stored(name)
    of = f"the {name} of {golden.case}"
    try:
        data = golden.data(name)
    except golden_store.Damaged as error:
        shown = _shown(error.path, golden.root)
        if error.path != path:
            of = f"from which {of} is stored as a difference"
        # Nobody knows whether a file that is gone was whole: ask for both.
        wanted = f"'{shown.partition('.')[0]}*'" if error.missing else shown
        raise Corrupt(f"{shown}, {of}, {error}. Restore it: git checkout -- {wanted}") from error
    if sha256(data).hexdigest() != artefact.sha256:
        raise Corrupt(f"{_shown(path, golden.root)}, {of}, is not what its golden at {golden.tag} names")


def _shown(path: Path, root: Path) -> str:
    return f"goldens/{path.relative_to(root).as_posix()}"
