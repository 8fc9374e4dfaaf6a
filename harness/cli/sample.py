"""`lora-drift sample`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import fail, progress, trainer_version, user_errors

app = typer.Typer()

REMEDIES = {
    "allow_partial": "To apply the matching part only, pass --allow-partial.",
    "experts": "Give the file of one expert as --lora high=FILE or --lora low=FILE.",
    "control": "Give --control FILE, once for each.",
    "base": "Give its folder, file or hub id as --base.",
}
"""What mends an error, in options of this command (and of `diagnose`)."""
REMEDIES_OF_JOB = {
    **REMEDIES,
    "dtype": "Say --dtype bfloat16 to see how far that is off.",
    "quantize": "Take another with --qtype and --qtype-te, or none with --no-quantize --no-quantize-te.",
    "lora": "Say where it is with --lora FILE, or render the base model with --step 0.",
    "expert": "Give the other alone as --lora high=FILE or --lora low=FILE.",
    "whole": "Render one that is in the layout of Diffusers with --step 0 --base FOLDER.",
}
"""The same with --job."""


@app.command()
def sample(
    context: typer.Context,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="may hold \\[trigger] and flags (--w 512 ...)")],
    output: Annotated[Path, typer.Option("--output", "-o", help="lossless: .png .mkv; lossy: .jpg .webp .mp4")],
    model: Annotated[str, typer.Option("--model", "-m", help="model id; `lora-drift models` lists them")] = "",
    job: Annotated[Path | None, typer.Option(help="take model, LoRA and settings from a training job's folder")] = None,
    step: Annotated[int | None, typer.Option(help="which of the job's LoRAs (default: the last)")] = None,
    lora: options.LoraFiles = None,
    negative: options.Negative = "",
    width: options.Width = None,
    height: options.Height = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_rescale: options.GuidanceRescale = 0.0,
    seed: Annotated[int, typer.Option(help="-1 takes a random one")] = 42,
    multiplier: options.Multiplier = 1.0,
    frames: options.Frames = None,
    fps: options.Fps = None,
    control: options.Controls = None,
    trigger: options.Trigger = None,
    name: options.JobName = None,
    lora_mode: options.LoraMode = None,
    allow_partial: options.AllowPartial = False,
    base: options.BaseModel = None,
    tag: options.Trainer = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    noise_stream: options.NoiseStream = None,
    vae_noise: options.VaeNoise = "device",
    resize_order: options.ResizeOrder = None,
    quantize: Annotated[
        bool, typer.Option(help="quantise the denoiser as the trainer did (default: the job's)")
    ] = False,
    quantize_te: Annotated[
        bool | None, typer.Option(help="quantise the text encoder too (default: as --quantize)")
    ] = None,
    qtype: Annotated[str, typer.Option(help="qfloat8, float8, uint2 ... uint7, or TYPE|ADAPTER")] = "qfloat8",
    qtype_te: Annotated[str, typer.Option(help="the same for the text encoder, where the trainer has two")] = "qfloat8",
    recovery: Annotated[str | None, typer.Option("--accuracy-recovery-adapter", help="FILE or ORG/NAME/FILE")] = None,
    profile: Annotated[str, typer.Option(help="reference; or faster and not exact: compiled, fast")] = "reference",
    as_intended: Annotated[
        bool,
        typer.Option("--as-intended", help="without the trainer's mistakes (its page names them); no sample looks so"),
    ] = False,
    mini: options.Mini = False,
    as_json: options.Json = False,
) -> None:
    """Render one picture or video, with a receipt (OUTPUT.json) that says how to render it again.

    Weights are read from your usual Hugging Face cache, or downloaded to it.

        lora-drift sample -m flux --lora my.safetensors -p "a photo of \\[trigger]" --trigger sks -o out.png
        lora-drift sample --job output/my_lora -p "a photo of \\[trigger]" -o out.png
    """
    if job is not None:
        asked = {name: value for name, value in locals().items() if name != "job"}
        sample(**{**asked, **_of_job(context, asked, job, step)})
        return
    if not model or step is not None:
        fail("--step belongs to --job FOLDER" if model else "give --model (`lora-drift models` lists them), or --job")
    with user_errors(remedies=REMEDIES):
        from lora_drift import pipelines
        from lora_drift.harness.check import runner, verified_by
        from lora_drift.harness.hf_logging import quiet
        from lora_drift.pipelines.output import check_path
        from lora_drift.pipelines.quantize import Quantization
        from lora_drift.pipelines.registry import spec_of
        from lora_drift.pipelines.settings import Request, resolve

        files = lora_files(lora or [])
        toolkit = trainer_version(tag, list(files.values()))
        spec = spec_of(model, toolkit)
        if spec.kind != "video" and frames not in (None, 1):
            fail(f"--frames {frames}: {spec.id} makes pictures; leave it out")
        settings = resolve(
            spec,
            Request(prompt, negative, width, height, steps, guidance, guidance_rescale, seed, multiplier, frames, fps,
                    trigger, name, [str(path) for path in control or ()]),
        )  # fmt: skip
        check_path(output, settings.num_frames, moving=settings.moving)
        if lora_mode not in (None, "merged", "live"):
            fail(f"--lora-mode {lora_mode}: use merged or live")
        check_device(device)
        if mini:
            runner.use_minihub()
        if as_json or mini or not sys.stderr.isatty():
            quiet()
        pipeline = pipelines.load(
            model,
            base=base,
            device=device,
            dtype=dtype,
            toolkit=toolkit,
            noise_stream=noise_stream,
            vae_noise=vae_noise,
            resize_order=resize_order,
            quantization=Quantization(quantize, quantize_te, qtype, qtype_te, recovery),
            profile=profile,
            as_intended=as_intended,
        )
        if files:
            pipeline = pipeline.with_lora(**files, mode=lora_mode, allow_partial=allow_partial)  # type: ignore[arg-type]
        with progress(f"{spec.id}: denoising", settings.steps, quiet=as_json) as advance:
            rendered = pipeline.render(settings, on_step=lambda step, _total: advance(step))
        rendered.receipt["verified_by"] = verified_by.covering_case(pipeline, settings)
        rendered.save(output)
    if as_json:
        typer.echo(json.dumps(rendered.receipt, indent=2))
    else:
        typer.echo(f"{output}  {settings.width}x{settings.height}, seed {settings.seed}; receipt {output}.json")


def _of_job(context: typer.Context, asked: dict[str, Any], folder: Path, step: int | None) -> dict[str, Any]:
    """The options that a job sets, and those of the command line, which win."""
    sources = {name: context.get_parameter_source(name) for name in asked if name not in ("context", "job", "step")}
    given = {name: asked[name] for name, source in sources.items() if source and source.name != "DEFAULT"}
    if step is not None and "lora" in given:
        fail(f"--step {step}: chooses one of the job's LoRAs; leave it out, or --lora")
    with user_errors(remedies=REMEDIES_OF_JOB):
        from lora_drift.harness.trainer.jobs import sample_options

        options, notes = sample_options.options(folder, step, given)
    for note in notes:
        typer.echo(f"! {note}", err=True)
    return {"step": None, **options}


def lora_files(given: list[str]) -> dict[str, Path]:
    """`FILE`, or `high=FILE` and `low=FILE`, as arguments of `Pipeline.with_lora`."""
    named = {item.split("=")[0]: Path(item.split("=", 1)[1]) for item in given if item.startswith(("high=", "low="))}
    plain = [Path(item) for item in given if not item.startswith(("high=", "low="))]
    if len(plain) + len(named) != len(given) or len(plain) > 1 or (plain and named):
        fail("--lora: give one FILE, or for a model with two experts high=FILE and low=FILE (or one of them)")
    return {"path": plain[0]} if plain else named


def check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        fail(f"--device {device}: not usable here ({reason}); use cpu or another device")
