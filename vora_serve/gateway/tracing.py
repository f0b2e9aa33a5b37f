"""OpenTelemetry traces: a span per request, events for its phases, context passed to engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vora_core.errors import ConfigError
from vora_serve.gateway.settings import TracingSettings


class Tracer:
    """Makes spans; without tracing every call does nothing.

    Args:
        settings: Whether to trace, and under which name.

    Raises:
        ConfigError: tracing is wanted, but OpenTelemetry is not installed.
    """

    def __init__(self, settings: TracingSettings) -> None:
        self._tracer: Any = None
        self.provider: Any = None
        if not settings.enabled:
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise ConfigError(
                "Tracing needs opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http, "
                "which are not installed."
            ) from None
        resource = Resource.create({"service.name": settings.service_name})
        self.provider = TracerProvider(resource=resource)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self.provider.get_tracer("vora_serve.gateway")

    @property
    def enabled(self) -> bool:
        """Whether spans are made."""
        return self._tracer is not None

    def start(self, name: str, traceparent: str | None, attributes: Mapping[str, Any]) -> Any:
        """A server span, child of the caller's; None without tracing."""
        if self._tracer is None:
            return None
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        context = extract({"traceparent": traceparent}) if traceparent else None
        return self._tracer.start_span(
            name, context=context, kind=SpanKind.SERVER, attributes=dict(attributes)
        )

    @staticmethod
    def traceparent(span: Any) -> bytes | None:
        """The header that lets the engine's spans join the trace."""
        if span is None:
            return None
        context = span.get_span_context()
        return (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}".encode()
        )

    def stop(self) -> None:
        """Send what is left."""
        if self.provider is not None:
            self.provider.shutdown()
