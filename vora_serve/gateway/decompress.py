"""Compressed request bodies, inflated step by step so that none grows beyond its bound."""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import Callable

import zstandard

from vora_core.errors import InvalidRequestError, RequestTooLargeError
from vora_serve.gateway.memory import Share

_STEP_BYTES = 2**20
_MAX_WINDOW_BYTES = 8 * 2**20  # RFC 9659's bound for content codings
_GZIP = 16 + zlib.MAX_WBITS

Read = Callable[[int], bytes]


class _ZlibReader:
    """One gzip or zlib stream; anything behind its end is an error, as is a missing end."""

    def __init__(self, body: bytes, wbits: int) -> None:
        self._inflate = zlib.decompressobj(wbits)
        self._rest = body

    def read(self, size: int) -> bytes:
        if self._inflate.eof:
            return b""
        piece = self._inflate.decompress(self._rest, size)
        self._rest = self._inflate.unconsumed_tail
        if self._inflate.eof:
            if self._inflate.unused_data:
                raise zlib.error("there is data behind the end")
        elif not piece:
            raise zlib.error("the end is missing")
        return piece


def _gzip(body: bytes) -> Read:
    return _ZlibReader(body, _GZIP).read


def _deflate(body: bytes) -> Read:
    return _ZlibReader(body, zlib.MAX_WBITS).read


def _zstd(body: bytes) -> Read:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    return decompressor.stream_reader(io.BytesIO(body), read_across_frames=True).read


READERS: dict[str, Callable[[bytes], Read]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}


async def decompress(body: bytes, coding: str, share: Share, limit: int) -> bytes:
    """The body behind a content coding.

    Args:
        body: What arrived; already counted in ``share``.
        coding: One of :data:`READERS`.
        share: The request's memory, which then counts the result instead.
        limit: Bytes that the result may have.

    Raises:
        InvalidRequestError: it is not in that coding, or ends early.
        RequestTooLargeError: the result would exceed the limit.
        RateLimitError: no memory for it.
    """
    read = READERS[coding](body)
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := await asyncio.to_thread(read, _STEP_BYTES):
            size += len(piece)
            if size > limit:
                raise RequestTooLargeError(f"The decompressed body exceeds {limit} bytes.")
            share.grow(len(piece))
            pieces.append(piece)
    except (zlib.error, zstandard.ZstdError):
        raise InvalidRequestError(
            f"The body is not valid {coding}.", code="invalid_content_encoding"
        ) from None
    share.shrink(len(body))
    return b"".join(pieces)
