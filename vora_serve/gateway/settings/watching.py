"""The settings of logs and traces."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vora_serve.gateway.settings.types import Section


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
