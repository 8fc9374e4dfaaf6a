"""What a client is told when something is wrong."""

import json
from typing import Any

from fastapi.responses import JSONResponse

LONGEST = 1000
"""Characters of one text in an answer: what a client sent is quoted, and may be as long as a body."""
MOST_ERRORS = 20
"""Errors of one body that are listed."""


class ErrorResponse(JSONResponse):
    """In ASCII: what a client sent may be no Unicode, and is answered with all the same."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def clipped(value: Any) -> Any:
    """The value with its texts cut to a length that is fit for an answer."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[: LONGEST - 40]}... ({len(value)} characters)"
    if isinstance(value, dict):
        return {clipped(name): clipped(inner) for name, inner in value.items()}
    return [clipped(inner) for inner in value] if isinstance(value, list | tuple) else value


class ApiError(Exception):
    """An answer with a status, a stable code and what is needed to mend the request."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: dict[str, str] | None = None, **details: Any
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, clipped(message), clipped(details)
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """In the shape that clients of the specification read (`detail`), and in OpenAI's (`error`)."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        error = {"code": self.code, "message": self.message}
        return {
            "detail": {"error": {**error, "details": self.details}},
            "error": {**error, "type": kind, "param": self.details.get("param")},
        }

    def response(self) -> ErrorResponse:
        return ErrorResponse(self.body(), self.status, self.headers)


def bad(code: str, message: str, **details: Any) -> ApiError:
    return ApiError(400, code, message, **details)


def no_room(cause: str) -> ApiError:
    """The server cannot keep what it is asked to: its disk's fault, and nobody's who asks."""
    return ApiError(503, "STORAGE_UNAVAILABLE", f"the server cannot write to its disk ({cause}); try again later",
                    headers={"Retry-After": "30"})  # fmt: skip
