"""HTTP/1.1 towards clients: uvicorn's, with few writes and without other protocols."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vora_serve.gateway.lifetime import CLIENT_KEY, Client

_OF_THE_OFFER = frozenset((b"upgrade", b"http2-settings"))


_AT_ONCE = 64 * 1024


class _BatchingTransport:
    """Joins what is written in one turn of the event loop.

    uvicorn writes a head and its body apart; the second system call, and what the peer does about
    its packet, cost a short answer a twentieth of its CPU time.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pending: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(data)
        self._size += len(data)
        if self._size > _AT_ONCE:  # so that writers notice a peer that does not read
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            pending, self._pending, self._size = self._pending, [], 0
            self._transport.write(pending[0] if len(pending) == 1 else b"".join(pending))

    def close(self) -> None:
        self._flush()
        self._transport.close()


class GatewayProtocol(HttpToolsProtocol):
    """Serves a request that carries ``Upgrade`` as if it did not (RFC 9110, section 7.8).

    The parser takes such a request to end with its header, and what follows to be the other
    protocol. So its header is parsed again without the offer, and its body after that. Stock Java
    clients offer ``h2c`` with every request.
    """

    _offered = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        self._client = Client()
        batching = _BatchingTransport(transport, self.loop)
        super().connection_made(cast(asyncio.Transport, batching))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the requests that nobody waits for any more."""
        self._client.leave()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Begin the request, unless its header has to be parsed again."""
        self._offered = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._offered:
            cast(dict[str, Any], self.scope)[CLIENT_KEY] = self._client
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request."""
        if not self._offered:
            super().on_message_complete()
            if not self.pipeline:
                # A large body's last piece has stopped the reading, which nobody would start again;
                # then a client could leave unnoticed.
                self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        self._unset_keepalive_if_required()
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as offer:
                    if not self._offered:  # CONNECT: answered, and nothing behind it is a request
                        return
                    data = self._head_without_offer() + data[offer.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name in _OF_THE_OFFER:
                continue
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(
                    option for option in options if option.lower() not in _OF_THE_OFFER
                )
            lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])
