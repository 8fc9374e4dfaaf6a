"""What stands before every route: nothing of a body is read before its sender may ask, nor parsed before its size is
known to be harmless."""

import asyncio
import ipaddress
import json
import re
import secrets as randomness
from collections.abc import Iterable
from typing import Any, NoReturn
from urllib.parse import urlsplit

from fastapi.exceptions import HTTPException
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_drift.server.config import MEGABYTE, Settings
from lora_drift.server.errors import ApiError, clipped
from lora_drift.server.schemas import PromptItem

OPEN = frozenset({"/", "/healthz", "/health", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
"""Paths that anybody may ask, with no body."""
MOST_VALUES = 10_000
"""Values in a JSON body; 64 prompts with every field have 1,700."""
MOST_DEPTH = 20
FORM_LIMITS: Any = {"max_fields": 100, "max_files": 8, "max_part_size": 1 << 20}
"""Of a form; in bytes."""


class Gate:
    """ASGI middleware: answers 401 and 403 from the headers alone, and stops waiting for a body that does not come."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self._held = 0
        """Bytes of the bodies whose requests are not answered yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            return await self.app(scope, receive, send)
        request, largest = Request(scope), self.settings.max_body_mb * MEGABYTE
        too_large = f"the body is larger than {self.settings.max_body_mb:g} MB"
        try:
            authorize(request, self.settings)
            announced = request.headers.get("content-length", "")
            if announced.isdigit() and int(announced) > largest:
                raise ApiError(413, "BODY_TOO_LARGE", too_large)
        except ApiError as error:
            return await error.response()(scope, receive, send)
        mine, most = 0, self.settings.max_bodies_mb * MEGABYTE

        async def counted() -> Message:
            nonlocal mine
            message = await timely()
            size = len(message.get("body", b""))
            mine, self._held = mine + size, self._held + size
            if mine > largest:
                _refuse(413, "BODY_TOO_LARGE", too_large)
            if size and self._held > most:
                _refuse(503, "BUSY", "too many large bodies at once; try again later", {"Retry-After": "10"})
            return message

        timely = _within(receive, self.settings.body_timeout)
        try:
            await self.app(scope, counted, send)
        finally:
            self._held -= mine


def _within(receive: Receive, seconds: float) -> Receive:
    """`receive` for a body that must be whole after so many seconds."""
    loop = asyncio.get_running_loop()
    deadline: float | None = loop.time() + seconds

    async def next_message() -> Message:
        nonlocal deadline
        if deadline is None:  # the body is here; what is waited for is that the client hangs up
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            deadline = None
            _refuse(408, "BODY_TIMEOUT", f"the body was not whole after {seconds:g} s")
        if not message.get("more_body", False):
            deadline = None
        return message

    return next_message


def authorize(request: Request, settings: Settings) -> None:
    """Raises ApiError unless the client has the key; where there is none, if somebody's web page may be behind it."""
    if settings.api_key is None:
        _refuse_web_pages(request, settings)
        return
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    if not randomness.compare_digest(given.encode(), settings.api_key.get_secret_value().encode()):
        raise ApiError(401, "UNAUTHORIZED", "give the API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                       headers={"WWW-Authenticate": "Bearer"})  # fmt: skip


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


# ------------------------------------------------------------------------------------------------------------- bodies


def _refuse(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> NoReturn:
    # FastAPI lets through only its own exceptions while it reads a body.
    raise HTTPException(status, ApiError(status, code, message).body()["detail"], headers)


class BoundedRequest(Request):
    """A request whose body is measured before it is parsed."""

    schema: type[BaseModel] | None = None

    async def json(self) -> Any:
        content = parse(await self.body())
        if not self.app.state.settings.strict and self.schema is not None:
            self.state.ignored = []
            content = without_unknown(content, self.schema, self.state.ignored)
        return content


def ignored_in(request: Request) -> list[str]:
    """Fields of its body that there are not, and that STRICT=false let through."""
    return getattr(request.state, "ignored", [])


def may_be_ignored(name: str, settings: Settings) -> bool:
    """Whoever names a LoRA means it, in whatever field."""
    return not settings.strict and "lora" not in name.lower()


def without_unknown(content: Any, schema: type[BaseModel], ignored: list[str], place: str = "") -> Any:
    """A body without the fields that its schema, or that of its prompts, has not. A LoRA's fields all count."""
    if not isinstance(content, dict):
        return content
    kept = {}
    for name, value in content.items():
        if name not in schema.model_fields and "lora" not in name.lower():
            ignored.append(clipped(place + name))
        elif name == "prompts" and isinstance(value, list):
            kept[name] = [without_unknown(item, PromptItem, ignored, f"prompts[{i}].") for i, item in enumerate(value)]
        else:
            kept[name] = value
    return kept


class BoundedRoute(APIRoute):
    """A route that reads a `BoundedRequest`, and no query."""

    def get_route_handler(self) -> Any:
        handle = super().get_route_handler()
        declared = [field.field_info.annotation for field in self.dependant.body_params]
        schema = declared[0] if len(declared) == 1 and isinstance(declared[0], type) else None

        async def bounded(request: Request) -> Any:
            if request.method == "POST" and request.scope["query_string"]:
                names = ", ".join(sorted(set(request.query_params)))
                raise ApiError(400, "UNKNOWN_FIELD", f"fields go into the body, not into the URL: {names}")
            bounded_request = BoundedRequest(request.scope, request.receive)
            bounded_request.schema = schema
            return await handle(bounded_request)

        return bounded


def parse(body: bytes) -> Any:
    """A JSON body, refused before it is parsed when it holds more than a request can need, or nests deeper.

    Python's parser would make 30 bytes of memory, and as many steps, of each byte of `[[],[],...`.

    Raises:
        HTTPException: too many values, too deep, not UTF-8, or a name twice in one object.
        json.JSONDecodeError: not JSON.
    """
    if b"\0" in body:  # of UTF-16 and UTF-32; a zero within JSON is written as an escape
        _refuse(400, "BODY_NOT_UTF8", "the body is not JSON in UTF-8")
    texts = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if texts.count(b'"') > 4 * MOST_VALUES:
        _refuse(400, "BODY_TOO_COMPLEX", f"more than {2 * MOST_VALUES} texts")
    outside = b"".join(texts.split(b'"')[::2])
    if sum(map(outside.count, (b",", b"[", b"{"))) > MOST_VALUES:
        _refuse(400, "BODY_TOO_COMPLEX", f"more than {MOST_VALUES} values")
    depth = 0
    for bracket in re.findall(rb"[][{}]", outside):
        depth += 1 if bracket in b"[{" else -1
        if depth > MOST_DEPTH:
            _refuse(400, "BODY_TOO_COMPLEX", f"nested deeper than {MOST_DEPTH}")
    return json.loads(body, object_pairs_hook=_once)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are unique: of two `loras`, the one that is dropped may be the one that was meant."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            _refuse(400, "FIELD_TWICE", f"the field {name[:100]!r} is given twice")
        made[name] = value
    return made
