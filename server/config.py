"""Settings, from environment variables of the same names in capitals (and from `.env`)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MEGABYTE = 1 << 20


def _offered(mode: object) -> object:
    if mode == "sequential":
        raise ValueError(
            "sequential offloading is not offered: its hooks and a live LoRA's do not go together; use model"
        )
    return mode


class Settings(BaseSettings):
    """Those of the specification, with its defaults (but for HOST), and ours."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    host: str = "127.0.0.1"
    """The specification says 0.0.0.0: a server without an API key must be asked to face the network."""
    port: int = 8000
    base_url: str = ""
    """Front of the URLs in answers; empty: `http://localhost:PORT`."""
    device: str = "cuda"
    devices: str = ""
    """Comma-separated, a worker each (`cuda:0,cuda:1`), or `auto`: every GPU; empty: the one of DEVICE."""
    enable_cpu_offload: bool = False
    """The same as OFFLOAD_MODE=model."""
    offload_mode: Annotated[Literal["none", "model"], BeforeValidator(_offered)] = "none"
    workflows_base_path: Path = Path("/app/ai-toolkit/lora_weights")
    output_base_path: Path = Path("/tmp/inference_output")
    ai_toolkit_path: Path | None = None
    """Accepted and not needed: no pipeline imports the trainer."""
    debug: bool = False
    """Log each request, and each step of the worker."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """auto: text on a terminal, JSON elsewhere."""
    hf_token: SecretStr | None = None
    model_cache_dir: Path | None = None
    """Where Hugging Face repositories are cached; None: where they always are."""
    inference_timeout: PositiveFloat = 3600
    """Seconds from a request's start until its worker is stopped."""

    strict: bool = True
    """Refuse unknown fields; false: ignore and name them, but for those that name a LoRA."""
    lora_download_cache_dir: Path | None = None
    """Downloaded LoRAs; None: in STATE_PATH."""
    state_path: Path | None = None
    """Queue, downloaded LoRAs, control images; None: `OUTPUT_BASE_PATH/.server`."""
    database_url: SecretStr | None = None
    """`postgresql://USER@HOST/NAME` for a queue that workers on other hosts share; None: a file in STATE_PATH."""
    ray_cluster: str | None = None
    """Address of a Ray cluster that renders (`auto`: that of this host); needs DATABASE_URL."""
    min_replicas: NonNegativeInt = 0
    max_replicas: PositiveInt = 8
    """Workers on the cluster, a GPU each."""
    replica_idle: PositiveFloat = 600
    """Seconds without work after which one of them is ended."""
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    """FULL: what was accepted survives a power cut too; each request waits for the disk."""
    api_key: SecretStr | None = None
    cors_origins: str = ""
    """Comma-separated; empty: no other origin."""
    require_verified: bool = False
    """Refuse configurations that no golden case vouches for."""
    allow_private_urls: bool = False
    """Let LoRA, control image and webhook URLs name private addresses and plain http."""

    max_connections: PositiveInt = 1000
    header_timeout: PositiveFloat = 20
    """Seconds until the header of a request must be whole, or an idle connection is closed."""
    read_timeout: PositiveFloat = 60
    """Seconds for which a client may leave an answer unread."""
    max_event_streams: PositiveInt = 500
    max_body_mb: PositiveFloat = 64
    max_bodies_mb: PositiveFloat = 1024
    """Of all requests that are not answered yet."""
    body_timeout: PositiveFloat = 120
    """Seconds until a body must be whole."""
    max_lora_mb: PositiveFloat = 4096
    max_image_mb: PositiveFloat = 20
    max_image_megapixels: PositiveFloat = 50
    lora_cache_gb: PositiveFloat = 20
    download_timeout: PositiveFloat = 1800
    min_download_kbps: NonNegativeFloat = 50
    """Kilobytes a second below which a download is given up."""
    max_queue: PositiveInt = 1000
    cancel_grace: PositiveFloat = 10
    """Seconds until a canceled request that does not end by itself has its worker stopped."""
    min_free_mb: NonNegativeInt = 100
    """Room on the disks of outputs and state, below which nothing is rendered."""
    max_tries: PositiveInt = 3
    """Times that a request may be in flight while its worker or the server dies, before it fails."""
    fairness_bound: NonNegativeInt = 8
    """Times that a waiting request may be overtaken by one whose model is loaded."""
    memory_budget_gb: PositiveFloat | None = None
    """For loaded base models; None: four fifths of the device's memory, or half of the machine's on the CPU."""
    result_ttl: PositiveFloat = 86400
    """Seconds after which a finished request and its files are removed."""
    webhook_secret: SecretStr | None = None
    webhook_tries: PositiveInt = 8
    webhook_first_delay: PositiveFloat = 2
    """Seconds before the second try; each further one waits twice as long, an hour at most."""

    @property
    def state(self) -> Path:
        return self.state_path or self.output_base_path / ".server"

    @property
    def queue(self) -> Path | str:
        """Where `Store` finds it."""
        return self.state / "queue.sqlite" if self.database_url is None else self.database_url.get_secret_value()

    @property
    def offload(self) -> bool:
        return self.enable_cpu_offload or self.offload_mode == "model"

    @property
    def token(self) -> str | None:
        return None if self.hf_token is None else self.hf_token.get_secret_value()

    @property
    def url(self) -> str:
        return (self.base_url or f"http://localhost:{self.port}").rstrip("/")

    @property
    def origins(self) -> list[str]:
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]
