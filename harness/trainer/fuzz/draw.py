"""Jobs to render, drawn so that they soon visit every pair of values of a model's inputs (`check/coverage.py`).

A job is what its samples share (LoRA, base, trigger word, whether the LoRA is merged) and up to `ITEMS` of these.
Values of the axes are chosen greedily, those first of which most pairs were never visited; what they leave open (which
words, which size, which picture, ...) is drawn from all that the trainer reads.
"""

import math
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from random import Random
from typing import Any

from lora_drift.harness.check import coverage
from lora_drift.harness.check.cases import Case
from lora_drift.harness.check.control_pictures import EXTREME
from lora_drift.harness.check.coverage import AXES, Value
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.trainer.fuzz.grammar import PIECES
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.quantized_layers import QTYPES
from lora_drift.pipelines.settings import Request, resolve
from lora_drift.pipelines.spec import ModelSpec

ITEMS, TRIES = 6, 60
SHARED = ("trigger word", "network", "LoRA", "saved as", "modules", "base")
"""Axes that the samples of a job have in common."""
WORDS = (
    "an", "the", "small", "old", "red", "blue", "fox", "house", "lake", "portrait", "of", "in", "under", "near", "rain",
    "snow", "night", "street", "with", "and", "photo", "green", "painting", "dog", "cat", "sea", "tall", "grass", "two",
    "people", "market", "light", "window", "glass", "bird", "river", "bridge", "stone", "smiling", "a", "three",
)  # fmt: skip
NAMES = ("Lake Como", "NORTH", "McDonald", "iPhone", "Lynx", "GREEN", "O'Neil", "USA")
SCALES = (-1.0, 0.0, 0.5, 1.0, 1.0001, 1.5, 2.5, 3.0, 4.0, 5.5, 7.5, 12.0, 30.0)
PARTS = ("attn", "ff", "to_q", "to_out", "0", "proj", "norm")
"""Of names of modules."""
FOUND = ("attn", "0")
"""Of those, what nearly every model has: without any module there is no LoRA."""
SIDES = range(64, 129)


def pairs_of(spec: ModelSpec) -> set[frozenset[Value]]:
    every = [[(axis.name, value) for value in axis.values(spec)] for axis in AXES]
    return {frozenset(pair) for one, other in combinations(every, 2) for pair in product(one, other)
            if coverage.possible(pair)}  # fmt: skip


def pairs_in(case: Case, spec: ModelSpec) -> set[frozenset[Value]]:
    """Those that a case visits."""
    return {frozenset(pair) for pair in combinations(coverage.visited(case, spec), 2)}


