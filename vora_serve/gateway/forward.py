"""Getting one request to an engine: choosing, sending, trying another, judging the outcome."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from vora_core.errors import APIError
from vora_serve.gateway.context import RequestContext
from vora_serve.gateway.engine_errors import from_engine_error, from_transport_error
from vora_serve.gateway.http1 import ConnectError, Headers, HTTPClientError, Response
from vora_serve.gateway.metrics import Metrics
from vora_serve.gateway.settings import RoutingSettings
from vora_serve.gateway.upstreams import Balancer, Exchange, Upstream


@dataclass
class Outgoing:
    """What an engine is to be sent.

    Attributes:
        model: The model's name.
        path: Of the engine's route.
        headers: Without those of the connection.
        body: The JSON; dropped as soon as an engine has begun to answer.
        tokens: What it is expected to cost, for balancing.
        affinity: Requests of the same key go to the same engine while load allows.
    """

    model: str
    path: bytes
    headers: Headers
    body: bytes
    tokens: int
    affinity: bytes


@dataclass
class Answer:
    """An engine's answer, of which the head has arrived.

    Attributes:
        response: To read the body from.
        broken: Set by the reader when the answer broke off although nothing was raised.
    """

    response: Response
    broken: bool = False


class Forwarder:
    """Sends requests to engines.

    Args:
        balancer: Chooses.
        routing: Timeouts and retries.
        metrics: Counts outcomes.
    """

    def __init__(self, balancer: Balancer, routing: RoutingSettings, metrics: Metrics) -> None:
        self._balancer = balancer
        self._routing = routing
        self._metrics = metrics

    @asynccontextmanager
    async def answer(self, outgoing: Outgoing, context: RequestContext) -> AsyncIterator[Answer]:
        """An engine's answer with status 200, for as long as it is read.

        Errors of the transport inside the block count against the engine.

        Raises:
            APIError: no engine could be reached, or the engine refused or broke off.
        """
        tried: set[Upstream] = set()
        while True:
            with _Waiting(context):
                upstream = await self._balancer.choose(outgoing.model, outgoing.affinity, tried)
            with self._balancer.working(upstream, outgoing.tokens):
                try:
                    exchange = await self._send(upstream, outgoing, context)
                except HTTPClientError as error:
                    self._count(upstream, "unreachable", failed=True)
                    tried.add(upstream)
                    if isinstance(error, ConnectError) and self._another(tried):
                        continue  # nothing was sent: safe
                    raise from_transport_error(error) from None
                try:
                    await self._require_success(upstream, exchange)
                    answer = Answer(exchange.response)
                    with self._judging(upstream, answer):
                        yield answer
                finally:
                    exchange.close()
                return

    async def _send(
        self, upstream: Upstream, outgoing: Outgoing, context: RequestContext
    ) -> Exchange:
        with _Waiting(context):
            exchange = await upstream.send(
                b"POST",
                outgoing.path,
                outgoing.headers,
                outgoing.body,
                self._routing.first_byte_timeout_s,
            )
        outgoing.body = b""  # the answer may take minutes: images are not held for as long
        return exchange

    def _another(self, tried: set[Upstream]) -> bool:
        return len(tried) <= self._routing.retries and any(
            upstream not in tried and upstream.available for upstream in self._balancer.upstreams
        )

    async def _require_success(self, upstream: Upstream, exchange: Exchange) -> None:
        response = exchange.response
        if response.status == 200:
            return
        try:
            body = await response.body(2**20, timeout=10)
        except HTTPClientError:
            body = b""
        self._count(upstream, "error", failed=response.status >= 500)
        raise from_engine_error(response.status, body)

    @contextmanager
    def _judging(self, upstream: Upstream, answer: Answer) -> Iterator[None]:
        try:
            yield
        except HTTPClientError as error:
            self._count(upstream, "broken", failed=True)
            raise from_transport_error(error) from None
        except APIError:
            self._count(upstream, "broken", failed=True)
            raise
        else:
            self._count(upstream, "broken" if answer.broken else "ok", failed=answer.broken)

    def _count(self, upstream: Upstream, outcome: str, *, failed: bool) -> None:
        self._metrics.upstream_requests.labels(upstream.name, outcome).inc()
        if failed:
            upstream.breaker.fail()
        else:
            upstream.breaker.succeed()


class _Waiting:
    """Time in here is not the gateway's own."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._began = time.perf_counter()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._context.waited_s += time.perf_counter() - self._began
