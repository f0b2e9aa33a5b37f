"""The gateway's settings: a tree of sections (``tree``), one module for each group of sections."""

from vora_serve.gateway.settings.auth import AuthSettings, TokenSettings
from vora_serve.gateway.settings.batches import BatchSettings
from vora_serve.gateway.settings.engines import EngineSettings, RoutingSettings, UpstreamSettings
from vora_serve.gateway.settings.inputs import DocumentSettings, ImageCacheSettings, ImageSettings
from vora_serve.gateway.settings.playground import PlaygroundSettings
from vora_serve.gateway.settings.requests import AdmissionSettings, FieldAction, FieldSettings
from vora_serve.gateway.settings.responses import ResponseSettings
from vora_serve.gateway.settings.server import ServerSettings, StreamSettings
from vora_serve.gateway.settings.tree import ENV_PREFIX, Settings, load_settings
from vora_serve.gateway.settings.types import Cidr, Port, PositiveInt, Seconds, Section
from vora_serve.gateway.settings.watching import LoggingSettings, TracingSettings

__all__ = [
    "AdmissionSettings",
    "AuthSettings",
    "BatchSettings",
    "Cidr",
    "DocumentSettings",
    "ENV_PREFIX",
    "EngineSettings",
    "FieldAction",
    "FieldSettings",
    "ImageCacheSettings",
    "ImageSettings",
    "LoggingSettings",
    "PlaygroundSettings",
    "Port",
    "PositiveInt",
    "ResponseSettings",
    "RoutingSettings",
    "Seconds",
    "Section",
    "ServerSettings",
    "Settings",
    "StreamSettings",
    "TokenSettings",
    "TracingSettings",
    "UpstreamSettings",
    "load_settings",
]
