"""Metrics for Prometheus, and logs: lines for people on a terminal, JSON for programs."""

import json
import logging
import sys
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lora_drift.server.config import Settings
from lora_drift.server.store import Row

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)

_DELAYS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        named = {"registry": self.registry, "namespace": "lora_drift"}
        self.requests = Counter("requests", "Requests that ended", ["model", "state"], **named)  # type: ignore[arg-type]
        self.waited = Histogram("wait_seconds", "Queued until started", buckets=_SECONDS, **named)  # type: ignore[arg-type]
        self.rendered = Histogram("render_seconds", "Started until ended, if it succeeded", ["model"],
                                  buckets=_SECONDS, **named)  # type: ignore[arg-type]  # fmt: skip
        self.base_loads = Counter("base_loads", "Base models loaded", ["model"], **named)  # type: ignore[arg-type]
        self.worker_deaths = Counter("worker_deaths", "Workers that died", **named)  # type: ignore[arg-type]
        self.webhooks = Counter("webhooks", "Webhook deliveries", ["outcome"], **named)  # type: ignore[arg-type]
        self.loop_delay = Histogram("event_loop_delay_seconds", "How late the event loop is", buckets=_DELAYS, **named)  # type: ignore[arg-type]
        self.queue = Gauge("queue_length", "Requests that wait", **named)  # type: ignore[arg-type]

    def note_end(self, row: Row) -> None:
        self.requests.labels(row.model, row.state).inc()
        if row.started_at is None or row.finished_at is None:
            return
        self.waited.observe(max(0.0, row.started_at - row.created_at))
        if row.state == "succeeded":
            self.rendered.labels(row.model).observe(max(0.0, row.finished_at - row.started_at))
            if row.timings and not row.timings["base_was_loaded"]:
                self.base_loads.labels(row.model).inc()

    def page(self) -> bytes:
        return generate_latest(self.registry)


class _JsonLines(logging.Formatter):
    """What was passed as `extra` becomes fields. Bodies, headers and URLs of clients are never passed."""

    _ordinary = frozenset(logging.makeLogRecord({}).__dict__)

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in record.__dict__.items() if name not in self._ordinary}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Lines(_JsonLines):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = json.loads(super().format(record))
        exception = fields.pop("exception", None)
        moment, level, _, message = (fields.pop(name) for name in ("time", "level", "logger", "message"))
        rest = "".join(f"  {name}={value}" for name, value in fields.items())
        line = f"{moment[11:19]} {level.upper():7} {message}{rest}"
        return line if exception is None else f"{line}\n{exception}"


def log_to_stderr(name: str, settings: Settings) -> None:
    """Let the loggers below `name` write as LOG_FORMAT says."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        people = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
        handler.setFormatter(_Lines() if people else _JsonLines())
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.DEBUG if settings.debug else logging.INFO)
