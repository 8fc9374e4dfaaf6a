"""What others rely on, written out, so that a review sees each change of it: `pytest tests/test_snapshots.py
--snapshot-update` writes tests/__snapshots__/test_snapshots anew. (The goldens are no such snapshots.)"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pytest
import typer
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension

from lora_drift.harness.check.cases import ASSETS
from lora_drift.harness.cli.main import app as command_line
from lora_drift.harness.paths import ROOT
from lora_drift.harness.trainer.jobs import folder, plan, reader
from lora_drift.harness.trainer.jobs.job_file import Sampling
from lora_drift.pipelines import ModelSpec, RequestError
from lora_drift.pipelines.registry import ROWS, spec_of
from lora_drift.pipelines.settings import Request, Settings, resolve
from lora_drift.pipelines.spec import NEWEST, TOOLKITS, age

CONTROL = str(ASSETS / "wide.png")
ODD: dict[str, Any] = {"width": 157, "height": 109}
JOBS = sorted(path.parent for path in (ROOT / "jobs").glob("*/*.yaml") if path.parent.name != "inputs")


@pytest.fixture
def snapshot(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    return snapshot.use_extension(JSONSnapshotExtension)


def line(values: Mapping[str, Any]) -> str:
    """One line, without what is not set."""
    return " ".join(f"{name}={value!r}" for name, value in values.items() if value not in ("", None, False))


# ---------------------------------------------------------------------------------------------------------- settings


def test_the_resolved_settings_of_every_model_at_every_trainer_version(snapshot: SnapshotAssertion) -> None:
    """A bare prompt, and how an odd size is snapped; earlier versions where they differ from the next: those that are
    recorded, and those at which a row changes."""
    found: dict[str, dict[str, str]] = {}
    for model, row in ROWS.items():
        later = ""
        versions = {*TOOLKITS, NEWEST, row.since, *(change.before for change in row.earlier)}
        for toolkit in sorted((v for v in versions if age(v) >= age(row.since)), key=age, reverse=True):
            said = _defaults(spec_of(model, toolkit))
            if said != later:
                found.setdefault(model, {})[toolkit] = later = said
    assert found == snapshot


def _defaults(spec: ModelSpec) -> str:
    request: dict[str, Any] = {"control": [CONTROL] * spec.controls[0]}
    settings = resolve(spec, Request("a fox", **request))
    try:
        odd = resolve(spec, Request("a fox", **request, **ODD))
        snapped = f"{odd.width}x{odd.height}"
    except RequestError:
        snapped = "refused"
    scheduler = {"scheduler": spec.scheduler.cls, **spec.scheduler.config}
    return f"{_shown(settings)} 157x109={snapped} {line(scheduler)}"


def _shown(settings: Settings) -> str:
    """With the names of control images in place of their paths."""
    values = asdict(settings)
    values |= {name: [path.rpartition("/")[2] for path in values[name]] for name in ("control", "shown")}
    return line({name: value for name, value in values.items() if value != []})


# -------------------------------------------------------------------------------------------------------------- jobs


def test_the_plan_of_each_committed_job(snapshot: SnapshotAssertion) -> None:
    found = {}
    for place in JOBS:
        job = reader.read(place)
        planned = plan.plan(job, folder.scan(place, job))
        asked = plan.requests(planned, job, job.process.sample or Sampling(), place)
        found[place.name] = {
            "model": line({name: value for name, value in vars(planned).items() if isinstance(value, str)}),
            "samples": [_shown(plan.settled(planned, request)) for request in asked],
        }
    assert found == snapshot


# ------------------------------------------------------------------------------------------------------ command line


def test_the_commands_and_their_options(snapshot: SnapshotAssertion) -> None:
    assert dict(_options(typer.main.get_command(command_line), "lora-drift")) == snapshot


def _options(command: Any, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    for sub, part in getattr(command, "commands", {}).items():
        yield from _options(part, f"{name} {sub}")
    typers_own = ("help", "install_completion", "show_completion")
    shown = [option for option in command.params if option.name not in typers_own]
    about = {"": (command.help or "").partition("\n")[0]}
    yield name, about | {"/".join(o.opts + o.secondary_opts): (o.help or "") + _default(o) for o in shown}


def _default(option: Any) -> str:
    return "" if option.default in (None, False, "") else f" [{option.default}]"


# --------------------------------------------------------------------------------------------------------------- API


def test_the_calls_of_the_server_and_their_fields(snapshot: SnapshotAssertion) -> None:
    from lora_drift.server.app import app

    document = app.openapi()
    calls = {
        f"{method.upper()} {path}": {
            "takes": _compact(call.get("requestBody", {}).get("content", {})),
            "parameters": [parameter["name"] for parameter in call.get("parameters", [])],
            "answers": {status: _compact(answer.get("content", {})) for status, answer in call["responses"].items()},
        }
        for path, methods in document["paths"].items()
        for method, call in methods.items()
    }
    fields = {
        name: {field: _compact(what) for field, what in schema.get("properties", {}).items()}
        for name, schema in document["components"]["schemas"].items()
    }
    assert {"calls": calls, "fields": fields} == snapshot


def _compact(schema: Any) -> str:
    """A schema in a line, without its prose."""

    def bare(value: Any) -> Any:
        if isinstance(value, list):
            return [bare(item) for item in value]
        if not isinstance(value, dict):
            return value.removeprefix("#/components/schemas/") if isinstance(value, str) else value
        return {key: bare(item) for key, item in value.items() if key not in ("title", "description", "examples")}

    return json.dumps(bare(schema), sort_keys=True)
