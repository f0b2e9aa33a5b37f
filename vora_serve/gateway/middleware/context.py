"""The outermost layer: identity, errors in OpenAI's shape, log and metrics of every request."""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections.abc import Sequence

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vora_core.errors import (
    APIError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
)
from vora_serve.gateway.context import SCOPE_KEY, RequestContext, request_id_from
from vora_serve.gateway.logs import access_logger, log_access
from vora_serve.gateway.messages.errors import error_body, speaks_messages
from vora_serve.gateway.metrics import Metrics
from vora_serve.gateway.tracing import Tracer

logger = logging.getLogger("vora_serve.gateway")

_QUIET = frozenset(("/health", "/ready", "/metrics"))


def find_header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def send_error(error: APIError, send: Send, path: str = "", request_id: str = "") -> None:
    """Answer with an error, in the shape of the path's API."""
    if speaks_messages(path):
        body = to_json(error_body(error.status, error.message, request_id))
    else:
        body = to_json(error.body())
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
    headers += [(name.encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def as_api_error(error: Exception) -> APIError:
    """The error that the caller gets for an exception."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return NotFoundError("There is no such page.", code="not_found")
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow") or (error.headers or {}).get("allow")
            return MethodNotAllowedError(
                "This method is not allowed here.", headers={"allow": allowed} if allowed else {}
            )
        return InvalidRequestError("The request is invalid.")
    return InternalError("The gateway failed; the fault is its own.")


class ContextMiddleware:
    """Pure ASGI. Gives each request a context and makes sure that it ends in an answer.

    Args:
        app: The next layer.
        metrics: Where requests are counted.
        tracer: What makes their spans.
        trusted_proxies: Networks whose ``X-Forwarded-For`` is believed.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracer: Tracer,
        trusted_proxies: Sequence[str] = (),
    ) -> None:
        self._app = app
        self._tracer = tracer
        self._metrics = metrics
        self._proxies = [ipaddress.ip_network(text) for text in trusted_proxies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # websockets are not served
        context = RequestContext(
            request_id=request_id_from(find_header(scope, b"x-request-id")),
            client=self._client(scope),
        )
        scope[SCOPE_KEY] = context
        if self._tracer.enabled and scope["path"] not in _QUIET:
            parent = find_header(scope, b"traceparent")
            context.span = self._tracer.start(
                f"{scope['method']} request",
                parent.decode("latin-1") if parent else None,
                {"http.request.method": scope["method"], "vora.request_id": context.request_id},
            )
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                overhead = context.overhead_s()
                headers = [
                    *message["headers"],
                    (b"x-request-id", context.request_id.encode()),
                    (b"x-vora-overhead-ms", f"{overhead * 1000:.2f}".encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                if speaks_messages(scope["path"]):
                    headers.append((b"request-id", context.request_id.encode()))
                if context.images:
                    headers.append((b"x-vora-images", context.images.encode("ascii")))
                if context.dropped_fields:
                    names = ", ".join(context.dropped_fields)
                    headers.append(
                        (b"x-vora-dropped-fields", names.encode("ascii", "replace")[:1024])
                    )
                message = {**message, "headers": headers}
                context.fields["overhead_ms"] = round(overhead * 1000, 2)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            answer = as_api_error(error)
            if isinstance(answer, InternalError):
                logger.error("request %s failed", context.request_id, exc_info=error)
            else:
                self._metrics.refused.labels(answer.code or answer.error_type).inc()
            context.fields["error"] = answer.code or answer.error_type
            if status == 0:
                await send_error(answer, send_with_headers, scope["path"], context.request_id)
        finally:
            self._account(scope, context, status)

    def _account(self, scope: Scope, context: RequestContext, status: int) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        elapsed = time.perf_counter() - context.started
        if context.span is not None:
            context.span.update_name(f"{scope['method']} {route}")
            context.span.set_attribute("http.route", route)
            context.span.set_attribute("http.response.status_code", status or 499)
            for name, value in context.fields.items():
                context.span.set_attribute(f"vora.{name}", value)
            context.span.end()
        # 499, as proxies have it: the client left before there was an answer.
        self._metrics.requests.labels(route, str(status or 499), context.key.name).inc()
        self._metrics.duration.labels(route).observe(elapsed)
        if scope["path"] not in _QUIET and not access_logger.disabled:
            fields = {
                "request_id": context.request_id,
                "method": scope["method"],
                "path": route if route != "unmatched" else scope["path"][:100],
                "status": status or 499,
                "duration_ms": round(elapsed * 1000, 1),
                "key": context.key.name,
                "client": context.client,
                **context.fields,
            }
            log_access(fields)

    def _client(self, scope: Scope) -> str:
        peer = scope.get("client")
        host = str(peer[0]) if peer else "local"
        forwarded = find_header(scope, b"x-forwarded-for") if self._proxies else None
        if forwarded is None:
            return host
        # From the right, the first address that is no trusted proxy's.
        for part in [host, *reversed(forwarded.decode("latin-1").split(","))]:
            try:
                address = ipaddress.ip_address(part.strip())
            except ValueError:
                return host
            host = str(address)
            if not any(address.version == net.version and address in net for net in self._proxies):
                return host
        return host
