"""One engine: its connections, its health, and the work it has."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic_core import from_json

from vora_core.errors import ConfigError
from vora_core.geometry import ImageSettings
from vora_serve.gateway.http1 import (
    BrokenConnectionError,
    Connection,
    Endpoint,
    Headers,
    HTTPClientError,
    Response,
)
from vora_serve.gateway.settings import RoutingSettings, UpstreamSettings
from vora_serve.gateway.upstreams.announcement import announced
from vora_serve.gateway.upstreams.breaker import CircuitBreaker
from vora_serve.gateway.upstreams.pool import ConnectionPool


@dataclass
class Exchange:
    """A request under way at an engine; always ended by :meth:`close`."""

    upstream: Upstream
    connection: Connection
    response: Response
    _open: bool = field(default=True)

    def close(self) -> None:
        """Keep the connection if the answer was read whole, else drop it: the engine stops work."""
        if not self._open:
            return
        self._open = False
        if self.response.status >= 500:
            self.connection.close()  # such an engine may not survive on this connection
        else:
            self.upstream.pool.release(self.connection)


def _endpoint(url: str) -> tuple[Endpoint, bytes, bytes]:
    """Where to connect, the ``Host`` header and the path's prefix."""
    if url.startswith("unix:"):
        return Endpoint(uds=url.removeprefix("unix:").removeprefix("//")), b"localhost", b""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ConfigError(f"The upstream's URL {url} is malformed.") from None
    if not parsed.host or parsed.userinfo or parsed.query:
        raise ConfigError(f"The upstream's URL {url} is malformed.")
    secure = parsed.scheme == "https"
    endpoint = Endpoint(
        host=parsed.host,
        port=parsed.port or (443 if secure else 80),
        tls=ssl.create_default_context() if secure else None,
        server_hostname=parsed.host,
    )
    return endpoint, parsed.netloc, parsed.raw_path.rstrip(b"/")


class Upstream:
    """An engine that speaks OpenAI HTTP, over a unix socket or TCP.

    Args:
        settings: Its URL and limits.
        routing: Times and limits that all engines share.
        name: Its label in logs and metrics.
    """

    def __init__(self, settings: UpstreamSettings, routing: RoutingSettings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.url = settings.url
        self._routing = routing
        endpoint, self._host, self._prefix = _endpoint(settings.url)
        self.pool = ConnectionPool(
            endpoint,
            routing.keep_alive_connections,
            routing.keep_alive_s,
            routing.connect_timeout_s,
        )
        self.breaker = CircuitBreaker(routing.breaker_failures, routing.breaker_open_s)
        self.max_in_flight = settings.max_in_flight or routing.max_in_flight
        self.healthy = False
        self.draining = settings.drain
        self.failed_probes = 0
        self.models: dict[str, dict[str, Any]] = {}
        self.image_settings: dict[str, ImageSettings] = {}
        """By model: how it turns images into pixels, where the engine takes them ready."""
        self.in_flight = 0
        self.outstanding_tokens = 0

    @property
    def available(self) -> bool:
        """Whether it may be given new work, were there room."""
        return self.healthy and not self.draining and self.breaker.allows()

    @property
    def load(self) -> float:
        """Outstanding tokens by weight."""
        return self.outstanding_tokens / self.settings.weight

    def _headers(self, headers: Headers) -> Headers:
        result: Headers = [(b"host", self._host), *headers]
        if self.settings.api_key is not None:
            key = self.settings.api_key.get_secret_value()
            result.append((b"authorization", b"Bearer " + key.encode()))
        return result

    async def send(
        self,
        method: bytes,
        path: bytes,
        headers: Headers,
        body: bytes = b"",
        timeout: float | None = None,
    ) -> Exchange:
        """Send a request and wait for the answer's head.

        A kept-alive connection that turns out to be dead is replaced once, as long as not a byte of
        an answer has arrived.

        Raises:
            HTTPClientError: of which a ConnectError means that nothing was sent.
        """
        connection, reused = await self.pool.acquire()
        while True:
            try:
                response = await connection.request(
                    method, self._prefix + path, self._headers(headers), body, timeout
                )
                return Exchange(self, connection, response)
            except BrokenConnectionError:
                connection.close()
                if not reused or connection.received_any:
                    raise
                connection, reused = await self.pool.acquire(fresh=True)
            except BaseException:
                connection.close()
                raise

    async def get(self, path: bytes, limit: int = 2**20) -> tuple[int, bytes]:
        """A small GET: status and body.

        Raises:
            HTTPClientError, TimeoutError
        """
        async with asyncio.timeout(self._routing.health_timeout_s):
            exchange = await self.send(b"GET", path, [(b"accept", b"*/*")])
            try:
                return exchange.response.status, await exchange.response.body(limit)
            finally:
                exchange.close()

    async def probe(self) -> bool:
        """Ask for its health and, when that is good, for its models."""
        try:
            status, _ = await self.get(b"/health")
            if status == 200:
                status, body = await self.get(b"/v1/models")
            if status == 200:
                cards = from_json(body)["data"]
                self.image_settings = announced(cards)
                self.models = {str(card["id"]): card for card in cards}
        except (HTTPClientError, TimeoutError, ValueError, KeyError, TypeError):
            status = 0
        if status == 200 and self.models:
            self.failed_probes = 0
            if not self.healthy:
                self.breaker.reset()
            self.healthy = True
        else:
            self.failed_probes += 1
            if self.failed_probes >= self._routing.unhealthy_after or (
                status == 0 and not self.models
            ):
                self.healthy = False
        return self.healthy

    def mark_down(self) -> None:
        """Its process is known to be gone: no work until a probe succeeds."""
        self.healthy = False
        self.pool.close()
