"""One generation request, from its body to the last byte of its answer.

A pipeline of steps with one job each: read and parse the body, check what the caller may do, load
images, wait for a place, forward to an engine, relay the answer, count what was used. A
:class:`Lifetime` around all of it ends the request in any step, and with it the engine's work.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.responses import Response as StarletteResponse
from starlette.types import Receive, Scope, Send

from vora_core.errors import DeadlineError, NotFoundError, UnavailableError
from vora_serve.gateway.body import check_media_type, read_body
from vora_serve.gateway.context import SCOPE_KEY, RequestContext
from vora_serve.gateway.forward import Answer, Outgoing
from vora_serve.gateway.http1 import Headers
from vora_serve.gateway.lifetime import CLIENT_KEY, Lifetime
from vora_serve.gateway.memory import Share
from vora_serve.gateway.relay import StreamRelay, StreamState, relay_non_streaming
from vora_serve.gateway.schemas import Kind, ParsedRequest, parse_request
from vora_serve.gateway.state import GatewayState
from vora_serve.gateway.usage import Usage

PATHS: dict[Kind, bytes] = {
    "chat": b"/v1/chat/completions",
    "completion": b"/v1/completions",
    "response": b"/v1/responses",
}

_TOKENS_PER_IMAGE = 1024  # for balancing only
_TOKENS_UNSAID = 256
_OFFLINE = 1000  # more than the whole range of keys' priorities


class GenerationResponse(StarletteResponse):
    """An ASGI response that does the whole work when it is called.

    A disconnect cancels whatever the request is doing, and with it the engine's work, in every
    phase.

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
        self._route = PATHS[kind].decode()
        self._engine_path = PATHS[kind]

    def _parse(self, body: bytes) -> ParsedRequest:
        """The request in a body; other APIs translate theirs here."""
        return parse_request(self._kind, body, self._state.settings.fields)

    async def _read(self, body: bytes, _: RequestContext, __: Share) -> ParsedRequest:
        """The request in a body, with what the gateway keeps for it."""
        return self._parse(body)

    def _sending(self, _: Scope, send: Send) -> Send:
        """Where the answer goes; other APIs translate theirs here."""
        return send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request.

        Raises:
            APIError: before the answer has begun.
        """
        state = self._state
        if state.closing:
            raise UnavailableError(
                "The gateway is shutting down.",
                code="draining",
                retry_after=1,
                headers={"connection": "close"},
            )
        context: RequestContext = scope[SCOPE_KEY]
        bodies = state.offline_bodies if context.offline else state.bodies
        with bodies.share() as share:
            check_media_type(scope)
            began = time.perf_counter()
            limits = state.settings.server
            try:
                body = await read_body(
                    scope, receive, share, limits.max_body_bytes, limits.body_timeout_s
                )
            except ClientDisconnect:
                _count_disconnect(state, context)
                return
            context.waited_s += time.perf_counter() - began
            parsed = await self._read(body, context, share)
            del body
            lifetime = Lifetime(scope.get(CLIENT_KEY), state.settings.admission.request_timeout_s)
            generation = _Generation(
                self._kind, state, context, share, lifetime, self._sending(scope, send)
            )
            generation.route, generation.engine_path = self._route, self._engine_path
            async with lifetime.bound(state.active):
                await generation.serve(parsed)
            if lifetime.interrupted == "deadline":
                await generation.end_at_deadline()
            elif lifetime.interrupted is not None:
                _count_disconnect(state, context)


class _Generation:
    """The steps of one request, in the order in which they are taken."""

    def __init__(
        self,
        kind: Kind,
        state: GatewayState,
        context: RequestContext,
        share: Share,
        lifetime: Lifetime,
        send: Send,
    ) -> None:
        self._kind: Kind = kind
        self.route = PATHS[kind].decode()
        self.engine_path = PATHS[kind]
        self._state = state
        self._context = context
        self._share = share
        self._lifetime = lifetime
        self._send = send
        self._key = context.key
        self._caller = context.client if state.keys.open else context.key.name
        self._tenant = state.tenant(context)
        self._priority = context.key.priority
        if context.offline:  # with caps and rate limits of its own, and behind all others
            self._caller = f"batch {self._caller}"
            self._priority -= _OFFLINE
        self._relay: StreamRelay | None = None
        self._model = ""

    async def serve(self, parsed: ParsedRequest) -> None:
        """All steps after parsing."""
        self._describe(parsed)
        await self._authorize(parsed)
        with self._state.adapters.using(parsed.model):
            usage = await self._generate(parsed)
        if usage is not None:
            self._count_tokens(usage)
            limits = self._state.limits
            await limits.use_tokens(self._caller, self._key.tokens, usage.total)
            await limits.budgets.use(self._tenant, self._key.budgets, usage.total)

    async def _generate(self, parsed: ParsedRequest) -> Usage | None:
        """From images to the answer's end; what it used."""
        digest = await self._load_images(parsed)
        async with self._admitted():
            outgoing = self._outgoing(parsed, digest)
            async with self._state.forwarder.answer(outgoing, self._context) as answer:
                parsed.forget()
                self._share.release()
                return await self._pass_on(parsed, answer)

    async def end_at_deadline(self) -> None:
        """Tell the client that time is up: as an event where a stream has begun.

        Raises:
            DeadlineError: nothing has been sent yet.
        """
        error = DeadlineError("The request was not finished by its deadline.")
        if self._relay is None or not self._relay.state.started:
            raise error
        await self._relay.finish(error)

    def _describe(self, parsed: ParsedRequest) -> None:
        self._context.dropped_fields = parsed.dropped
        self._context.fields["model"] = parsed.model[:100]
        if self._state.settings.logging.prompts:
            self._context.fields["prompt"] = parsed.prefix

    async def _authorize(self, parsed: ParsedRequest) -> None:
        """Refuse what this caller may not do, or what could not be served anyway."""
        state, key = self._state, self._key
        if key.models is not None and parsed.model not in key.models:
            raise NotFoundError(
                "The model does not exist, or this key may not use it.",
                param="model",
                code="model_not_found",
            )
        state.balancer.require_model(parsed.model)
        self._model = parsed.model
        state.metrics.model_requests.labels(parsed.model).inc()
        state.images.check(parsed.images)
        state.documents.check(parsed.documents)
        await state.limits.take_request(self._caller, key.requests)
        await state.limits.check_tokens(self._caller, key.tokens)
        await state.limits.budgets.check(self._tenant, key.budgets)

    async def _load_images(self, parsed: ParsedRequest) -> bytes | None:
        """Put the images where the request names them; a digest of the first, for affinity.

        Done before a place is taken: a slow image host holds up no other request. What could only
        wait in a full queue afterwards is refused first.
        """
        if not parsed.images and not parsed.documents:
            return None
        context, metrics = self._context, self._state.metrics
        self._state.queue.require_room(self._caller, self._queue_cap)
        context.phase = "images"
        if parsed.documents:
            await self._render_files(parsed)
        geometry = self._state.balancer.image_settings(parsed.model)
        loaded = await self._state.images.load(parsed.images, self._share, geometry, self._caller)
        self._share.shrink(parsed.place_images(loaded.urls))
        context.images = loaded.summary()
        context.waited_s += loaded.fetch_s
        context.fields["images"] = len(loaded.urls)
        metrics.images.inc(len(loaded.urls))
        metrics.image_bytes.inc(loaded.bytes)
        metrics.image_pixels.inc(loaded.pixels)
        metrics.fetch.observe(loaded.fetch_s)
        metrics.decode.observe(loaded.decode_s)
        return loaded.urls[0][:65536].encode()

    async def _render_files(self, parsed: ParsedRequest) -> None:
        """Make images of the files' pages."""
        metrics = self._state.metrics
        rendered = await self._state.documents.load(
            parsed.documents, len(parsed.images), self._share, self._caller, self._key.tenant
        )
        self._share.shrink(parsed.place_pages(rendered.pages))
        self._context.waited_s += rendered.fetch_s
        self._context.fields["files"] = len(rendered.pages)
        metrics.files.inc(len(rendered.pages))
        metrics.pages.inc(sum(map(len, rendered.pages)))
        metrics.file_render.observe(rendered.render_s)

    @property
    def _queue_cap(self) -> int | None:
        own = self._key.max_queued
        return own if own is not None else self._state.settings.admission.max_queued_per_key

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        """A place in flight, waited for in turn."""
        metrics, context = self._state.metrics, self._context
        context.phase = "queue"
        slot = self._state.queue.slot(
            self._caller,
            tenant=self._tenant,
            weight=self._key.weight,
            priority=self._priority,
            cap=self._key.max_in_flight or self._state.settings.admission.max_in_flight_per_key,
            queue_cap=self._queue_cap,
        )
        began = time.perf_counter()
        entered = False

        def leave_queue() -> None:
            waited = time.perf_counter() - began
            context.waited_s += waited
            metrics.queued.dec()
            metrics.queue.observe(waited)

        metrics.queued.inc()
        try:
            async with slot:
                entered = True
                leave_queue()
                metrics.in_flight.inc()
                try:
                    yield
                finally:
                    metrics.in_flight.dec()
        finally:
            if not entered:
                leave_queue()

    def _outgoing(self, parsed: ParsedRequest, digest: bytes | None) -> Outgoing:
        """What the engine is sent."""
        if self._kind == "response":
            parsed.payload["store"] = False
        elif parsed.stream:
            parsed.payload.setdefault("stream_options", {})["include_usage"] = True
        if not self._state.keys.open and self._state.settings.auth.isolate_caches:
            # A caller's own salt divides its tenant's cache further, and never reaches another's.
            own = parsed.payload.get("cache_salt", "")
            parsed.payload["cache_salt"] = self._key.cache_salt + own
        body = parsed.encode()
        self._share.grow(len(body))
        self._context.phase = "prefill"
        # Never the caller's id: two requests of one id would be mixed up inside the engine.
        headers: Headers = [
            (b"content-type", b"application/json"),
            (b"accept", b"text/event-stream" if parsed.stream else b"application/json"),
            (b"x-request-id", secrets.token_hex(16).encode()),
        ]
        traceparent = self._state.tracer.traceparent(self._context.span)
        if traceparent is not None:
            headers.append((b"traceparent", traceparent))
        tokens = (
            parsed.text_chars // 4
            + _TOKENS_PER_IMAGE * len(parsed.images)
            + parsed.choices * (parsed.max_tokens or _TOKENS_UNSAID)
        )
        same = digest if digest is not None else parsed.prefix.encode("utf-8", "replace")
        affinity = hashlib.blake2b(same, digest_size=16).digest()
        return Outgoing(parsed.model, self.engine_path, headers, body, tokens, affinity)

    async def _pass_on(self, parsed: ParsedRequest, answer: Answer) -> Usage | None:
        """Relay the answer; what it used."""
        kind = answer.response.header(b"content-type") or b""
        if not kind.startswith(b"text/event-stream"):
            self._context.phase = "decode"
            return await relay_non_streaming(
                self._kind,
                answer.response,
                self._send,
                turn=parsed.turn,
                legacy_calls=parsed.legacy_calls,
                namespaces=parsed.namespaces,
            )
        state = StreamState(
            self._kind,
            parsed.wants_usage,
            legacy_calls=parsed.legacy_calls,
            turn=parsed.turn,
            namespaces=parsed.namespaces,
        )
        settings = self._state.settings
        self._relay = StreamRelay(
            state,
            self._send,
            settings.streams.heartbeat_s,
            settings.routing.idle_timeout_s,
            self._on_event,
            self._lifetime,
        )
        self._context.fields["stream"] = True
        self._state.metrics.overhead.labels(self.route).observe(self._context.overhead_s())
        await self._relay.run(answer.response)
        answer.broken = not state.done
        return state.usage

    def _on_event(self, since_last: float | None) -> None:
        if since_last is None:
            self._context.phase = "decode"
            elapsed = time.perf_counter() - self._context.started
            self._state.metrics.first_token.labels(self.route).observe(elapsed)
            self._context.fields["ttft_ms"] = round(elapsed * 1000, 1)
        else:
            self._state.metrics.inter_token.observe(since_last)

    def _count_tokens(self, usage: Usage) -> None:
        for kind in ("prompt", "completion", "cached", "image"):
            count = getattr(usage, kind)
            self._context.fields[f"{kind}_tokens"] = count
            if count:
                self._state.metrics.tokens.labels(kind, self._key.name).inc(count)
                self._state.metrics.model_tokens.labels(kind, self._model).inc(count)


def _count_disconnect(state: GatewayState, context: RequestContext) -> None:
    state.metrics.disconnects.labels(context.phase).inc()
    context.fields["disconnected"] = context.phase
