"""Passing an engine's answer on: streams as they come, other answers with their usage rewritten."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json, to_json
from starlette.types import Send

from vora_core.errors import APIError, UpstreamError
from vora_serve.gateway.engine_errors import from_stream_error, from_transport_error
from vora_serve.gateway.http1 import HTTPClientError, ReadTimeoutError, Response
from vora_serve.gateway.legacy_calls import as_legacy
from vora_serve.gateway.lifetime import Lifetime
from vora_serve.gateway.response_shape import HOLDERS, complete_event, complete_response
from vora_serve.gateway.schemas import Kind
from vora_serve.gateway.schemas.namespaces import Names, restore
from vora_serve.gateway.sse import HEARTBEAT, EventBuffer, event_data, event_name, split_events
from vora_serve.gateway.stored import Turn
from vora_serve.gateway.usage import Usage, rewrite_usage

MAX_ANSWER_BYTES = 128 * 2**20

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_FINAL_RESPONSE_EVENTS = frozenset(
    (b"response.completed", b"response.incomplete", b"response.failed")
)


@dataclass
class StreamState:
    """How far a stream has come; the caller reads it when the stream is over or was cut."""

    kind: Kind
    wants_usage: bool
    legacy_calls: bool = False
    turn: Turn | None = None
    namespaces: Names = field(default_factory=dict)
    final: dict[str, Any] | None = None
    """The finished response, where there is a turn to keep it."""
    usage: Usage | None = None
    done: bool = False
    started: bool = False
    events: int = 0


class StreamRelay:
    """Passes one stream on, event by event.

    An event is only looked into when it may carry usage, an error or the end; all others pass as
    the bytes that came.

    Args:
        state: Filled in as the stream goes.
        send: The ASGI send.
        heartbeat_s: Silence after which a comment line is sent; 0 for never.
        idle_timeout_s: Silence after which the engine counts as hung.
        on_event: Called for every piece with the seconds since the last one; the first has None.
        lifetime: Notes when a write began.
    """

    def __init__(
        self,
        state: StreamState,
        send: Send,
        heartbeat_s: float,
        idle_timeout_s: float,
        on_event: Callable[[float | None], None],
        lifetime: Lifetime,
    ) -> None:
        self.state = state
        self._send = send
        self._heartbeat_s = heartbeat_s
        self._idle_timeout_s = idle_timeout_s
        self._on_event = on_event
        self._lifetime = lifetime
        self._buffer = EventBuffer()
        self._last: float | None = None

    async def _write(self, body: bytes, more: bool = True) -> None:
        self._lifetime.sending_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self._lifetime.sending_since = None

    async def run(self, response: Response) -> None:
        """Relay until the stream's end; an engine that breaks off gives a final error event."""
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": list(_STREAM_HEADERS)}
        )
        self.state.started = True
        try:
            await self._relay(response)
        except HTTPClientError as error:
            await self.finish(from_transport_error(error))
        except APIError as error:
            await self.finish(error)
        else:
            await self.finish(
                None
                if self.state.done
                else UpstreamError("The engine broke off before the answer was complete.")
            )

    async def finish(self, error: APIError | None) -> None:
        """End the stream, with an error event where there is an error."""
        await self._write(self._error_event(error) if error is not None else b"", more=False)

    async def _relay(self, response: Response) -> None:
        step = min(self._heartbeat_s or self._idle_timeout_s, self._idle_timeout_s)
        silent = 0.0
        while True:
            try:
                piece = await response.read(step)
            except ReadTimeoutError:
                silent += step
                if silent >= self._idle_timeout_s:
                    response.connection.close()
                    raise
                if self._heartbeat_s:
                    await self._write(HEARTBEAT)
                continue
            silent = 0.0
            if not piece:
                return
            try:
                whole = self._buffer.feed(piece)
            except ValueError:
                raise UpstreamError("The engine sent an event that is too large.") from None
            if not whole:
                continue
            now = time.perf_counter()
            self._on_event(None if self._last is None else now - self._last)
            self._last = now
            self.state.events += 1
            if (
                b'"usage":{' in whole
                or b"[DONE]" in whole
                or b'"error":' in whole
                or (self.state.kind == "response" and b"event: response." in whole)
                or (self.state.legacy_calls and b"tool_calls" in whole)
            ):
                whole = b"".join(self._look_into(event) for event in split_events(whole))
            if self.state.final is not None and self.state.turn is not None:
                # Before the client learns of the end: the next turn may come at once.
                await self.state.turn.keep(self.state.final)
                self.state.final = None
            if whole:
                await self._write(whole)

    def _look_into(self, event: bytes) -> bytes:
        data = event_data(event)
        if data is None:
            return event
        if data == b"[DONE]":
            self.state.done = True
            return event
        name = event_name(event)
        if name in _FINAL_RESPONSE_EVENTS:
            self.state.done = True
        mends = self.state.kind == "response" and (
            any(holder in data for holder in HOLDERS)
            or (bool(self.state.namespaces) and b'"name":' in data)
        )
        legacy = self.state.legacy_calls and b"tool_calls" in data
        if not mends and not legacy and b'"usage":{' not in data and b'"error":' not in data:
            return event
        try:
            tree = from_json(data)
        except ValueError:
            raise UpstreamError("The engine's answer could not be understood.") from None
        if not isinstance(tree, dict):
            return event
        if isinstance(tree.get("error"), dict) and "choices" not in tree and name is None:
            raise from_stream_error(tree["error"])
        holder: dict[str, Any] = tree
        if isinstance(tree.get("response"), dict):
            holder = tree["response"]
        counted = isinstance(holder.get("usage"), dict)
        if not mends and not counted and not legacy:
            return event
        if mends:
            if self.state.turn is not None and isinstance(tree.get("response"), dict):
                tree["response"] |= self.state.turn.fields
                self.state.final = tree["response"] if self.state.done else None
            complete_event(tree)
            restore(tree, self.state.namespaces)
            name = tree["type"].encode() if name is not None and tree.get("type") else name
        if legacy:
            as_legacy(tree)
        if counted:
            self.state.usage = rewrite_usage(holder["usage"])
        if counted and self.state.kind != "response" and not self.state.wants_usage:
            if not tree.get("choices"):
                return b""  # asked for by the gateway, not by the caller
            del holder["usage"]
        prefix = b"event: " + name + b"\n" if name is not None else b""
        return prefix + b"data: " + to_json(tree) + b"\n\n"

    def _error_event(self, error: APIError) -> bytes:
        if self.state.kind != "response":
            return b"data: " + to_json(error.body()) + b"\n\n"
        body = {
            "type": "error",
            "code": error.code or error.error_type,
            "message": error.message,
            "param": error.param,
            "sequence_number": self.state.events,
        }
        return b"event: error\ndata: " + to_json(body) + b"\n\n"


