"""The ASGI application: `uvicorn lora_drift.server.app:app`, or `lora-drift serve`."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException as StarletteHTTPException

from lora_drift.harness.check import verified_by
from lora_drift.pipelines import MODELS, ModelSpec
from lora_drift.server import admission, openai_api
from lora_drift.server.config import Settings
from lora_drift.server.deps import Named, Serving, Streaming, authorized, submit
from lora_drift.server.errors import ApiError, ErrorResponse, bad, no_room
from lora_drift.server.gate import FORM_LIMITS, BoundedRoute, Gate, ignored_in
from lora_drift.server.schemas import Accepted, ErrorBody, InferenceRequest, ModelInfo, Models, Result, Status
from lora_drift.server.service import running
from lora_drift.server.telemetry import log_to_stderr
from lora_drift.server.times import iso

log = logging.getLogger("lora_drift.server.app")

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in {
        400: "The request is wrong: `code` and `message` say how to mend it",
        401: "API key missing or wrong",
        403: "Without an API key: sent by a web page, or to a name that is not this server's",
        404: "No such request",
        409: "In conflict with an earlier request",
        413: "Body too large",
        408: "The body took too long",
        429: "The queue is full",
        503: "The server's own disk is full or cannot be written",
    }.items()
}
v1 = APIRouter(prefix="/v1", dependencies=[Depends(authorized)], responses=_ERRORS, route_class=BoundedRoute)


@v1.post("/inference", tags=["inference"])
async def create_inference(
    asked: InferenceRequest,
    request: Request,
    service: Serving,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=256)] = None,
) -> Accepted:
    """Queue a request. Poll `status_url` (or listen at `events_url`), then read `result_url`.

    With an `Idempotency-Key`, sending the same body again returns the first request instead of queueing another.
    """
    if not asked.loras:
        raise bad("LORA_FILE_REQUIRED", "loras: give at least one", loras=[])
    row = await submit(service, asked, request, idempotency_key)
    return Accepted(
        request_id=row.id,
        status=row.state,
        status_url=service.request_url(row.id, "/status"),
        result_url=service.request_url(row.id, "/result"),
        events_url=service.request_url(row.id, "/events"),
        cancel_url=service.request_url(row.id),
        created_at=iso(row.created_at),
        verified=row.job["verified"],
        warnings=admission.warnings_of(asked, ignored_in(request)),
    )


@v1.get("/requests/{request_id}/status", tags=["inference"])
def get_status(row: Named, service: Serving) -> Status:
    return service.status(row)


@v1.get("/requests/{request_id}/result", tags=["inference"])
def get_result(row: Named, service: Serving) -> Result:
    """The outputs, with a receipt for each; null while the request is not finished."""
    return service.result(row)


@v1.delete("/requests/{request_id}", tags=["inference"])
async def cancel(row: Named, service: Serving) -> Status:
    """Cancel. What is being rendered ends at its next step, so the answer may still say `in_progress`."""
    canceled = await service.cancel(row.id)
    if canceled is None:
        raise ApiError(409, "ALREADY_FINISHED", "the request has finished", request_id=row.id)
    return await asyncio.to_thread(service.status, canceled)


_AS_JSON = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
_NO_STREAMS: dict[int | str, dict[str, Any]] = {
    status: {"description": error["description"], "content": _AS_JSON} for status, error in _ERRORS.items()
}
"""FastAPI would document errors as event streams, too."""


@v1.get("/requests/{request_id}/events", tags=["inference"], response_class=EventSourceResponse, responses=_NO_STREAMS)
async def get_events(named: Named, service: Serving, _turn: Streaming) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `status` (a Status) at once and at every change and step, until it has finished. Who reads
    slowly, or is one of many, misses steps in between."""
    async for status in service.updates(named.id):
        yield ServerSentEvent(event="status", raw_data=status)


@v1.get("/requests/{request_id}/files/{name}", tags=["inference"], response_class=FileResponse)
def get_file(row: Named, name: str) -> FileResponse:
    """An output, under the name that the result gives it."""
    paths = {path.name: path for path in (Path(output["file_path"]) for output in row.outputs or ())}
    if name not in paths or not paths[name].is_file():
        raise ApiError(404, "FILE_NOT_FOUND", f"request {row.id} has no file {name!r}", request_id=row.id)
    return FileResponse(paths[name], filename=name, content_disposition_type="inline")


