"""Images as OpenAI's clients ask for them: they wait for the answer, and get pictures or an error of OpenAI's shape."""

import asyncio
import base64
import inspect
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lora_drift.server.deps import Serving, authorized, submit
from lora_drift.server.errors import MOST_ERRORS, ApiError, ErrorResponse, bad, clipped
from lora_drift.server.forms import check_names, loras_of
from lora_drift.server.gate import BoundedRoute, ignored_in
from lora_drift.server.schemas import Guidance, InferenceRequest, Loras, PromptItem, Seed, Side, Text
from lora_drift.server.service import Service
from lora_drift.server.store import Row

PREFIX = "/v1/images"
_SIZE = re.compile(r"(\d{2,4})x(\d{2,4})")

Count = Annotated[int, Field(ge=1, le=10)]
FormatName = Literal["png", "jpeg", "webp"]
ResponseFormat = Literal["b64_json", "url"]
Ignored = Annotated[str | None, Field(description="ignored")]


class ImageRequest(BaseModel):
    """OpenAI's fields, those of ours that a LoRA needs, and fields that hosted models have and these have not."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text
    model: Annotated[str, Field(max_length=200)]
    n: Count | None = 1
    size: Annotated[str, Field(max_length=16)] | None = "auto"
    response_format: ResponseFormat | None = "b64_json"
    output_format: FormatName | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    loras: Loras = []
    trigger_word: Text | None = None
    negative_prompt: Text | None = None
    seed: Seed | None = None
    """Left out: random. The n-th picture has the seed + n."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Guidance | None = None
    user: Ignored = None
    quality: Ignored = None
    style: Ignored = None
    moderation: Ignored = None
    background: Literal["auto", "opaque"] | None = None
    stream: Literal[False] | None = False
    partial_images: Literal[0] | None = 0


