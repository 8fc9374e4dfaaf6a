"""Lets the trainer render the samples of a version between two tags, and keeps sketches of them. Runs in ours:

python -m lora_drift.harness.trainer.fuzz.between VERSION --trainer DIR --python HOME/venv/bin/python --diffusers DIR

The environment is built as that of a tag (`recorder env --tag VERSION`). What is kept of a model replaces its file in
tests/corpus/rendered-VERSION.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lora_drift.harness.check.runner import use_minihub

use_minihub()

from lora_drift.harness.check import cases, sketched  # noqa: E402  they import huggingface_hub
from lora_drift.harness.check.cases import Case  # noqa: E402
from lora_drift.harness.check.staged import staged  # noqa: E402
from lora_drift.harness.paths import ROOT  # noqa: E402
from lora_drift.harness.trainer.fuzz import shrink  # noqa: E402
from lora_drift.harness.trainer.fuzz.side_by_side import Renderer  # noqa: E402
from lora_drift.harness.trainer.recorder import bands  # noqa: E402

PROVE = (
    "import json, sys; from pathlib import Path; from lora_drift.harness.trainer.recorder import pins\n"
    "try: print(json.dumps(pins.check(sys.argv[1], *map(Path, sys.argv[2:]))))\n"
    "except pins.PinError as error: sys.exit(f'error: {error}')"
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("version", choices=[band.version for band in bands.rows()], help="a row of bands.yaml")
    parser.add_argument("--trainer", type=Path, required=True, metavar="DIR", help="clean ostris/ai-toolkit checkout")
    parser.add_argument("--diffusers", type=Path, required=True, metavar="DIR", help="clean checkout of its Diffusers")
    parser.add_argument("--python", type=Path, required=True, help="Python of the trainer's environment")
    parser.add_argument("--model", action="append", metavar="M", help="only this model (repeatable)")
    return parser.parse_args()


def proven(args: argparse.Namespace) -> dict[str, str]:
    """Of the trainer, checked in its environment: version, commit, and those of Diffusers."""
    command = [args.python, "-c", PROVE, args.version, args.trainer.resolve(), args.diffusers.resolve()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    told: dict[str, str] = json.loads(done.stdout)
    return told


def record(
    model: str, wanted: Sequence[Case], ask: Renderer, trainer: Mapping[str, str], folder: Path
) -> sketched.Kept:  # fmt: skip
    """What the trainer makes of the samples of a model, each in a job of its own.

    Raises:
        RuntimeError: of one it makes nothing.
    """
    environment: dict[str, Any] = {**ask.environment, "trainer": dict(trainer)}
    samples: list[sketched.Sample] = []
    loras: dict[int, dict[str, bytes]] = {}
    for job, case in enumerate(wanted):
        out = folder / str(job)
        if why := ask([case], out)[case.id]:
            raise RuntimeError(f"{case.id}: {why}")
        result = json.loads((out / case.id / "result.json").read_text(encoding="utf-8"))
        rendered = staged(case, out / case.id, trainer["version"], environment, result)
        frames = rendered.frames()
        audio = rendered.audio() if "audio" in rendered.artefacts else None
        sketches = sketched.sketches(rendered.latents(), frames, audio)
        samples.append(sketched.Sample(case, job, "", list(frames.shape[:3]), sketches))
        if case.lora is not None:
            loras[job] = {file.stem: file.read_bytes() for file in sorted((out / "loras").iterdir())}
    pictures = {path.name: sketched.pixels_of(path) for case in wanted for path in sketched.shown(case)}
    return sketched.Kept(trainer["version"], environment, pictures, samples, loras)


def main() -> int:
    args = parse()
    trainer = proven(args)
    (band,) = (band for band in bands.rows() if band.version == args.version)
    wanted: dict[str, list[Case]] = {}
    for sample in band.samples:
        case = sample.made()
        if case.model in (args.model or [case.model]):
            wanted.setdefault(case.model, []).append(case)
    failed = 0
    with TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.txt"
        ask = Renderer(args.python, args.trainer, cases.ASSETS, log, args.version)
        try:
            for model, asked in wanted.items():
                try:
                    kept = record(model, asked, ask, trainer, Path(scratch) / model)
                except RuntimeError as error:
                    failed += 1
                    print(f"{error}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
                    continue
                path = sketched.file_of(args.version, model)
                sketched.write(path, kept, [shrink.content(sample.case) for sample in kept.samples])
                print(f"{path.relative_to(ROOT)}: {len(kept.samples)} samples", flush=True)
        finally:
            ask.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