@v1.get("/models", tags=["models"])
async def list_models() -> Models:
    """The models, their defaults, and whether a golden case vouches for them."""
    models = await asyncio.to_thread(lambda: [_model_info(spec) for spec in MODELS.values()])
    return Models(models=models, data=models)


@v1.get("/models/{model}", tags=["models"])
def get_model(model: str) -> ModelInfo:
    """One of them."""
    if model not in MODELS:
        raise ApiError(404, "MODEL_NOT_FOUND", f"model {model!r} is not supported", supported_models=list(MODELS))
    return _model_info(MODELS[model])


def _model_info(spec: ModelSpec) -> ModelInfo:
    is_video = spec.kind == "video"
    return ModelInfo(
        id=spec.id,
        owned_by=spec.base.partition("/")[0],
        title=spec.title,
        kind=spec.kind,
        base_model=spec.base,
        resolution_divisor=spec.size_divisor,
        default_width=spec.width,
        default_height=spec.height,
        default_steps=spec.steps,
        default_guidance_scale=spec.guidance_scale,
        requires_control_image=spec.controls[0] > 0,
        control_images=spec.controls,
        is_video_model=is_video,
        default_num_frames=spec.num_frames if is_video else None,
        default_fps=spec.fps if is_video else None,
        moe=len(spec.denoisers) > 1,
        lora_mode=spec.lora_mode,
        verified=admission.vouching(spec.id, spec.lora_mode, verified_by.vouching(spec)),
    )


# ---------------------------------------------------------------------------------------------------------- operation

operation = APIRouter(tags=["operation"])


@operation.get("/")
async def root() -> dict[str, str]:
    """What this is."""
    return {"name": "lora-drift", "documentation": "/docs", "models": "/v1/models", "ready": "/readyz"}


@operation.get("/healthz")
@operation.get("/health", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """The server answers."""
    return {"status": "healthy"}


@operation.get("/readyz", responses={503: {"description": "It would not be rendered now"}})
async def readyz(service: Serving) -> JSONResponse:
    """A request would be rendered now."""
    problem = service.problem
    return JSONResponse({"ready": problem is None, "problem": problem}, 200 if problem is None else 503)


@operation.get("/metrics", dependencies=[Depends(authorized)], response_class=PlainTextResponse)
async def metrics(service: Serving) -> Response:
    """For Prometheus."""
    return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def create_app(settings: Settings | None = None) -> FastAPI:
    """An application; nothing is opened or started before it is served."""
    settings = settings or Settings()
    log_to_stderr("lora_drift.server", settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings) as service:
            app.state.service = service
            yield

    app = FastAPI(
        title="lora-drift",
        version="1",
        description="LoRA inference that reproduces the samples of ostris/ai-toolkit.",
        lifespan=lifespan,
        form_limits=FORM_LIMITS,
    )
    app.state.settings = settings
    app.add_exception_handler(ApiError, _answer)
    app.add_exception_handler(OperationalError, _answer_storage)
    app.add_exception_handler(StarletteHTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, openai_api.validation_error)
    app.add_middleware(Gate, settings=settings)
    if settings.origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"])
    for router in (v1, openai_api.router, operation):
        app.include_router(router)
    return app


def _answer(_request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, ApiError)
    return error.response()


def _answer_storage(request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, OperationalError)
    log.error("the queue cannot be used", extra={"cause": str(error.orig)})
    # Where the database is, is nobody's business who asks.
    remote = request.app.state.settings.database_url is not None
    return no_room("its database does not answer" if remote else str(error.orig)).response()


def _answer_http(_request: Request, error: Exception) -> ErrorResponse:
    """Of FastAPI's own refusals (no such path, a body that is too large, ...), and of those in a body's reading."""
    assert isinstance(error, StarletteHTTPException)
    told: Any = error.detail
    told = told["error"] if isinstance(told, dict) else {"code": HTTPStatus(error.status_code).name, "message": told}
    found = ApiError(error.status_code, told["code"], told["message"], headers=dict(error.headers or {}))
    return found.response()


app = create_app()
