"""Bodies whose ``Content-Encoding`` is set, rightly or not.

Object stores answer with ``aws-chunked`` or ``UTF-8`` as the uploader left it, and some hosts
compress whatever they send. The bytes decide: a body that is not compressed is taken as it is.
"""

from __future__ import annotations

import zlib

from vora_core.errors import ImageRequestError
from vora_serve.gateway.images.data_url import too_many_bytes

_GZIP = b"\x1f\x8b"
_ZLIB_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


def undo_content_encoding(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body without its encodings, at most ``limit`` bytes.

    Args:
        body: as it was received.
        encoding: the header's value.
        limit: most bytes of the result.

    Raises:
        ImageRequestError: it is compressed, and broken.
        ImageTooLargeError: it expands to more than ``limit`` bytes.
    """
    for name in reversed([part.strip().lower() for part in encoding.split(b",")]):
        window = _ZLIB_WINDOW.get(name)
        if window is not None and _is_compressed(body, window):
            body = _inflate(body, window, limit)
    return body


def _is_compressed(body: bytes, window: int) -> bool:
    """By its first bytes: gzip's, or those of zlib's default window with their check."""
    if window == _ZLIB_WINDOW[b"gzip"]:
        return body.startswith(_GZIP)
    return body[:1] == b"\x78" and int.from_bytes(body[:2], "big") % 31 == 0


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    inflater = zlib.decompressobj(window)
    try:
        result = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise ImageRequestError("The image's host sent a broken compressed body.") from None
    if len(result) > limit:
        raise too_many_bytes(limit)
    if not inflater.eof:
        raise ImageRequestError("The image's host sent a broken compressed body.")
    return result