class Drawer:
    """Draws jobs for one model."""

    def __init__(self, spec: ModelSpec, assets: Path, pictures: Sequence[str], seed: str) -> None:
        self.spec, self._assets = spec, assets
        self._pictures = [name for name in pictures for _ in range(1 if name in EXTREME else 5)]
        self._seed = seed
        self.missing = pairs_of(spec)
        self._frames = self._by_frames()

    def visit(self, case: Case) -> None:
        """Count the pairs of a case as visited."""
        self.missing = self.missing - pairs_in(case, self.spec)

    def job(self, number: int) -> list[Case]:
        """The samples of the model's `number`-th job; what was visited before decides, too, what is drawn."""
        before = self.missing
        try:
            return self._job(Random(f"{self._seed} {self.spec.id} {number}"), number)
        finally:
            self.missing = before  # until it is known that they were rendered

    def _job(self, rng: Random, number: int) -> list[Case]:
        first = self._row(rng, {})
        shared = {axis: first[axis] for axis in SHARED}
        merged = shared["LoRA"] == "merged"
        common = self._common(rng, first, number)
        strength = self._multiplier(rng, first["multiplier"])
        drawn: list[Case] = []
        for index in range(rng.choice((1, ITEMS, ITEMS))):
            fixed = shared | ({"multiplier": first["multiplier"]} if merged else {})
            row = first if index == 0 else self._row(rng, fixed)
            for _ in range(TRIES):
                sample = self._sample(rng, row, common["trigger_word"])
                if common["lora"]:
                    sample["network_multiplier"] = strength if merged else self._multiplier(rng, row["multiplier"])
                case = self.case(f"fuzz-{number}-{index}", common, sample)
                if self._miniature_can(case):
                    break
            self.visit(case)
            drawn.append(case)
        return drawn

    def _miniature_can(self, case: Case) -> bool:
        """HiDream brings each size to one area, here 256 px squared in steps of 16 (pipeline_hidream_image.py), and its
        miniature has patches four times as large as the real one's, which divide few of these sizes."""
        if self.spec.id != "hidream":
            return True
        try:
            settings = resolve(self.spec, Bench.request(case))
        except RequestError:
            return True
        scale = 256 / math.sqrt(settings.width * settings.height)
        return {int(side * scale) // 16 for side in (settings.width, settings.height)} in ({16}, {14, 18})

    def case(self, name: str, common: dict[str, Any], sample: dict[str, Any]) -> Case:
        """A case of this model; `common`: its fields outside `sample:`."""
        shared = {key: value for key, value in common.items() if value is not None and key != "section"}
        content = {"schema": 1, "id": f"{self.spec.id}/{name}", "tier": "mini", "about": "Drawn by lora-drift fuzz.",
                   **shared, "sample": {**common["section"], **sample}}  # fmt: skip
        return Case.model_validate(content, context={"assets": self._assets})

    def _row(self, rng: Random, fixed: dict[str, str]) -> dict[str, str]:
        """A value for every axis, with those that are fixed, of which as many pairs as can be found are new."""
        row = dict(fixed)
        aims = [pair for pair in self.missing if all(row.get(axis, value) == value for axis, value in pair)
                and coverage.possible([*row.items(), *pair])]  # fmt: skip
        if aims and rng.random() < 0.8:
            row |= dict(rng.choice(sorted(aims, key=sorted)))
        axes = list(AXES)
        rng.shuffle(axes)
        for axis in axes:
            if axis.name in row:
                continue
            options = [(axis.name, value) for value in axis.values(self.spec)]
            fits = [option for option in options if coverage.possible([*row.items(), option])] or options
            new = {option: sum(frozenset((option, one)) in self.missing for one in row.items()) for option in fits}
            row |= [max(fits, key=lambda option: (new[option], rng.random()))]
        return row

    # ---- what the samples of a job share

    def _common(self, rng: Random, row: dict[str, str], number: int) -> dict[str, Any]:
        quantised = row["base"] == "quantised"
        quantization: dict[str, Any] | None = None
        if quantised:
            # The trainer makes a DoRA on no other type.
            qtype = "qfloat8" if row["network"] == "dora" and rng.random() < 0.8 else rng.choice(QTYPES)
            quantization = {"quantize": True, "qtype": qtype, "qtype_te": rng.choice(QTYPES)}
            quantization |= rng.choice(({}, {"quantize_te": True}, {"quantize_te": False}))
        elif rng.random() < 0.1:
            quantization = {"quantize": False, "quantize_te": True, "qtype": rng.choice(QTYPES)}
        section: dict[str, Any] = {}
        if rng.random() < 0.25:
            section["guidance_rescale"] = rng.choice((0.3, 0.7, 1.0))
        if rng.random() < 0.25:
            section["do_cfg_norm"] = True
        trigger = (
            rng.choice(("sks", "A Man", "", "\u201cx\u201d", "ohwx person", "a [name]"))
            if row["trigger word"] == "given"
            else None
        )
        return {"lora": self._lora(rng, row, number, quantised), "quantization": quantization, "trigger_word": trigger,
                "section": section}  # fmt: skip

    def _lora(self, rng: Random, row: dict[str, str], number: int, quantised: bool) -> dict[str, Any] | None:
        kind = row["network"]
        if kind == "none":
            return None
        rank = rng.choice((1, 2, 3, 4, 8, 16, 32))
        network: dict[str, Any] = {"type": kind, "linear": rank}
        if rng.random() < 0.8:
            network["linear_alpha"] = rng.choice((float(rank), rank / 2, 1.0, 0.25, 24.0))  # as a file holds it: exact
        if kind == "lokr":
            network["lokr_full_rank"] = rng.random() < 0.5
            network |= rng.choice(({}, {"lokr_factor": rng.choice((-1, 2, 4, 8))}))
            network |= rng.choice(({}, {}, {"old_lokr_format": True}))
        if row["modules"] == "all":
            network["transformer_only"] = False
        if row["modules"] == "blocks and convolutions":
            conv = rng.choice((1, 2, 4, 8))
            network |= {"conv": conv} | rng.choice(({}, {"conv_alpha": conv / 2}))
        if rng.random() < 0.25:
            kwargs = rng.choice(
                ({"ignore_if_contains": [rng.choice(PARTS)]}, {"only_if_contains": [rng.choice(FOUND)]})
            )
            network["network_kwargs"] = kwargs
        if len(self.spec.denoisers) > 1 and rng.random() < 0.3:
            network["split_multistage_loras"] = False
        live = row["LoRA"] == "live" or quantised or kind == "dora"
        return {"name": f"f{number}", "network": network, "save_dtype": row["saved as"],
                "mode": "live" if live else "merged",
                "text_encoder": bool(self.spec.encoder_prefixes) and rng.random() < 0.3}  # fmt: skip

    def _multiplier(self, rng: Random, value: str) -> float:
        return {"negative": rng.choice((-0.5, -1.0, -1.7))}.get(
            value, 1.0 if value == "1" else rng.choice((0.0, 0.3, 0.7, 1.4, 2.0))
        )

    # ---- one sample

    def _sample(self, rng: Random, row: dict[str, str], trigger: str | None) -> dict[str, Any]:
        sample: dict[str, Any] = {"prompt": self._prompt(rng, row["prompt"], trigger is not None)}
        if row["negative prompt"] == "given":
            sample["neg"] = self._prompt(rng, rng.choice(("short", "capitals", "beyond ASCII", "long")), False)
        sample["width"], sample["height"] = self._size(rng, row)
        fitting = [
            scale for scale in SCALES if ("two passes" if self.spec.guides(scale) else "one pass") == row["guidance"]
        ]
        sample["guidance_scale"] = rng.choice(fitting)
        sample["sample_steps"] = rng.randint(max(2, self.spec.fewest_steps), 4)
        sample["seed"] = self._seed_of(rng, row["seed"])
        if self.spec.kind == "video":
            sample["num_frames"] = rng.choice(self._frames[row["frames"]])
            sample["fps"] = rng.choice((1, 8, 16, 24, 25, 60))
        elif rng.random() < 0.05:
            sample["num_frames"] = 5
        flags = self._controls(rng, row, sample)
        if row["flags"] == "given":
            flags += [self._flag(rng) for _ in range(rng.randint(1, 3))]
        space = rng.choice((" ", " ", " ", "  "))
        sample["prompt"] += "".join(f" --{name}{space}{value}" for name, value in flags)
        return sample

    def _prompt(self, rng: Random, kind: str, trigger: bool) -> str:
        words = rng.choices(WORDS, k=rng.randint(0, 14) if kind != "long" else rng.randint(coverage.LONG + 1, 220))
        if kind == "capitals" or (kind == "long" and rng.random() < 0.5):
            words += rng.choices(NAMES, k=rng.randint(1, 4))
        if kind == "beyond ASCII":
            pieces = [piece for piece in PIECES if "--" not in piece and "${" not in piece]
            words += rng.choices(pieces, k=rng.randint(1, 5))
            words += ["".join(_character(rng) for _ in range(rng.randint(1, 12))) for _ in range(rng.randint(0, 3))]
            words.append(rng.choice([piece for piece in pieces if not piece.isascii()]))
        rng.shuffle(words)
        if trigger and rng.random() < 0.7:
            words.insert(rng.randint(0, len(words)), rng.choice(("[trigger]", "[name]", "[trigger]'s")))
        return " ".join(words)

    def _size(self, rng: Random, row: dict[str, str]) -> tuple[int, int]:
        grid = [side for side in SIDES if side % max(self.spec.size_divisor, self.spec.asked_divisor) == 0]
        width, height = sorted(rng.sample(grid, 2)) if row["shape"] != "square" else [rng.choice(grid)] * 2
        if row["shape"] == "wide":
            width, height = height, width
        if row["size"] == "floored":
            most = self.spec.asked_divisor if self.spec.size_rule == "refuse" else self.spec.size_divisor
            width, height = width + rng.randrange(max(2, most)), height + rng.randint(1, max(1, most - 1))
        return width, height

    def _seed_of(self, rng: Random, value: str) -> int:
        ranges = {"0": (0, 0), "small": (1, 2**31 - 1), "negative": (-(2**63), -2)}
        return rng.randint(
            *rng.choice(
                (
                    ranges.get(value, (2**31, 2**64 - 1)),
                    {"small": (1, 99), "negative": (-99, -2)}.get(value, ranges.get(value, (2**31, 2**33))),
                )
            )
        )

    def _by_frames(self) -> dict[str, list[int]]:
        """Value of the axis -> numbers of frames, few enough to be fast."""
        found: dict[str, list[int]] = {"one": [1], "short": [], "several": [], "rounded": []}
        for asked in range(2, 18) if self.spec.kind == "video" else ():
            request = Request("a", width=64, height=64, num_frames=asked, ctrl_img=str(self._assets / "wide.png"))
            frames = resolve(self.spec, request).num_frames
            found["short" if frames == 1 else "several" if frames == asked else "rounded"].append(asked)
        return {value: numbers or [5] for value, numbers in found.items()}

    def _controls(self, rng: Random, row: dict[str, str], sample: dict[str, Any]) -> list[tuple[str, str]]:
        """Control pictures as fields of `sample`, and as flags of its prompt."""
        most, where = self.spec.controls[1], row["control field"]
        count = int(row["control images"])
        picture = lambda: rng.choice(self._pictures)  # noqa: E731
        if most == 0:
            if rng.random() < 0.1:
                sample[rng.choice(("ctrl_img", "ctrl_img_1"))] = picture()
            return []
        if self.spec.id == "flex2":  # its first slot wants a mask
            sample["ctrl_idx"] = rng.randrange(2)
            masks = [name for name in self._pictures if ".inpaint." in name]
            if sample["ctrl_idx"] == 0 and rng.random() < 0.9:
                picture = lambda: rng.choice(masks)  # noqa: E731
        if where == "none" or (count == 0 and where != "numbered"):
            return []
        first = {"ctrl_img": ["ctrl_img"], "both": ["ctrl_img", "ctrl_img_1"], "numbered": ["ctrl_img_1"]}.get(
            where, []
        )
        for field in (*first, *(["ctrl_img_2", "ctrl_img_3"][: max(0, count - 1)])):
            sample[field] = picture()
        return [("ctrl_img", picture())] if where == "in the prompt" else []

    def _flag(self, rng: Random) -> tuple[str, str]:
        number = str(rng.choice((0.0, 1.0, 2.5, 6)))
        side = str(rng.choice((64, 96, 128)))
        text = self._prompt(rng, rng.choice(("short", "capitals", "beyond ASCII")), False)
        flags = {
            "w": side, "h": side, "seed": str(self._seed_of(rng, rng.choice(("0", "small", "large", "negative")))),
            "d": str(rng.choice((-1, 3))), "l": number, "cfg": number, "s": str(rng.randint(2, 4)),
            "steps": str(rng.randint(2, 4)), "n": text, "n2": text, "p2": text, "gr": str(rng.choice((0.0, 0.5))),
            "a": number, "ref": number, "ev": f"{number},{number}", "fps": "12", "zz": text, "W": "70",
            "frames": str(rng.choice((1, 5, 9))), "num_frames": str(rng.choice((5, 6))),
        }  # fmt: skip
        if self.spec.kind != "video" and rng.random() < 0.9:
            flags = {name: value for name, value in flags.items() if name not in ("frames", "num_frames", "fps")}
        name = rng.choice(sorted(flags))
        if rng.random() < 0.02:
            return name, "seven"
        return name, flags[name]


def _character(rng: Random) -> str:
    """Of all of Unicode that a file can hold."""
    while True:
        point = rng.choice((rng.randrange(0x20, 0x250), rng.randrange(0x20, 0x3000), rng.randrange(1, 0x110000)))
        if not 0xD800 <= point < 0xE000 and chr(point) != "-":
            return chr(point)
