"""What routes need before they begin: the service, the API key, the request that a path names."""

import hashlib
import ipaddress
import secrets as randomness
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Path, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from lora_drift.server import admission
from lora_drift.server.config import Settings
from lora_drift.server.errors import ApiError
from lora_drift.server.schemas import InferenceRequest
from lora_drift.server.service import Service
from lora_drift.server.store import Conflict, New, Row


async def service_of(request: Request) -> Service:
    return request.app.state.service


Serving = Annotated[Service, Depends(service_of)]


async def authorized(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))] = None,
    key: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))] = None,
) -> None:
    """Raises ApiError unless the client has the key; where there is none, if somebody's web page may be behind it."""
    settings: Settings = request.app.state.settings
    given = bearer.credentials if bearer is not None else key or ""
    if settings.api_key is None:
        _refuse_web_pages(request, settings)
    elif not randomness.compare_digest(given.encode(), settings.api_key.get_secret_value().encode()):
        raise ApiError(401, "UNAUTHORIZED", "give the API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`")


def _refuse_web_pages(request: Request, settings: Settings) -> None:
    """A page that its reader opens on this machine can send forms to localhost, and can let its own name lead here (DNS
    rebinding). The browser then names the page, as the origin or as the host.
    """
    ours, host, origin = urlsplit(settings.url), request.url.hostname or "", request.headers.get("origin")
    if "." in host and not _is_address(host) and host != ours.hostname:  # nobody can register a name without a dot
        raise ApiError(403, "HOST_UNKNOWN", f"this server is not known as {host!r}: set BASE_URL, or an API_KEY")
    same = (f"{parts.scheme}://{parts.netloc}" for parts in (request.url, ours))
    if origin is not None and origin not in (*settings.origins, *same):
        raise ApiError(403, "ORIGIN_FORBIDDEN", f"pages of {origin!r} may not ask: set CORS_ORIGINS, or an API_KEY")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def row_of(request_id: Annotated[str, Path(max_length=64)], service: Serving) -> Row:
    row = service.store.get(request_id)
    if row is None:
        raise ApiError(404, "REQUEST_NOT_FOUND", f"no request {request_id!r}", request_id=request_id)
    return row


Named = Annotated[Row, Depends(row_of)]


async def submit(service: Service, asked: InferenceRequest, key: str | None = None) -> Row:
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
            if (known := store.with_key(key, fingerprint)) is not None:
                return known
        if store.waiting() >= settings.max_queue:
            raise ApiError(429, "QUEUE_FULL", f"{settings.max_queue} requests wait already; try again later")
        job, secrets = await admission.admit(asked, settings)
        row = store.add(New(job, secrets, key, fingerprint, asked.ttl, asked.webhook_url))
    except Conflict as error:
        raise ApiError(409, "IDEMPOTENCY_CONFLICT", f"the idempotency key {key!r} came with another body") from error
    if row.id == job.id:
        service.prepare(row)
    else:  # the same key came twice at once
        admission.forget_controls(job.id, settings)
    return row
