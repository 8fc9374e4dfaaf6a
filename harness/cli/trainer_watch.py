"""`lora-drift trainer-watch`."""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_drift.harness.cli import options
from lora_drift.harness.cli.shared import fail, user_errors

if TYPE_CHECKING:
    from lora_drift.harness.trainer.watch.watcher import Outcome

app = typer.Typer()


@app.command(name="trainer-watch")
def trainer_watch(
    trainer: Annotated[
        Path, typer.Option(help="folder of a clean ostris/ai-toolkit checkout, with its history; it is not touched")
    ],
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TAG",
            help="compare with this tag's goldens (default: the newest)",
            autocompletion=options.tag_names,
        ),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            "--environments",
            help="folder of folders that `recorder env` built (default: where it builds); each commit is recorded in "
            "the one that fits its requirements best",
        ),
    ] = None,
    build: Annotated[
        bool, typer.Option("--build", help="build there what is missing (needs uv and the network; 6 GB each)")
    ] = False,
    model: options.Models = None,
    case: options.Cases = None,
    bisect: Annotated[bool, typer.Option("--bisect/--no-bisect", help="find the commits between")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="processes at once")] = min(4, os.cpu_count() or 1),
    scratch: Annotated[Path, typer.Option(help="folder for what is recorded; a run goes on with what is there")] = Path(
        "build/trainer-watch"
    ),
    as_json: Annotated[Path | None, typer.Option("--json", help="write what was found as JSON")] = None,
    report: Annotated[
        Path | None, typer.Option(help="write a page in Markdown, each section of which can be an issue")
    ] = None,
) -> None:
    """What does a newer trainer render otherwise, and since which commit?

    Records the cases with the trainer at HEAD of the checkout, compares them with the goldens of a tag, and bisects the
    commits between on cases that changed: one a model for each stage at which they begin to differ. A commit that moves
    Diffusers or transformers is seen, too, if there are environments with both. Commits that cannot be recorded are
    gone around; if that leaves several, they are named as a range. Nothing is written to goldens/. Cases of a whole
    training, in which rounding grows, are left out unless --case names them.

    Exit code 1 if something changed, 0 if nothing did.
    """
    with user_errors(needs="check"):
        from lora_drift.harness import tags
        from lora_drift.harness.check import cases, goldens
        from lora_drift.harness.minihub import factory
        from lora_drift.harness.trainer.recorder.pins import PinError
        from lora_drift.harness.trainer.watch import watcher
        from lora_drift.harness.trainer.watch.history import History, HistoryError
        from lora_drift.harness.trainer.watch.report import page, text, told

        def save(outcome: "Outcome") -> None:
            for file, content in ((as_json, json.dumps(told(outcome), indent=1) + "\n"), (report, page(outcome))):
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(content, encoding="utf-8")

        started = time.monotonic()

        def note(line: str) -> None:
            typer.echo(f"{time.monotonic() - started:6.0f} s  {line}", err=True)

        tag = tags.row(since or goldens.tags()[-1])
        todo = cases.choose(cases.load_all(), model or (), case or (), tag=tag.tag)
        todo = [each for each in todo if each.training is None or case]
        try:
            history = History(trainer, tag, scratch.resolve())
            home = (home or factory.default_home().parent.parent / "trainer").resolve()
            recorder = watcher.Recorder(history, home, scratch.resolve(), jobs, note, build=build)
            outcome = watcher.watch(tag, todo, recorder, save, bisect=bisect)
        except (PinError, HistoryError) as error:
            fail(error)
    if all(each.verdict == "failed" for each in outcome.differences):
        why = [each.why for each in outcome.differences] or list(outcome.left_out.values())
        fail(f"nothing was recorded to be compared with {tag.tag}; the first of {len(todo)} cases: {why[0]}")
    typer.echo("\n".join(text(outcome)))
    sys.exit(1 if outcome.found else 0)
