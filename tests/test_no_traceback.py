"""No job file and no LoRA header, however broken, ends in a traceback: each is read or refused in one paragraph.

`LORA_DRIFT_EXAMPLES=10000 pytest tests/test_no_traceback.py` tries as many as that.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from lora_drift import pipelines
from lora_drift.harness.cli.sample import REMEDIES
from lora_drift.harness.paths import ROOT
from lora_drift.harness.tags import TagError
from lora_drift.harness.trainer.jobs import JobError, case_from_job, folder, plan, reader, sample_options, verify
from lora_drift.harness.trainer.jobs.job_file import Sampling
from lora_drift.pipelines import LoraError, Pipeline, RequestError, lora, lora_formats

EXAMPLES = int(os.environ.get("LORA_DRIFT_EXAMPLES", "150"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JOBS = ROOT / "jobs"
REAL = [yaml.safe_load((path / "config.yaml").read_text()) for path in sorted(JOBS.iterdir()) if path.is_dir()
        and (path / "config.yaml").is_file()]  # fmt: skip

TEXTS = ["", "[name]", "[trigger]", "a --w 64", "x --seed -1", "\ud800", "\0", "~", "C:\\x",
         "a --ctrl_idx one", "a --ctrl_idx 1", "1e999", "qint8", "uint3|x", "fp16", "a/b/c", "/"]  # fmt: skip
TEXT = st.text(max_size=8) | st.sampled_from(TEXTS)
NUMBERS = st.integers() | st.floats() | st.sampled_from([-1, 0, 10**30, 2**64, float("nan"), float("inf")])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in items for place in places(inner, (*at, key)))]


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = changed(value[place[0]], place[1:], new)
    return copy


FIELDS = ["width", "neg", "seed", "samples", "prompts", "arch", "qtype", "quantize", "dtype", "trigger_word", "network",
          "model_kwargs", "quantize_kwargs", "sample", "train", "model", "datasets", "first_sample", "ctrl_img_1",
          "ema_config", "network_multiplier", "te_dtype", "is_flux", "format", "unknown", "name_or_path"]  # fmt: skip


@st.composite
def job_files(draw: st.DrawFn) -> Any:
    """A real job with some places changed, added or taken away."""
    job = draw(st.sampled_from(REAL))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.sampled_from(places(job)))
        kind = draw(st.sampled_from(["change", "add", "drop"]))
        inside: Any = job
        for key in place:
            inside = inside[key]
        if kind == "add" and isinstance(inside, dict):
            job = changed(job, place, {**inside, draw(st.sampled_from(FIELDS)): draw(VALUES)})
        elif kind == "drop" and isinstance(inside, dict) and inside:
            gone = draw(st.sampled_from(list(inside)))
            job = changed(job, place, {key: value for key, value in inside.items() if key != gone})
        else:
            job = changed(job, place, draw(VALUES))
        if not isinstance(job, dict | list):
            break
    return job


def refused(error: RequestError | TagError) -> None:
    """One paragraph that says where and what."""
    assert str(error).strip() and "Traceback" not in str(error)
    if isinstance(error, JobError):
        assert "`" in str(error) or "job" in str(error)


@SETTINGS
@given(job_files(), st.sampled_from([".json", ".yaml"]), st.booleans())
def test_a_job_file_is_read_or_refused(tmp_path: Path, job: Any, suffix: str, overriding: bool) -> None:
    for old in tmp_path.glob("config.*"):
        old.unlink()
    file = tmp_path / f"config{suffix}"
    text = json.dumps(job) if suffix == ".json" else yaml.safe_dump(job)
    file.write_text(text, encoding="utf-8", errors="backslashreplace")
    given_options = {"dtype": "float32", "width": 64, "seed": 1} if overriding else {}
    try:
        _, notes = sample_options.options(tmp_path, 0, given_options)
        "\n".join(notes).encode()
    except (RequestError, TagError) as error:
        refused(error)
    try:
        read = reader.read(tmp_path)
        folder.check_network(read)
        found = folder.Folder((folder.Sample(file, 1, 2, 0),), folder.checkpoints(tmp_path, read, []), ())
        planned = plan.plan(read, found)
        verify.ask(read, found, planned, list(found.samples), tmp_path)
        plan.requests(planned, read, read.process.sample or Sampling(), tmp_path)
        case_from_job.write(tmp_path, 0, tmp_path / planned.model / "x.yaml")
        (tmp_path / planned.model / "x.yaml").unlink()
    except (RequestError, TagError) as error:
        refused(error)


@SETTINGS
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_a_file_of_anything_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(JobError):
        reader.read(tmp_path)


# ------------------------------------------------------------------------------------------------------------ headers


@cache
def _unloaded(model: str) -> Pipeline:
    return pipelines.load(model)


@cache
def _header(name: str) -> dict[str, Any]:
    path = next(iter(sorted((JOBS / name).glob("*.safetensors"))))
    with safe_open(path, "np") as file:
        metadata = dict(file.metadata())
    return {"__metadata__": metadata, **{key: list(value.shape) for key, value in load_file(path).items()}}


PARTS = ["lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "alpha", "magnitude", "dora_scale",
         "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w2_b", "lokr_t2", "diff", "lora_A.default.weight", "lora.up.weight",
         "lora_magnitude_vector", "lora_B.bias", "hada_w1_a", ""]  # fmt: skip
PREFIXES = ["transformer.", "diffusion_model.", "lora_unet_", "base_model.model.", "lora_te1_", "unet.", "", "lycoris_",
            "lora_transformer_", "model.diffusion_model."]  # fmt: skip
SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 32, 96]), max_size=4)


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """A real LoRA's header with keys renamed, resized, added or dropped, and metadata of another shape."""
    header = dict(_header(draw(st.sampled_from(["flux", "sd15", "sdxl", "wan22_14b_t2v"]))))
    metadata = dict(header.pop("__metadata__"))
    for _ in range(draw(st.integers(1, 5))):
        key = draw(st.sampled_from(sorted(header)))
        kind = draw(st.sampled_from(["part", "prefix", "shape", "drop", "add", "metadata"]))
        stem = key.rpartition(".lora_")[0] or key.rpartition(".")[0]
        if kind == "part":
            header[f"{stem}.{draw(st.sampled_from(PARTS))}"] = header.pop(key)
        elif kind == "prefix":
            first = min((i for i in (key.find("."), key.find("unet_") + 4) if i > 3), default=0)
            header[draw(st.sampled_from(PREFIXES)) + key[first + 1 :]] = header.pop(key)
        elif kind == "shape":
            header[key] = draw(SHAPES)
        elif kind == "drop" and len(header) > 1:
            del header[key]
        elif kind == "add":
            header[draw(st.text(max_size=6)) + "." + draw(st.sampled_from(PARTS))] = draw(SHAPES)
        else:
            names = ["software", "training_info", "ss_output_name", "lora_adapter_metadata", "name", "x"]
            inside = VALUES.map(lambda v: json.dumps({"step": v, "version": v, "r": v, "lora_alpha": v}))
            metadata[draw(st.sampled_from(names))] = draw(st.text(max_size=6) | VALUES.map(json.dumps) | inside)
    return {"__metadata__": metadata, **header}


