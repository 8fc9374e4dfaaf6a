"""`lora-drift sample`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import fail, progress, trainer_version, user_errors

if TYPE_CHECKING:
    from lora_drift.pipelines import Output, Pipeline
    from lora_drift.pipelines.settings import Settings

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
    output: Annotated[Path, typer.Option("--output", "-o", help="lossless: .png .mkv; lossy: .jpg .webp .mp4")],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="may hold \\[trigger] and flags (--w 512 ...); repeatable"),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="file with a prompt on each line, flags and all")] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="model id; `lora-drift models` lists them", autocompletion=options.model_ids
        ),
    ] = "",
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
    """Render pictures or videos, each with a receipt (OUTPUT.json) that says how to render it again.

    Weights are read from your usual Hugging Face cache, or downloaded to it. Several prompts load them once, and are
    written to out-1.png, out-2.png, and so on.

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
        from lora_drift.pipelines import hub
        from lora_drift.pipelines.output import check_path
        from lora_drift.pipelines.quantize import Quantization
        from lora_drift.pipelines.registry import spec_of
        from lora_drift.pipelines.settings import Request, resolve

        files = lora_files(lora or [])
        toolkit = trainer_version(tag, list(files.values()), model)
        spec = spec_of(model, toolkit)
        if spec.kind != "video" and frames not in (None, 1):
            fail(f"--frames {frames}: {spec.id} makes pictures; leave it out")
        texts = [*(prompt or ()), *(_lines(prompts) if prompts else ())]
        if not texts:
            fail('say what to render: --prompt "a photo of ...", or --prompts FILE')
        wanted = [
            resolve(
                spec,
                Request(text, negative, width, height, steps, guidance, guidance_rescale, seed, multiplier, frames, fps,
                        trigger, name, [str(path) for path in control or ()]),
            )
            for text in texts
        ]  # fmt: skip
        outputs = [output.with_stem(f"{output.stem}-{i}") for i in range(1, len(texts) + 1)] if texts[1:] else [output]
        for file, settings in zip(outputs, wanted, strict=True):
            check_path(file, settings.num_frames, moving=settings.moving)
            _warn_of_placeholders(settings.prompt)
        if lora_mode not in (None, "merged", "live"):
            fail(f"--lora-mode {lora_mode}: use merged or live")
        if not mini:
            hub.check_all(spec, base or spec.base)  # before torch is imported, which takes seconds
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
        receipts = []
        for number, (file, settings) in enumerate(zip(outputs, wanted, strict=True), 1):
            rendered = _render(pipeline, settings, f" {number} of {len(wanted)}" if wanted[1:] else "", as_json)
            rendered.receipt["verified_by"] = verified_by.covering_case(pipeline, settings)
            rendered.save(file)
            receipts.append(rendered.receipt)
            if not as_json:
                typer.echo(f"{file}  {settings.width}x{settings.height}, seed {settings.seed}; receipt {file}.json")
    if as_json:
        typer.echo(json.dumps(receipts if wanted[1:] else receipts[0], indent=2))


def _render(pipeline: "Pipeline", settings: "Settings", which: str, quiet: bool) -> "Output":
    """One picture, with a bar that says what is being done."""
    name = pipeline.spec.id + which
    with progress(f"{name}: loading, reading the prompt", settings.steps, quiet=quiet) as advance:

        def note(step: int, total: int) -> None:
            advance(step, f"{name}: denoising" if step < total else f"{name}: decoding", total)

        return pipeline.render(settings, on_step=note)


def _lines(file: Path) -> list[str]:
    from lora_drift.pipelines.files import lines_of

    try:
        lines = [line.strip() for line in lines_of(file)]
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--prompts {file}: cannot be read ({error}); give a UTF-8 text file with a prompt on each line")
    return [line for line in lines if line]


def _warn_of_placeholders(prompt: str) -> None:
    """As the trainer, we render what was not replaced; it is hardly ever meant."""
    for option, word in {"--trigger": "[trigger]", "--name": "[name]"}.items():
        if word in prompt:
            typer.echo(f"! {word} stays in the prompt as it is; {option} WORD replaces it", err=True)


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