class _Image(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    seed: int
    receipt: dict[str, Any]


class Images(BaseModel):
    created: int
    data: list[_Image]
    request_id: str
    output_format: FormatName
    size: str
    warnings: list[str] = []


class _OpenAIErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    error: _OpenAIErrorDetail


router = APIRouter(
    prefix=PREFIX,
    tags=["OpenAI"],
    dependencies=[Depends(authorized)],
    responses={status: {"model": OpenAIError} for status in (400, 401, 403, 408, 413, 429, 500, 503)},
    route_class=BoundedRoute,
)


@router.post("/generations")
async def generate(asked: ImageRequest, request: Request, service: Serving) -> Images:
    """Pictures from a prompt."""
    return await _answer(service, request, asked, [])


@router.post("/edits")
async def edit(
    request: Request,
    service: Serving,
    prompt: Annotated[Text, Form()],
    model: Annotated[str, Form(max_length=200)],
    image: Annotated[list[UploadFile], File()] = [],  # noqa: B006  FastAPI copies it
    images: Annotated[list[UploadFile], File(alias="image[]")] = [],  # noqa: B006
    mask: Annotated[UploadFile | None, File()] = None,
    n: Annotated[Count, Form()] = 1,
    size: Annotated[str, Form(max_length=16)] = "auto",
    response_format: Annotated[ResponseFormat, Form()] = "b64_json",
    output_format: Annotated[FormatName, Form()] = "png",
    output_compression: Annotated[int | None, Form(ge=0, le=100)] = None,
    loras: Annotated[str, Form(description="JSON, as in /v1/inference; or `loras[][path]=...` and so on")] = "[]",
    trigger_word: Annotated[Text | None, Form()] = None,
    negative_prompt: Annotated[Text | None, Form()] = None,
    seed: Annotated[Seed | None, Form()] = None,
    steps: Annotated[int | None, Form(ge=1, le=1000)] = None,
    guidance_scale: Annotated[Guidance | None, Form()] = None,
    user: Annotated[str | None, Form(description="ignored")] = None,
    quality: Annotated[str | None, Form(description="ignored")] = None,
    style: Annotated[str | None, Form(description="ignored")] = None,
    moderation: Annotated[str | None, Form(description="ignored")] = None,
    input_fidelity: Annotated[str | None, Form(description="ignored")] = None,
    background: Annotated[Literal["auto", "opaque"] | None, Form()] = None,
    stream: Annotated[Literal["false"], Form()] = "false",
    partial_images: Annotated[Literal["0"], Form()] = "0",
) -> Images:
    """Pictures from a prompt and one to three images."""
    if mask is not None:
        raise bad("MASK_NOT_SUPPORTED", "mask: these models take none; Flex.2 reads the alpha channel of the image")
    items = loras_of(await check_names(request, _EDIT_FIELDS))
    uploads = [*image, *images]
    if not 1 <= len(uploads) <= 3:
        raise bad("CONTROL_IMAGE_REQUIRED", f"image: give one to three, {len(uploads)} given")
    asked = ImageRequest(
        prompt=prompt, model=model, n=n, size=size, response_format=response_format, output_format=output_format,
        output_compression=output_compression, loras=items, trigger_word=trigger_word, seed=seed, steps=steps,
        negative_prompt=negative_prompt, guidance_scale=guidance_scale,
    )  # fmt: skip
    read = [await upload.read() for upload in uploads]
    contents = await asyncio.to_thread(lambda: [base64.b64encode(content).decode() for content in read])
    return await _answer(service, request, asked, contents)


_EDIT_FIELDS = {"image[]" if name == "images" else name for name in inspect.signature(edit).parameters} - {
    "request", "service"
}  # fmt: skip


async def _answer(service: Service, request: Request, asked: ImageRequest, controls: list[str]) -> Images:
    row = await submit(service, _translated(asked, controls), request)
    row = await _finished(service, request, row)
    if row.state != "succeeded":
        raise ApiError(500 if row.state == "failed" else 400, row.error_code or "FAILED", row.error or row.state)
    images = await asyncio.to_thread(_images, service, asked, row)  # which reads files, and encodes them
    images.warnings = [f"{name} is ignored: there is no such field" for name in ignored_in(request)]
    return images


def _images(service: Service, asked: ImageRequest, row: Row) -> Images:
    outputs = service.result(row).outputs
    assert outputs is not None and row.finished_at is not None
    as_url = asked.response_format == "url"
    data = [
        _Image(
            url=file.url if as_url else None,
            b64_json=None if as_url else base64.b64encode(Path(file.file_path).read_bytes()).decode(),
            seed=file.seed,
            receipt=file.receipt,
        )
        for file in outputs.images
    ]
    first = outputs.images[0]
    return Images(created=int(row.finished_at), data=data, request_id=row.id,
                  output_format=asked.output_format or "png", size=f"{first.width}x{first.height}")  # fmt: skip


def _translated(asked: ImageRequest, controls: list[str]) -> InferenceRequest:
    from lora_drift.pipelines import MODELS

    spec = MODELS.get(asked.model)
    if spec is not None and spec.kind == "video":
        raise bad("MODEL_NOT_FOUND", f"model: {spec.id} makes videos; use /v1/inference")
    width, height = _size(asked.size)
    fields = ["ctrl_img"] if spec is not None and spec.controls[1] < 2 else ["ctrl_img_1", "ctrl_img_2", "ctrl_img_3"]
    if len(controls) > len(fields):
        raise bad("CONTROL_IMAGE_NOT_SUPPORTED", f"image: {asked.model} takes {len(fields)}, {len(controls)} given")
    prompts = [
        PromptItem(
            prompt=asked.prompt,
            neg=asked.negative_prompt,
            width=width,
            height=height,
            sample_steps=asked.steps,
            guidance_scale=asked.guidance_scale,
            seed=-1 if asked.seed in (None, -1) else (asked.seed + i) % 2**64,
            **dict(zip(fields, controls, strict=False)),  # type: ignore[arg-type]
        )
        for i in range(asked.n or 1)
    ]
    quality = asked.output_compression if asked.output_compression is not None else 95
    return InferenceRequest(
        model=asked.model,
        loras=asked.loras,
        prompts=prompts,
        trigger_word=asked.trigger_word,
        output_format="jpg" if asked.output_format == "jpeg" else asked.output_format or "png",
        output_quality=max(1, quality),
    )


def _size(size: str | None) -> tuple[int | None, int | None]:
    if size in (None, "auto"):
        return None, None
    parts = _SIZE.fullmatch(size)
    try:
        side = TypeAdapter(Side)
        return side.validate_python(int(parts[1])), side.validate_python(int(parts[2]))  # type: ignore[index]
    except (TypeError, ValidationError):
        raise bad("SIZE_INVALID", f"size {size!r}: give WIDTHxHEIGHT, 64 to 4096 pixels a side, or auto") from None


async def _finished(service: Service, request: Request, row: Row) -> Row:
    """Wait for the end. A client that hangs up no longer wants its pictures."""
    async with service.listening(row.id) as event:
        while True:
            event.clear()
            current = await asyncio.to_thread(service.store.get, row.id)
            if current is None:
                raise ApiError(500, "REQUEST_EXPIRED", "the request was removed before its answer was read")
            if current.finished:
                return current
            try:
                await asyncio.wait_for(event.wait(), 1)
            except TimeoutError:
                if await request.is_disconnected():
                    await service.cancel(row.id)


async def validation_error(request: Request, error: Exception) -> ErrorResponse:
    """What is wrong with a body: the first so many errors. OpenAI answers 400, and its clients read `error.message`."""
    assert isinstance(error, RequestValidationError)
    # Without the input.
    found = [{n: clipped(e[n]) for n in ("type", "loc", "msg")} for e in error.errors()[:MOST_ERRORS]]
    field, message = ".".join(map(str, found[0]["loc"][1:])), found[0]["msg"]
    told = ApiError(400, "INVALID", f"{field}: {message}", param=field)
    if request.url.path.startswith(PREFIX):
        return told.response()
    return ErrorResponse({**told.body(), "detail": found}, 422)
