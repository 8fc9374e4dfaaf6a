"""How often `lora-drift diagnose` names the right cause, and how long it takes.

    python benchmarks/diagnose.py [--draws 200] [--seed 1] [--model flux] [--videos] [--json draws.jsonl]

A draw is a random model with random settings (a scene), and a random variation of it, saved as PNG, as JPEG of quality
75 or as WebP of quality 80, each a third; a video as FFV1, as H.264 (crf 25) or as animated WebP. Two things make it
harder than the search makes it for itself: the picture is rendered with another number of threads, and the search
begins from the file alone. Four draws share a scene, and with it the renders of the search; `seconds` are of the first,
which renders all of them.

A variation that cannot be seen in the file (it is no farther from the reference than arithmetic) is drawn again, and
counted. Four draws more a scene are of deviations that the search does not know: a variation that is left out of its
library, and three of no library (`OUTSIDE`: another prompt, a blur of the latents, noise on the weights, ...). There a
confident answer is wrong, unless the variation that it names makes the very same picture.

What it prints goes to docs/diagnose.md. Seed 0 was for trying things out; the figures are of another.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image, ImageChops, ImageEnhance, ImageOps

from lora_drift.harness.check import cases, goldens, runner
from lora_drift.harness.check.cases import ASSETS
from lora_drift.harness.check.noise_floor import threads
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.check.trace import Trace
from lora_drift.harness.deviations.diagnosis import pictures, words
from lora_drift.harness.deviations.diagnosis.pictures import Frames, Picture
from lora_drift.harness.deviations.diagnosis.reuse import Memory
from lora_drift.harness.deviations.diagnosis.search import Candidate, Diagnosis, Search
from lora_drift.harness.deviations.library import Subject, Variation, applicable
from lora_drift.harness.deviations.library.base import scheduler_made, weights, wrapped
from lora_drift.harness.hf_logging import quiet
from lora_drift.harness.minihub import factory
from lora_drift.pipelines import MODELS
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.files import lines_of
from lora_drift.pipelines.output import Media, Output
from lora_drift.pipelines.settings import Request

PICTURES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
VIDEOS = {"ffv1": ".mkv", "h264": ".mp4", "webp": ".webp"}
STILLS = {"ffv1": ".png", "h264": ".jpg"}
"""Of a video of which a variation leaves one frame."""
A_SCENE = 4
"""Draws that share a scene."""
FOREIGN = 3
"""And of how many deviations of no library."""
Outside = Callable[[Subject], AbstractContextManager[Subject]]
"""As `Variation.applied`: what to render instead, while the block runs."""
PROMPTS = ("a photo of a red fox in the forest", "a blue house by the sea at night", "an old woman with a green hat",
           "a small white dog on a street", "a [trigger] cat in the dark", "a picture of [trigger]")  # fmt: skip
NEGATIVES = ("", "", "blurry", "low quality, dark")
SIZES = (64, 64, 72, 80, 88, 96, 96, 112, 128)


def scene(model: str, chance: random.Random, *, video: bool) -> Subject:
    """Random settings, and the LoRA of a random case."""
    bench = Bench()
    while True:
        case = chance.choice([c for c in cases.load_all() if c.model == model])
        golden = goldens.load(bench.tag, case, factory.manifest_sha256(model, case.extras))
        spec, pipeline = MODELS[model], bench.pipeline(case, golden)
        fewest, most = spec.controls
        files = [ASSETS / name for name in ("wide.png", "tall.png", "panorama.png", "other.png")]
        prompt = chance.choice(PROMPTS) + chance.choice(("", "", "", " --seed 77"))
        request = Request(
            prompt=prompt,
            negative=chance.choice(NEGATIVES),
            width=chance.choice(SIZES),
            height=chance.choice(SIZES),
            steps=chance.randint(max(3, spec.fewest_steps), 5),
            guidance_scale=chance.choice((1.0, 2.0, 2.5, 3.0, 4.0, 5.5)),
            seed=chance.randrange(2**32),
            multiplier=chance.choice((0.6, 0.8, 1.0, 1.0, 1.3)) if pipeline.lora else 1.0,
            num_frames=chance.choice((5, 6, 9) if video else (1, 5, 6, 9)) if spec.kind == "video" else None,
            trigger_word=chance.choice(("sks", None)),
            control=[str(f) for f in chance.sample(files, chance.randint(fewest, most))],
            ctrl_idx=1 if spec.id == "flex2" else 0,
        )
        try:
            subject = Subject.of(pipeline, request)
            if video and subject.settings.num_frames == 1:  # to which LTX-2 rounds 5 and 6
                continue
            rendered(subject)
        except (RequestError, ValueError, RuntimeError):  # a size that this model refuses, or cannot render
            continue
        return subject


def rendered(subject: Subject) -> Frames:
    output = subject.pipeline.render(subject.settings)
    return np.stack([np.asarray(frame.convert("RGB")) for frame in output.frames])


def legally(subject: Subject) -> Frames:
    """As another machine might render it."""
    with threads(2):
        return rendered(subject)


def saved(frames: Frames, codec: str, subject: Subject) -> Picture:
    """Through a file, as `lora-drift sample` writes it."""
    media = Media([Image.fromarray(frame) for frame in frames])
    receipt: dict[str, Any] = {"settings": {}, "control_sha256": []}  # a PNG carries it; nobody reads it
    with TemporaryDirectory() as folder:
        path = Path(folder, "theirs" + (VIDEOS if len(frames) > 1 else {**STILLS, **PICTURES})[codec])
        return pictures.read(Output(media, subject.settings, receipt).save(path))


class Shared(Search):
    """A search that keeps its renders for the next one of the same scene, and may lack a variation."""

    made: dict[tuple[str, ...], tuple[Frames, Trace] | Exception]
    without: str = ""

    def _varied(self, memory: Memory, variations: tuple[Variation, ...]) -> tuple[Frames, Trace] | None:
        names = tuple(v.name for v in variations)
        if names not in self.made:
            try:
                made = super()._varied(memory, variations)
            except Exception as error:  # raised again, here and for the next
                self.made[names] = error
                raise
            if made is None:
                return None
            self.made[names] = made
        found = self.made[names]
        if isinstance(found, Exception):
            raise found
        return found

    def _ordered(self) -> list[Variation]:
        return [v for v in super()._ordered() if v.name != self.without]


def searched(subject: Subject, theirs: Picture, made: dict[Any, Any], without: str = "") -> Diagnosis:
    search = Shared(subject, theirs, tier="mini")
    search.made, search.without = made, without
    search.run()
    return search.diagnosis()


def _settings(**change: Callable[[Any], Any]) -> Outside:
    """Another value of settings, made of the one that they have."""

    @contextmanager
    def made(subject: Subject) -> Iterator[Subject]:
        yield subject.but(**{name: by(getattr(subject.settings, name)) for name, by in change.items()})

    return made


def _frames(change: Callable[[Image.Image], Image.Image]) -> Outside:
    """The finished picture, changed."""

    @contextmanager
    def made(subject: Subject) -> Iterator[Subject]:
        def render(original: Any, pipe: Any, settings: Any, call: dict[str, Any]) -> Media:
            media: Media = original(pipe, settings, **call)
            return media._replace(frames=[change(frame.convert("RGB")) for frame in media.frames])

        yield subject.around_render(render)

    return made


def _decoded(change: Callable[[torch.Tensor], torch.Tensor]) -> Outside:
    """Other final latents than those that were sampled."""

    @contextmanager
    def made(subject: Subject) -> Iterator[Subject]:
        def decode(original: Any, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return original(change(latents), *args, **kwargs)

        with wrapped(subject.pipe.vae, "decode", decode):
            yield subject

    return made


def _blurred(latents: torch.Tensor) -> torch.Tensor:
    """Each latent pixel is the mean of itself and the eight around it."""
    around = [latents.roll((y, x), (-2, -1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return torch.stack(around).mean(0)


def _weights(change: Callable[[torch.Tensor, torch.Generator], torch.Tensor]) -> Outside:
    """Other weights of the denoiser, below the LoRA."""

    @contextmanager
    def made(subject: Subject) -> Iterator[Subject]:
        generator = torch.Generator().manual_seed(99)
        with ExitStack() as stack:
            for denoiser in subject.denoisers:
                stack.enter_context(weights(subject, denoiser, lambda weight: change(weight, generator)))
            yield subject

    return made


def _noisy(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    return weight + 0.05 * weight.std(correction=0) * noise


def _with_residue(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What is left of a LoRA of rank 4 that nobody names, a tenth as large as the weight."""
    if weight.dim() != 2:
        return weight
    up, down = (torch.randn(n, 4, generator=generator).to(weight) for n in weight.shape)
    change = up @ down.T
    return weight + 0.1 * weight.norm() * change / change.norm()


