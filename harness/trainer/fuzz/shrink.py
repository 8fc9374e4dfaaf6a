"""The smallest case that still shows a difference, and its case file."""

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lora_drift.harness.check.cases import Case
from lora_drift.pipelines.spec import ModelSpec

PLAIN = "a fox"
PICTURE = "wide.png"
ATTEMPTS = 120


def smallest(case: Case, differs: Callable[[Case], bool], spec: ModelSpec, assets: Path) -> Case:
    """`case` with all that can be left out, or be as everywhere else, while it still `differs`."""
    left = ATTEMPTS
    found = True
    while found and left > 0:
        found = False
        for simpler in islice(candidates(case, spec, assets), left):
            left -= 1
            if differs(simpler):
                case, found = simpler, True
                break
    return case


def candidates(case: Case, spec: ModelSpec, assets: Path) -> Iterator[Case]:
    """Cases that are simpler than `case` in one thing, the largest simplifications first."""
    before = content(case)
    for changed in _changes(before, spec):
        if changed == before:
            continue
        try:
            yield Case.model_validate(changed, context={"assets": assets})
        except ValidationError:  # a quantised base with a LoRA that is not live, say
            continue


def content(case: Case) -> dict[str, Any]:
    """What its file says, and its id."""
    said = case.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    sample = {
        name: Path(value).name if name.startswith("ctrl_img") else value for name, value in said["sample"].items()
    }
    return {**said, "sample": sample}


def _changes(said: dict[str, Any], spec: ModelSpec) -> Iterator[dict[str, Any]]:
    sample, lora = said["sample"], said.get("lora")
    bare = {name: value for name, value in sample.items() if name != "network_multiplier"}
    yield {**_without(said, "lora"), "sample": bare}
    for name in ("quantization", "trigger_word"):
        yield _without(said, name)
    if lora is not None:
        network = lora["network"]
        yield {**said, "lora": {**lora, "network": {"type": network["type"]}}}
        for name in network:
            if name != "type":
                yield {**said, "lora": {**lora, "network": _without(network, name)}}
        for name, value in (("save_dtype", "float32"), ("mode", "merged"), ("text_encoder", False)):
            yield {**said, "lora": {**lora, name: value}}
    for name in (name for name in sample if name not in ("prompt", "width", "height", "sample_steps")):
        yield {**said, "sample": _without(sample, name)}
    plain: dict[str, Any] = {
        **{
            "width": 64,
            "height": 64,
            "sample_steps": max(2, spec.fewest_steps),
            "seed": 1,
            "num_frames": 5,
            "neg": "b",
        },
        "guidance_scale": spec.guidance_scale,
        **{name: PICTURE for name in sample if name.startswith("ctrl_img")},
    }
    for name, value in plain.items():
        if name in sample:
            yield {**said, "sample": {**sample, name: value}}
    for name in (name for name in ("prompt", "neg") if name in sample):
        for text in _shorter(sample[name]):
            yield {**said, "sample": {**sample, name: text}}


def _shorter(prompt: str) -> Iterator[str]:
    """Without a flag, with a plain text, half of its words, without one of them, half of a word."""
    text, *flags = prompt.split("--")
    tail = "".join(f"--{flag}" for flag in flags)
    for number in range(len(flags)):
        yield text + "".join(f"--{flag}" for at, flag in enumerate(flags) if at != number)
    if text.strip() == PLAIN:
        return
    yield f"{PLAIN} {tail}".strip()
    words = text.split(" ")
    half = len(words) // 2
    if half:
        yield " ".join([*words[:half], tail])
        yield " ".join([*words[half:], tail])
    if 1 < len(words) <= 8:
        for number in range(len(words)):
            yield " ".join([*words[:number], *words[number + 1 :], tail])
    if len(words) <= 2 and len(text) > 1:
        yield text[: len(text) // 2] + tail
        yield text[len(text) // 2 :] + tail


def _without(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


def write(case: Case, about: str, folder: Path, assets: Path) -> Path:
    """Write the case's file, MODEL/NAME.yaml in `folder`, ready to be recorded; its pictures lie in `assets` there."""
    said = content(case)
    head = {"schema": 1, "model": case.model, "tier": "mini", "about": about}
    body = {key: value for key, value in said.items() if key not in ("id", *head)}
    path = folder / f"{case.id}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "assets").mkdir(exist_ok=True)
    for picture in [*case.sample.control, *case.sample.located.values()]:
        if not (folder / "assets" / Path(picture).name).exists():
            shutil.copyfile(assets / Path(picture).name, folder / "assets" / Path(picture).name)
    path.write_text(yaml.safe_dump({**head, **body}, sort_keys=False, width=118), encoding="utf-8")
    return path
