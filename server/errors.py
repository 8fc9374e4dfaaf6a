"""What a client is told when something is wrong."""

import json
from typing import Any

from fastapi.responses import JSONResponse


class ErrorResponse(JSONResponse):
    """In ASCII: what a client sent may be no Unicode, and is answered with all the same."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


class ApiError(Exception):
    """An answer with a status, a stable code and what is needed to mend the request."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, message, details

    def body(self) -> dict[str, Any]:
        """The shape that clients of the specification read."""
        return {"detail": {"error": {"code": self.code, "message": self.message, "details": self.details}}}


def bad(code: str, message: str, **details: Any) -> ApiError:
    return ApiError(400, code, message, **details)