@contextmanager
def _overshooting(subject: Subject) -> Iterator[Subject]:
    """A sampler that goes four hundredths too far in each step."""

    def step(original: Any, _scheduler: Any, model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(1.04 * model_output, *args, **kwargs)

    with scheduler_made(step=step):
        yield subject


OUTSIDE: dict[str, Outside] = {
    "another prompt": _settings(prompt=lambda text: text + " and a tall tree"),
    "seed + 17": _settings(seed=lambda seed: seed + 17),
    "guidance + 40 %": _settings(guidance_scale=lambda scale: 1.4 * scale),
    "LoRA at 55 %": _settings(multiplier=lambda multiplier: 0.55 * multiplier),
    "contrast + 15 %": _frames(lambda frame: ImageEnhance.Contrast(frame).enhance(1.15)),
    "mirrored": _frames(ImageOps.mirror),
    "shifted by 3 pixels": _frames(lambda frame: ImageChops.offset(frame, 3, 0)),
    "latents blurred": _decoded(_blurred),
    "latents times 1.07": _decoded(lambda latents: 1.07 * latents),
    "steps 4 % too far": _overshooting,
    "noise on the weights": _weights(_noisy),
    "rest of another LoRA": _weights(_with_residue),
}
"""Deviations that no library has: of what was asked, of the picture, of the latents, the sampler and the weights."""


def draws_of(subject: Subject, chance: random.Random) -> Iterator[dict[str, Any]]:
    made: dict[Any, Any] = {}
    codecs = list(PICTURES if subject.settings.num_frames == 1 else VIDEOS)
    known = list(applicable(subject))
    for number in range(A_SCENE + 1):
        unseen = 0
        while True:
            variation, codec = chance.choice(known), chance.choice(codecs)
            try:
                with variation.applied(subject) as varied:
                    frames = legally(varied)
            except Exception as error:  # noqa: BLE001  what cannot be rendered is no picture to explain
                print(f"  {variation.name} cannot be rendered: {error}")
                continue
            without = variation.name if number == A_SCENE else ""
            started = time.perf_counter()
            found = searched(subject, saved(frames, codec, subject), made, without)
            seconds = time.perf_counter() - started
            if found.verdict != "same":
                break
            unseen += 1
        row = {"truth": variation.name, "codec": codec, "unseen": unseen, **told(found)}
        if without:
            twin = False
            if found.verdict == "explained" and not isinstance(made.get((without,)), Exception):
                with variation.applied(subject) as varied:
                    twin = found.ranking[0].picture == picture_of(varied)
            yield {**row, "kind": "left out", "twin": twin}
        else:
            right = [variation.name] in [c.variations for c in found.best]
            place = next((n for n, c in enumerate(found.ranking, 1) if c.variations == [variation.name]), None)
            yield {**row, "kind": "known", "right": right, "place": place, **({} if number else {"seconds": seconds})}
    for name in chance.sample(list(OUTSIDE), FOREIGN):
        codec = chance.choice(codecs)
        with OUTSIDE[name](subject) as varied:
            frames, picture = legally(varied), picture_of(varied)
        found = searched(subject, saved(frames, codec, subject), made)
        twin = found.verdict == "explained" and found.ranking[0].picture == picture
        yield {"kind": "foreign", "truth": name, "codec": codec, "twin": twin, **told(found)}


def picture_of(subject: Subject) -> str:
    """The hash that a search gives its picture."""
    frames = rendered(subject)
    return sha256(repr(frames.shape).encode() + frames.tobytes()).hexdigest()


def told(found: Diagnosis) -> dict[str, Any]:
    first: Candidate | None = found.ranking[0] if found.ranking else None
    return {
        "verdict": found.verdict,
        "reference": found.reference,
        "limit": found.limit,
        "first": first.name if first else "",
        "distance": first.distance if first else None,
        "tried": found.tried,
        "words": words.headline(found)[:300],
    }


def summary(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    known = [r for r in rows if r["kind"] == "known"]
    for codec in dict.fromkeys([*PICTURES, *VIDEOS]):
        of = [r for r in known if r["codec"] == codec]
        if of:
            right = sum(r["right"] for r in of)
            verdicts = Counter(r["verdict"] for r in of)
            print(f"{codec}: {right} of {len(of)} right ({right / len(of):.1%}); {dict(verdicts)}; "
                  f"{sum(r['unseen'] for r in of)} drawn again", file=out)  # fmt: skip
    for kind in ("left out", "foreign"):
        of = [r for r in rows if r["kind"] == kind]
        sure = [r for r in of if r["verdict"] == "explained" and not r.get("twin")]
        print(f"{kind}: {len(of)}, {dict(Counter(r['verdict'] for r in of))}, of them the same picture under another "
              f"name {sum(bool(r.get('twin')) for r in of)}; confident and wrong {len(sure)}", file=out)  # fmt: skip
    wrong = [r for r in known if not r["right"]]
    wrong += [r for r in rows if r["kind"] != "known" and r["verdict"] == "explained" and not r.get("twin")]
    for r in wrong:
        change = f"{words.number(r['reference'])} to {words.number(r['distance'])}, place {r.get('place')}"
        print(
            f"  {r['model']} {r['codec']} {r['kind']}: {r['truth']} -> {r['first']} ({r['verdict']}, {change})",
            file=out,
        )
    seconds = [r["seconds"] for r in known if "seconds" in r]
    if seconds:
        print(f"seconds: median {statistics.median(seconds):.1f}, longest {max(seconds):.1f}", file=out)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", action="append", choices=list(MODELS))
    parser.add_argument("--videos", action="store_true", help="video models only, and several frames always")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--summary", type=Path, nargs="*", help="only sum up what these files of --json hold")
    given = parser.parse_args()
    runner.use_minihub()
    quiet()
    rows = [json.loads(line) for path in given.summary or () for line in lines_of(path)]
    if given.json and given.json.is_file():  # go on with what is there
        rows = [json.loads(line) for line in lines_of(given.json)]
    done = {row["scene"] for row in rows}
    for number in range(0 if given.summary else -(-given.draws // A_SCENE)):
        if number in done:
            continue
        chance = random.Random(f"{given.seed} {number}")
        known = [model for model, spec in MODELS.items() if spec.kind == "video" or not given.videos]
        model = chance.choice(given.model or known)
        subject = scene(model, chance, video=given.videos)
        for row in draws_of(subject, chance):
            rows.append({"scene": number, "model": model, **row})
            print(f"{number} {model} {row['kind']} {row['codec']} {row['truth']} -> {row['first']}: {row['verdict']}",
                  flush=True)  # fmt: skip
            if given.json:
                with given.json.open("a") as stream:
                    stream.write(json.dumps(rows[-1]) + "\n")
    print(summary(rows), end="")


if __name__ == "__main__":
    main()
