"""The OpenAPI document against the server: whatever it allows must be answered without a server error, as it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import booleans
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from lora_drift.server.app import app
from lora_drift.server.local import LocalServer

CHECKS = [
    not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance, checks.response_headers_conformance,
]  # fmt: skip
"""Not `positive_data_acceptance`: a document cannot say that a model takes one LoRA, or that a file must exist."""

# Not schemathesis' own pytest plugin: it reaches into pytest's internals, and those of 9.2 are others.


def test_what_the_document_allows_is_answered_as_it_says(tmp_path: Path, lora_of: Callable[[str], Path]) -> None:
    with LocalServer(tmp_path, MAX_QUEUE=20) as server:
        (tmp_path / "loras" / "a.safetensors").write_bytes(lora_of("sd15/lora").read_bytes())
        schema: Any = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        tried = []
        for result in schema.get_all_operations():
            operation = result.ok()

            @given(case=operation.as_strategy(), known=booleans())
            @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            def conforms(case: Any, known: bool) -> None:
                if known and case.path == "/v1/inference":  # or no case would come past "no such model"
                    case.body |= {"model": "sd15", "loras": [{"path": "a.safetensors"}]}
                case.call_and_validate(checks=CHECKS)

            try:
                conforms()
            except Exception as error:  # noqa: BLE001  named with its operation
                pytest.fail(f"{operation.label}: {error}")
            tried.append(operation.label)
    assert len(tried) == sum(len(methods) for methods in app.openapi()["paths"].values())