def written(header: dict[str, Any], path: Path) -> Path:
    """A safetensors file of zeros and ones with these keys and shapes."""
    start, entries = 0, {}
    for key, shape in header.items():
        if key != "__metadata__":
            size = 4
            for side in shape:
                size *= side
            entries[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}
            start += size
    head = json.dumps({"__metadata__": header["__metadata__"], **entries}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(start))
    return path


def assert_told(error: LoraError, file: Path, header: dict[str, Any]) -> None:
    """It names the file, what of the file is meant, and what to do: an option that `sample` has, another file, or none
    but to leave a format that is not read."""
    assert str(error).startswith(f"{file}: ") and error.remedy in ("", *REMEDIES)
    to_do = ("Is it a LoRA for another model?", "not read", "not applied", lora.AGAIN, lora.OTHER_SIZE)
    assert error.remedy or any(words in error.problem for words in to_do), error
    modules = {lora_formats.split(key, lora.PARTS).name for key in header} - {""}
    assert any(name in error.problem for name in {*header, *modules, "lora_adapter_metadata"}), error


def helps(model: str, file: Path, header: dict[str, Any]) -> None:
    """What is advised does something: with it, the rest is read, or refused for another reason."""
    try:
        _unloaded(model).with_lora(file, allow_partial=True)
    except LoraError as error:
        assert_told(error, file, header)
        assert "unmatched" not in error.problem


@SETTINGS
@given(headers(), st.sampled_from(["flux", "sd15", "sdxl", "wan22_14b_t2v"]), st.booleans())
def test_a_lora_header_is_read_or_refused(tmp_path: Path, header: dict[str, Any], model: str, partial: bool) -> None:
    file = written(header, tmp_path / f"{model}_000000002.safetensors")
    try:
        lora.metadata(file)
        _unloaded(model).with_lora(file, allow_partial=partial)
    except LoraError as error:
        assert_told(error, file, header)
        if error.remedy == "allow_partial":
            assert not partial
            helps(model, file, header)
    job = reader.read(JOBS / model)
    notes: list[str] = []
    found = folder.checkpoints(tmp_path, job, notes)
    planned = plan.plan(job, folder.Folder((), found, ()))
    json.dumps([planned.notes, notes, [dict(c.metadata) for c in found.values()]], ensure_ascii=False).encode()


@SETTINGS
@given(st.binary(max_size=300), st.integers(0, 400))
def test_a_lora_file_of_anything_is_refused(tmp_path: Path, noise: bytes, cut: int) -> None:
    whole = next(iter(sorted((JOBS / "sd15").glob("*.safetensors")))).read_bytes()
    file = tmp_path / "x.safetensors"
    for content in (noise, whole[:cut], whole[:8] + noise + whole[8 + len(noise) :]):
        file.write_bytes(content)
        try:
            lora.metadata(file)
            _unloaded("sd15").with_lora(file)
        except LoraError as error:
            assert str(error).startswith(f"{file}: ")
