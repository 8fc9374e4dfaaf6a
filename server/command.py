"""What `lora-drift serve` does."""

import logging
import sys

import uvicorn
from pydantic import ValidationError

from lora_drift.server.telemetry import log_to_stderr

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run() -> int:
    """Serve until a signal comes; the exit code."""
    try:
        from lora_drift.server.app import app  # reads the settings
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        print(f"error: environment: {wrong}", file=sys.stderr)
        return 2
    settings = app.state.settings
    log_to_stderr("uvicorn", debug=settings.debug)
    if settings.host not in LOOPBACK and settings.api_key is None:
        logging.getLogger("server").warning("anybody who reaches this host may render: set API_KEY")
    uvicorn.run(app, host=settings.host, port=settings.port, log_config=None, timeout_graceful_shutdown=5)
    return 0
