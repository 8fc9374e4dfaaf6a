"""What the commands share. Heavy libraries are imported inside the commands: `--help` must not wait for torch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer


def fail(message: object) -> NoReturn:
    # What a file held may be no text that a terminal can show.
    typer.echo(f"error: {message}".encode("utf-8", "backslashreplace").decode(), err=True)
    raise typer.Exit(2)


@contextmanager
def user_errors(needs: str | None = None, *, remedies: Mapping[str, str] | None = None) -> Iterator[None]:
    """Errors that a user can mend end in one paragraph and exit code 2. `needs`: the extra that the command is of.

    `remedies` are the command's own words for what mends them, which only it has (`pipelines.errors`).
    """
    from lora_drift.harness import extras
    from lora_drift.harness.check.cases import CaseError
    from lora_drift.harness.check.tolerances import ToleranceError
    from lora_drift.harness.minihub.factory import MiniHubError
    from lora_drift.harness.studies.matrix import MatrixError
    from lora_drift.harness.tags import TagError
    from lora_drift.pipelines import RequestError
    from lora_drift.server.ray_cluster import NoCluster

    if needs is not None and (lacking := extras.lacking(needs)):
        fail(f"this command {lacking}")
    try:
        yield
    except RequestError as error:
        fail(error.told(remedies or {}))
    except (CaseError, ToleranceError, MiniHubError, TagError, MatrixError, NoCluster) as error:
        fail(error)


@contextmanager
def progress(label: str, total: int, *, quiet: bool) -> Iterator[Any]:
    """A bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)

        def advance(done: int, description: str = label, total: int | None = None) -> None:
            bar.update(task, completed=done, description=description, total=total)

        yield advance


def trainer_version(tag: str | None, loras: Sequence[Path], model: str) -> str:
    """The trainer version to render `model` as: that of `tag`, which may be a version itself; without one, that which
    made the LoRA, or the nearest that is reproduced.

    Raises:
        TagError: there is no such tag or version.
        LoraError: a file is missing or damaged.
    """
    from lora_drift.harness import tags
    from lora_drift.pipelines.lora import trainer_of
    from lora_drift.pipelines.registry import spec_of
    from lora_drift.pipelines.spec import nearest

    if tag is not None:
        return tags.version_of(tag)
    said = next(filter(None, map(trainer_of, loras)), "")
    usual = spec_of(model).toolkit
    chosen = nearest(said) if said else usual
    if chosen != usual:
        made = "which made the LoRA" if chosen == said else f"the nearest that is reproduced: {said} made the LoRA"
        typer.echo(f"rendered as trainer {chosen} does, {made} (--tag names another)", err=True)
    return chosen
