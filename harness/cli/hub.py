"""`lora-drift download` and `lora-drift doctor`: what a machine has, and what models need of the hub."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import user_errors

if TYPE_CHECKING:
    from lora_drift.harness.machine.downloads import Part

app = typer.Typer()


@app.command()
def download(
    model: Annotated[list[str], typer.Argument(help="model ids", autocompletion=options.model_ids)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be fetched, and how much")] = False,
    as_json: options.Json = False,
) -> None:
    """Fetch every file that these models need, and no other, into your Hugging Face cache.

    Says first how much that is, under which licences, and where to accept those that must be. An interrupted download
    goes on where it was.

        lora-drift download flux --dry-run
        lora-drift download sdxl flux

    Exits with 2, before anything is fetched, when a repository is gated for you, the hub cannot be reached, or the
    disk is too small.
    """
    with user_errors():
        from lora_drift.harness.machine import downloads
        from lora_drift.pipelines.registry import spec_of

        for name in model:
            spec_of(name)
        wanted = {name: downloads.parts(name) for name in dict.fromkeys(model)}
        parts = [part for found in wanted.values() for part in found]
        if as_json:
            typer.echo(json.dumps([downloads.as_json(name, found) for name, found in wanted.items()], indent=2))
        else:
            for name, found in wanted.items():
                typer.echo(_table(name, found, files=dry_run))
        downloads.check_space(parts)
        if dry_run:
            raise typer.Exit
        for part in parts:
            downloads.fetch(part)
        if not as_json:
            typer.echo(f"all there: {downloads.cache_folder()}")


def _table(model: str, found: "list[Part]", *, files: bool) -> str:
    from lora_drift.harness.machine.downloads import gigabytes

    size, missing = sum(part.size for part in found), sum(part.missing for part in found)
    to_fetch = f"{gigabytes(missing)} to fetch" if missing else "all of it in the cache"
    lines = [f"{model}: {sum(len(part.files) for part in found)} files, {gigabytes(size)}, {to_fetch}"]
    for part in found:
        gate = ", gated: accepted for your account" if part.gated else ""
        lines.append(f"  {part.repo}  {gigabytes(part.size)}  licence {part.licence}{gate}  {part.page}")
        lines += [
            f"    {gigabytes(f.size):>10}  {f.path}{'  (cached)' if f.cached else ''}" for f in part.files if files
        ]
    return "\n".join(lines)


@app.command()
def doctor(as_json: options.Json = False) -> None:
    """What this machine has for rendering: GPU, memory, disk, cache, token (yes or no), versions, and what fits.

    Put the output of --json into a bug report. It holds no secrets: of a token only whether there is one.
    """
    from lora_drift.harness.machine import doctor as examination
    from lora_drift.harness.machine.downloads import gigabytes

    found = examination.examine()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    cpu, cache, hub = found["cpu"], found["cache"], found["hub"]
    memory = f", {gigabytes(cpu['memory'])}" if cpu["memory"] else ""
    typer.echo(f"system   {found['platform']}, Python {found['python']}")
    typer.echo(f"CPU      {cpu['name']}, {cpu['cores']} cores{memory}")
    for gpu in found["gpus"]:
        typer.echo(
            f"GPU      {gpu['device']}: {gpu['name']}, {gigabytes(gpu['memory'])}, capability {gpu['capability']}"
        )
        fits = ", ".join(found["fits"][gpu["device"]]) or "none of those that were measured"
        typer.echo(f"fits     {fits} (by measured peaks, docs/performance.md)")
    typer.echo(
        f"cache    {cache['folder']}{'' if cache['exists'] else ' (not there yet)'}, {gigabytes(cache['free'])} free"
    )
    typer.echo(f"models   {', '.join(found['models_in_cache']) or 'none'} whole in the cache")
    typer.echo(f"hub      {hub['endpoint']}, token {'present' if hub['token'] else 'absent'}")
    typer.echo(f"versions {', '.join(f'{name} {version}' for name, version in found['versions'].items())}")
    typer.echo(f"extras   {'; '.join(f'{name}: {said}' for name, said in found['extras'].items())}")
    for problem in examination.problems(found):
        typer.echo(f"! {problem}")
