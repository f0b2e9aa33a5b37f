"""The routes: a generation request whose body, answer and events are translated on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic_core import from_json, to_json
from starlette.types import Message, Scope, Send

from vora_core.errors import UpstreamError
from vora_serve.gateway.context import SCOPE_KEY
from vora_serve.gateway.generation import GenerationResponse
from vora_serve.gateway.messages.answer import PING, MessageStream, as_message, as_token_count
from vora_serve.gateway.messages.errors import event_body
from vora_serve.gateway.messages.translate import parse_count_tokens, parse_messages
from vora_serve.gateway.schemas import ParsedRequest
from vora_serve.gateway.sse import event_data, split_events
from vora_serve.gateway.state import GatewayState

Tree = dict[str, Any]


class MessagesResponse(GenerationResponse):
    """``POST /v1/messages``."""

    def __init__(self, state: GatewayState) -> None:
        super().__init__("chat", state)
        self._route = "/v1/messages"

    def _parse(self, body: bytes) -> ParsedRequest:
        return parse_messages(body, self._state.settings.fields)

    def _sending(self, scope: Scope, send: Send) -> Send:
        return Translator(send, scope[SCOPE_KEY].request_id, as_message)


class CountTokensResponse(GenerationResponse):
    """``POST /v1/messages/count_tokens``: the engine renders the prompt, images and all."""

    def __init__(self, state: GatewayState) -> None:
        super().__init__("chat", state)
        self._route = "/v1/messages/count_tokens"
        self._engine_path = b"/tokenize"

    def _parse(self, body: bytes) -> ParsedRequest:
        return parse_count_tokens(body, self._state.settings.fields)

    def _sending(self, scope: Scope, send: Send) -> Send:
        return Translator(send, scope[SCOPE_KEY].request_id, as_token_count)


class Translator:
    """An ASGI send that takes a chat's answer and sends what this API makes of it.

    The relay writes whole events only, and any other answer as one piece.
    """

    def __init__(self, send: Send, request_id: str, translate: Callable[[Tree], Tree]) -> None:
        self._send = send
        self._request_id = request_id
        self._translate = translate
        self._start: Message | None = None
        self._stream: MessageStream | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream"):
                self._stream = MessageStream()
                await self._send(message)
            else:
                self._start = message
        elif self._stream is not None:
            events = b"".join(self._events(self._stream, message["body"]))
            await self._send({**message, "body": events})
        else:
            await self._send_translated(message)

    async def _send_translated(self, message: Message) -> None:
        start = self._start
        assert start is not None
        try:
            body = to_json(self._translate(from_json(message["body"])))
        except (IndexError, KeyError, TypeError, ValueError):
            raise UpstreamError("The engine's answer could not be understood.") from None
        kept = [header for header in start["headers"] if header[0] != b"content-length"]
        headers = [*kept, (b"content-length", str(len(body)).encode())]
        await self._send({**start, "headers": headers})
        await self._send({**message, "body": body})

    def _events(self, stream: MessageStream, whole: bytes) -> Iterator[bytes]:
        for event in split_events(whole):
            data = event_data(event)
            if data is None:
                yield PING  # a heartbeat
            elif data == b"[DONE]":
                yield from stream.end()
            else:
                tree = from_json(data)
                if "choices" not in tree and isinstance(tree.get("error"), dict):
                    error = event_body(tree["error"], self._request_id)
                    yield b"event: error\ndata: " + to_json(error) + b"\n\n"
                else:
                    yield from stream.feed(tree)
