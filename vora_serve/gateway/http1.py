"""A small HTTP/1.1 client over asyncio: one connection, one exchange at a time.

Both directions of the gateway need what general clients hide: connecting to an address that was
checked beforehand while the TLS name and ``Host`` stay the URL's, knowing whether a single byte of
an answer has arrived (only then is a retry unsafe), closing the connection the moment a request is
cancelled (which is what stops an engine's work), and reading with backpressure at a cost of
microseconds per chunk. Parsing is llhttp's, through httptools.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import cast

import httptools

HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024
MAX_HEAD_BYTES = 64 * 1024

Headers = list[tuple[bytes, bytes]]


class HTTPClientError(Exception):
    """Root of what can go wrong with an exchange."""


class ConnectError(HTTPClientError):
    """No connection: nothing was sent."""


class BrokenConnectionError(HTTPClientError):
    """The peer closed or reset the connection before the answer was complete."""


class MalformedResponseError(HTTPClientError):
    """The peer's bytes are not an HTTP/1.1 response, or its head is too large."""


class ReadTimeoutError(HTTPClientError):
    """The peer was silent for longer than allowed; the exchange may go on."""


@dataclass(frozen=True)
class Endpoint:
    """Where to connect: a unix socket, or an address (``host`` may be a literal IP) and port."""

    host: str = ""
    port: int = 0
    uds: str | None = None
    tls: ssl.SSLContext | None = None
    server_hostname: str | None = None


@dataclass
class Response:
    """An answer's head; its body is read from the connection."""

    status: int
    headers: Headers
    connection: Connection

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def read(self, timeout: float | None = None) -> bytes:
        """The next piece of the body, ``b""`` at its end."""
        return await self.connection.read(timeout)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's pieces as they arrive."""
        while piece := await self.connection.read():
            yield piece

    async def body(self, limit: int | None = None, timeout: float | None = None) -> bytes:
        """The whole body.

        Raises:
            MalformedResponseError: it exceeds ``limit`` bytes.
        """
        pieces: list[bytes] = []
        size = 0
        while piece := await self.connection.read(timeout):
            size += len(piece)
            if limit is not None and size > limit:
                self.connection.close()
                raise MalformedResponseError("the body is larger than allowed")
            pieces.append(piece)
        return b"".join(pieces)


class Connection(asyncio.Protocol):
    """One connection; an asyncio protocol and httptools' callback object at once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._error: HTTPClientError | None = None
        self._headers: Headers = []
        self._head_bytes = 0
        self._head_done = False
        self._complete = True
        self._framed = False
        self._keep_alive = False
        self._surplus = False
        self.closed = False
        self.received_any = False
        """Whether a byte of the present exchange's answer has arrived."""
        self.idle_since = 0.0

    # ------------------------------------------------------------------ opening and closing

    @classmethod
    async def open(cls, endpoint: Endpoint, timeout: float) -> Connection:
        """Connect.

        Raises:
            ConnectError: no connection within ``timeout`` seconds.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                if endpoint.uds is not None:
                    _, connection = await loop.create_unix_connection(cls, endpoint.uds)
                else:
                    _, connection = await loop.create_connection(
                        cls,
                        endpoint.host,
                        endpoint.port,
                        ssl=endpoint.tls,
                        server_hostname=endpoint.server_hostname if endpoint.tls else None,
                    )
        except (OSError, TimeoutError, UnicodeError, ValueError) as error:
            raise ConnectError(type(error).__name__) from error
        return connection

    async def start_tls(self, context: ssl.SSLContext, name: str, timeout: float) -> None:
        """Encrypt a tunnel that a ``CONNECT`` request has opened.

        Raises:
            ConnectError: no TLS within ``timeout`` seconds.
        """
        assert self._transport is not None
        self._complete = True  # of the answer to CONNECT there is no more to come
        try:
            async with asyncio.timeout(timeout):
                transport = await self._loop.start_tls(
                    self._transport, self, context, server_hostname=name
                )
        except (OSError, TimeoutError, ValueError) as error:
            self.close()
            raise ConnectError(type(error).__name__) from error
        self._transport = cast(asyncio.Transport, transport)

    def close(self) -> None:
        """Drop the connection at once; whatever the peer does for it, it may stop."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on it."""
        return not self.closed and self._complete and self._keep_alive and not self._pieces

    # ------------------------------------------------------------------ asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derives from no class

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._complete:
            self.close()  # bytes that nobody asked for
            return
        self.received_any = True
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._complete:
                self._fail(MalformedResponseError("the answer is not valid HTTP/1.1"))
                return
            self._surplus = True
        if self._surplus:
            self.close()  # bytes behind the answer are not the next request's
            return
        if not self._head_done and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(MalformedResponseError("the answer's headers are too large"))
            return
        if self._buffered > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._complete:
            return
        if self._head_done and not self._framed and exc is None:
            self._complete = True  # a body that ends with the connection
            self._wake()
        else:
            self._fail(BrokenConnectionError("the connection was closed"))

    # ------------------------------------------------------------------ httptools' callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._surplus:
            return
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._surplus:
            return
        if self._parser.get_status_code() < 200:
            self._headers = []
            return
        self._keep_alive = self._parser.should_keep_alive()
        self._head_done = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self._surplus:
            return
        self._pieces.append(body)
        self._buffered += len(body)
        self._wake()

    def on_message_complete(self) -> None:
        if self._head_done:
            self._complete = True
            self._wake()

    # ------------------------------------------------------------------ the exchange

    async def request(
        self,
        method: bytes,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes = b"",
        timeout: float | None = None,
    ) -> Response:
        """Send one request and wait for the answer's head.

        Args:
            method: ``b"GET"``, ``b"POST"``.
            target: Path and query, percent-encoded.
            headers: All of them, ``Host`` included; content-length is added for a body.
            body: The request's body.
            timeout: Seconds until :class:`ReadTimeoutError`.

        Raises:
            BrokenConnectionError, MalformedResponseError, ReadTimeoutError
        """
        if self.closed or self._transport is None:
            raise BrokenConnectionError("the connection was closed")
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._headers = []
        self._head_bytes = 0
        self._head_done = self._complete = self._framed = self._keep_alive = False
        self._surplus = False
        self.received_any = False
        head = [method, b" ", target, b" HTTP/1.1\r\n"]
        for name, value in headers:
            head += (name, b": ", value, b"\r\n")
        if body or method == b"POST":
            head += (b"content-length: ", str(len(body)).encode(), b"\r\n")
        head.append(b"\r\n")
        if len(body) < 65536:
            self._transport.write(b"".join([*head, body]))
        else:
            self._transport.write(b"".join(head))
            self._transport.write(body)
        while not self._head_done:
            await self._wait(timeout)
        return Response(self._parser.get_status_code(), self._headers, self)

    async def read(self, timeout: float | None = None) -> bytes:
        """The next piece of the body, all that has arrived; ``b""`` at its end.

        Raises:
            BrokenConnectionError, MalformedResponseError, ReadTimeoutError
        """
        while not self._pieces:
            if self._complete:
                return b""
            await self._wait(timeout)
        piece = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        if self._paused and self._transport is not None and not self.closed:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def _wait(self, timeout: float | None) -> None:
        if self._error is not None:
            raise self._error
        waiter = self._waiter = self._loop.create_future()
        timer = None
        if timeout is not None:
            timer = self._loop.call_later(timeout, self._expire, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        if self._error is not None and not self._pieces:
            raise self._error

    @staticmethod
    def _expire(waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_exception(ReadTimeoutError("the peer was silent for too long"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: HTTPClientError) -> None:
        self._error = self._error or error
        self.close()
        self._wake()
