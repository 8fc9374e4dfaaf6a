"""`lora-drift comfy`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import fail, user_errors

app = typer.Typer()


@app.command()
def comfy(
    what: Annotated[str, typer.Argument(help="a model id, a job's folder, or a receipt (out.png, out.png.json)")],
    output: Annotated[Path, typer.Option("--output", "-o", help="file for the workflow, .json")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="of a model")] = None,
    lora: options.LoraFiles = None,
    step: Annotated[int | None, typer.Option(help="of a job: which of its LoRAs (default: the last)")] = None,
    native: Annotated[bool, typer.Option("--native", help="of a model: ComfyUI's own nodes, and its files")] = False,
) -> None:
    """Write a workflow for ComfyUI, with the nodes that render as the trainer samples (docs/comfyui.md).

    ComfyUI opens the file, and takes it at POST /prompt. LoRAs are files of its models/loras, control images of its
    input folder.

        lora-drift comfy flux --lora my.safetensors -o flux.json
        lora-drift comfy output/my_lora -o job.json
        lora-drift comfy out.png -o again.json

    With --native, the graph is one of ComfyUI's own nodes that was compared with the trainer's samples; where no core
    node does what the trainer does, it has a node of the pack.
    """
    with user_errors():
        from lora_drift.harness import replay
        from lora_drift.harness.cli.sample import lora_files
        from lora_drift.harness.native import pack_graphs
        from lora_drift.pipelines import MODELS
        from lora_drift.pipelines.registry import spec_of

        place = Path(what)
        needs: list[str] = []
        is_job = what not in MODELS and place.is_dir()
        if what not in MODELS and (lora or prompt):
            fail(f"{'--lora' if lora else '--prompt'} belongs to a model; a job and a receipt have their own")
        if native and what not in MODELS:
            fail("--native belongs to a model; of a job and a receipt there are graphs of the pack's nodes only")
        if step is not None and not is_job:
            fail(f"--step {step}: chooses one of a job's LoRAs; give the job's folder")
        if is_job:
            graph = _of_job(place, step)
        elif place.is_file() and what not in MODELS:
            graph, needs = pack_graphs.of_receipt(replay.read(place))
        else:
            paths = lora_files(lora or [])
            files = {"" if name == "path" else name: path.name for name, path in paths.items()}
            needs = [f"the LoRA {name} in models/loras" for name in files.values()]
            prompt = prompt or "a photo of [trigger]"
            if native:
                graph, more = _native(what, prompt, paths)
                needs += more
            else:
                graph = pack_graphs.of_model(spec_of(what), prompt, files)
        try:
            output.write_text(json.dumps(graph, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            fail(f"--output {output}: {error.strerror}; name a place that can be written")
    typer.echo(f"{output}: drop it on ComfyUI" + "".join(f"; it needs {thing}" for thing in needs))
    if native and not any(node["class_type"].startswith("LoraDrift") for node in graph.values()):
        typer.echo("All its nodes are ComfyUI's own.")


@app.command()
def comfy_check(
    model: Annotated[str, typer.Argument(help="whose workflow it is")],
    file: Annotated[Path, typer.Argument(help="a workflow (JSON), or a PNG that ComfyUI saved")],
) -> None:
    """Say what a ComfyUI workflow does otherwise than the trainer, and what mends it (docs/comfyui.md).

    Only what the workflow says is judged, in float32; weights are not read. Exit code 1: something is otherwise.

        lora-drift comfy-check flux ComfyUI_00001_.png
    """
    with user_errors():
        from lora_drift.harness.native import check
        from lora_drift.pipelines.registry import spec_of

        graph = check.read(file)
        found = check.findings(graph, spec_of(model))
    if found:
        typer.echo(check.told(graph, found))
        raise typer.Exit(1)
    typer.echo(f"{file}: nothing that the trainer does otherwise for {model}")


def _native(model: str, prompt: str, loras: dict[str, Path]) -> tuple[Any, list[str]]:
    """The graph, and what it needs. A control image is one that every ComfyUI has."""
    from lora_drift.harness.native import graphs, pack_graphs
    from lora_drift.pipelines import MODELS
    from lora_drift.pipelines.lora import trainer_of
    from lora_drift.pipelines.settings import Request, resolve

    spec = MODELS[model]
    for path in loras.values():
        graphs.check_trainer(spec, trainer_of(path))
    settings = resolve(replace(spec, controls=(0, 0)), Request(prompt=prompt))
    settings = replace(settings, control=(pack_graphs.EXAMPLE,) * spec.controls[0])
    files = {"" if name == "path" else name: path.name for name, path in loras.items()}
    graph = graphs.build(spec, settings, loras=files, dora=any(map(_is_dora, loras.values())))
    pack = graphs.nodes_of_pack(graph)
    needs = [f"{name} in models/{folder}" for name, folder in graphs.files_of(graph).items()]
    return graph, [*needs, *(f"the pack's node {node}" for node in pack)]


def _is_dora(path: Path) -> bool:
    from lora_drift.pipelines.files import tensor_shapes

    return any(name.endswith("magnitude") for name in tensor_shapes(path))


def _of_job(place: Path, step: int | None) -> Any:
    from lora_drift.harness.native import pack_graphs
    from lora_drift.harness.trainer.jobs import folder, plan, reader, sample_options

    sample_options.options(place, step, {})  # refuses a step that the job has not
    job = reader.read(place, sampled=False)
    spec = plan.plan(job, folder.Folder((), folder.checkpoints(place, job, []), ())).spec
    frames = job.process.sample.num_frames if job.process.sample and spec.kind == "video" else 1
    return pack_graphs.of_job(place.resolve(), spec, frames, -1 if step is None else step)
