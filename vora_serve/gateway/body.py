"""Reading request bodies, bounded in bytes and time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from vora_core.errors import (
    InvalidRequestError,
    RequestTimeoutError,
    RequestTooLargeError,
    UnsupportedMediaTypeError,
)
from vora_serve.gateway.decompress import READERS, decompress
from vora_serve.gateway.memory import Share
from vora_serve.gateway.middleware import find_header


def check_media_type(scope: Scope) -> None:
    """Only JSON is taken, plain or compressed; this also keeps other sites' forms out.

    Raises:
        UnsupportedMediaTypeError
    """
    kind = (find_header(scope, b"content-type") or b"").split(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        raise UnsupportedMediaTypeError("The content type must be application/json.")
    coding = _content_coding(scope)
    if coding is not None and coding not in READERS:
        raise UnsupportedMediaTypeError(
            "The content encoding must be gzip, zstd, deflate or identity.",
            headers={"accept-encoding": "gzip, zstd, deflate"},
        )


def _content_coding(scope: Scope) -> str | None:
    """The body's one coding; None for a plain body."""
    header = find_header(scope, b"content-encoding") or b""
    coding = header.decode("latin-1").strip().lower()
    return None if coding in ("", "identity") else coding


async def read_body(
    scope: Scope, receive: Receive, share: Share, limit: int, timeout: float
) -> bytes:
    """The request's whole body, decompressed.

    Raises:
        RequestTooLargeError, RequestTimeoutError, RateLimitError, InvalidRequestError
        ClientDisconnect: the client left before its end.
    """
    length = find_header(scope, b"content-length")
    too_large = RequestTooLargeError(f"The body exceeds {limit} bytes.")
    if length is not None:
        if not length.isdigit():
            raise InvalidRequestError("The content length is malformed.")
        if int(length) > limit:
            raise too_large
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece = message.get("body", b"")
                size += len(piece)
                if size > limit:
                    raise too_large
                share.grow(len(piece))
                pieces.append(piece)
                more = message.get("more_body", False)
    except TimeoutError:
        raise RequestTimeoutError(
            f"The body did not arrive within {timeout:g} s.", headers={"connection": "close"}
        ) from None
    body = b"".join(pieces) if len(pieces) > 1 else pieces[0]
    coding = _content_coding(scope)
    return body if coding is None else await decompress(body, coding, share, limit)
