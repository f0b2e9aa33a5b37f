"""The settings of engines: the supervised one, those elsewhere, and how they are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from vora_serve.gateway.settings.types import PositiveInt, Seconds, Section

#: Model names of vision adapters.
ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _upstream_url(value: str) -> str:
    if not value.startswith(("http://", "https://", "unix:/")):
        raise ValueError("an upstream's URL starts with http://, https:// or unix:/")
    return value.rstrip("/").removesuffix("/v1")


class EngineSettings(Section):
    """The supervised engine; unused where ``upstreams`` are given."""

    model: str | None = None
    """Directory or hub id of a VoRA checkpoint."""
    served_model_name: list[str] = []
    """Names that clients use for the model; its path or hub id where empty. All of them mean the
    same model."""
    args: list[str] = []
    """Further flags for vLLM's API server."""
    vision_adapters: dict[Annotated[str, Field(pattern=ADAPTER_NAME)], Path] = {}
    """Vision adapters, name to folder: ``model`` is then a plain LLM, and each adapter is a model
    of its name. See ``vora-serve export --adapter``."""
    adapters_folder: Path | None = None
    """A folder whose adapters may be loaded at run time, through ``/admin/adapters``; from no
    folder where absent."""
    max_adapters: PositiveInt | None = None
    """Most vision adapters at a time; memory for so many is set aside. The number of
    ``vision_adapters``, but at least 4, where absent."""
    adapter_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] | None = None
    """The largest LoRA rank that is taken; memory for it is set aside. That of
    ``vision_adapters`` where absent. Less is faster."""
    adapter_image_tokens: PositiveInt | None = None
    """Most tokens that an adapter may make of an image. That of ``vision_adapters`` where
    absent."""
    start_timeout_s: Seconds = 900.0
    """An engine that is not healthy so long after its start counts as failed. Raise it for large
    checkpoints on slow disks."""
    stop_timeout_s: Seconds = 30.0
    """How long a stopping engine may finish before it is killed."""
    restart_backoff_s: Seconds = 1.0
    """The wait before the first restart of a failed engine; it doubles with each further
    failure."""
    restart_backoff_max_s: Seconds = 60.0
    """The longest wait between restarts."""
    stable_after_s: Seconds = 300.0
    """An engine that ran this long is restarted without further delay."""
    cpu_kvcache_gib: PositiveInt | None = None
    """``VLLM_CPU_KVCACHE_SPACE``; derived from the machine's memory where absent."""
    hang_timeout_s: Annotated[float, Field(ge=0)] = 60.0
    """Restart an engine that has given neither health nor a token for so long; 0: never."""


class UpstreamSettings(Section):
    """An engine that runs elsewhere."""

    url: Annotated[str, AfterValidator(_upstream_url)]
    """Where the engine listens: ``http://host:port``, ``https://host`` or ``unix:/path``."""
    api_key: SecretStr | None = None
    """Sent to this engine as a bearer token. Clients' own keys never reach engines."""
    max_in_flight: PositiveInt | None = None
    """Requests at this engine at one time; ``routing.max_in_flight`` where absent. More fills its
    batches, and lengthens its queue."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of the work beside other engines: one of weight 2 gets twice as many requests as
    one of weight 1."""
    drain: bool = False
    """Take no new work; for removing an engine by reloading the configuration."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class RoutingSettings(Section):
    """How engines are watched and chosen."""

    max_in_flight: PositiveInt = 256
    """Requests at one engine at a time."""
    connect_timeout_s: Seconds = 5.0
    """The longest wait for a connection to an engine. Less finds dead engines sooner."""
    first_byte_timeout_s: Seconds = 600.0
    """Longest wait for an engine's response headers."""
    idle_timeout_s: Seconds = 120.0
    """Longest silence inside a stream before the engine counts as hung."""
    keep_alive_connections: PositiveInt = 64
    """Idle connections that are kept for each engine. More saves connecting under load that comes
    in bursts."""
    keep_alive_s: Seconds = 4.0
    """Below the 5 s after which engines close idle connections."""
    health_interval_s: Seconds = 2.0
    """Seconds between probes of an engine. Less notices failures sooner and asks more often."""
    health_timeout_s: Seconds = 5.0
    """A probe without an answer for so long has failed. Raise it where a busy engine answers
    slowly."""
    unhealthy_after: PositiveInt = 2
    """Failed probes in a row after which an engine gets no work."""
    breaker_failures: PositiveInt = 5
    """Failed requests in a row that open an engine's circuit breaker."""
    breaker_open_s: Seconds = 10.0
    """How long an engine gets nothing after its circuit breaker opened; then one request tries
    it."""
    retries: Annotated[int, Field(ge=0, le=5)] = 1
    """Further engines tried when one could not be reached, before a byte of it was passed on."""
    affinity: bool = True
    """Send a conversation's next turns to the engine that has its prefix cached. Off spreads
    requests by load alone."""
    affinity_load_factor: Annotated[float, Field(ge=1)] = 1.25
    """An affine engine is passed over when its load exceeds the mean by this factor."""
