"""Bodies of requests and answers."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

State = Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]
FINISHED: tuple[State, ...] = ("succeeded", "failed", "canceled")

Strength = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=64, le=4096)]
Seed = Annotated[int, Field(ge=-1, lt=2**64, description="-1 draws one")]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
QType = Literal["qfloat8", "float8", "uint2", "uint3", "uint4", "uint5", "uint6", "uint7", "uint8"]
Text = Annotated[str, Field(max_length=20_000)]
Picture = Annotated[str, Field(description="https URL, data URL or base64 of a PNG, JPEG, WebP, GIF or BMP picture")]


def _printable(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("not a token: give printable ASCII")
    return token


Token = Annotated[SecretStr, Field(max_length=1000), AfterValidator(_printable)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoraItem(_Strict):
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Below WORKFLOWS_BASE_PATH, with the file's full name, or an https URL."""
    transformer: Literal["low", "high"] | None = None
    """The expert that the file is for; only for models with two."""
    network_multiplier: Strength | None = None
    sha256: Sha256 | None = None
    """Refuse the file if it is another."""


Loras = Annotated[list[LoraItem], Field(max_length=8)]


class PromptItem(_Strict):
    """One output. What is left out takes the model's default (`GET /v1/models`)."""

    prompt: Text
    trigger_word: Text | None = None
    width: Side | None = None
    height: Side | None = None
    seed: Seed | None = None
    """Left out: 42 plus the prompt's index."""
    sample_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Guidance | None = None
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    neg: Text | None = None
    num_frames: Annotated[int, Field(ge=1, le=1000)] | None = None
    fps: Annotated[int, Field(ge=1, le=120)] | None = None
    network_multiplier: Strength | None = None
    """Instead of that of `loras`, for this prompt."""
    ctrl_img: Picture | None = None
    ctrl_img_1: Picture | None = None
    ctrl_img_2: Picture | None = None
    ctrl_img_3: Picture | None = None
    ctrl_idx: Annotated[int, Field(ge=0, le=1)] = 0
    do_cfg_norm: bool = False
    resolution: Literal["Default", "High"] | None = None
    """High, the public server's second stage of LTX-2.3, is refused: the trainer has none."""
    sampler: Annotated[str | None, Field(max_length=200, deprecated=True)] = None
    """Ignored: the scheduler is the trainer's."""


class InferenceRequest(_Strict):
    model: Annotated[str, Field(max_length=200)]
    loras: Loras
    prompts: Annotated[list[PromptItem], Field(min_length=1, max_length=64)]
    trigger_word: Text | None = None
    hf_token: Token | None = None
    """For this request's downloads only; never stored beyond its end, never logged."""
    lora_mode: Literal["merged", "live"] | None = None
    kv_cache: bool | None = None
    """Of models that are not here; null or false."""
    match_target_res: bool | None = None
    """Of models that are not here; null or false."""
    quantize: bool = False
    """Quantise the denoiser as the trainer's job did."""
    quantize_te: bool | None = None
    """The text encoder too; left out: as `quantize`."""
    qtype: QType = "qfloat8"
    qtype_te: QType = "qfloat8"
    """Of the text encoder, for models where the trainer tells them apart."""
    output_format: Literal["jpg", "png", "webp", "mp4", "mkv"] | None = None
    """Default: jpg for pictures, mp4 for videos. Lossless: png, mkv."""
    output_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Of jpg and webp."""
    require_verified: bool = False
    """Refuse the request unless a golden case vouches for its configuration."""
    webhook_url: Annotated[str, Field(max_length=4096)] | None = None
    ttl: Annotated[float, Field(gt=0, le=30 * 86400)] | None = None
    """Seconds to wait for a start before the request fails."""


class Verified(BaseModel):
    """The golden case that vouches for a configuration, and its last verdict."""

    case: str
    tag: str
    tier: str
    verdict: str
    device: str
    dtype: str


class Accepted(BaseModel):
    request_id: str
    status: State
    status_url: str
    result_url: str
    created_at: str
    events_url: str
    cancel_url: str
    verified: Verified | None
    warnings: list[str]


class Progress(BaseModel):
    prompt: int
    """Index of the prompt that is rendered."""
    prompts: int
    step: int
    steps: int
    fraction: float


class Status(BaseModel):
    request_id: str
    status: State
    created_at: str
    started_at: str | None
    finished_at: str | None
    error: str | None
    error_code: str | None
    queue_position: int | None
    """1 is next; requests whose LoRA is still being downloaded have none."""
    progress: Progress | None
    tries: int


class OutputFile(BaseModel):
    format: str
    width: int
    height: int
    file_path: str
    """On the server; `url` is the same file over HTTP."""
    url: str
    sha256: str
    seed: int
    receipt: dict[str, Any]
    """Everything that the picture depends on."""


class VideoFile(OutputFile):
    num_frames: int
    fps: int


class Outputs(BaseModel):
    images: list[OutputFile]
    videos: list[VideoFile]


class Result(BaseModel):
    request_id: str
    status: State
    outputs: Outputs | None
    error: str | None
    error_code: str | None
    created_at: str
    finished_at: str | None
    metadata: dict[str, Any] | None
    verified: Verified | None


class ModelInfo(BaseModel):
    """A row of the table of models, as the specification and as OpenAI list it."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str
    title: str
    kind: Literal["image", "edit", "video"]
    base_model: str
    resolution_divisor: int
    default_width: int
    default_height: int
    default_steps: int
    default_guidance_scale: float
    requires_control_image: bool
    control_images: tuple[int, int]
    """Fewest and most."""
    is_video_model: bool
    default_num_frames: int | None
    default_fps: int | None
    moe: bool
    """LoRAs name the expert that they are for."""
    lora_mode: str
    verified: Verified | None


class Models(BaseModel):
    models: list[ModelInfo]
    object: Literal["list"] = "list"
    data: list[ModelInfo]
    """The same, where OpenAI's clients look for it."""


class _ErrorDetail(BaseModel):
    code: str
    message: str
    details: dict[str, Any]


class _Error(BaseModel):
    error: _ErrorDetail


class ErrorBody(BaseModel):
    detail: _Error
