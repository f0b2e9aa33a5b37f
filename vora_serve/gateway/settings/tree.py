"""The gateway's settings: one typed tree from defaults, a YAML file, the environment and flags.

Later sources win: defaults, then the file, then ``VORA_SERVE_<SECTION>__<KEY>`` variables, then
flags. Unknown keys are refused in each of them. Units stand in the names: ``_s`` are seconds,
``_bytes`` bytes, ``_pixels`` pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from vora_core import typed_yaml
from vora_core.errors import ConfigError
from vora_serve.gateway.settings.auth import AuthSettings
from vora_serve.gateway.settings.batches import BatchSettings
from vora_serve.gateway.settings.engines import EngineSettings, RoutingSettings, UpstreamSettings
from vora_serve.gateway.settings.inputs import DocumentSettings, ImageSettings
from vora_serve.gateway.settings.playground import PlaygroundSettings
from vora_serve.gateway.settings.requests import AdmissionSettings, FieldSettings
from vora_serve.gateway.settings.responses import ResponseSettings
from vora_serve.gateway.settings.server import ServerSettings, StreamSettings
from vora_serve.gateway.settings.watching import LoggingSettings, TracingSettings

ENV_PREFIX = "VORA_SERVE_"


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
    batches: BatchSettings = BatchSettings()
    auth: AuthSettings = AuthSettings()
    responses: ResponseSettings = ResponseSettings()
    streams: StreamSettings = StreamSettings()
    playground: PlaygroundSettings = PlaygroundSettings()
    logging: LoggingSettings = LoggingSettings()
    tracing: TracingSettings = TracingSettings()

    @model_validator(mode="after")
    def _workers_share_responses(self) -> Self:
        kept = self.responses
        if kept.store and kept.storage == "memory://" and self.server.workers > 1:
            raise ValueError(
                "responses.store with several server.workers needs Redis as responses.storage"
            )
        return self

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
