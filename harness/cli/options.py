"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer


def model_ids(incomplete: str) -> list[str]:
    """Completes a model id."""
    from lora_drift.pipelines import MODELS

    return [model for model in MODELS if model.startswith(incomplete)]


def tag_names(incomplete: str) -> list[str]:
    """Completes a tag."""
    from lora_drift.harness import tags

    return [tag for tag in tags.names() if tag.startswith(incomplete)]


def case_ids(incomplete: str) -> list[str]:
    """Completes a case id, from the names of the checkout's files alone."""
    from lora_drift.harness.paths import ROOT

    ids = sorted("/".join(file.with_suffix("").parts[-2:]) for file in ROOT.glob("cases/*/*.yaml"))
    return [case for case in ids if case.startswith(incomplete)]


LoraFiles = Annotated[list[str] | None, typer.Option(help="LoRA file; high=FILE, low=FILE for two experts")]
Negative = Annotated[str, typer.Option("--negative", "-n")]
Width = Annotated[int | None, typer.Option(help="pixels; rounded as the trainer does")]
Height = Annotated[int | None, typer.Option()]
Steps = Annotated[int | None, typer.Option()]
Guidance = Annotated[float | None, typer.Option(help="in the model's own convention")]
GuidanceRescale = Annotated[float, typer.Option(help="SDXL only")]
Multiplier = Annotated[float, typer.Option(help="LoRA strength")]
Frames = Annotated[int | None, typer.Option(help="video models")]
Fps = Annotated[int | None, typer.Option(help="video models")]
Controls = Annotated[list[Path] | None, typer.Option(help="control image, in order (repeatable)")]
Trigger = Annotated[str | None, typer.Option(help="replaces \\[trigger] in the prompt")]
JobName = Annotated[str | None, typer.Option(help="the training job's name; replaces \\[name] in the prompt")]
LoraMode = Annotated[str | None, typer.Option(help="merged or live (default: as the trainer does)")]
AllowPartial = Annotated[bool, typer.Option("--allow-partial", help="accept a LoRA that fits the model only in part")]
BaseModel = Annotated[str | None, typer.Option(help="hub id or folder of another base model")]
Tag = Annotated[str | None, typer.Option(help="trainer version (default: the newest)", autocompletion=tag_names)]
Trainer = Annotated[
    str | None,
    typer.Option(
        "--tag",
        help="trainer version, a tag or a number (default: the LoRA's, or the newest recorded)",
        autocompletion=tag_names,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")]
Dtype = Annotated[str | None, typer.Option(help="float32 or bfloat16 (default: float32 on the CPU, bfloat16 on a GPU)")]
NoiseStream = Annotated[
    str | None,
    typer.Option(help="bfloat16 noise as in torch <= 2.11 (torch-2.11, the default) or >= 2.12 (torch-2.13)"),
]
ResizeOrder = Annotated[
    str | None,
    typer.Option(help="control images resized as in Pillow >= 13 (pillow-13, the default) or <= 12 (pillow-12)"),
]
VaeNoise = Annotated[
    str,
    typer.Option(
        help="posterior of a control image sampled with the generator of the device, as the trainer does, or of the cpu"
    ),
]
Mini = Annotated[bool, typer.Option("--mini", help="use the miniature base models (to try things out)")]
Cases = Annotated[
    list[str] | None, typer.Option(help="only this case, e.g. flux/lora (repeatable)", autocompletion=case_ids)
]
Models = Annotated[
    list[str] | None, typer.Option("--model", "-m", help="only this model (repeatable)", autocompletion=model_ids)
]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
