"""The gateway's settings: one typed tree from defaults, a YAML file, the environment and flags.

Later sources win: defaults, then the file, then ``VORA_SERVE_<SECTION>__<KEY>`` variables, then
flags. Unknown keys are refused in each of them. Units stand in the names: ``_s`` are seconds,
``_bytes`` bytes, ``_pixels`` pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from vora_core import typed_yaml
from vora_core.errors import ConfigError
from vora_serve.gateway.input_settings import DocumentSettings, ImageSettings
from vora_serve.gateway.setting_types import Cidr, PositiveInt, Seconds, Section

ENV_PREFIX = "VORA_SERVE_"


def _upstream_url(value: str) -> str:
    if not value.startswith(("http://", "https://", "unix:/")):
        raise ValueError("an upstream's URL starts with http://, https:// or unix:/")
    return value.rstrip("/").removesuffix("/v1")


class ServerSettings(Section):
    """The listening socket, and what a client may send and how fast."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    backlog: PositiveInt = 2048
    max_body_bytes: PositiveInt = 32 * 2**20
    max_body_memory_bytes: PositiveInt = 96 * 2**20
    """Bytes of request bodies and images held at one time by a worker, all requests together."""
    body_timeout_s: Seconds = 30.0
    keep_alive_s: Seconds = 75.0
    drain_delay_s: Annotated[float, Field(ge=0)] = 0.0
    """After SIGTERM: how long ``/ready`` says no while requests are still taken."""
    grace_period_s: Seconds = 30.0
    """After SIGTERM: how long streams may go on before they are cut."""
    trusted_proxies: list[Cidr] = []
    """Peers whose ``X-Forwarded-For`` names the client; nobody by default."""
    cors_origins: list[str] = []
    docs: bool = True


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


FieldAction = Literal["drop", "refuse"]


class FieldSettings(Section):
    """What happens to request fields outside the allowlist."""

    unknown: FieldAction = "drop"
    """For fields in no table: ``drop`` names them in ``x-vora-dropped-fields``."""
    actions: dict[str, FieldAction] = {}
    """Per field, over the built-in table in ``vora_serve.gateway.schemas.fields``."""
    max_n: PositiveInt = 16
    max_tokens: PositiveInt = 131_072
    max_stop: PositiveInt = 16
    max_top_logprobs: PositiveInt = 20
    max_messages: PositiveInt = 1024
    max_text_chars: PositiveInt = 4_000_000
    max_tools: PositiveInt = 128
    max_schema_chars: PositiveInt = 100_000
    max_prompts: PositiveInt = 64
    max_token_id: PositiveInt = 2**31 - 1


class AdmissionSettings(Section):
    """Hard caps; a request beyond them waits in a bounded queue or is refused."""

    max_in_flight: PositiveInt = 256
    max_in_flight_per_key: PositiveInt | None = None
    max_queued: Annotated[int, Field(ge=0)] = 1024
    max_queued_per_key: Annotated[int, Field(ge=0)] | None = None
    queue_timeout_s: Seconds = 30.0
    request_timeout_s: Seconds = 900.0
    rate_limit_storage: str = "memory://"
    """A storage URI of the ``limits`` library; Redis where gateways share their limits."""
    requests: list[str] = []
    """Rate limits per key, such as ``600/minute``."""
    tokens: list[str] = []
    """Token rate limits per key, such as ``200000/minute``."""
    budgets: dict[Literal["day", "month"], PositiveInt] = {}
    """Tokens per tenant in a calendar day and month (UTC), such as ``{day: 1000000}``."""


Asymmetric = (
    Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
    | Literal["ES256", "ES384", "ES512", "EdDSA"]
)


class TokenSettings(Section):
    """JSON Web Tokens of an OpenID provider."""

    issuer: str
    audience: str
    jwks_url: Annotated[str, Field(pattern=r"^https?://[^/@]+(/.*)?$")]
    algorithms: Annotated[list[Asymmetric], Field(min_length=1)] = ["RS256", "ES256"]
    cache_s: Seconds = 300.0
    """How long the provider's keys are kept; a key id that is new is looked up sooner."""
    leeway_s: Annotated[float, Field(ge=0, le=300)] = 30.0
    name_claim: str = "sub"
    group_claim: str | None = None
    """The claim that names the tenant; each name is one where absent."""
    scope_claim: str = "scope"
    default_scopes: list[Literal["generate", "models", "metrics"]] = ["generate", "models"]
    """For tokens without the scope claim."""
    limits_claim: str = "vora"
    """A claim with limits as in a key's entry: models, max_in_flight, requests, budgets, ..."""


