"""The settings of logs and traces."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vora_serve.gateway.settings.types import Section


class LoggingSettings(Section):
    """Logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are written. ``debug`` writes much more."""
    format: Literal["json", "text"] = "text"
    """``text`` for people, ``json`` for log collectors: one object on each line."""
    prompts: bool = False
    """Log prompts' text (never image bytes)."""
    access: bool = True
    """Write a line for each request."""
    audit_file: Path | None = None
    """Where administrative acts are recorded, a JSON line each; they are logged as well."""


class TracingSettings(Section):
    """OpenTelemetry traces over OTLP; the exporter reads its usual ``OTEL_`` variables."""

    enabled: bool = False
    """Send traces; needs the extra ``vora-serve[tracing]``."""
    service_name: str = "vora-serve"
    """The name under which traces appear."""