# In OpenAI's schema these may be null; anything else that has no value is left out there.
_NULLABLE = frozenset(("content", "refusal", "logprobs", "finish_reason"))


def _drop_nulls(tree: dict[str, Any]) -> None:
    for name in [name for name, value in tree.items() if value is None and name not in _NULLABLE]:
        del tree[name]


def _as_openai_has_it(tree: dict[str, Any]) -> None:
    """Leave out what vLLM writes as null where OpenAI writes nothing, in place."""
    _drop_nulls(tree)
    for choice in tree.get("choices", ()):
        if isinstance(choice, dict):
            _drop_nulls(choice)
            if isinstance(choice.get("message"), dict):
                _drop_nulls(choice["message"])
    if isinstance(tree.get("usage"), dict):
        _drop_nulls(tree["usage"])


async def relay_non_streaming(
    kind: Kind,
    response: Response,
    send: Send,
    turn: Turn | None = None,
    legacy_calls: bool = False,
    namespaces: Names | None = None,
) -> Usage | None:
    """Pass a non-streaming answer on: its usage rewritten, without fields that have no value.

    Args:
        kind: Which API.
        response: The engine's answer.
        send: The ASGI send.
        turn: Keeps the answer, where it is one of a conversation that is kept.
        legacy_calls: Whether the caller knows calls only as ``function_call``.
        namespaces: Of the functions that the caller offered in some.

    Raises:
        UpstreamError: it is not a JSON object.
        HTTPClientError: the engine broke off.
    """
    body = await response.body(MAX_ANSWER_BYTES)
    try:
        tree = from_json(body)
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise UpstreamError("The engine's answer could not be understood.")
    usage = None
    if isinstance(tree.get("usage"), dict):
        usage = rewrite_usage(tree["usage"])
    if kind == "response":  # there, most of what may be null must be written
        if turn is not None:
            tree |= turn.fields
        complete_response(tree)
        restore(tree, namespaces or {})
        if turn is not None:
            await turn.keep(tree)
    else:
        _as_openai_has_it(tree)
        if legacy_calls:
            as_legacy(tree)
    body = to_json(tree)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    return usage
