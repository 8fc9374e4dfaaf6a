"""What routes need before they begin: the service, the API key, the request that a path names."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Path, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from lora_drift.server import admission
from lora_drift.server.errors import ApiError, no_room
from lora_drift.server.schemas import InferenceRequest
from lora_drift.server.service import Service
from lora_drift.server.store import Conflict, New, Row


async def service_of(request: Request) -> Service:
    return request.app.state.service


Serving = Annotated[Service, Depends(service_of)]


async def authorized(
    _bearer: Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))] = None,
    _key: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))] = None,
) -> None:
    """Says in the OpenAPI document that the key is wanted; `Gate` has looked at it before the body was read."""


def row_of(request_id: Annotated[str, Path(max_length=64)], service: Serving) -> Row:
    row = service.store.get(request_id) if request_id.isprintable() else None  # Postgres knows no text with a zero
    if row is None:
        raise ApiError(404, "REQUEST_NOT_FOUND", f"no request {request_id!r}", request_id=request_id)
    return row


Named = Annotated[Row, Depends(row_of)]


async def streaming(service: Serving) -> AsyncIterator[None]:
    """A place among those who listen to events."""
    if service.streams >= service.settings.max_event_streams:
        raise ApiError(429, "TOO_MANY_STREAMS", "enough clients listen already; poll the status, or try again",
                       headers={"Retry-After": "30"})  # fmt: skip
    service.streams += 1
    try:
        yield
    finally:
        service.streams -= 1


Streaming = Annotated[None, Depends(streaming)]


async def submit(service: Service, asked: InferenceRequest, request: Request, key: str | None = None) -> Row:
    """Admit and queue a request.

    Raises:
        ApiError: it is wrong, the key was used for another, or the queue is full.
    """
    store, settings = service.store, service.settings
    fingerprint = None
    try:
        if key is not None:
            # The token does not count: its hash would be kept for as long as the request.
            fingerprint = hashlib.sha256(asked.model_dump_json(exclude={"hf_token"}).encode()).hexdigest()
            if (known := await asyncio.to_thread(store.with_key, key, fingerprint)) is not None:
                return known
        if await asyncio.to_thread(store.waiting) >= settings.max_queue:
            raise ApiError(429, "QUEUE_FULL", f"{settings.max_queue} requests wait already; try again later",
                           headers={"Retry-After": "30"})  # fmt: skip
        job, secrets = await admission.admit(asked, settings)
        row = await asyncio.to_thread(store.add, New(job, secrets, key, fingerprint, asked.ttl, asked.webhook_url))
    except OSError as error:  # of the folder of control images; whatever a client can be blamed for is an ApiError
        raise no_room(error.strerror or type(error).__name__) from error
    except Conflict as error:
        raise ApiError(409, "IDEMPOTENCY_CONFLICT", f"the idempotency key {key!r} came with another body") from error
    if row.id == job.id:
        service.prepare(row, request.client.host if request.client else "")
    else:  # the same key came twice at once
        admission.forget_controls(job.id, settings)
    return row
