"""What `lora-drift serve` does."""

import logging
import sys

import uvicorn
from pydantic import ValidationError

from lora_drift.server.connections import Connection, raise_file_limit
from lora_drift.server.render_process import keep_to_oneself
from lora_drift.server.telemetry import log_to_stderr

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run() -> int:
    """Serve until a signal comes; the exit code."""
    keep_to_oneself()
    try:
        from lora_drift.server.app import app  # reads the settings
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        print(f"error: environment: {wrong}", file=sys.stderr)
        return 2
    from lora_drift.server.service import StateError, check_state

    settings = app.state.settings
    try:
        check_state(settings)
    except StateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log_to_stderr("uvicorn", settings)
    if settings.host not in LOOPBACK and settings.api_key is None:
        logging.getLogger("lora_drift.server").warning("anybody who reaches this host may render: set API_KEY")
    raise_file_limit(settings.max_connections + 500)
    uvicorn.run(app, host=settings.host, port=settings.port, log_config=None, timeout_graceful_shutdown=5,
                http=Connection, ws="none", access_log=settings.debug, server_header=False)  # fmt: skip
    return 0
