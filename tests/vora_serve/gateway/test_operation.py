"""Logs, metrics, traces, proxies, cross-origin requests."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.test_chat import data_url
from tests.vora_serve.gateway.test_streams import until
from vora_serve.gateway.logs import _JSONFormatter, access_logger, configure_logging
from vora_serve.gateway.settings import LoggingSettings
from vora_serve.serve import say


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(_JSONFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def test_access_log_has_neither_prompts_nor_images(gateway: LiveGateway) -> None:
    handler = Lines()
    access_logger.addHandler(handler)
    access_logger.setLevel("INFO")
    disabled, access_logger.disabled = access_logger.disabled, False
    try:
        image = data_url(make_image())
        gateway.show(image, text="a secret question", stream=True)
        gateway.chat("another secret", n=99)
        gateway.client.get("/health")
        until(lambda: len(handler.lines) == 2)
    finally:
        access_logger.disabled = disabled
        access_logger.removeHandler(handler)
    assert len(handler.lines) == 2, "health checks are not logged"
    assert "secret" not in "".join(handler.lines)
    assert image[30:60] not in "".join(handler.lines)
    line = json.loads(handler.lines[0])
    assert line["status"] == 200
    assert line["images"] == 1
    assert line["image_tokens"] == 64
    assert line["path"] == "/v1/chat/completions"
    assert json.loads(handler.lines[1])["error"] == "limit_exceeded"


def test_log_formats(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = {name: logging.getLogger(name) for name in ("vora_serve", "uvicorn")}
    before = {name: (x.handlers, x.level, x.propagate) for name, x in loggers.items()}
    disabled = access_logger.disabled
    try:
        for form in ("json", "text"):
            configure_logging(LoggingSettings(format=form))  # type: ignore[arg-type]
            try:
                raise ValueError("inner")
            except ValueError:
                logging.getLogger("vora_serve.x").error(
                    "line\nbreak", exc_info=True, extra={"fields": {"a": 1}}
                )
            say("serving")
    finally:
        access_logger.disabled = disabled
        for name, (handlers, level, propagate) in before.items():
            loggers[name].handlers, loggers[name].propagate = handlers, propagate
            loggers[name].setLevel(level)
    errors = capsys.readouterr().err
    first, second, *rest = errors.splitlines()
    assert json.loads(first)["a"] == 1
    assert "ValueError: inner" in json.loads(first)["exception"]
    # What is said to a person is a line of the log where that is for a program.
    assert json.loads(second)["message"] == "serving"
    assert rest[-1] == "vora-serve: serving"


def test_metrics(gateway: LiveGateway, engine: FakeEngine) -> None:
    gateway.show(data_url(make_image(10, 10)), stream=True)
    gateway.chat(n=99)
    engine.status = 500
    gateway.chat()
    text = gateway.client.get("/metrics").text
    route = 'route="/v1/chat/completions"'
    for line in (
        f'vora_gateway_requests_total{{key="anonymous",{route},status="200"}} 1.0',
        'vora_gateway_refused_total{cause="limit_exceeded"} 1.0',
        "vora_gateway_image_pixels_total 100.0",
        'vora_gateway_tokens_total{key="anonymous",kind="image"} 64.0',
        'vora_gateway_time_to_first_token_seconds_count{route="/v1/chat/completions"} 1.0',
        f'vora_gateway_upstream_requests_total{{outcome="ok",upstream="{engine.url}"}} 1.0',
        f'vora_gateway_upstream_requests_total{{outcome="error",upstream="{engine.url}"}} 1.0',
        f'vora_gateway_upstream_up{{upstream="{engine.url}"}} 1.0',
        "vora_gateway_requests_in_flight 0.0",
    ):
        assert line in text, line


def test_labels_stay_bounded(gateway: LiveGateway) -> None:
    for index in range(20):
        gateway.client.get(f"/odd/{index}")
        gateway.client.get(f"/v1/models/odd{index}")
        gateway.chat(model=f"odd{index}")
    text = gateway.client.get("/metrics").text
    assert "odd" not in text
    assert 'route="unmatched"' in text
    assert 'route="/v1/models/{model:path}"' in text


def test_engine_metrics(gateway: LiveGateway, engine: FakeEngine) -> None:
    answer = gateway.client.get("/metrics/engines/0")
    assert answer.status_code == 200
    assert answer.text == "vllm:num_requests_running 0\n"
    engine.metrics_status = 404
    assert gateway.client.get("/metrics/engines/0").status_code == 503
    for index in ("1", "-1", "x", "99999999999", "²"):
        assert gateway.client.get(f"/metrics/engines/{index}").status_code == 404


def test_protected_metrics(engine: FakeEngine, start_gateway: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys: []")
    auth = {"keys_file": str(keys), "protect_metrics": True}
    gateway = start_gateway(engine.url, auth=auth)
    assert gateway.client.get("/metrics").status_code == 401
    assert gateway.client.get("/metrics/engines/0").status_code == 401
    assert gateway.client.get("/metrics/").status_code == 401


def test_traces(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, tracing={"enabled": True})
    spans = InMemorySpanExporter()
    gateway.state.tracer.provider.add_span_processor(SimpleSpanProcessor(spans))
    for processor in gateway.state.tracer.provider._active_span_processor._span_processors[:1]:
        processor.shutdown()  # the exporter to a collector that is not there
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    body: dict[str, Any] = {
        "model": "vora-test",
        "messages": [{"role": "user", "content": "x"}],
    }
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    (span,) = spans.get_finished_spans()
    assert span.name == "POST /v1/chat/completions"
    assert f"{span.context.trace_id:032x}" == trace
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 200
    assert engine.headers[-1]["traceparent"].startswith(f"00-{trace}-{span.context.span_id:016x}")


def test_forwarded_addresses(engine: FakeEngine, start_gateway: Start) -> None:
    """Believed only from a trusted proxy, and then its rightmost untrusted entry."""

    def client_of(gateway: LiveGateway, value: str) -> str:
        handler = Lines()
        access_logger.addHandler(handler)
        access_logger.setLevel("INFO")
        disabled, access_logger.disabled = access_logger.disabled, False
        try:
            gateway.client.get("/v1/models", headers={"x-forwarded-for": value})
            until(lambda: handler.lines)
        finally:
            access_logger.disabled = disabled
            access_logger.removeHandler(handler)
        return str(json.loads(handler.lines[0])["client"])

    assert client_of(start_gateway(engine.url), "9.9.9.9") == "127.0.0.1"
    trusting = start_gateway(engine.url, server={"trusted_proxies": ["127.0.0.1/32", "10.0.0.0/8"]})
    assert client_of(trusting, "6.6.6.6, 9.9.9.9, 10.0.0.1") == "9.9.9.9"
    assert client_of(trusting, "junk") == "127.0.0.1"


def test_cross_origin_requests(engine: FakeEngine, start_gateway: Start) -> None:
    closed = start_gateway(engine.url)
    preflight = {
        "origin": "https://a.test",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    path = "/v1/chat/completions"
    refused = closed.client.options(path, headers=preflight)
    assert "access-control-allow-origin" not in refused.headers
    told = start_gateway(engine.url, server={"cors_origins": ["https://a.test"]})
    allowed = told.client.options(path, headers=preflight)
    assert allowed.headers["access-control-allow-origin"] == "https://a.test"
    other = told.client.options(path, headers={**preflight, "origin": "https://b.test"})
    assert "access-control-allow-origin" not in other.headers


def test_a_fault_of_the_gateways_own(gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered in words that tell nothing, and nothing stays held."""

    async def broken(*_: object) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("/secret/path is broken")

    monkeypatch.setattr(gateway.state.limits, "take_request", broken)
    answer = gateway.chat()
    assert answer.status_code == 500
    assert "secret" not in answer.text
    monkeypatch.undo()
    assert gateway.chat().status_code == 200
    assert gateway.state.bodies.used == 0
    assert not gateway.state.active
