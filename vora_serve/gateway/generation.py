"""One generation request, from its body to the last byte of its answer."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from starlette.requests import ClientDisconnect
from starlette.responses import Response as StarletteResponse
from starlette.types import Receive, Scope, Send

from vora_serve.errors import APIError, DeadlineError, NotFoundError, UnavailableError
from vora_serve.gateway.body import check_media_type, read_body
from vora_serve.gateway.context import SCOPE_KEY, RequestContext
from vora_serve.gateway.engine_errors import from_engine_error, from_transport_error
from vora_serve.gateway.http1 import ConnectError, Headers, HTTPClientError
from vora_serve.gateway.relay import StreamRelay, StreamState, relay_whole
from vora_serve.gateway.schemas import Kind, ParsedRequest, parse_request
from vora_serve.gateway.state import GatewayState
from vora_serve.gateway.upstreams import Exchange, Upstream
from vora_serve.gateway.usage import Usage

logger = logging.getLogger("vora_serve.gateway")

PATHS: dict[Kind, bytes] = {
    "chat": b"/v1/chat/completions",
    "completion": b"/v1/completions",
    "response": b"/v1/responses",
}

_TOKENS_PER_IMAGE = 1024  # for balancing only
_TOKENS_UNSAID = 256


class GenerationResponse(StarletteResponse):
    """An ASGI response that does the whole work when it is called.

    It needs ``receive`` beside ``send``: a disconnect cancels whatever the request is doing, and
    with it the engine's work, in every phase.

    Args:
        kind: Which API.
        state: The gateway's shared state.
    """

    def __init__(self, kind: Kind, state: GatewayState) -> None:
        # Deliberately not the base class's initialiser: there is no body to render.
        self.background = None
        self.status_code = 200
        self._kind = kind
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _Generation(self._kind, self._state, scope, receive, send).run()


class _Generation:
    """The state of one request."""

    def __init__(
        self, kind: Kind, state: GatewayState, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.kind: Kind = kind
        self.state = state
        self.settings = state.settings
        self.scope = scope
        self.receive = receive
        self.send = send
        self.context: RequestContext = scope[SCOPE_KEY]
        self.stream: StreamState | None = None
        self.relay: StreamRelay | None = None
        self.body = b""
        """What the engine is sent; kept until it begins to answer."""
        self.interrupted: Literal["disconnect", "deadline", "stalled"] | None = None

    # ------------------------------------------------------------------ life cycle

    async def run(self) -> None:
        """Serve the request; a disconnect or the deadline cancels it wherever it is.

        Raises:
            APIError: before the answer has begun.
        """
        if self.state.closing:
            raise UnavailableError(
                "The gateway is shutting down.",
                code="draining",
                retry_after=1,
                headers={"connection": "close"},
            )
        task = asyncio.current_task()
        assert task is not None
        with self.state.bodies.share() as share:
            self.share = share
            check_media_type(self.scope)
            began = time.perf_counter()
            try:
                body = await read_body(
                    self.scope,
                    self.receive,
                    share,
                    self.settings.server.max_body_bytes,
                    self.settings.server.body_timeout_s,
                )
            except ClientDisconnect:
                self._left()
                return
            self.context.waited_s += time.perf_counter() - began
            parsed = parse_request(self.kind, body, self.settings.fields)
            del body
            loop = asyncio.get_running_loop()
            deadline = loop.call_later(
                self.settings.admission.request_timeout_s, self._interrupt, task, "deadline"
            )
            watcher = loop.create_task(self._watch(task))
            self.state.active.add(self)
            self.task = task
            try:
                await self._serve(parsed)
            except asyncio.CancelledError:
                if self.interrupted is None:
                    raise  # the server is stopping
                task.uncancel()
                await self._after_interruption()
            finally:
                deadline.cancel()
                watcher.cancel()
                self.state.active.discard(self)

    async def _watch(self, task: asyncio.Task[None]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self._interrupt(task, "disconnect")

    def _interrupt(
        self, task: asyncio.Task[None], why: Literal["disconnect", "deadline", "stalled"]
    ) -> None:
        if self.interrupted is None:
            self.interrupted = why
            task.cancel()

    def drop_if_stalled(self, now: float, limit: float) -> None:
        """Cut a client that has taken nothing for ``limit`` seconds."""
        since = self.stream.sending_since if self.stream is not None else None
        if since is not None and now - since > limit:
            self._interrupt(self.task, "stalled")

    def cut(self) -> None:
        """The server's grace period is over."""
        self._interrupt(self.task, "deadline")

    async def _after_interruption(self) -> None:
        if self.interrupted == "deadline":
            error = DeadlineError("The request was not finished by its deadline.")
            if self.relay is None or not self.relay.state.started:
                raise error
            await self.relay.finish(error)
            return
        self._left()

    def _left(self) -> None:
        self.state.metrics.disconnects.labels(self.context.phase).inc()
        self.context.fields["disconnected"] = self.context.phase

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Time in here is not the gateway's own."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.context.waited_s += time.perf_counter() - began

    # ------------------------------------------------------------------ phases

    async def _serve(self, parsed: ParsedRequest) -> None:
        context, key = self.context, self.context.key
        context.dropped_fields = parsed.dropped
        context.fields["model"] = parsed.model[:100]
        if self.settings.logging.prompts:
            context.fields["prompt"] = parsed.prefix
        if key.models is not None and parsed.model not in key.models:
            raise NotFoundError(
                "The model does not exist, or this key may not use it.",
                param="model",
                code="model_not_found",
            )
        self.state.balancer.require_model(parsed.model)
        self.state.images.check(parsed.images)
        caller = key.name if not self.state.keys.open else context.client
        await self.state.limits.take_request(caller, key.requests)
        await self.state.limits.check_tokens(caller, key.tokens)
        metrics = self.state.metrics
        context.phase = "queue"
        metrics.queued.inc()
        slot = self.state.queue.slot(
            caller,
            priority=key.priority,
            cap=key.max_in_flight or self.settings.admission.max_in_flight_per_key,
            queue_cap=(
                key.max_queued
                if key.max_queued is not None
                else self.settings.admission.max_queued_per_key
            ),
        )
        began = time.perf_counter()
        try:
            await slot.__aenter__()
        finally:
            waited = time.perf_counter() - began
            context.waited_s += waited
            metrics.queued.dec()
            metrics.queue.observe(waited)
        metrics.in_flight.inc()
        try:
            usage = await self._admitted(parsed)
        finally:
            metrics.in_flight.dec()
            await slot.__aexit__(None, None, None)
        if usage is not None:
            await self.state.limits.use_tokens(caller, key.tokens, usage.total)

    async def _admitted(self, parsed: ParsedRequest) -> Usage | None:
        digest = None
        if parsed.images:
            digest = await self._load_images(parsed)
        if parsed.stream and self.kind != "response":
            options = parsed.payload.setdefault("stream_options", {})
            options["include_usage"] = True
        if self.kind == "response":
            parsed.payload["store"] = False
        self.body = parsed.encode()
        self.share.grow(len(self.body))
        context = self.context
        context.phase = "prefill"
        # Never the caller's: two requests of one id would be mixed up inside the engine.
        headers: Headers = [
            (b"content-type", b"application/json"),
            (b"accept", b"text/event-stream" if parsed.stream else b"application/json"),
            (b"x-request-id", secrets.token_hex(16).encode()),
        ]
        traceparent = self.state.tracer.traceparent(context.span)
        if traceparent is not None:
            headers.append((b"traceparent", traceparent))
        tokens = (
            parsed.text_chars // 4
            + _TOKENS_PER_IMAGE * len(parsed.images)
            + parsed.choices * (parsed.max_tokens or _TOKENS_UNSAID)
        )
        affinity = hashlib.blake2b(parsed.prefix.encode("utf-8", "replace"), digest_size=16)
        if digest is not None:
            affinity = hashlib.blake2b(digest, digest_size=16)
        return await self._at_an_engine(parsed, headers, tokens, affinity.digest())

    async def _load_images(self, parsed: ParsedRequest) -> bytes:
        context, metrics = self.context, self.state.metrics
        context.phase = "images"
        loaded = await self.state.images.load(parsed.images, self.share)
        parsed.place_images(loaded.urls)
        context.waited_s += loaded.fetch_s
        context.fields["images"] = len(loaded.urls)
        metrics.images.inc(len(loaded.urls))
        metrics.image_bytes.inc(loaded.bytes)
        metrics.image_pixels.inc(loaded.pixels)
        metrics.fetch.observe(loaded.fetch_s)
        metrics.decode.observe(loaded.decode_s)
        first = loaded.urls[0]
        return hashlib.blake2b(first[:65536].encode(), digest_size=16).digest()

    async def _at_an_engine(
        self,
        parsed: ParsedRequest,
        headers: Headers,
        tokens: int,
        affinity: bytes,
    ) -> Usage | None:
        """Send it to an engine; to another one if that could not even be reached."""
        tried: set[Upstream] = set()
        balancer = self.state.balancer
        while True:
            with self._waiting():
                upstream = await balancer.choose(parsed.model, affinity, tried)
            with balancer.working(upstream, tokens):
                try:
                    with self._waiting():
                        exchange = await upstream.send(
                            b"POST",
                            PATHS[self.kind],
                            headers,
                            self.body,
                            self.settings.routing.first_byte_timeout_s,
                        )
                except HTTPClientError as error:
                    self._outcome(upstream, "unreachable", failed=True)
                    tried.add(upstream)
                    again = len(tried) <= self.settings.routing.retries and any(
                        other not in tried and other.available for other in balancer.upstreams
                    )
                    if isinstance(error, ConnectError) and again:
                        continue  # nothing was sent: safe
                    raise from_transport_error(error) from None
                # The answer may take minutes: pictures are not held for as long.
                self.body = b""
                parsed.forget()
                self.share.release()
                try:
                    return await self._pass_on(parsed, upstream, exchange)
                finally:
                    exchange.close()

    async def _pass_on(
        self, parsed: ParsedRequest, upstream: Upstream, exchange: Exchange
    ) -> Usage | None:
        response = exchange.response
        if response.status != 200:
            try:
                body = await response.body(2**20, timeout=10)
            except HTTPClientError:
                body = b""
            self._outcome(upstream, "error", failed=response.status >= 500)
            raise from_engine_error(response.status, body)
        kind = response.header(b"content-type") or b""
        try:
            if kind.startswith(b"text/event-stream"):
                usage = await self._pass_stream_on(parsed, exchange)
            else:
                self.context.phase = "decode"
                usage = await relay_whole(self.kind, response, self.send)
        except (HTTPClientError, APIError) as error:
            self._outcome(upstream, "broken", failed=True)
            if isinstance(error, HTTPClientError):
                raise from_transport_error(error) from None
            raise
        else:
            broken = self.stream is not None and not self.stream.done
            self._outcome(upstream, "broken" if broken else "ok", failed=broken)
        if usage is not None:
            self._count_tokens(usage)
        return usage

    async def _pass_stream_on(self, parsed: ParsedRequest, exchange: Exchange) -> Usage | None:
        self.stream = StreamState(self.kind, parsed.wants_usage)
        self.relay = StreamRelay(
            self.stream,
            self.send,
            self.settings.streams.heartbeat_s,
            self.settings.routing.idle_timeout_s,
            self._on_event,
        )
        self.context.fields["stream"] = True
        self.state.metrics.overhead.labels(self._route).observe(self.context.overhead_s())
        await self.relay.run(exchange.response)
        return self.stream.usage

    @property
    def _route(self) -> str:
        return PATHS[self.kind].decode()

    def _on_event(self, since_last: float | None) -> None:
        if since_last is None:
            self.context.phase = "decode"
            elapsed = time.perf_counter() - self.context.started
            self.state.metrics.first_token.labels(self._route).observe(elapsed)
            self.context.fields["ttft_ms"] = round(elapsed * 1000, 1)
        else:
            self.state.metrics.inter_token.observe(since_last)

    def _outcome(self, upstream: Upstream, outcome: str, *, failed: bool) -> None:
        self.state.metrics.upstream_requests.labels(upstream.name, outcome).inc()
        if failed:
            upstream.breaker.fail()
        else:
            upstream.breaker.succeed()

    def _count_tokens(self, usage: Usage) -> None:
        name = self.context.key.name
        for kind in ("prompt", "completion", "cached", "image"):
            count = getattr(usage, kind)
            self.context.fields[f"{kind}_tokens"] = count
            if count:
                self.state.metrics.tokens.labels(kind, name).inc(count)
