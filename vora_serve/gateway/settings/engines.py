"""The settings of engines: the supervised one, those elsewhere, and how they are chosen."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, SecretStr, model_validator

from vora_serve.gateway.settings.types import PositiveInt, Seconds, Section


def _upstream_url(value: str) -> str:
    if not value.startswith(("http://", "https://", "unix:/")):
        raise ValueError("an upstream's URL starts with http://, https:// or unix:/")
    return value.rstrip("/").removesuffix("/v1")


class EngineSettings(Section):
    """The supervised engine; unused where ``upstreams`` are given."""

    model: str | None = None
    """Directory or hub id of a VoRA checkpoint."""
    served_model_name: list[str] = []
    args: list[str] = []
    """Further flags for vLLM's API server."""
    start_timeout_s: Seconds = 900.0
    stop_timeout_s: Seconds = 30.0
    restart_backoff_s: Seconds = 1.0
    restart_backoff_max_s: Seconds = 60.0
    stable_after_s: Seconds = 300.0
    """An engine that ran this long is restarted without further delay."""
    cpu_kvcache_gib: PositiveInt | None = None
    """``VLLM_CPU_KVCACHE_SPACE``; derived from the machine's memory where absent."""
    hang_timeout_s: Annotated[float, Field(ge=0)] = 60.0
    """Restart an engine that has given neither health nor a token for so long; 0: never."""


class UpstreamSettings(Section):
    """An engine that runs elsewhere."""

    url: Annotated[str, AfterValidator(_upstream_url)]
    api_key: SecretStr | None = None
    max_in_flight: PositiveInt | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
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
    first_byte_timeout_s: Seconds = 600.0
    """Longest wait for an engine's response headers."""
    idle_timeout_s: Seconds = 120.0
    """Longest silence inside a stream before the engine counts as hung."""
    keep_alive_connections: PositiveInt = 64
    keep_alive_s: Seconds = 4.0
    """Below the 5 s after which engines close idle connections."""
    health_interval_s: Seconds = 2.0
    health_timeout_s: Seconds = 5.0
    unhealthy_after: PositiveInt = 2
    """Failed probes in a row after which an engine gets no work."""
    breaker_failures: PositiveInt = 5
    """Failed requests in a row that open an engine's circuit breaker."""
    breaker_open_s: Seconds = 10.0
    retries: Annotated[int, Field(ge=0, le=5)] = 1
    """Further engines tried when one could not be reached, before a byte of it was passed on."""
    affinity: bool = True
    affinity_load_factor: Annotated[float, Field(ge=1)] = 1.25
    """An affine engine is passed over when its load exceeds the mean by this factor."""