class AuthSettings(Section):
    """Who may ask. Without keys or tokens the gateway is open, and then only on loopback."""

    keys_file: Path | None = None
    jwt: TokenSettings | None = None
    allow_anonymous: bool = False
    """Serve without keys on an address that others can reach."""
    reload_interval_s: Seconds = 5.0
    protect_metrics: bool = False
    isolate_caches: bool = True
    """Give each tenant (a key, or a key's group) a prefix cache of its own inside the engines."""


class StreamSettings(Section):
    """Streaming answers."""

    heartbeat_s: Annotated[float, Field(ge=0)] = 15.0
    """A comment line is sent when a stream was silent for so long; 0: never."""
    write_timeout_s: Seconds = 60.0
    """A client that takes nothing for so long is dropped."""


class PlaygroundSettings(Section):
    """The page at ``/``."""

    enabled: bool = True
    checkpoints: dict[str, str] = {}
    """By model: a folder with its config.json and preprocessor_config.json, for engines whose
    files this process does not see; tells the page sizes and tokens of pictures."""
    price_per_million_input_tokens: Annotated[float, Field(ge=0)] | None = None
    price_per_million_output_tokens: Annotated[float, Field(ge=0)] | None = None
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "USD"
    """In which the prices are; they are shown, nothing is charged."""
    explain_url: Annotated[str, Field(pattern=r"^https?://[^/]+$")] | None = None
    """Where ``vora-serve explain --listen`` runs, for the page's view of attention."""


class LoggingSettings(Section):
    """Logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "text"
    prompts: bool = False
    """Log prompts' text (never image bytes)."""
    access: bool = True
    audit_file: Path | None = None
    """Where administrative acts are recorded, a JSON line each; they are logged as well."""


class TracingSettings(Section):
    """OpenTelemetry traces over OTLP; the exporter reads its usual ``OTEL_`` variables."""

    enabled: bool = False
    service_name: str = "vora-serve"


class _CheckedEnv(EnvSettingsSource):
    """The environment, refusing ``VORA_SERVE_`` variables that name no section."""

    def __call__(self) -> dict[str, Any]:
        known = {name.upper() for name in self.settings_cls.model_fields}
        for name in os.environ:
            if name.startswith(ENV_PREFIX):
                head = name.removeprefix(ENV_PREFIX).split("__", 1)[0].upper()
                if head not in known:
                    raise ConfigError(
                        f"The environment variable {name} is not a vora-serve setting."
                    )
        return super().__call__()


class Settings(BaseSettings):
    """All settings of one gateway."""

    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        case_sensitive=False,
        validate_default=True,
    )

    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    upstreams: list[UpstreamSettings] = []
    routing: RoutingSettings = RoutingSettings()
    images: ImageSettings = ImageSettings()
    documents: DocumentSettings = DocumentSettings()
    fields: FieldSettings = FieldSettings()
    admission: AdmissionSettings = AdmissionSettings()
    auth: AuthSettings = AuthSettings()
    streams: StreamSettings = StreamSettings()
    playground: PlaygroundSettings = PlaygroundSettings()
    logging: LoggingSettings = LoggingSettings()
    tracing: TracingSettings = TracingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load_settings(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the file, the environment and the flags, in that order of precedence.

    Args:
        config: A YAML file.
        flags: A tree such as ``{"server": {"port": 8000}}`` with what the command line gave.

    Raises:
        ConfigError: a source cannot be read, names an unknown key or a wrong value.
    """
    tree: dict[str, Any] = (
        typed_yaml.read(config, subject="configuration file") if config is not None else {}
    )
    try:
        tree = typed_yaml.overlay(typed_yaml.overlay(tree, _CheckedEnv(Settings)()), flags or {})
        typed_yaml.refuse_empty(tree, subject="settings")
        return Settings(**tree)
    except ConfigError:
        raise
    except ValidationError as error:
        raise ConfigError(typed_yaml.describe(error, Settings, subject="settings")) from None
    except ValueError as error:  # an environment variable that should hold JSON and does not
        raise ConfigError(f"The environment holds a wrong setting: {error}.") from None
