"""Reading request bodies, bounded in bytes and time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from vora_serve.errors import (
    InvalidRequestError,
    RequestTimeoutError,
    RequestTooLargeError,
    UnsupportedMediaTypeError,
)
from vora_serve.gateway.memory import Share
from vora_serve.gateway.middleware import find_header


def check_media_type(scope: Scope) -> None:
    """Only plain JSON is taken; this also keeps other sites' forms out.

    Raises:
        UnsupportedMediaTypeError
    """
    kind = (find_header(scope, b"content-type") or b"").split(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        raise UnsupportedMediaTypeError("The content type must be application/json.")
    if (find_header(scope, b"content-encoding") or b"identity").lower() != b"identity":
        raise UnsupportedMediaTypeError("Compressed bodies are not taken.")


async def read_body(
    scope: Scope, receive: Receive, share: Share, limit: int, timeout: float
) -> bytes:
    """The request's whole body.

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
    return b"".join(pieces) if len(pieces) > 1 else pieces[0]
