"""Connections that cost nothing to hold are not held for ever: uvicorn has no limit of its own for them.

`lora-drift serve` uses it; so does `uvicorn --http lora_drift.server.connections:Connection lora_drift.server.app:app`.
"""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from lora_drift.server.config import Settings


class Connection(H11Protocol):
    """HTTP, with a time for the header of a request, a time in which a client must read, and a limit for them all.

    Beyond the limit, the connection is closed that has waited for a whole header the longest: whoever asks something
    is answered, however many others only connect.
    """

    waiting: dict["Connection", None] = {}  # noqa: RUF012  of the whole process, as the limit is
    """Those without a request, in the order of their arrival."""
    limits: Settings | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if Connection.limits is None:
            Connection.limits = Settings()
        self.limits_here = Connection.limits
        self._header: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        self._wait_for_header()
        if len(self.connections) > self.limits_here.max_connections:
            next(iter(Connection.waiting)).abort()

    def _wait_for_header(self) -> None:
        Connection.waiting[self] = None
        self._header = self.loop.call_later(self.limits_here.header_timeout, self.abort)

    def _has_header(self) -> None:
        Connection.waiting.pop(self, None)
        if self._header is not None:
            self._header.cancel()
            self._header = None

    def abort(self) -> None:
        self.transport.abort()
        self.connections.discard(self)
        Connection.waiting.pop(self, None)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._has_header()

    def on_response_complete(self) -> None:
        asked = self.cycle
        super().on_response_complete()  # which may begin with a request that lay ready
        if self.cycle is asked and not self.transport.is_closing() and self._header is None:
            self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_header()
        self._reads()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(self.limits_here.read_timeout, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reads()

    def _reads(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None


def raise_file_limit(wanted: int) -> None:
    """As many open files as connections and the rest need, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough: Any = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
